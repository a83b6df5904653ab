"""What `evaluate` hands to a model and its loss: of a model with its own `test_step`, what that makes of a batch."""

import functools
import inspect
import types

import keras
from keras import tree

from keras_dal import _backend, _keras
from keras_dal.features.tracing import recorded, replaced

_LOSS_ARGUMENTS = ("x", "y", "y_pred", "sample_weight")  # of `compute_loss`, in the order in which Keras passes them


def evaluated(model, batch):
    """Return inputs, labels and weights of a batch of `fit`, eager or traced, as the loss of an evaluation sees them.

    A `train_step` that prepares its images has a `test_step` that does so too, without changing them at random.

    Args:
        model: a built Keras model.
        batch: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Raises:
        ValueError: its `test_step` calls the model several times, and for none of them the loss.
    """
    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    if not _keras.has_own_test_step(model):
        return x, y, weight
    try:
        calls, losses = _seen_in_step(model, batch)
    except Exception:  # of a step that takes `x, y = data`, as an evaluation without weights may
        if weight is None:
            raise
        calls, losses = _seen_in_step(model, (x, y))
    if not calls:  # the step calls layers, not the model
        return x, y, weight
    if losses:
        y, outputs, own = losses[-1]
        weight = weight if own is None else own  # class weights are in the batch, and an evaluation may leave them out
        calls = [call for call in calls if tree.flatten(call.outputs)[0] is outputs] or calls
    if len(calls) > 1:
        raise ValueError(
            "It is not known which inputs the labels belong to: let test_step call the model once, or hand its outputs "
            f"to compute_loss. Received: model {model.name!r}, called {len(calls)} times in test_step"
        )
    return calls[0].inputs, y, weight


def _seen_in_step(model, batch):
    """Return each call of the model, and what each loss was given."""
    calls, losses, compute_loss = [], [], model.compute_loss

    @functools.wraps(compute_loss)
    def loss(*args, **kwargs):
        given = loss_arguments(compute_loss, *args, **kwargs)
        if given is not None:
            losses.append((given.y, tree.flatten(given.y_pred)[0], given.sample_weight))
        return compute_loss(*args, **kwargs)

    with recorded([model], calls.append), replaced(model, "compute_loss", loss):
        _backend.test_step(model, batch)
    return calls, losses


def loss_arguments(compute_loss, *args, **kwargs):
    """Return `x`, `y`, `y_pred` and `sample_weight` of a call of `compute_loss`, by these names; None if unknown.

    A method of the user's own may call them otherwise, or take some of them: then the order in which Keras hands them
    over says what is what.
    """
    try:
        by_name = inspect.signature(compute_loss).bind(*args, **kwargs).arguments
    except TypeError:  # the call will say so
        return None
    by_order = dict(zip(_LOSS_ARGUMENTS, args, strict=False)) | kwargs
    for given in (by_name, by_order):
        if {"y", "y_pred"} <= given.keys():
            return types.SimpleNamespace(**{name: given.get(name) for name in _LOSS_ARGUMENTS})
    return None
