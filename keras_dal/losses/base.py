"""What a loss is: everything that the package asks about one, as functions of logits and targets."""

import abc
import math
from typing import Any, ClassVar

import numpy as np
from keras import ops

from keras_dal._backend import arrays

ALIKE = 1e-4  # relative difference of factors that counts as none

REGISTERED: dict[str, type["Loss"]] = {}

_OF_SIDES = ("margins", "at_margin", "sides", "confidence")
_OF_TENSORS = ("values", "gradient", "hessian", "margins")


def register(kind):
    """Make a `Loss` known by its name and by the Keras losses it stands for; a class decorator.

    Raises:
        TypeError: a loss with sides that does not say all of them.
    """
    left_out = [name for name in _OF_SIDES if kind.has_sides and _is_same(kind, Loss, name)]
    if left_out:
        raise TypeError(
            "A loss with sides has methods of its own for all that is said of them: write these, too. Received: "
            f"{kind.__name__} without {', '.join(left_out)}"
        )
    REGISTERED[kind.name] = kind
    return kind


def _is_same(kind, base, name):
    return getattr(kind, name) is getattr(base, name)


class Loss(abc.ABC):
    """A loss `l(logits, targets)` that is convex in the logits; adding one is one registered subclass in one file.

    Without sides, as here, samples have no margins and nothing is ever separated; see `SoftmaxCrossEntropy` for a loss
    with them. NumPy throughout, but for `step_targets` and for what takes `tensors`.

    Attributes:
        name: in reports.
        activation: what turns the logits into the predictions that Keras' loss takes.
        keras_losses: the Keras classes it stands for, to be made without arguments too.
        options: arguments of these that `__init__` takes; others must have their default.
        shift_invariant: whether constants per sample, added to all its logits, change nothing.
        quadratic: whether it is its infimum plus half its `curvature` times the squared distance of the logits from the
            targets, so that least squares minimize it.
        is_likelihood: whether its values are negative log-likelihoods, per output, of the labels as they are.
        has_sides: whether samples with hard labels have right sides, see `sides`.
        has_entropy: whether for these minus the conjugate is an entropy, `sides(targets).entropy`, as of the cross-
            entropies; lower bounds of the others are of `conjugate`.
        tensors: whether `values`, `gradient`, `hessian` and `margins` take tensors of the backend, too: by the
            functions of `_backend.arrays`. Then solvers keep logits on an accelerator, if there is one. A subclass that
            changes one of these says so for itself.
        least_outputs: with fewer the loss is constant.
    """

    name: ClassVar[str]
    activation: ClassVar[str]
    keras_losses: ClassVar[tuple[Any, ...]]
    options: ClassVar[tuple[str, ...]] = ()
    shift_invariant: ClassVar[bool] = False
    quadratic: ClassVar[bool] = False
    is_likelihood: ClassVar[bool] = False
    has_sides: ClassVar[bool] = False
    has_entropy: ClassVar[bool] = False
    tensors: ClassVar[bool] = False
    least_outputs: ClassVar[int] = 1

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        said = next(kind for kind in cls.__mro__ if "tensors" in vars(kind))
        if not all(_is_same(cls, said, name) for name in _OF_TENSORS):
            cls.tensors = False  # what was said of a method need not hold for another one

    def check_outputs(self, num_outputs):
        """Raise a ValueError where the loss of so many outputs is constant."""
        if num_outputs < self.least_outputs:
            raise ValueError(
                "This loss of one output is constant: use BinaryCrossentropy, or an output for each class. Received: "
                f"{self.name} and a model with {num_outputs} output"
            )

    @abc.abstractmethod
    def targets(self, y, num_outputs):
        """Return what the other methods take for labels as Keras takes them, float64 of shape `(n, num_outputs)`.

        Raises:
            ValueError: labels that are empty, out of range, not finite or of the wrong shape.
        """

    @abc.abstractmethod
    def step_targets(self, y, num_outputs):
        """Return the label matrix of a batch in the training step, and which rows come from labels.

        Args:
            y: tensor of labels as Keras takes them, in the dtype of the result.
            num_outputs: the number C of outputs.

        Returns:
            Tensors `label_matrix(targets(y))`, `(k, C)`, and of booleans `(k,)`, false where `targets` would raise.
        """

    def label_matrix(self, targets):
        """Return Y_l of the alignment condition (Kawaguchi, Zhang and Deng, 2022), `(n, C)`."""
        return targets

    @abc.abstractmethod
    def values(self, logits, targets):
        """Return the loss of every sample, shape `(n,)`, for logits and targets of shape `(n, C)`."""

    @abc.abstractmethod
    def gradient(self, logits, targets):
        """Return d values / d logits, shape `(n, C)`.

        Rounding may change it as a last digit of the logits does, by a few digits of itself and, where labels are not
        hard, of the targets: proved gaps count that much.
        """

    @abc.abstractmethod
    def hessian(self, logits, targets) -> Any:
        """Return a function of changes `(b, C)` and a slice of the samples that multiplies by d gradient / d logits."""

    @abc.abstractmethod
    def curvature(self, num_outputs) -> Any:
        """Return the largest second derivative of one sample's loss in its logits, None where there is none."""

    def mean_curvature(self, logits, targets):
        """Return every sample's mean second derivative in a logit, shape `(n,)`, or an unbiased estimate of it.

        By one product with a random sign for each logit (Hutchinson, 1990), exact where logits do not mix.
        """
        signs = np.random.default_rng(0).choice((-1.0, 1.0), logits.shape)
        return np.mean(signs * self.hessian(logits, targets)(signs, slice(None)), axis=1)

    @abc.abstractmethod
    def infimum(self, targets):
        """Return the infimum of every sample's loss over its logits, shape `(n,)`."""

    def floor(self, targets, weights):
        """Return the mean of the samples' own infima: the least loss of any model."""
        return float(np.mean(weights * self.infimum(targets)))

    def of_squares(self, squares, targets, weights):
        """Return the mean of a `quadratic` loss whose squared distances, times the weights, add up to `squares`."""
        return self.floor(targets, weights) + self.curvature(targets.shape[1]) / 2 * squares / len(targets)

    def unit(self, targets, weights):
        """Return the unit in which differences of mean losses are small or large: the mean sample weight.

        Args:
            targets: of a loss, or `LazyTargets`, `(n, C)`.
            weights: of the samples, `(n,)`.
        """
        return float(np.mean(weights))

    @abc.abstractmethod
    def scales(self, targets) -> Any:
        """Return the factors s_i with which `s_i Y_l` attains the infimum of sample i, shape `(n,)`.

        Infinite where it is approached along Y_l, or attained by all large factors, nan where no factor does, zero
        where all do: a label that favours nothing.
        """

    @abc.abstractmethod
    def conjugate(self, slopes, targets):
        """Return `sup_f <slopes_i, f> - l(f, targets_i)` for every sample, shape `(n,)`, infinite where it is."""

    def growth(self, targets):
        """Return factors c_i such that no loss is below c_i times the norm of its logits, shape `(n,)`.

        Zero where none is known; without constants per sample where these change nothing.
        """
        return np.zeros(len(targets))

    def are_hard(self, targets):
        """Return whether positive margins prove that the infimum is 0, because factors of the logits approach it."""
        return self.has_sides and bool(np.isposinf(self.scales(targets)).all())

    def num_seen(self, num_outputs):
        """Return how many directions of a sample's C logits change anything."""
        return num_outputs - self.shift_invariant

    def seen(self, rows):
        """Return rows `(n, C)` without constants per sample, where these change nothing."""
        return arrays.seen(rows, self.shift_invariant)

    def margins(self, logits, targets) -> Any:
        """Return by how much every sample is on its right side, shape `(n,)`; None where there are no sides.

        For soft labels that of the most probable classes, infinite where all are equally probable.
        """
        return None

    def at_margin(self, margin, num_outputs) -> Any:
        """Return the largest loss of a sample with a hard label and this margin; None where there are no sides."""
        return None

    def sides(self, targets) -> Any:
        """Return the right sides of samples with hard labels, as one of `losses.sides`; None where there are none."""
        return None

    def confidence(self, logits, targets) -> Any:
        """Return confidences and which predictions are right, flat; None where there are no probabilities."""
        return None

    def __repr__(self):
        return f"<{self.name}>"


