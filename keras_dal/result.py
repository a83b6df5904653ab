"""What `converge` returns: a model, the path to it, its scale and its calibration."""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special

from keras_dal.certificate import certify_head
from keras_dal.path import SEPARATED, Point

_BINS = 15  # of confidence, for the calibration error (Guo et al., 2017)
_BLOCK = 2048


class Calibration(NamedTuple):
    """Quality of probabilities on validation data.

    Attributes:
        accuracy: share of right predictions.
        nll: mean negative log-likelihood, which is the cross-entropy.
        ece: expected calibration error over 15 bins of confidence.
    """

    accuracy: float
    nll: float
    ece: float


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """A model at the end of `converge`.

    Attributes:
        model: the Keras model, with the weights of `point`, at the scale its logits had before.
        structure: its `Structure`.
        loss_name: which of the three losses.
        point: the point of the path that was kept.
        path: all its points; `choose` takes another one.
        loss: training loss of the model as it is, evaluated in float64.
        margin: its smallest training margin, evaluated in float64; None for the squared error.
        scale: factor of theta_S that brings the training loss to `scaled_loss`; 1 where no scale does.
        scaled_loss: training loss at that scale.
        tol: the training loss that was asked for.
        reached: whether `scaled_loss` is at most `tol`.
        before, after, scaled: `Calibration` on the validation data of the model as it came, as it is, and at `scale`;
            None without validation data and for the squared error.
        stopped_by: what ended the path: "separation"; where a loss is minimized "the tolerance", "the certified gap" or
            "a step that gained nothing"; "the end of the path", all weights and steps tried; "the time limit",
            "patience" or "an interrupt".
        seconds: of the solver, without the pass for the features.
    """

    model: Any
    structure: Any
    loss_name: str
    point: Point
    path: tuple[Point, ...]
    loss: float
    margin: float | None
    scale: float
    scaled_loss: float
    tol: float
    before: Calibration | None
    after: Calibration | None
    scaled: Calibration | None
    stopped_by: str
    seconds: float
    _data: Any = dataclasses.field(repr=False)

    @property
    def reached(self):
        return self.scaled_loss <= self.tol

    @functools.cached_property
    def certificate(self):
        """The `Certificate` of the model on the training features, made at the first access."""
        data, head = self._data, self.structure.head()
        features = np.asarray(data.features, np.float64)
        return certify_head(head, features, data.targets, data.loss, data.theta, data.weights)

    def choose(self, point):
        """Write the weights of a point of the path into the model, at the scale they have there."""
        self.structure.assign(point.theta)

    def rescale(self, scale=None):
        """Multiply the model's weights at `point` by a factor, by default by `self.scale`; 1 takes it back."""
        self.structure.assign((self.scale if scale is None else scale) * self.point.theta)

    def __str__(self):
        scaled = f"{self.scaled_loss:.4g} at scale {self.scale:.4g}"
        rows = [("training loss", f"{self.loss:.4g} ({self.loss_name}), {scaled}")]
        if self.margin is not None:
            rows.append(("training accuracy", f"{self.point.accuracy:.2%}, smallest margin {self.margin:.4g}"))
        rows.append(("logits moved by", f"{self.point.moved:.4g} (root mean square on the anchors)"))
        if self.stopped_by != SEPARATED and np.isfinite(self.point.gap):
            weighted = f"of the loss plus {self.point.ridge:.0e} times the change"
            rows.append(("gap to the minimum", f"at most {self.point.gap:.2g} ({weighted})"))
        for name in ("before", "after", "scaled"):
            if getattr(self, name) is not None:
                accuracy, nll, ece = getattr(self, name)
                rows.append((f"validation {name}", f"{accuracy:.2%} accuracy, NLL {nll:.4g}, ECE {ece:.4g}"))
        rows.append(("ended by", f"{self.stopped_by} after {len(self.path)} points, {self.seconds:.2f} s"))
        return "\n".join(f"{name:<18}  {text}" for name, text in rows)


class _Data(NamedTuple):
    """What a certificate is made of."""

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    loss: Any
    theta: np.ndarray


def finished(task, path, tol):
    """Write the best point of a path into the model of a task and return the `Result`."""
    point, structure, loss = path.best(), task.structure, task.loss
    structure.assign(point.theta)
    theta = structure.theta()  # as the model holds it, rounded to its precision
    logits = _logits(task.head, task.train.features, theta)
    margin = None if point.margin is None else float(np.min(loss.margins(logits, task.targets)))

    def loss_at(scale):
        return float(np.mean(task.train.weights * loss.values(scale * logits, task.targets)))

    scale = _scale(loss_at, tol, loss.at_margin, margin, logits.shape[1]) if margin is not None and margin > 0 else 1.0
    before = after = scaled = None
    if margin is not None and task.validation is not None:
        seen = [_logits(task.head, task.validation.features, each) for each in (task.theta, theta)]
        before, after, scaled = (_calibration(each, task.seen_targets, loss) for each in (*seen, scale * seen[1]))
    return Result(
        model=structure.model,
        structure=structure,
        loss_name=loss.name,
        point=point,
        path=tuple(path.points),
        loss=loss_at(1.0),
        margin=margin,
        scale=scale,
        scaled_loss=loss_at(scale),
        tol=tol,
        before=before,
        after=after,
        scaled=scaled,
        stopped_by=path.stopped_by,
        seconds=path.elapsed(),
        _data=_Data(task.train.features, task.targets, task.train.weights, loss, theta),
    )


def _scale(loss_at, tol, bound, margin, outputs):
    """Return the least scale, from 1 on, with loss at most tol: it exists because every margin is positive."""
    if loss_at(1.0) <= tol:
        return 1.0
    far = 1.0
    while bound(far * margin, outputs) > tol / 2:
        far *= 2

    def excess(scale):  # of a loss a thousandth smaller than tol, which the root's precision cannot miss
        return np.log(max(loss_at(scale), 1e-300) / tol) + 1e-3

    return float(optimize.root_scalar(excess, bracket=(1.0, far), rtol=1e-6).root)


def _logits(head, features, theta):
    """Return the logits in float64, block by block."""
    starts = range(0, len(features), _BLOCK)
    return np.concatenate([head.logits(np.asarray(features[i : i + _BLOCK], np.float64), theta) for i in starts])


def _calibration(logits, targets, loss):
    if loss.activation == "softmax":
        p = special.softmax(logits, axis=1)
        confidence, right = p.max(axis=1), targets[np.arange(len(p)), p.argmax(axis=1)] == 1.0
    else:
        p = special.expit(logits)
        confidence, right = np.maximum(p, 1 - p).ravel(), ((p > 0.5) == (targets > 0)).ravel()
    bins = np.minimum((confidence * _BINS).astype(int), _BINS - 1)
    ece = np.sum(np.abs(np.bincount(bins, right - confidence, _BINS))) / len(confidence)
    accuracy = np.mean(loss.margins(logits, targets) > 0)
    return Calibration(float(accuracy), float(np.mean(loss.values(logits, targets))), float(ece))
