"""Giving a model a gated head, sized so that the labels of its training samples are in the column space."""

import math
from typing import Any, Literal

import keras
import numpy as np

from keras_dal.features.batches import feature_batches, first_inputs
from keras_dal.features.tracing import evaluate, sample_inputs
from keras_dal.losses import resolve_loss
from keras_dal.models.cloning import assign_variables, copy_with_replacement
from keras_dal.models.gated_layers import GatedBranch, GatedDense
from keras_dal.models.structure import find_structure

OVERSAMPLE = 4.0
_PLACES = ("beside", "before")


def add_gated_head(
    model: Any,
    x: Any = None,
    *,
    num_samples: int | None = None,
    place: Literal["beside", "before"] = "beside",
    gates: Literal["random", "learned"] = "random",
    sharpness: float = 10.0,
    oversample: float = OVERSAMPLE,
    loss: Any = None,
    seed: int | None = None,
    batch_size: int = 256,
    verbose: bool = True,
) -> Any:
    """Return a copy of a model with a gated head that can reach every labelling of the training samples.

    Beside the head, a mixture of linear maps adds nothing at first: the copy computes what the model does. It has
    `K = ceil(oversample n / (m + 1))` gates: as many parameters for each output as there are samples, times
    `oversample`. Before the head, as in the paper, gated units and the last layer start anew. Their number is
    `H = max(ceil(oversample n C' / (m + 1)), C')`, with `C' = C - 1` for softmax and C otherwise: as many parameters
    as labels, and as many units as free outputs, since the rows of one sample span at most H directions.

    Args:
        model: a built Keras model that `find_structure` understands; it is left as it is.
        x: training inputs, or a dataset, to which random gates are adapted in one pass. Learned gates are not: while
            exploring, the features move away from what they were.
        num_samples: n, where x is not given, or not all of it.
        place: `"beside"` or `"before"` the last layer.
        gates: `"random"`, or before the last layer also `"learned"`, as in `GatedDense`.
        sharpness: as in `GatedDense`.
        oversample: parameters over labels, at least 1; with more, `converge` disturbs test images less.
        loss: as for `model.compile`; the compiled one by default. Softmax needs one output less before the last layer.
        seed: integer for the random numbers.
        batch_size: samples per evaluation of the features.
        verbose: whether to print what was added.

    Returns:
        A model of the same kind, compiled as the model was. A subclassed one is rebuilt with a plain head by
        `load_model`, so save its weights instead.

    Raises:
        ValueError: a model without a linear head, or with a gated one, or bad arguments.
    """
    _check(x, num_samples, place, gates, oversample)
    samples = None if x is None else first_inputs(x)
    structure = find_structure(model, samples)
    head = structure.layer
    if structure.gated_layers:
        raise ValueError(f"The model has a gated head already. Received: layer {head.name!r} ({type(head).__name__})")
    features = None
    if x is not None:
        features = np.concatenate([batch[0] for batch in feature_batches(structure, x, batch_size=batch_size)])
    n = len(features) if num_samples is None and features is not None else num_samples or 0
    options = {"sharpness": sharpness, "seed": seed, "dtype": head.dtype_policy}
    if place == "beside":
        count = num_gates(n, structure.num_features, oversample)
        replacement = _beside(head, structure.num_features, features, count, options)
    else:
        outputs = structure.num_outputs - _is_softmax(model, loss, structure.activation)
        count = max(math.ceil(oversample * n * outputs / (structure.num_features + 1)), outputs)
        replacement = _before(head, structure.num_features, features, count, {"gates": gates, **options})
    inputs = sample_inputs(model, samples)
    copy = copy_with_replacement(model, head, replacement, build=lambda new: new(inputs, training=False))
    if place == "beside":
        _check_outputs(structure, copy, replacement, inputs)
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
    if verbose:
        print(_message(model, copy, count, place, head, n), flush=True)
    return copy


def num_gates(num_samples, num_features, oversample=OVERSAMPLE):
    """Return how many gates beside the head give each output `oversample` parameters per sample."""
    return math.ceil(oversample * num_samples / (num_features + 1))


def _check(x, num_samples, place, gates, oversample):
    if x is None and num_samples is None:
        raise ValueError("Pass the training inputs x, or num_samples. Received: x=None, num_samples=None")
    if num_samples is not None and not (isinstance(num_samples, (int, np.integer)) and num_samples > 0):
        raise ValueError(f"num_samples must be a positive integer. Received: num_samples={num_samples!r}")
    if place not in _PLACES:
        raise ValueError(f"place must be one of {_PLACES}. Received: place={place!r}")
    if place == "beside" and gates != "random":
        raise ValueError(
            f"Beside the last layer gates are random; learned ones go before it. Received: gates={gates!r}"
        )
    if not oversample >= 1:
        raise ValueError(f"oversample must be at least 1. Received: oversample={oversample!r}")


def _is_softmax(model, loss, activation):
    given = loss or getattr(model, "loss", None)
    return activation == "softmax" if given is None else resolve_loss(given, activation).activation == "softmax"


def _beside(head, width, features, num_gates, options):
    branch = GatedBranch(head, num_gates, name=head.name, **options)
    branch.build((None, width))
    assign_variables(head, branch.dense)
    if features is not None:
        branch.adapt(features)
    return branch


def _before(head, width, features, units, options):
    gated = GatedDense(units, name="gated", **options)
    if features is not None and gated.gates == "random":
        gated.adapt(features)
    return keras.Sequential(
        [keras.Input((width,), dtype=head.compute_dtype), gated, type(head).from_config(head.get_config())],
        name=f"gated_{head.name}",
    )


def _check_outputs(structure, copy, branch, inputs):
    """Raises if a layer has a state that its configuration and its variables do not carry."""
    before = evaluate(structure.model, structure.layer, inputs)[1]
    after = evaluate(copy, branch, inputs)[1]
    if not np.allclose(before, after, rtol=1e-4, atol=1e-5):
        raise ValueError(
            "The copy of the model computes something else: some layer is not given by its configuration and its "
            f"variables. Received: outputs that differ by {np.abs(before - after).max()}"
        )


def _message(model, copy, count, place, head, n):
    trainable = _count(copy.trainable_variables) - _count(model.trainable_variables)
    fixed = _count(copy.non_trainable_variables) - _count(model.non_trainable_variables)
    kind = "gates" if place == "beside" else "gated units"
    return (
        f"Gated head: {count:,} {kind} {place} {head.name!r} for {n:,} samples, {trainable:,} trainable and {fixed:,} "
        "fixed parameters more."
    )


def _count(variables):
    return sum(math.prod(variable.shape) for variable in variables)
