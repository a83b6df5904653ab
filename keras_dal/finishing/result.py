"""What `converge` returns: a model, the path to it, its scale and its calibration."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from keras_dal import _keras
from keras_dal.analysis.assumptions import OF_ROUNDED, ROUNDED, TO_FLOAT32, clipped, clips_probabilities
from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.verdict import Verdict
from keras_dal.features.samples import check_positive
from keras_dal.features.tracing import held_dtype
from keras_dal.finishing.evaluation import Quality, least_scale, logits_of
from keras_dal.finishing.head_data import HeadData
from keras_dal.finishing.history import Point
from keras_dal.finishing.proof import Proof
from keras_dal.finishing.result_rows import WIDTH, rows_of
from keras_dal.finishing.stopping import Ending
from keras_dal.finishing.wrong_sides import contradicted, warn_of_wrong
from keras_dal.models.regularizers import penalty_at
from keras_dal.output.tables import NOT_PLAIN, as_html, as_text, at_least, at_most


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Result:
    """A model at one point of the path that `converge` took.

    Losses, margins and accuracies are those of the head in float64, on features as the model computes them. A penalty
    on theta_S is no part of them.

    Attributes:
        model: the Keras model, with the weights of `point`, at the scale its logits had before.
        structure: its `Structure`.
        loss_name: which loss.
        point: the point of the path that was kept.
        path: all its points; `choose` takes another one.
        loss: training loss of the model as it is.
        accuracy: its training accuracy, None for a loss of numbers.
        margin: its smallest training margin, None for a loss of numbers.
        scale: least power of two, which no dtype rounds, that brings the training loss to what was asked for when it
            multiplies theta_S; 1 where none does, or labels are soft.
        scaled_loss: training loss at that scale.
        floor: least training loss of any model: 0 for hard labels, the mean entropy of soft ones.
        tol: the training loss above `floor` that was asked for; None where it was a minimum or a separation.
        reached: whether what was asked for was: `scaled_loss` at most `floor + tol`, the minimum, or all samples right.
        before, after, scaled: `Quality` on the validation data of the model as it came, as it is, and at `scale`; None
            without validation data.
        left: indices of the training samples that are on their wrong side at `point`, those of weight 0 aside; usually
            none. Where their separation was asked for, moving these would have cost more than all others.
        penalty, scaled_penalty: that on theta_S as it is and at `scale`, which `model.evaluate` adds to the loss.
        penalized: whether the penalty, an L2 one, was minimized with the loss, as at the end of `fit` and by `finish`.
        stopped_by: what ended the path, an `Ending`, which says what each of them means.
        seconds: of the solver, without the passes for the features.
        gradient_steps: a proved number of Nesterov's accelerated gradient steps to the gap that was asked for, in the
            solver's coordinates: at the end of `fit` and by `finish` 1e-4 in the unit of the loss, by `converge` a
            hundredth of its `tol`; None where none is known.
    """

    model: Any = dataclasses.field(metadata=NOT_PLAIN)
    structure: Any = dataclasses.field(metadata=NOT_PLAIN)
    loss_name: str
    point: Point
    path: tuple[Point, ...]
    loss: float
    accuracy: float | None
    margin: float | None
    scale: float
    scaled_loss: float
    floor: float
    tol: float | None
    before: Quality | None
    after: Quality | None
    scaled: Quality | None
    left: np.ndarray
    penalty: float
    scaled_penalty: float
    penalized: bool
    stopped_by: Ending
    seconds: float
    gradient_steps: int | None
    _data: HeadData
    _run: "_Run"
    _theta: np.ndarray
    _proved_margin: float

    @property
    def reached(self) -> bool:
        if self.tol is not None:
            return self.scaled_loss - self.floor <= self.tol
        separated = self._run.ending == Ending.SEPARATED and not len(self.left)
        return separated or self.stopped_by.is_what_was_wanted

    @functools.cached_property
    def certificate(self) -> Certificate:
        """The `Certificate` of the model at `point`, before any `rescale`, made at the first access.

        The features and gates are those the head was solved on, whatever has become of them since.

        Raises:
            MemoryError: features or logits in float64 are larger than `max_bytes`: `certify` fewer samples, or with
                another limit.
        """
        found = self._data.certificate(self._theta)
        if self._data.are_exact:
            return found
        reason = f"nothing: {OF_ROUNDED} are {found.verdict}"
        return dataclasses.replace(
            found, verdict=Verdict.UNDECIDED, decided_by=reason, not_covered=(*found.not_covered, ROUNDED)
        )

    def choose(self, point: Point | int) -> "Result":
        """Write the weights of a point into the model, at the scale they have there, and return its `Result`.

        Args:
            point: one of `path`, or its index; of a path of L-BFGS the first, the last or the best on training or
                validation data.

        Raises:
            ValueError: another point, one without parameters, or a model that has changed before its head since.
        """
        self._check_features()
        if isinstance(point, (int, np.integer)) and -len(self.path) <= point < len(self.path):
            point = self.path[point]
        found = next((each for each in self.path if each is point), None)
        if found is None:
            raise ValueError(
                f"The point must be one of the path or an index below {len(self.path)}. Received: point={point!r}"
            )
        if found.theta is None:
            kept = [index for index, each in enumerate(self.path) if each.theta is not None]
            raise ValueError(
                f"{self._run.method} takes many steps, and the parameters of few are kept: choose one of {kept}. "
                f"Received: point={point!r}"
            )
        chosen = dataclasses.replace(self, **_of_point(self._data, self._run, found))
        self.structure.assign(chosen._theta)
        return chosen

    def rescale(self, scale: float | None = None) -> None:
        """Multiply the weights at `point` by a factor, by default by `self.scale`; 1 takes it back.

        Args:
            scale: the factor, positive.

        Raises:
            ValueError: a factor that is not positive, weights that are not finite in the dtype that the model
                computes them in, or a model that has changed before its head since.
        """
        self._check_features()
        factor = self.scale if scale is None else scale
        check_positive("scale", factor)
        with np.errstate(over="ignore"):
            theta = self.structure.rounded(factor * self._theta)
        if not np.isfinite(theta).all():
            raise ValueError(
                "At this scale the head is not finite in the dtype that the model computes it in: choose a smaller "
                f"one. Received: scale={factor!r}"
            )
        self.structure.assign(theta)

    def _check_features(self):
        if not _has_features(self):
            raise ValueError(
                "The model has changed since this result was found, and other heads belong to its features now: solve "
                "for them by keras_dal.converge or keras_dal.finish(model, x, y). Received: "
                f"{self!r}, and other weights, statistics or gates"
            )

    @property
    def _divisor(self) -> str:
        """What the penalty is divided by where the loss was minimized with it, in words: `" / 50"`, or nothing."""
        return f" / {self._run.loss_weight:g}" if self._run.loss_weight != 1 else ""

    @property
    def _is_proved(self):
        """Whether the gap of this point is proved, which is one of the last."""
        proof = self._run.proof
        return proof is not None and proof.holds and self.point is self.path[-1]

    def proof(self) -> Iterator[str]:
        """Say what is proved about this point.

        Yields:
            Lines of text; none where nothing is proved.
        """
        if self._is_proved:
            penalty = f" + its L2 penalty{self._divisor}" if self.penalized else ""
            change = f"change of the head{' without its mean error' * self._data.is_centred}"
            weighted = f"{self.loss_name} + {self.point.ridge:g} x {change}{penalty}"
            of = "" if self._data.are_exact else f", on features {TO_FLOAT32}"
            of += self._of_logits
            yield f"proved:     at most {at_most(self.point.gap, 2, 'e')} above the minimum of {weighted}{of}"
            if self.gradient_steps is not None:
                steps = f"{self.gradient_steps:,} steps to a gap of {at_most(self._run.proof.wanted, 2)}"
                ours = f"{self._run.method} took {self._run.proof.num_steps:,}"
                yield f"            accelerated gradient descent takes at most {steps}; {ours}"
        if self._proved_margin > 0 and self._data.are_exact:
            largest = self._data.fitted(self._theta).largest_loss(self.scale)
            yield (
                "proved:     the infimum of the loss is 0, as every margin is positive (least "
                f"{at_least(self._proved_margin, 2)}); with the head times {self.scale:,.0f} the loss is "
                f"{at_most(largest, 2, 'e')}{self._of_logits}"
            )

    @property
    def _of_logits(self):
        """What is said where Keras' own loss is that of probabilities that it clips."""
        return f" (of the logits: Keras clips {clipped()})" if clips_probabilities(self.structure) else ""

    def logits(self, features: Any) -> np.ndarray:
        """Evaluate the head at `point`, before any `rescale`.

        Args:
            features: as `Structure.features` returns them, `(k, m)`.

        Returns:
            The logits `(k, C)`, in float64.
        """
        return logits_of(self._data.head, features, self._theta)

    def _repr_html_(self):
        return as_html(rows_of(self))

    def __repr__(self):
        return f"<Result: loss {self.loss:.4g}, {self.scaled_loss:.4g} at scale {self.scale:,.0f}, {self.stopped_by}>"

    def __str__(self):
        return as_text(rows_of(self), width=WIDTH)


