"""What `alignment` and `width_curve` return."""

import dataclasses

import numpy as np

from keras_dal.analysis.verdict import ALIGNED, Verdict, below_one
from keras_dal.output.tables import as_html, as_text, at_least, at_most, counted, known_decimals, one_number

NEXT: dict[str, str] = {  # for whoever has the report of a head
    Verdict.ALIGNED: "converge(model, x, y) comes to within tol of the least loss of any model",
    Verdict.SEPARABLE: "converge(model, x, y) puts every sample on its right side with this head",
    Verdict.NOT_SEPARABLE: "gates, which converge adds to a plain head, separate samples that do not contradict others",
    Verdict.NOT_ALIGNED: "more exploration may raise the alignment; gates raise it by fitting what may be noise",
    Verdict.UNDECIDED: "certify(model, x, y) says between what bounds the least loss of this head is",
}


def loss_named(name, weighted):
    """Return what a loss that is printed is."""
    return f"{name}, times the sample weights" if weighted else name


def in_outputs(loss, num_outputs):
    """Return in what a sample that counts as right is right, where each of several outputs is decided alone."""
    return f" in all {num_outputs} outputs" if num_outputs > 1 and not loss.shift_invariant else ""


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentReport:
    """How much of the labels lies in the column space of J_S, and what follows for the loss.

    Attributes:
        residual_share: `||(I - P) vec(Yc)||^2 / ||vec(Yc)||^2`, with column means removed where the head has a bias.
        residual_share_per_class: the same for each column of the labels, `(C,)`.
        loss_name: which loss.
        residual_share_per_sample: what each sample adds to `residual_share`, `(n,)`; None from moments.
        full_rank: the rank at which every labelling is aligned: n C, or n (C - 1) where the loss sees no constants per
            sample.
        rank: numerical rank of J_S as the loss sees it, None where it was not decided.
        tolerance: singular values up to this share of the largest count as zero; None where there is no rank.
        singular_values: of J_S with columns of norm one, on which the rank is decided, without repetition over outputs
            of a plain head; None where none were computed.
        sigma_max: largest singular value of J_S as the loss sees it, or an upper bound of it; None where none was
            computed.
        num_samples: n, without samples of weight 0.
        num_features: the number m of features.
        num_outputs: the number C of outputs.
        num_parameters: P, the number of columns of J_S.
        verdict: `"aligned"`, `"separable"`, `"not separable"`, `"not aligned"` (squared error, soft labels) or
            `"undecided"`.
        decided_by: how the verdict was reached.
        exact: whether `residual_share` is the minimum; otherwise it is an upper bound, as of an iterative method; with
            a whole network up to rounding, which is estimated.
        chance: about the alignment that labels drawn at random would have; None where there is no rank, or samples
            weigh differently: heavy ones are fitted more easily.
        share_error: about how far rounding in float64 may have moved `residual_share`: much only where columns depend
            on each other nearly.
    """

    residual_share: float
    residual_share_per_class: np.ndarray
    num_samples: int
    num_features: int
    num_outputs: int
    num_parameters: int
    full_rank: int
    verdict: str
    decided_by: str
    loss_name: str
    residual_share_per_sample: np.ndarray | None = None
    rank: int | None = None
    tolerance: float | None = None
    singular_values: np.ndarray | None = None
    sigma_max: float | None = None
    exact: bool = True
    chance: float | None = None
    share_error: float = 0.0

    @property
    def alignment(self) -> float:
        """`1 - residual_share`, in [0, 1]."""
        return 1.0 - self.residual_share

    def summary(self) -> str:
        """Return alignment, rank and verdict in one line."""
        return f"alignment {self._shown()}, rank {self._rank()}, {self.verdict}"

    def _rank(self):
        if self.rank is None:
            return "not decided"
        return rank_among(self.rank, self.full_rank)

    def _shown(self):
        if not self.exact or self.verdict != Verdict.ALIGNED:
            shown = below_one(self.alignment, self.verdict)
            return "at least " * (not self.exact) + at_least(shown, known_decimals(self.share_error, 6), "f")
        return f"{self.alignment:.6f}"

    def _by_chance(self):
        """Return what labels drawn at random would have, None where nothing is known of it."""
        if self.chance is not None:
            return f"about {self.chance:.2g}, of labels drawn at random"
        if self.rank is None and self.num_parameters >= self.full_rank:
            return f"perhaps 1: {self.num_parameters:,} parameters may reach any labels of {self.full_rank:,} numbers"
        return None

    def __str__(self):
        return as_text(self._rows(), ("alignment", self.summary().removeprefix("alignment ")))

    def _repr_html_(self):
        rows = ("rank", self._rank()), ("verdict", self.verdict), *self._rows()
        return as_html(rows, ("alignment", self._shown()))

    def _rows(self):
        known = self.rank is not None
        yield "by chance", self._by_chance()
        yield "decided by", self.decided_by
        yield "next", NEXT[self.verdict] if known else None
        yield (
            "counted",
            f"singular values above {self.tolerance:.0e} of the largest, columns of norm one" if known else None,
        )
        sizes = f"m = {self.num_features:,}, C = {self.num_outputs:,}, P = {self.num_parameters:,}"
        yield "data", f"n = {self.num_samples:,}, {sizes}"


