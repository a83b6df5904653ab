"""The alignment condition as numbers: how much of the labels lies in the column space of the Jacobian."""

from typing import Any

import numpy as np
from numpy.linalg import norm
from scipy.sparse.linalg import lsqr

from keras_dal import _backend
from keras_dal.analysis.reports import AlignmentReport
from keras_dal.analysis.separability import MIXED, Verdict, by_residual, decide
from keras_dal.features.batches import KeptRows, checked_weight, feature_batches, first_inputs, precision
from keras_dal.losses import common_scale, loss_of
from keras_dal.models.structure import find_structure
from keras_dal.models.tangent import tangent_operator
from keras_dal.solvers.jacobian import Products, jacobian
from keras_dal.solvers.least_squares import StreamedQR, kernel_change, project_moments

__all__ = ["AlignmentReport", "alignment", "alignment_from_moments", "kernel_change"]

_ITERATIONS = 300  # of LSQR on a whole network: each is two passes over the data
_DAMPING = 1e-4  # of the largest singular value: what float32 leaves of directions without effect must not grow
_POWERS = 5  # steps of the power method that finds it well enough


def alignment(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    decide_separability: bool = True,
    loss: Any = None,
    parameters: Any = "head",
    batch_size: int = 256,
) -> AlignmentReport:
    """Measure how much of the labels lies in the column space of the Jacobian of a model's linear parameters.

    One pass over the data; memory does not grow with it beyond a limit, after which features wait in a temporary file.
    The factorization is in float64 on the host. Column means of the labels are removed where the head has a bias, and
    row means for softmax, because constants per sample change no softmax (Kawaguchi, Zhang and Deng, 2022). Smoothed
    labels give what hard ones do; labels that are mixed are measured as they are, and nothing is decided of them.

    Args:
        model: a Keras model that `find_structure` understands.
        x: inputs as Keras takes them, or a dataset of `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them, `(n, ...)`.
        sample_weight: weights `(n,)`; rows are scaled by their roots, and weight 0 removes a sample.
        decide_separability: whether labels that are not aligned are tried for separability by a solver.
        loss: as for `model.compile`; the compiled one by default.
        parameters: as in `find_structure`; or `"all"` for a lower bound with the whole network, x being arrays, by at
            most 300 iterations of LSQR on products of automatic differentiation.
        batch_size: samples in one evaluation of arrays.

    Returns:
        An `AlignmentReport`.

    Raises:
        ValueError: no linear head, an unsupported loss, no data, labels out of range, or features that are not finite.
    """
    whole = isinstance(parameters, str) and parameters == "all"
    structure = find_structure(model, first_inputs(x), "head" if whole else parameters)
    loss = loss_of(model, structure.activation, loss)
    if whole:
        return _measure_network(structure, loss, x, y, sample_weight, batch_size)
    return alignment_of(structure, loss, x, y, sample_weight, batch_size, decide_separability)


def alignment_of(structure, loss, x, y=None, sample_weight=None, batch_size=256, decide_separability=True):
    """Measure the alignment of a `Structure` that is at hand, whose function for features is then compiled once.

    Args:
        structure: a `Structure`.
        loss: a `losses.Loss`.
        x, y, sample_weight, batch_size, decide_separability: as for `alignment`.
    """
    with KeptRows() as rows:
        used = _gather(rows, structure, loss, feature_batches(structure, x, y, sample_weight, batch_size))
        measure = _measure_plain if structure.head().is_plain else _measure_gated
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
    if loss.shift_invariant:
        centring = np.eye(len(moments))
        centring[-c:, -c:] -= 1.0 / c
        moments = centring @ moments @ centring
    projection = project_moments(moments, c, structure.use_bias, precision(_backend.statistics_dtype()))
    return _report_projection(
        structure,
        projection,
        num_samples,
        Verdict("undecided", "nothing: sums alone are no witness"),
        num_features=len(moments) - c - 1,
        lower_bound=structure.layer is structure.output_layer and bool(structure.gated_layers),
    )


def _gather(rows, structure, loss, batches):
    """Keeps features, targets and weights of the samples that have a weight, and returns which samples those are."""
    used = []
    for features, y, weight in batches:
        if y is None:
            raise ValueError("The labels are missing. Pass y, or a dataset of (x, y). Received: y=None")
        y = np.asarray(y)
        if len(y) != len(features):
            raise ValueError(
                "Inputs and labels must have the same number of samples. "
                f"Received: {len(features)} inputs with {len(y)} labels"
            )
        kept = np.ones(len(features), bool) if weight is None else weight > 0
        weight = np.ones(len(features)) if weight is None else weight
        if kept.any():
            rows.append(features[kept], loss.targets(y[kept], structure.num_outputs), weight[kept])
        used.append(kept)
    used = np.concatenate(used)
    if not used.any():
        raise ValueError("At least one sample must have a positive weight. Received: sample_weight of zeros only")
    return used


def _measure_plain(structure, loss, rows, used, decide_separability):
    head, qr = structure.head(), StreamedQR(structure.num_features, structure.num_outputs, structure.use_bias)
    for features, targets, weight in rows:
        qr.update(features, _seen(loss, loss.label_matrix(targets)), weight)
    projection = qr.project(precision(features.dtype))
    theta = projection.coefficients.ravel()
    per_sample, _ = _residual_squares(head, loss, rows, used, theta)
    verdict = decide(head, loss, rows, theta, projection.residual_share, decide_separability)
    return _report_projection(
        structure,
        projection,
        qr.num_rows,
        verdict,
        residual_share_per_sample=_share(per_sample, projection.total.sum()),
    )