class _Run(NamedTuple):
    """What the results of all points of a path have in common, beside their `HeadData`, and do not show."""

    kept: Point  # that the path came to
    ending: Ending
    size: float
    scaled_to: float
    method: str
    proof: Proof | None
    is_copy: bool
    loss_weight: float  # that the model was compiled with
    checksum: int  # of what the features depend on


def finished(task, tol, scaled_to):
    """Write the best point of the path of a task into its model and return the `Result`.

    Warns where a path that was to separate all samples but those that cost too much ends with some that are wrong.

    Args:
        task: a `Task`.
        tol: the training loss to reach, None where a minimum or a separation was the goal.
        scaled_to: the loss that a scale is to bring.
    """
    path = task.path
    path.ensure_one(task.unchanged)
    data = task.data
    run = _Run(
        kept=path.best(),
        ending=path.stopped_by,
        size=task.size,
        scaled_to=scaled_to,
        method=task.method,
        proof=task.proof,
        is_copy=task.is_copy,
        loss_weight=_keras.loss_weight(data.structure.model),
        checksum=data.structure.checksum(),
    )
    result = Result(
        **_of_point(data, run, run.kept),
        model=data.structure.model,
        structure=data.structure,
        loss_name=data.loss.name,
        path=path.points,
        floor=data.floor,
        tol=tol,
        penalized=task.penalty is not None,
        seconds=path.elapsed(),
        _data=data,
        _run=run,
    )
    data.structure.assign(result._theta)  # when all else is done
    if len(result.left) and path.stopped_by == Ending.SEPARATED:
        equal = data.train.rows[contradicted(data.train.features, data.targets)]
        warn_of_wrong(result.left, data.train.rows[task.spared], len(data.train), result.accuracy, equal)
    return result


