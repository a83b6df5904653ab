"""What `alignment` returns."""

import dataclasses

import numpy as np

from keras_dal.tables import as_html, at_least


@dataclasses.dataclass(frozen=True, eq=False)
class AlignmentReport:
    """How much of the labels lies in the column space of J_S, and what follows for the loss.

    Attributes:
        residual_share: `||(I - P) vec(Yc)||^2 / ||vec(Yc)||^2`, with column means removed where the head has a bias.
        residual_share_per_class: the same for each column of the labels, `(C,)`.
        residual_share_per_sample: what each sample adds to `residual_share`, `(n,)`; None from moments.
        rank: numerical rank of J_S, None where it was not decided.
        tolerance: singular values up to this share of the largest count as zero; None where there is no rank.
        singular_values: of J_S with columns of norm one, on which the rank is decided, without repetition over outputs
            of a plain head; None where none were computed.
        sigma_max: largest singular value of J_S as it is, or an upper bound of it; None where none was computed.
        num_samples: n, without samples of weight 0.
        num_features: m.
        num_outputs: C.
        num_parameters: P, the number of columns of J_S.
        verdict: `"aligned"`, `"separable"`, `"not separable"`, `"not aligned"` (squared error, smoothed labels) or
            `"undecided"`.
        decided_by: how the verdict was reached.
        lower_bound: whether an iterative method bounds the alignment from below only.
    """

    residual_share: float
    residual_share_per_class: np.ndarray
    num_samples: int
    num_features: int
    num_outputs: int
    num_parameters: int
    verdict: str
    decided_by: str
    residual_share_per_sample: np.ndarray | None = None
    rank: int | None = None
    tolerance: float | None = None
    singular_values: np.ndarray | None = None
    sigma_max: float | None = None
    lower_bound: bool = False

    @property
    def alignment(self) -> float:
        """`1 - residual_share`, in [0, 1]."""
        return 1.0 - self.residual_share

    def summary(self) -> str:
        """Return alignment, rank and verdict in one line."""
        most = min(self.num_samples * self.num_outputs, self.num_parameters)
        rank = "rank not decided" if self.rank is None else f"rank {self.rank:,} of {most:,} at {self.tolerance:.0e}"
        return f"alignment {self._shown()}, {rank}, {self.verdict}"

    def _shown(self):
        return f"at least {at_least(self.alignment, 6, 'f')}" if self.lower_bound else f"{self.alignment:.6f}"

    def _repr_html_(self):
        return as_html(
            [
                ("rank", None if self.rank is None else f"{self.rank:,} at {self.tolerance:.0e}"),
                ("samples, features, outputs", f"{self.num_samples:,}, {self.num_features:,}, {self.num_outputs:,}"),
                ("parameters", f"{self.num_parameters:,}"),
                (self.verdict, self.decided_by),
            ],
            ("alignment", self._shown()),
        )

    def __str__(self):
        return (
            f"{self.summary()}\n  n = {self.num_samples:,}, m = {self.num_features:,}, C = {self.num_outputs:,}, "
            f"P = {self.num_parameters:,}\n  decided by {self.decided_by}"
        )