def _measure_gated(structure, loss, rows, used, decide_separability):
    head = structure.head()
    dtype = next(iter(rows))[0].dtype
    features, targets, weights = (np.concatenate(parts).astype(np.float64) for parts in zip(*rows, strict=True))
    columns = jacobian(head, features, weights, loss.shift_invariant, precision=precision(dtype))
    matrix = loss.label_matrix(targets)
    theta = columns.refined(matrix)
    total = _total(structure, _seen(loss, matrix), weights)
    shares = _shares(*_residual_squares(head, loss, rows, used, theta), total)
    spectrum = columns.with_constants()
    return _report(
        structure,
        len(features),
        decide(head, loss, rows, theta, shares["residual_share"], decide_separability, columns),
        **shares,
        rank=spectrum.rank,
        tolerance=columns.tolerance,
        singular_values=spectrum.singular_values,
        sigma_max=spectrum.sigma_max,
        num_parameters=head.num_parameters,
        lower_bound=not columns.factorized,
    )


def _measure_network(structure, loss, x, y, sample_weight, batch_size):
    operator = tangent_operator(structure.model, x, "all", batch_size=batch_size)
    targets = loss.targets([] if y is None else y, structure.num_outputs)
    mixed, targets = common_scale(loss.scales(targets)) is None, _seen(loss, loss.label_matrix(targets))
    weights = checked_weight(sample_weight, len(targets))
    weights = np.ones(len(targets)) if weights is None else weights
    if not weights.any():
        raise ValueError(f"Sample weights must not all be zero. Received: sample_weight={sample_weight}")
    centred = targets - np.average(targets, axis=0, weights=weights) if structure.use_bias else targets
    roots = np.sqrt(weights)[:, None]

    def mapped(rows):
        """Returns rows as the loss sees them; the map is its own transpose."""
        return (roots * _seen(loss, rows.reshape(targets.shape))).ravel()

    right = mapped(centred)
    scaled = Products(operator.shape, lambda v: mapped(operator.matvec(v)), lambda u: operator.rmatvec(mapped(u)))
    size = _largest_singular_value(scaled, right)
    direction = lsqr(scaled, right, damp=_DAMPING * size, atol=1e-9, btol=1e-9, iter_lim=_ITERATIONS)[0]
    residual = right - scaled @ direction
    rounding = 8 * np.finfo(np.float32).eps * size * norm(direction)  # of the product, which is no more in Col J then
    squares = (residual * (1 + rounding / (norm(residual) or 1.0))).reshape(targets.shape) ** 2
    shares = _shares(squares.sum(axis=1), squares.sum(axis=0), _total(structure, targets, weights))
    return _report(
        structure,
        int(np.sum(weights > 0)),
        MIXED
        if mixed
        else by_residual(shares["residual_share"], "undecided", "LSQR, which bounds the alignment from below"),
        **shares,
        num_parameters=operator.shape[1],
        lower_bound=True,
    )


def _largest_singular_value(operator, start):
    direction = operator.rmatvec(start)
    for _ in range(_POWERS):
        direction = operator.rmatvec(operator.matvec(direction / (norm(direction) or 1.0)))
    return np.sqrt(norm(direction))


def _report_projection(structure, projection, num_samples, verdict, **fields):
    return _report(
        structure,
        num_samples,
        verdict,
        residual_share=min(projection.residual_share, 1.0),
        residual_share_per_class=projection.residual_share_per_class,
        rank=projection.rank * structure.num_outputs,
        tolerance=projection.tolerance,
        singular_values=projection.singular_values,
        sigma_max=projection.sigma_max,
        num_parameters=projection.coefficients.size,
        **fields,
    )


def _report(structure, num_samples, verdict, **fields):
    sizes = {"num_features": structure.num_features, "num_outputs": structure.num_outputs}
    return AlignmentReport(
        num_samples=num_samples, verdict=verdict.name, decided_by=verdict.decided_by, **{**sizes, **fields}
    )


def _seen(loss, targets):
    """Return rows as the loss sees them: constants per sample may change nothing."""
    return targets - targets.mean(axis=1, keepdims=True) if loss.shift_invariant else targets


def _total(structure, targets, weights):
    """Return the squared norm of each column of the centred labels, `(C,)`."""
    means = np.average(targets, axis=0, weights=weights) if structure.use_bias else 0.0
    return weights @ (targets - means) ** 2


def _residual_squares(head, loss, rows, used, theta):
    """Return the squared, weighted residuals of each sample `(n,)`, zero where it was left out, and output `(C,)`."""
    per_sample, per_class = np.zeros(len(used)), np.zeros(head.num_outputs)
    parts = []
    for features, targets, weight in rows:
        left = loss.label_matrix(targets) - head.logits(features.astype(np.float64), theta)
        squares = weight[:, None] * _seen(loss, left) ** 2
        parts.append(squares.sum(axis=1))
        per_class += squares.sum(axis=0)
    per_sample[used] = np.concatenate(parts)
    return per_sample, per_class


def _share(part, total):
    return np.divide(part, total, out=np.zeros_like(part), where=np.asarray(total) > 0)


def _shares(per_sample, per_class, total):
    return {
        "residual_share": min(float(_share(per_sample.sum(keepdims=True), total.sum())[0]), 1.0),
        "residual_share_per_class": _share(per_class, total),
        "residual_share_per_sample": _share(per_sample, total.sum()),
    }
