"""Giving a model a gated head, sized so that the labels of its training samples are in the column space."""

import math
import os
from typing import Any, Literal

import keras
import numpy as np

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.features.batches import BATCH_SIZE, first_inputs
from keras_dal.features.cache import cached_features
from keras_dal.features.inputs import sample_inputs
from keras_dal.features.samples import check_bytes, check_count, check_seed
from keras_dal.features.tracing import evaluate, recorded_calls
from keras_dal.features.variables import num_entries
from keras_dal.losses import loss_of
from keras_dal.models.cloning import assign_variables, compile_alike, copy_with_replacement
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import GatedBranch, GatedDense, check_sharpness
from keras_dal.models.linear_layers import as_dense
from keras_dal.models.structure import structure_of
from keras_dal.output.warning import say, warn

_OVERSAMPLE = 4.0
_PLACES = ("beside", "before")


def add_gated_head(
    model: Any,
    x: Any = None,
    *,
    num_samples: int | None = None,
    place: Literal["beside", "before"] = "beside",
    gates: Literal["random", "learned"] = "random",
    sharpness: float = 10.0,
    oversample: float = _OVERSAMPLE,
    loss: Any = None,
    cache: str | os.PathLike[str] | None = None,
    max_bytes: int = MAX_BYTES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    verbose: int = 1,
) -> Any:
    """Return a copy of a model with a gated head that can reach every labelling of the training samples.

    Beside the head, a mixture of linear maps adds nothing at first: the copy computes what the model does. It has
    `K = ceil(oversample n / (r + 1))` gates, with r of the m features independent where x is given, and m otherwise: as
    many free parameters for each output as there are samples, times `oversample`. Before the head, as in the paper,
    gated units and the last layer start anew. Their number is `H = max(ceil(oversample n C' / (r + 1)), C')`, with
    `C' = C - 1` for softmax and C otherwise: as many parameters as labels, and as many units as free outputs, since the
    rows of one sample span at most H directions.

    Args:
        model: a Keras model that `find_structure` understands; it is left as it is. If a layer that has weights
            cannot be copied with all its state (for want of a configuration, say), the copy shares all layers before
            the head with the model, and a warning says so: training one then trains both.
        x: training inputs, or a dataset, to which random gates are adapted in one pass. Learned gates are not: while
            exploring, the features move away from what they were.
        num_samples: n, where x is not given, or not all of it.
        place: `"beside"` or `"before"` the last layer.
        gates: `"random"`, or before the last layer also `"learned"`, as in `GatedDense`.
        sharpness: as in `GatedDense`.
        oversample: parameters over labels, at least 1; with more, `converge` disturbs test images less.
        loss: as for `model.compile`; the compiled one by default. Softmax needs one output less before the last layer.
        cache: directory in which features of arrays are kept and found again.
        max_bytes: memory for features, which are memory-mapped beyond it.
        batch_size: samples in one evaluation of arrays.
        seed: integer for the random numbers.
        verbose: 0 for silence; else a line on what was added.

    Returns:
        A model of the same kind, compiled as the model was, with an optimizer and metrics of its own. A subclassed
        one is rebuilt with a plain head by `load_model`, so save its weights instead.

    Raises:
        ValueError: a model without a linear head, or with a gated one, features that float32 does not hold, or bad
            arguments.
    """
    _check(x, num_samples, place, gates, oversample)
    check_sharpness(sharpness)
    check_bytes("max_bytes", max_bytes)
    check_seed(seed)
    samples = None if x is None else first_inputs(x)
    structure = find_structure(model, samples)
    head = structure.layer
    if structure.place is not None:
        raise ValueError(f"The model has a gated head already. Received: layer {head.name!r} ({type(head).__name__})")
    kept = {"batch_size": batch_size, "directory": cache, "max_bytes": max_bytes}
    found = None if x is None else cached_features(structure, x, **kept)
    features = None if found is None else found.features
    n = len(features) if num_samples is None and features is not None else num_samples or 0
    directions = structure.num_features if found is None else found.num_independent(structure)
    options = {"sharpness": sharpness, "seed": seed}
    if place == "beside":
        count = num_gates(n, directions, oversample)
        copy = with_gates_beside(structure, count, samples, features, **options).model
    else:
        outputs = _num_seen(model, loss, structure)
        count = max(num_gates(n * outputs, directions, oversample), outputs)
        replacement = _before(head, structure.num_features, features, count, {"gates": gates, **options})
        copy = _copy_with(structure, replacement, sample_inputs(model, samples))
    if verbose:
        say(what_was_added(structure, copy, count, place, n))
    return copy


def with_gates_beside(structure, count, samples=None, features=None, **options):
    """Return the `Structure` of a copy of a model that computes the same and has gates beside its head.

    Args:
        structure: the `Structure` of the model, whose head is plain.
        count: how many gates.
        samples: a few inputs, or None.
        features: `(n, m)`, to which the gates are adapted, or None.
        options: of `GatedBranch`.
    """
    inputs = sample_inputs(structure.model, samples)
    branch = _beside(structure.layer, structure.num_features, features, count, options)
    copy = _copy_with(structure, branch, inputs)
    _check_outputs(structure, copy, branch, inputs)
    sizes = structure.num_features, structure.num_outputs
    return structure_of(copy, branch, branch, structure.activation, *sizes, structure.adds_losses)


