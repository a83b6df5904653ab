"""What is proved about training a model's head from here, with its numbers."""

import dataclasses
import json
import math
from typing import Any

from keras_dal.analysis.certificate_rows import rows_of
from keras_dal.losses import REGISTERED
from keras_dal.output.tables import as_html, as_text, plain
from keras_dal.solvers.rounded import ROUNDING

_ROUNDED = 1e-9  # relative, of an objective that is reached as it is


@dataclasses.dataclass(frozen=True)
class Certificate:
    """What holds for full-batch gradient descent with step `1 / beta` on a head whose features stay as they are.

    Attributes:
        loss_name: which loss.
        num_samples: n, samples with weight zero left out.
        num_features: m, inputs of the head.
        num_outputs: the number C of outputs.
        num_parameters: size of theta_S.
        loss: mean training loss now.
        penalty: the penalty on theta_S now, which the objective adds to the loss.
        rank: numerical rank of J_S as the loss sees it (without constants per sample for softmax), None if undecided.
        full_rank: the rank at which every labelling is aligned.
        tolerance: singular values, of columns of norm one, up to this share of the largest count as zero; None if none
            were computed.
        method: how rank, beta and v, the least-squares solution for the labels, were computed.
        exact: whether `residual_share` is the minimum; otherwise it is an upper bound.
        residual_share: `||(I - P) Y_l||^2 / ||Y_l - mean||^2`, P the projector on the columns that count.
        verdict: "aligned", "separable", "not separable", "not aligned" (squared error, soft labels) or "undecided".
        decided_by: what proves the verdict.
        infimum: lower and upper bound of the loss's infimum over theta_S, what rounding may have done included.
        margin: lower bound of the witness' smallest margin, rounding included; None where margins prove nothing: the
            squared error, soft labels, numbers that are not finite.
        witness_norm: norm of the witness: of theta_S now, v and what a search found it is the first that separates the
            samples, else the one with the least bound of the loss.
        beta: upper bound of the objective's curvature, None where loss or penalty have none, or theta_S is not finite.
        comparisons: pairs (objective, squared distance from theta_S now), one for each comparison point of the bound.
        not_covered: what the numbers do not speak about, one sentence each.
        floor: least loss that any model could have on these labels, the mean entropy of soft ones.
        mean_weight: of the samples.
        share_error: about how far rounding in float64 may have moved `residual_share`: far beside dependent columns.
        weighted: whether samples have other weights than one.
    """

    loss_name: str
    num_samples: int
    num_features: int
    num_outputs: int
    num_parameters: int
    loss: float
    penalty: float
    rank: int | None
    full_rank: int
    tolerance: float | None
    method: str
    exact: bool
    residual_share: float
    verdict: str
    decided_by: str
    infimum: tuple[float, float]
    margin: float | None
    witness_norm: float
    beta: float | None
    comparisons: tuple[tuple[float, float], ...]
    not_covered: tuple[str, ...]
    floor: float = 0.0
    mean_weight: float = 1.0
    share_error: float = 0.0
    weighted: bool = False

    @property
    def alignment(self) -> float:
        """Share of the labels in the column space of J_S, or a lower bound of it where `exact` is False."""
        return 1.0 - self.residual_share

    @property
    def objective(self) -> float:
        """What is minimized, loss and penalty now."""
        return self.loss + self.penalty

    @property
    def step(self) -> float:
        """The gradient descent step the bound is about, `1 / beta`; infinite where no step changes the loss.

        Raises:
            ValueError: a certificate without beta.
        """
        beta = self._smoothness()
        return 1.0 / beta if beta else math.inf

    @property
    def _at_most_now(self):
        """An upper bound of the objective now: the comparison at distance 0, in which rounding is counted."""
        return max([self.objective, *(value for value, far in self.comparisons if far == 0)])

    def bound(self, t: float) -> float:
        """Return an upper bound of the objective after t steps of gradient descent.

        For a convex, beta-smooth F, `F(theta_t) <= F(w) + beta ||theta_0 - w||^2 / (2 t)` for every w (the standard
        rate, e.g. Bubeck 2015, section 3.2); the least value over the comparison points is returned.

        Args:
            t: number of steps with step size `1 / beta`, at least 0.

        Raises:
            ValueError: a negative number of steps, or a certificate without beta.
        """
        beta = self._smoothness()
        if t < 0:
            raise ValueError(f"The number of steps must not be negative. Received: t={t!r}")
        if t == 0:
            return self._at_most_now
        return min([self._at_most_now, *(value + beta * far / (2 * t) for value, far in self.comparisons)])

    def steps_for(self, objective: float) -> int | None:
        """Return the least number of steps after which the bound is at most `objective`; None if it never is.

        None are needed where it is that already, up to 1e-9 of it.

        Args:
            objective: the loss plus the penalty that is to be reached.

        Raises:
            ValueError: a certificate without beta.
        """
        beta = self._smoothness()
        if self._at_most_now <= objective * (1 + _ROUNDED):
            return 0
        steps = [beta * far / (2 * (objective - value)) for value, far in self.comparisons if value < objective]
        if not steps or not math.isfinite(min(steps)):
            return None
        least = max(1, math.ceil(min(steps)))
        return least if self.bound(least) <= objective else least + 1

    def loss_at_scale(self, scale: float) -> float | None:
        """Return an upper bound of the loss at `scale` times the witness with positive margin; None without one.

        Args:
            scale: factor of the witness, at least 0.

        Raises:
            ValueError: a negative scale.
        """
        if scale < 0:
            raise ValueError(f"The scale must not be negative. Received: scale={scale!r}")
        if self.margin is None or self.margin <= 0:
            return None
        largest = REGISTERED[self.loss_name]().at_margin(scale * self.margin, self.num_outputs)
        return (1 + ROUNDING) * self.mean_weight * float(largest)

    def to_json(self) -> str:
        """Return the certificate as a JSON object; null is a number that is not finite, and comes back as NaN."""
        return json.dumps(plain(self))

    @classmethod
    def from_json(cls, text: str) -> "Certificate":
        """Return the certificate that `to_json` wrote.

        Raises:
            ValueError, TypeError: text of something else.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError(f"A certificate must be a JSON object. Received: {text[:40]!r}")
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        fields |= {name: math.nan for name, value in fields.items() if value is None and kinds.get(name) is float}
        return cls(**{name: _tuples(value) for name, value in fields.items()})

    def __str__(self):
        return as_text(rows_of(self), self._title())

    def _repr_html_(self):
        return as_html(rows_of(self), self._title())

    def _title(self):
        return "Certificate", f"{self.verdict}: {self.decided_by}"

    def _smoothness(self):
        if self.beta is None:
            raise ValueError(
                "There is no bound: the curvature of the loss has none, theta_S has a penalty that is not an L2 "
                "regularizer, or features are too large to square, or theta_S is not finite. Use a loss that has one, "
                "L2, other units, or weights from before. "
                f"Received: not_covered={self.not_covered}"
            )
        return self.beta


def _tuples(value) -> Any:
    """Return a value that JSON had, with tuples for lists, and NaN where there is no number in them."""
    if not isinstance(value, list):
        return value
    return tuple(math.nan if each is None else _tuples(each) for each in value)
