"""The alignment condition as numbers: how much of the labels lies in the column space of the Jacobian."""

import dataclasses

import numpy as np

from keras_dal import _backend
from keras_dal.features import KeptRows, feature_batches, first_inputs, precision
from keras_dal.heads import DenseHead
from keras_dal.infimum import enclose_infimum
from keras_dal.jacobian import IterativeJacobian, jacobian
from keras_dal.losses import resolve_loss
from keras_dal.projection import StreamedQR, kernel_change, project_moments
from keras_dal.structure import find_structure

__all__ = ["AlignmentReport", "alignment", "alignment_from_moments", "kernel_change"]

ALIGNED = 1e-6  # largest ||J v - Y|| / ||Y|| that still counts as aligned
_DECIDABLE = 2**28  # bytes of float64 features up to which separability is decided


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
        sigma_max: largest singular value of J_S as it is.
        num_samples: n, without samples of weight 0.
        num_features: m.
        num_outputs: C.
        num_parameters: P, the number of columns of J_S.
        verdict: `"aligned"`, `"separable"`, `"not separable"`, `"not aligned"` (squared error) or `"undecided"`.
        decided_by: how the verdict was reached.
        lower_bound: whether an iterative method bounds the alignment from below only.
    """

    residual_share: float
    residual_share_per_class: np.ndarray
    residual_share_per_sample: np.ndarray | None
    rank: int | None
    tolerance: float | None
    singular_values: np.ndarray | None
    sigma_max: float
    num_samples: int
    num_features: int
    num_outputs: int
    num_parameters: int
    verdict: str
    decided_by: str
    lower_bound: bool = False

    @property
    def alignment(self):
        """`1 - residual_share`, in [0, 1]."""
        return 1.0 - self.residual_share

    def summary(self):
        """Return alignment, rank and verdict in one line."""
        most = min(self.num_samples * self.num_outputs, self.num_parameters)
        rank = "rank not decided" if self.rank is None else f"rank {self.rank:,} of {most:,} at {self.tolerance:.0e}"
        return f"alignment {'at least ' * self.lower_bound}{self.alignment:.6f}, {rank}, {self.verdict}"

    def __str__(self):
        return (
            f"{self.summary()}\n  n = {self.num_samples:,}, m = {self.num_features:,}, C = {self.num_outputs:,}, "
            f"P = {self.num_parameters:,}\n  decided by {self.decided_by}"
        )


def alignment(
    model, x, y=None, sample_weight=None, loss=None, parameters="head", batch_size=256, decide_separability=True
):
    """Measure how much of the labels lies in the column space of the Jacobian of a model's linear parameters.

    One pass over the data; memory does not grow with it beyond a limit, after which features wait in a temporary file.
    The factorization is in float64 on the host. Column means of the labels are removed where the head has a bias, and
    row means for softmax, because constants per sample change no softmax (Kawaguchi, Zhang and Deng, 2022).

    Args:
        model: a Keras model that `find_structure` understands.
        x: inputs as Keras takes them, or a dataset of `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them, `(n, ...)`.
        sample_weight: weights `(n,)`; rows are scaled by their roots, and weight 0 removes a sample.
        loss: what `model.compile` takes; the compiled loss by default.
        parameters: as in `find_structure`.
        batch_size: number of samples to evaluate at once, where x are arrays.
        decide_separability: whether labels that are not aligned are tried for separability by a solver.

    Returns:
        An `AlignmentReport`.

    Raises:
        ValueError: no linear head, an unsupported loss, no data, labels out of range, or features that are not finite.
    """
    structure = find_structure(model, first_inputs(x), parameters)
    loss = _resolved(loss, structure)
    rows, used = _gather(structure, loss, feature_batches(structure, x, y, sample_weight, batch_size))
    measure = _measure_plain if isinstance(structure.head(), DenseHead) else _measure_gated
    return measure(structure, loss, rows, used, decide_separability)


def alignment_from_moments(moments, num_samples, structure, loss):
    """Measure the alignment of a plain head from sums that were gathered elsewhere.

    Args:
        moments: `[Z, 1, Y]' W [Z, 1, Y]`, float64 of shape `(m + 1 + C, m + 1 + C)`; Z are the inputs of
            `structure.output_layer`.
        num_samples: number of samples in the sums.
        structure: the `Structure` they come from.
        loss: the `losses.Loss` that made the targets Y.

    Returns:
        An `AlignmentReport`; for a gated branch that of the plain head in it, a lower bound.
    """
    c = structure.num_outputs
    moments = np.asarray(moments, np.float64)
    if moments.shape[0] <= c + 1 or moments.shape != (len(moments),) * 2 or not np.isfinite(moments).all():
        raise ValueError(f"Moments must be a finite matrix of order m + 1 + C. Received: shape {moments.shape}")
    if _is_softmax(loss):
        centring = np.eye(len(moments))
        centring[-c:, -c:] -= 1.0 / c
        moments = centring @ moments @ centring
    projection = project_moments(moments, c, structure.use_bias, precision(_backend.statistics_dtype()))
    return _report(
        projection,
        structure,
        num_samples,
        num_features=len(moments) - c - 1,
        num_parameters=len(projection.coefficients) * c,
        verdict="undecided",
        decided_by="sums alone decide no verdict",
        lower_bound=structure.layer is structure.output_layer and bool(structure.gated_layers),
    )


def _resolved(loss, structure):
    loss = getattr(structure.model, "loss", None) if loss is None else loss
    if loss is None:
        raise ValueError(f"Compile the model or pass loss=. Received: model {structure.model.name!r} without a loss")
    return resolve_loss(loss, structure.activation)


def _is_softmax(loss):
    return loss.activation == "softmax"


def _gather(structure, loss, batches):
    """Return kept rows of features, targets and weights without those of weight 0, and which samples they are."""
    rows, used = KeptRows(), []
    for features, y, weight in batches:
        if y is None:
            raise ValueError("The labels are missing. Pass y, or a dataset of (x, y). Received: y=None")
        targets = loss.targets(y, structure.num_outputs)
        if len(targets) != len(features):
            raise ValueError(
                "Inputs and labels must have the same number of samples. "
                f"Received: {len(features)} inputs with {len(targets)} labels"
            )
        kept = np.ones(len(features), bool) if weight is None else weight > 0
        weight = np.ones(len(features)) if weight is None else weight
        rows.append(features[kept], targets[kept], weight[kept])
        used.append(kept)
    used = np.concatenate(used)
    if not used.any():
        raise ValueError("At least one sample must have a positive weight. Received: sample_weight of zeros only")
    return rows, used


def _measure_plain(structure, loss, rows, used, decide_separability):
    qr = StreamedQR(structure.num_features, structure.num_outputs, structure.use_bias)
    for features, targets, weight in rows:
        qr.update(features, _seen(loss, targets), weight)
    projection = qr.project(precision(features.dtype))
    theta = projection.coefficients.ravel()
    return _report(
        projection,
        structure,
        qr.num_rows,
        num_parameters=theta.size,
        residual_share_per_sample=_per_sample(structure.head(), loss, rows, used, theta, projection.total.sum()),
        **_verdict(structure.head(), loss, rows, theta, projection.residual_share, decide_separability),
    )


def _measure_gated(structure, loss, rows, used, decide_separability):
    head = structure.head()
    features, targets, weights = (np.concatenate(parts).astype(np.float64) for parts in zip(*rows, strict=True))
    softmax = _is_softmax(loss)
    plain = jacobian(head, features, weights)
    columns = jacobian(head, features, weights, centered=True) if softmax else plain
    theta = columns.refined(targets)
    seen = _seen(loss, targets)
    means = np.average(seen, axis=0, weights=weights) if structure.use_bias else 0.0
    total = weights @ (seen - means) ** 2
    residual = weights @ _seen(loss, targets - head.logits(features, theta)) ** 2
    share = float(residual.sum() / total.sum()) if total.sum() > 0 else 0.0
    return AlignmentReport(
        residual_share=min(share, 1.0),
        residual_share_per_class=np.divide(residual, total, out=np.zeros_like(total), where=total > 0),
        residual_share_per_sample=_per_sample(head, loss, rows, used, theta, total.sum()),
        rank=plain.rank,
        tolerance=None if plain.tolerance is None else plain.tolerance / plain.sigma_max,
        singular_values=getattr(plain, "values", None),
        sigma_max=plain.sigma_max,
        num_samples=len(features),
        num_features=structure.num_features,
        num_outputs=structure.num_outputs,
        num_parameters=head.num_parameters,
        lower_bound=isinstance(plain, IterativeJacobian),
        **_verdict(head, loss, rows, theta, share, decide_separability),
    )


def _report(projection, structure, num_samples, **fields):
    fields = {"num_features": structure.num_features, "residual_share_per_sample": None, **fields}
    return AlignmentReport(
        residual_share=min(projection.residual_share, 1.0),
        residual_share_per_class=projection.residual_share_per_class,
        rank=projection.rank * structure.num_outputs,
        tolerance=projection.tolerance,
        singular_values=projection.singular_values,
        sigma_max=projection.sigma_max,
        num_samples=num_samples,
        num_outputs=structure.num_outputs,
        **fields,
    )


def _seen(loss, targets):
    """Return rows as the loss sees them: constants per sample change no softmax."""
    return targets - targets.mean(axis=1, keepdims=True) if _is_softmax(loss) else targets


def _per_sample(head, loss, rows, used, theta, total):
    squares = [
        weight * np.sum(_seen(loss, targets - head.logits(features.astype(np.float64), theta)) ** 2, axis=1)
        for features, targets, weight in rows
    ]
    shares = np.zeros(len(used))
    shares[used] = np.concatenate(squares) / total if total > 0 else 0.0
    return shares


def _verdict(head, loss, rows, theta, share, decide_separability):
    residual = np.sqrt(share)
    if residual <= ALIGNED:
        return {
            "verdict": "aligned",
            "decided_by": f"a residual of {residual:.1e} of the labels, at most {ALIGNED:.0e}",
        }
    if loss.activation == "linear":
        reason = f"a least-squares residual of {residual:.1e} of the labels, above {ALIGNED:.0e}"
        return {"verdict": "not aligned", "decided_by": reason}
    margin = min(loss.margins(head.logits(z.astype(np.float64), theta), t).min() for z, t, _ in rows if len(z))
    if margin > 0:
        return {"verdict": "separable", "decided_by": f"least squares, with a smallest margin of {margin:.1e}"}
    if not decide_separability:
        return {
            "verdict": "undecided",
            "decided_by": "least squares, which separates not all samples; no solver was run",
        }
    return _separability(head, loss, rows)


def _separability(head, loss, rows):
    size = 8 * sum(features.size for features, _, _ in rows)
    if size > _DECIDABLE:
        return {
            "verdict": "undecided",
            "decided_by": f"least squares; {size:,} bytes of features are too many for more",
        }
    features, targets, weights = (np.concatenate(parts).astype(np.float64) for parts in zip(*rows, strict=True))
    columns = jacobian(head, features, weights, centered=_is_softmax(loss))
    if isinstance(columns, IterativeJacobian):
        return {
            "verdict": "undecided",
            "decided_by": f"least squares; the head is too large for more ({columns.method})",
        }
    infimum = enclose_infimum(columns, loss, targets, weights)
    if infimum.margin is not None and infimum.margin > 0:
        return {"verdict": "separable", "decided_by": f"a head with a smallest margin of {infimum.margin:.1e}"}
    if infimum.lower > 0:
        return {"verdict": "not separable", "decided_by": f"a dual bound: no head has a loss below {infimum.lower:.3e}"}
    return {
        "verdict": "undecided",
        "decided_by": "a solver that found neither a separating head nor a bound above zero",
    }