def _copy_with(structure, replacement, inputs):
    """Return a copy of a model with another head, compiled alike."""
    model, head = structure.model, structure.layer
    replacement = _for_positions(head, _input_shape(model, head, inputs), replacement)
    copy, why = copy_with_replacement(model, head, replacement, inputs)
    compile_alike(model, copy)
    if why is not None:
        warn(
            "The copy has the model's own layers before the head, because the state of some cannot be copied: training "
            f"one trains both. Received: model {model.name!r}, and {why}"
        )
    return copy


def num_gates(num_samples, directions, oversample=_OVERSAMPLE):
    """Return how many gates give each output `oversample` free parameters per sample, where a gate has some directions.

    Args:
        num_samples: n.
        directions: independent columns of the features.
        oversample: the ratio.
    """
    return math.ceil(oversample * num_samples / (directions + 1))


def num_gated_parameters(train, structure):
    """Return how many linear parameters the gates bring that a head needs beside it for these `CachedFeatures`."""
    count = num_gates(len(train), train.num_independent(structure))
    return count * (structure.num_features + 1) * structure.num_outputs


def _check(x, num_samples, place, gates, oversample):
    if x is None and num_samples is None:
        raise ValueError("Pass the training inputs x, or num_samples. Received: x=None, num_samples=None")
    if num_samples is not None:
        check_count("num_samples", num_samples)
    if place not in _PLACES:
        raise ValueError(f"place must be one of {_PLACES}. Received: place={place!r}")
    if place == "beside" and gates != "random":
        raise ValueError(
            f"Beside the last layer gates are random; learned ones go before it. Received: gates={gates!r}"
        )
    if not 1 <= oversample < np.inf:
        raise ValueError(f"oversample must be a finite number of at least 1. Received: oversample={oversample!r}")


def _num_seen(model, loss, structure):
    """Return how many outputs the loss sees: without one all, but for the constants that no softmax sees."""
    if loss is None and getattr(model, "loss", None) is None:
        return structure.num_outputs - (structure.activation == "softmax")
    return loss_of(model, structure.activation, loss).num_seen(structure.num_outputs)


def _beside(head, width, features, num_gates, options):
    dense = as_dense(head, width)
    branch = GatedBranch(dense, num_gates, name=head.name, dtype=head.dtype_policy, **options)
    branch.build((None, width))
    assign_variables(dense, branch.dense)
    branch.trainable = bool(head.trainable_variables)
    if features is not None:
        branch.adapt(features)
    return branch


def _before(head, width, features, units, options):
    gated = GatedDense(units, name="gated", dtype=head.dtype_policy, **options)
    if features is not None and gated.gates == "random":
        gated.adapt(features)
    dense = as_dense(head, width)
    inputs = keras.Input((width,), dtype=head.compute_dtype)
    both = keras.Sequential([inputs, gated, dense.from_config(dense.get_config())], name=head.name)  # of an output
    both.trainable = bool(head.trainable_variables)
    return both


def _input_shape(model, head, inputs):
    calls, _ = recorded_calls(model, inputs)
    return next(tuple(call.inputs.shape) for call in calls if call.layer is head)


def _for_positions(head, shape, replacement):
    """Return a replacement that takes what the head does: averaged over positions, at each of which the logits are."""
    if len(shape) == 2:
        return replacement
    dimensions, first = len(shape) - 2, getattr(head, "data_format", "channels_last") == "channels_first"
    size, ones = shape[2:] if first else shape[1:-1], (1,) * dimensions
    channels = head.kernel.shape[-1]
    kept = {"dtype": head.dtype_policy}
    order = {"data_format": "channels_first" if first else "channels_last", **kept}
    pooling = getattr(keras.layers, f"GlobalAveragePooling{dimensions}D")(**order)
    spread = getattr(keras.layers, f"UpSampling{dimensions}D")
    return keras.Sequential(
        [
            keras.Input(
                (shape[1], *(None,) * dimensions) if first else (*(None,) * dimensions, shape[-1]),
                dtype=head.compute_dtype,
            ),
            pooling,
            replacement,
            keras.layers.Reshape((channels, *ones) if first else (*ones, channels), **kept),
            spread(size[0], **kept) if dimensions == 1 else spread(size, **order),
        ],
        name=f"pooled_{head.name}",
    )


def _check_outputs(structure, copy, branch, inputs):
    before = evaluate(structure.model, structure.layer, inputs)[1]
    after = evaluate(copy, branch, inputs)[1]
    other = ~np.isclose(before, after, rtol=1e-4, atol=1e-5, equal_nan=True)
    if other.any():
        raise ValueError(
            "The copy of the model computes something else: what follows the last layer is not given by its "
            f"configuration. Received: outputs that differ by {np.abs(before - after)[other].max()}"
        )


def what_was_added(structure, copy, count, place, num_samples):
    """Return what a copy of a model has more than the model, for the user.

    Args:
        structure: the `Structure` of the model.
        copy: the copy.
        count: how many gates or gated units.
        place: of `add_gated_head`.
        num_samples: for which they were counted.
    """
    model = structure.model
    trainable = num_entries(copy.trainable_variables) - num_entries(model.trainable_variables)
    fixed = num_entries(copy.non_trainable_variables) - num_entries(model.non_trainable_variables)
    kind = "gates" if place == "beside" else "gated units"
    return (
        f"gated head of {count:,} {kind} {place} {structure.layer.name!r} for {num_samples:,} samples, "
        f"{trainable:,} trainable and {fixed:,} fixed parameters more."
    )