def common_scale(scales):
    """Return the one factor s of all samples for which `Y_l in Col J` makes s Y_l optimal, None where there is none.

    Args:
        scales: of a loss, `(n,)`.
    """
    some = scales[scales != 0]
    if not len(some):
        return 1.0
    first = float(some[0])
    attained = np.isfinite(first) or len(some) == len(scales)  # what is only approached leaves no label where it is
    return first if attained and np.isclose(some, first, rtol=ALIKE).all() else None


def in_columns(y):
    """Return labels, an array or a tensor, without a third axis of size one, which Keras' losses leave out too."""
    return y[..., 0] if len(y.shape) == 3 and y.shape[2] == 1 else y


def _other_columns(y, num_outputs):
    return ValueError(
        f"The labels must have one column per output, shape (n, {num_outputs}). Received: y of shape {y.shape}"
    )


def rows_in_step(y, num_outputs):
    """Return labels of a training step, a tensor, as rows `(n, num_outputs)`.

    Raises:
        ValueError: rows of another length, which Keras' squared error may stretch.
    """
    if None not in y.shape[1:] and math.prod(y.shape[1:]) != num_outputs:
        raise _other_columns(y, num_outputs)
    return ops.reshape(y, (-1, num_outputs))


def checked_matrix(y, num_outputs):
    """Return labels with one column for each output, float64 of shape `(n, num_outputs)`.

    Args:
        y: labels `(n, num_outputs)`, also with a third axis of size one, or `(n,)` of one output.
        num_outputs: the number C of outputs.

    Raises:
        ValueError: no labels, another shape, or values that are not finite.
    """
    y = in_columns(np.asarray(y, dtype=np.float64))
    if y.ndim == 1 and num_outputs == 1:
        y = y[:, None]
    if y.size == 0:
        raise ValueError(f"There are no labels. Pass at least one sample. Received: y of shape {y.shape}")
    if y.ndim != 2 or y.shape[1] != num_outputs:
        raise _other_columns(y, num_outputs)
    if not np.isfinite(y).all():
        raise ValueError(f"The labels must be finite. Received: y with the value {y[~np.isfinite(y)][0]}")
    return y


def checked_classes(y, num_outputs):
    """Return labels that name a class each, int64 of shape `(n,)`.

    Args:
        y: array of classes `(n,)`, at least one, whatever the dtype of the numbers.
        num_outputs: C, how many classes there are.

    Raises:
        ValueError: labels that are no numbers, not whole, or no class among 0..C-1.
    """
    if not np.issubdtype(y.dtype, np.number) and y.dtype != bool:
        raise ValueError(f"Labels must be numbers. Received: y of dtype {y.dtype}")
    wrong = ~np.isfinite(y) | (y != np.floor(y)) | (y < 0) | (y >= num_outputs)
    if wrong.any():
        raise ValueError(
            f"Integer labels must lie in 0..{num_outputs - 1}, one class per model output. "
            f"Received: y from {y.min()} to {y.max()}, {np.sum(wrong)} of {len(y)} no such integers, as {y[wrong][0]}"
        )
    return y.astype(np.int64)