def rank_among(rank, full_rank):
    """Return a rank beside the one with which any labels are aligned."""
    beside = ", which reaches any labels" if rank >= full_rank else f" ({full_rank:,} reaches any labels)"
    return f"{rank:,}{beside}"


@dataclasses.dataclass(frozen=True)
class WidthCurve:
    """What a head would reach with so many gates beside it, on these features; `len(widths)` values each.

    Attributes:
        widths: numbers of gates, ascending; 0 is the head alone.
        residual_share: share of the labels that is not in the column space, as in `AlignmentReport`, the mean over
            draws of the gates. Each is what evaluated coefficients leave: not below the true one.
        residual_share_spread: its standard deviation over the draws.
        infimum: lower and upper bound of the infimum of the loss, for the gates of the first draw. Where nothing is
            proved from below, the lower one is the least loss of any model: 0 for hard labels.
        rank: numerical rank of J_S as the loss sees it, for the gates of the first draw.
        bytes: memory of the head's variables in float32.
        settled: the first width from which nothing more is to be gained: the infimum of the first draw is proved to be
            the least of any model or, for labels that are not hard, they are aligned for every draw, none of them is
            missed, and the squared error is not proved to be larger than rounding explains. None if none of the widths
            is so wide.
        samples_fitted: how many samples, in a random order, the head of width 0 can have aligned: up to a share of
            1e-8 of all labels.
        num_samples: n, without samples of weight 0.
        num_features: the number m of features.
        num_outputs: the number C of outputs.
        loss_name: which loss.
        draws: number of draws of the gates.
        not_covered: what the curve does not speak about.
    """

    widths: tuple[int, ...]
    residual_share: tuple[float, ...]
    residual_share_spread: tuple[float, ...]
    infimum: tuple[tuple[float, float], ...]
    rank: tuple[int, ...]
    bytes: tuple[int, ...]
    settled: int | None
    samples_fitted: int
    num_samples: int
    num_features: int
    num_outputs: int
    loss_name: str
    draws: int
    not_covered: tuple[str, ...] = ()

    def __str__(self):
        return as_text(self._rows(), self._title())

    def _repr_html_(self):
        return as_html(self._rows(), self._title())

    def _title(self):
        return "gates", "residual share (+- over draws), infimum of the loss, rank, memory of the head"

    def _rows(self):
        values = (self.residual_share, self.residual_share_spread, self.infimum, self.rank, self.bytes)
        for width, share, spread, (low, high), rank, size in zip(self.widths, *values, strict=True):
            between = one_number(low, high, 4) or f"{at_least(low, 4)} to {at_most(high, 4)}"
            yield f"{width:,}", f"{_share(share)} (+- {spread:.6f}), {between}, rank {rank:,}, {size:,} bytes"
        reached = "not reached" if self.settled is None else f"from a width of {self.settled:,} on"
        yield "settled", reached
        sizes = (self.num_samples, "sample"), (self.num_features, "feature"), (self.num_outputs, "output")
        yield "data", ", ".join(counted(*size) for size in sizes)
        yield "loss", self.loss_name
        yield "fitted", f"{self.samples_fitted:,} samples, to a share of {ALIGNED:.0e}, by the head without gates"
        for sentence in self.not_covered:
            yield "not covered", sentence


def _share(share):
    """Return a share with six decimals, zero only where it is none."""
    return f"{share:.6f}" if share == 0 or share >= 1e-6 else f"{share:.0e}"


def report(structure, loss, num_samples, finding, rank=None, alike=False, **fields):
    """Return the `AlignmentReport` of a structure and a `Finding`.

    Args:
        structure, loss, num_samples, finding, rank: what they are called.
        alike: whether all samples are known to weigh the same.
        fields: the other fields of the report, by name.
    """
    sizes = {"num_features": structure.num_features, "num_outputs": structure.num_outputs}
    seen = loss.num_seen(structure.num_outputs)
    chance = _chance(rank, num_samples * seen, seen * structure.use_bias) if alike and rank is not None else None
    named = {"verdict": finding.verdict, "decided_by": finding.decided_by, "rank": rank, "chance": chance}
    sizes["full_rank"] = num_samples * seen
    return AlignmentReport(num_samples=num_samples, loss_name=loss.name, **named, **{**sizes, **fields})


def _chance(rank, full_rank, means):
    """Return the mean share of random labels in a column space: its dimensions over theirs, without their means.

    None of a single sample, whose labels are their means.
    """
    return (rank - means) / (full_rank - means) if full_rank > means else None


def shares(per_sample, per_class, squares):
    """Return the shares in a report, by name, of residual squares `(n,)` and `(C,)`."""
    return {
        "residual_share": min(float(squares.share(per_sample.sum())), 1.0),
        "residual_share_per_class": squares.share_per_class(per_class),
        "residual_share_per_sample": squares.share(per_sample),
    }
