"""Which of our losses a Keras loss is."""

import inspect

import keras
import numpy as np

from keras_dal import _keras
from keras_dal.losses.base import REGISTERED

_AVERAGES = ("sum_over_batch_size", "mean")
_NEUTRAL = ("name", "dtype", "reduction", "from_logits")  # options that are no part of the loss, or asked for elsewhere


def resolve_loss(loss, activation=None):
    """Return the `Loss` for what a user hands to `model.compile(loss=...)`.

    Args:
        loss: a Keras loss, its class, its function or its string name; or one of these in a list or dict of length one.
        activation: what the model ends with, `"linear"`, `"softmax"` or `"sigmoid"`; None to skip that check.

    Returns:
        A `Loss`.

    Raises:
        ValueError: a loss outside the theory, one that computes something else than the Keras loss it is made from,
            options that change it, or logits and `from_logits` that do not fit together.
    """
    given, loss = loss, _instance(_alone(loss), loss)
    theirs = next((kind for kind in type(loss).__mro__ if kind in _kinds()), None)
    if theirs is None:
        raise _unsupported(given)
    config = _config(loss, theirs)
    _check_nothing_overridden(loss, theirs, config)
    if loss.reduction not in _AVERAGES:
        raise ValueError(
            "The loss must be averaged over the samples: leave reduction at 'sum_over_batch_size'. "
            f"Received: reduction={loss.reduction!r}"
        )
    ours = _kinds()[theirs]
    resolved = ours(**_options(config, theirs, ours))
    if activation is not None:
        _check_activation(activation, resolved, theirs, config.get("from_logits", False))
    return resolved


def loss_of(model, activation, given=None, num_outputs=None):
    """Return the `Loss` that was given, or else the one the model was compiled with.

    Args:
        model: a Keras model.
        activation: of its last layer.
        given: a loss as for `model.compile`, or None.
        num_outputs: of the model, checked where it is given.

    Raises:
        ValueError: neither is there, it is that of another output, or as in `resolve_loss`, or it needs more outputs.
    """
    loss = getattr(model, "loss", None) if given is None else given
    if loss is None:
        raise ValueError(
            "Compile the model with a loss; functions that take loss= can be given one instead. Received: model "
            f"{model.name!r} without a loss"
        )
    _check_names(loss, model)
    resolved = resolve_loss(loss, activation)
    if num_outputs is not None:
        resolved.check_outputs(num_outputs)
    return resolved


def _check_names(loss, model):
    """Raise a ValueError where a loss is given by a name that no output of the model is known by to Keras."""
    if not isinstance(loss, dict) or getattr(model, "outputs", None) is None:
        return  # only a call tells what a subclassed model returns
    output = getattr(model, "output", None)
    names = list(output) if isinstance(output, dict) else getattr(model, "output_names", None) or []
    if not loss.keys() <= set(names):
        raise ValueError(
            "No output of the model has the name that its loss is given by: give the loss alone. Received: "
            f"loss={loss!r}, and outputs named {names}"
        )


def clipped(values):
    """Return losses `(n,)` of probabilities as Keras computes them: it clips these at `keras.config.epsilon()`."""
    return np.minimum(values, -np.log(keras.config.epsilon()))


def _kinds():
    return {theirs: ours for ours in REGISTERED.values() for theirs in ours.keras_losses}


def _unsupported(given):
    names = ", ".join(kind.__name__ for kind in _kinds())
    return ValueError(f"The supported losses are {names}. Received: loss={given!r}")


def _alone(loss):
    """Return the loss of a model's only output."""
    while isinstance(loss, (list, tuple, dict)):
        if len(loss) != 1:
            raise ValueError(f"The model has one output and needs one loss. Received: {len(loss)} losses, {loss!r}")
        (loss,) = loss.values() if isinstance(loss, dict) else loss
    return loss


def _instance(loss, given):
    """Return a loss object: `model.compile` may have been given its class, its name or its function."""
    if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
        return loss()
    if isinstance(loss, keras.losses.Loss):
        return loss
    try:
        function = keras.losses.get(loss)
    except ValueError as error:
        raise _unsupported(given) from error
    for theirs in _kinds():
        if isinstance(function, theirs) or getattr(theirs(), "fn", None) is function is not None:
            return theirs()
    raise _unsupported(given)


def _config(loss, theirs):
    """Return the options of a Keras loss by name; those of some, as Huber's delta, Keras leaves out of `get_config`."""
    _, options = _keras.loss_function(loss)
    taken = inspect.signature(theirs).parameters
    return {name: value for name, value in options.items() if name in taken} | theirs.get_config(loss)


class _Plain:
    """What every class has: a subclass with more may compute something else."""


def _check_nothing_overridden(loss, theirs, config):
    """Raise a ValueError unless a loss does what the Keras loss that it inherits from does."""
    between = type(loss).__mro__[: type(loss).__mro__.index(theirs)]
    own = [name for kind in between for name in vars(kind) if name not in vars(_Plain)]
    own += [name for name in vars(loss) if callable(inspect.getattr_static(theirs, name, None))]
    if _keras.loss_function(loss) != _keras.loss_function(theirs.from_config(config)):
        own.append("fn")  # or what it is called with
    if own:
        raise ValueError(
            f"A loss of your own is not taken for keras.losses.{theirs.__name__}: it may compute something else. Use "
            f"{theirs.__name__} itself. Received: {type(loss).__name__}, which overrides {', '.join(sorted(set(own)))}"
        )


def _options(config, theirs, ours):
    """Return the options of a Keras loss that ours takes; raise a ValueError for others that it was given."""
    usual = _config(theirs(), theirs)
    changed = {name: value for name, value in config.items() if name not in _NEUTRAL and value != usual.get(name)}
    if unknown := [f"{name}={value!r}" for name, value in changed.items() if name not in ours.options]:
        raise ValueError(
            f"These options change what {theirs.__name__} computes, in a way that is not covered: leave them at their "
            f"defaults. Received: {', '.join(unknown)}"
        )
    return changed


def _check_activation(activation, resolved, theirs, from_logits):
    expected = "linear" if from_logits else resolved.activation
    if activation == expected:
        return
    helps = resolved.activation != "linear" and activation in ("linear", resolved.activation)
    advice = f"Set from_logits={activation == 'linear'}" if helps else "Take another loss"
    options = f"(from_logits={from_logits})" if resolved.activation != "linear" else ""
    raise ValueError(
        f"The loss takes the outputs of a {expected!r} activation, and the model ends with another one. {advice}, or "
        f"change the last activation. Received: loss={theirs.__name__}{options}, activation={activation!r}"
    )
