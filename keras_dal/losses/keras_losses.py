"""Which of our losses a Keras loss is."""

import keras

from keras_dal.losses.sigmoid import SigmoidCrossEntropy
from keras_dal.losses.softmax import SoftmaxCrossEntropy
from keras_dal.losses.squared_error import SquaredError

_SUPPORTED = "MeanSquaredError, CategoricalCrossentropy, SparseCategoricalCrossentropy and BinaryCrossentropy"
_CLASSES = {
    keras.losses.MeanSquaredError: SquaredError,
    keras.losses.CategoricalCrossentropy: SoftmaxCrossEntropy,
    keras.losses.SparseCategoricalCrossentropy: SoftmaxCrossEntropy,
    keras.losses.BinaryCrossentropy: SigmoidCrossEntropy,
}


def resolve_loss(loss, activation=None):
    """Return the `Loss` for what a user hands to `model.compile(loss=...)`.

    Args:
        loss: a Keras loss, its class, its function or its string name.
        activation: what the model ends with, `"linear"`, `"softmax"` or `"sigmoid"`; None to skip that check.

    Returns:
        A `Loss`.

    Raises:
        ValueError: a loss outside the theory, options of it that change its minimum, or logits and `from_logits` that
            do not fit together.
    """
    given = loss
    if isinstance(loss, str) or (callable(loss) and not isinstance(loss, (keras.losses.Loss, type))):
        loss = _instance_of(loss)
    if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
        loss = loss()
    matches = [ours for theirs, ours in _CLASSES.items() if isinstance(loss, theirs)]
    if not matches:
        raise ValueError(f"The supported losses are {_SUPPORTED}. Received: loss={given!r}")
    config = loss.get_config()
    if config.get("label_smoothing"):
        raise ValueError(
            "With label smoothing the minimum of the cross-entropy is not 0 and the guarantee does not hold. Set "
            f"label_smoothing=0. Received: label_smoothing={config['label_smoothing']}"
        )
    if loss.reduction not in ("sum_over_batch_size", "mean"):
        raise ValueError(
            "The loss must be averaged over the samples: leave reduction at 'sum_over_batch_size'. "
            f"Received: reduction={loss.reduction!r}"
        )
    resolved = matches[0]()
    if activation is not None:
        expected = "linear" if config.get("from_logits", False) else resolved.activation
        if activation != expected:
            raise ValueError(
                f"The loss takes the outputs of a {expected!r} activation, and the model ends with another one. Set "
                f"from_logits={activation == 'linear'} or change the last activation. Received: "
                f"loss={type(loss).__name__}(from_logits={config.get('from_logits', False)}), "
                f"activation={activation!r}"
            )
    return resolved


def loss_of(model, activation, given=None):
    """Return the `Loss` that was given, or else the one the model was compiled with.

    Raises:
        ValueError: neither is there, or as in `resolve_loss`.
    """
    loss = getattr(model, "loss", None) if given is None else given
    if loss is None:
        raise ValueError(f"Compile the model or pass loss=. Received: model {model.name!r} without a loss")
    return resolve_loss(loss, activation)


def _instance_of(loss):
    """Return the loss object behind a name or a function, which is all `model.compile` may have been given."""
    try:
        function = keras.losses.get(loss)
    except ValueError as error:
        raise ValueError(f"The supported losses are {_SUPPORTED}. Received: loss={loss!r}") from error
    for theirs in _CLASSES:
        if isinstance(function, theirs) or getattr(theirs(), "fn", None) is function:
            return theirs()
    raise ValueError(f"The supported losses are {_SUPPORTED}. Received: loss={loss!r}")