def _of_point(data, run, point):
    """Return what a `Result` says of a point alone, by the names of its attributes."""
    structure, is_kept = data.structure, point is run.kept
    theta = structure.rounded(np.pad(point.theta, (len(data.theta) - len(point.theta), 0)))
    if not np.isfinite(theta).all():
        raise ValueError(
            "The solved head is not finite in the dtype that the model computes it in: give the last layer "
            f'dtype="float32". Received: {np.sum(~np.isfinite(theta))} of {len(theta)} parameters'
        )
    fitted = data.fitted(theta)
    margins = fitted.margins()
    margin = None if margins is None else float(np.min(margins))
    separates = margin is not None and margin > 0 and data.has_hard_labels
    proved_margin = fitted.least_margin() if separates else -np.inf
    scale = least_scale(fitted.mean_loss, run.scaled_to) if proved_margin > 0 else 1.0
    scale = scale if np.isfinite(structure.rounded(scale * theta)).all() else 1.0  # float16 ends at 65,504
    before, after, scaled = data.qualities(theta, scale)
    return {
        "point": point,
        "loss": fitted.mean_loss(),
        "accuracy": None if margins is None else float(np.mean(margins > 0)),
        "margin": margin,
        "scale": scale,
        "scaled_loss": fitted.mean_loss(scale),
        "before": before,
        "after": after,
        "scaled": scaled,
        "left": data.train.rows[:0] if margins is None else data.train.rows[margins <= 0],
        "penalty": penalty_at(structure.linear_parameters, data.factors, theta),
        "scaled_penalty": penalty_at(structure.linear_parameters, data.factors, scale * theta),
        "stopped_by": run.ending if is_kept else Ending.CHOSEN,
        "gradient_steps": run.proof.gradient_steps if is_kept and run.proof else None,
        "_theta": theta,
        "_proved_margin": proved_margin,
    }


def _has_features(result):
    """Return whether the model of a `Result` has what its features were found with, as far as these are numbers."""
    return result.structure.checksum() == result._run.checksum


def is_written(result):
    """Return whether the model of a `Result` is as it left it, with its linear parameters at some scale."""
    if not _has_features(result):
        return False
    now, own = result.structure.theta(), result._theta
    factor = float(now @ own) / (float(own @ own) or 1.0)
    eps = max(float(ml_dtypes.finfo(held_dtype(v.dtype)).eps) for v in result.structure.linear_parameters)
    same = np.all(np.abs(now - factor * own) <= 4 * eps * np.abs(now))
    return bool(same and (factor > 0 or not own.any()))
