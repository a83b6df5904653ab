"""The three losses the theory covers, as plain NumPy functions of logits."""

import abc

import keras
import numpy as np
from scipy import special


class Loss(abc.ABC):
    """A loss `l(logits, targets)` that is convex in the logits.

    `targets` is the matrix Y_l of the data-architecture alignment condition, float64 of shape `(n, C)`: the labels
    themselves for the squared error, the one-hot matrix for softmax and `2 y - 1` for sigmoid cross-entropy
    (Kawaguchi, Zhang and Deng, 2022).
    """

    name: str
    activation: str  # what turns the logits into the predictions that Keras' loss takes

    @abc.abstractmethod
    def targets(self, y, num_outputs):
        """Return Y_l, float64 of shape `(n, num_outputs)`, for labels as Keras takes them.

        Raises:
            ValueError: labels that are empty, out of range, not finite or of the wrong shape.
        """

    @abc.abstractmethod
    def curvature(self, num_outputs):
        """Return the largest second derivative of one sample's loss in its logits."""

    @abc.abstractmethod
    def values(self, logits, targets):
        """Return the loss of every sample, shape `(n,)`, for logits and targets of shape `(n, C)`."""

    @abc.abstractmethod
    def gradient(self, logits, targets):
        """Return d values / d logits, shape `(n, C)`."""

    @abc.abstractmethod
    def margins(self, logits, targets):
        """Return by how much every sample is on its right side, shape `(n,)`; None where there are no sides."""

    @abc.abstractmethod
    def at_margin(self, margin, num_outputs):
        """Return the largest loss a sample of this margin can have; None where margins do not bound the loss."""

    def __repr__(self):
        return f"<{self.name}>"


class SquaredError(Loss):
    """`mean_j (f_j - y_j)^2`, the average over outputs as in `keras.losses.MeanSquaredError`."""

    name = "squared error"
    activation = "linear"

    def targets(self, y, num_outputs):
        return _matrix(y, num_outputs)

    def curvature(self, num_outputs):
        return 2.0 / num_outputs

    def values(self, logits, targets):
        return np.mean((logits - targets) ** 2, axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return (logits - targets) * (2.0 / targets.shape[1])

    def margins(self, logits, targets):
        return None

    def at_margin(self, margin, num_outputs):
        return None


class SoftmaxCrossEntropy(Loss):
    """`logsumexp(f) - f_y`, as in `keras.losses.(Sparse)CategoricalCrossentropy`."""

    name = "softmax cross-entropy"
    activation = "softmax"

    def targets(self, y, num_outputs):
        y = np.asarray(y)
        if y.size and (y.ndim == 1 or (y.ndim == 2 and y.shape[1] == 1 < num_outputs)):
            labels = _integers(y.reshape(-1), num_outputs)
            return np.eye(num_outputs)[labels]
        y = _matrix(y, num_outputs)
        if not (np.isin(y, (0.0, 1.0)).all() and (y.sum(axis=1) == 1.0).all()):
            wrong = y[~((np.isin(y, (0.0, 1.0)).all(axis=1)) & (y.sum(axis=1) == 1.0))][0]
            raise ValueError(
                "Softmax cross-entropy needs integer or one-hot labels: with smoothed or mixed labels its minimum is "
                f"not 0 and the guarantee does not hold. Pass hard labels. Received: a row y={wrong}"
            )
        return y

    def curvature(self, num_outputs):
        return 0.5

    def values(self, logits, targets):
        below = logits - np.max(logits, axis=1, keepdims=True)  # at most 0, so that float32 loses nothing small
        total = np.sum(np.exp(below), axis=1, dtype=np.float64)
        return np.log(total) - np.sum(below * targets, axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return special.softmax(logits, axis=1) - targets

    def margins(self, logits, targets):
        right = np.sum(logits * targets, axis=1)
        return right - np.max(np.where(targets == 1.0, -np.inf, logits), axis=1)

    def at_margin(self, margin, num_outputs):
        return np.logaddexp(0.0, np.log(num_outputs - 1.0) - margin)


class SigmoidCrossEntropy(Loss):
    """`mean_j log(1 + exp(-t_j f_j))` with `t = 2 y - 1`, as in `keras.losses.BinaryCrossentropy`."""

    name = "sigmoid cross-entropy"
    activation = "sigmoid"

    def targets(self, y, num_outputs):
        y = _matrix(y, num_outputs)
        if not np.isin(y, (0.0, 1.0)).all():
            raise ValueError(
                "Sigmoid cross-entropy needs labels 0 or 1: with others its minimum is not 0 and the guarantee does "
                f"not hold. Pass hard labels. Received: y with the value {y[~np.isin(y, (0.0, 1.0))][0]}"
            )
        return 2.0 * y - 1.0

    def curvature(self, num_outputs):
        return 0.25 / num_outputs

    def values(self, logits, targets):
        return np.mean(np.logaddexp(0.0, -targets * logits), axis=1, dtype=np.float64)

    def gradient(self, logits, targets):
        return -targets * special.expit(-targets * logits) / targets.shape[1]

    def margins(self, logits, targets):
        return np.min(targets * logits, axis=1)

    def at_margin(self, margin, num_outputs):
        return np.logaddexp(0.0, -margin)


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


def _matrix(y, num_outputs):
    y = np.asarray(y, dtype=np.float64)
    if y.ndim == 1 and num_outputs == 1:
        y = y[:, None]
    if y.size == 0:
        raise ValueError(f"There are no labels. Pass at least one sample. Received: y of shape {y.shape}")
    if y.ndim != 2 or y.shape[1] != num_outputs:
        raise ValueError(
            f"The labels must have one column per output, shape (n, {num_outputs}). Received: y of shape {y.shape}"
        )
    if not np.isfinite(y).all():
        raise ValueError(f"The labels must be finite. Received: y with the value {y[~np.isfinite(y)][0]}")
    return y


def _integers(y, num_outputs):
    if not np.issubdtype(y.dtype, np.number) and y.dtype != bool:
        raise ValueError(f"Labels must be numbers. Received: y of dtype {y.dtype}")
    if not np.isfinite(y).all() or (y != np.floor(y)).any() or y.min() < 0 or y.max() >= num_outputs:
        raise ValueError(
            f"Integer labels must lie in 0..{num_outputs - 1}, one class per model output. "
            f"Received: y from {y.min()} to {y.max()}"
        )
    return y.astype(np.int64)
