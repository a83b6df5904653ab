"""The alignment condition as numbers: how much of the labels lies in the column space of the Jacobian."""

import dataclasses
from typing import Any

import numpy as np

from keras_dal import _backend
from keras_dal._backend import arrays
from keras_dal._backend.arrays import EPS, MAX_BYTES
from keras_dal.analysis.network import PRODUCTS, alignment_of_network
from keras_dal.analysis.reports import AlignmentReport, report, shares
from keras_dal.analysis.separability import LeastSquares, Search, announced, joined_rows
from keras_dal.analysis.verdict import Finding, Verdict, decisive_share
from keras_dal.features.batches import BATCH_SIZE, feature_batches, first_inputs
from keras_dal.features.precision import blocks_of, coarsest_eps, eps_of, eps_of_features
from keras_dal.features.progress_bar import progress_bar, watched
from keras_dal.features.samples import check_bytes, check_fits, kept_bytes, positive, seconds_of
from keras_dal.features.store import SpooledRows
from keras_dal.models.understood import understood
from keras_dal.output.warning import say
from keras_dal.solvers.duality import SECONDS
from keras_dal.solvers.jacobian import jacobian
from keras_dal.solvers.label_squares import centred_total
from keras_dal.solvers.least_squares import StreamedQR, project_moments

_SMALLEST = float(np.finfo(np.float32).tiny / np.finfo(np.float32).eps)  # sum of squares that float32 does not lose


def alignment(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    decide_separability: bool = True,
    time_limit: float | None = SECONDS,
    loss: Any = None,
    parameters: Any = "head",
    max_bytes: int = MAX_BYTES,
    batch_size: int = BATCH_SIZE,
    verbose: int = 1,
) -> AlignmentReport:
    """Measure how much of the labels lies in the column space of the Jacobian of a model's linear parameters.

    One pass over the data, whose features wait in a temporary file where they are large. The memory for a plain head
    does not grow with them, but for the solver of separability.
    The factorization is in float64 on the host. Column means of the labels are removed where the head has a bias, and
    row means for softmax, because constants per sample change no softmax (Kawaguchi, Zhang and Deng, 2022). Smoothed
    labels give what hard ones do; labels that are mixed are measured as they are, and their share decides nothing.
    Constraints on the parameters, and which of them are trainable, count for nothing here.

    Args:
        model: a Keras model that `find_structure` understands.
        x: inputs as Keras takes them, or a dataset of `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them, `(n, ...)`.
        sample_weight: weights `(n,)`; rows are scaled by their roots, and weight 0 removes a sample.
        decide_separability: whether a solver decides where least squares do not: on hard labels that are not aligned,
            and on mixed ones.
        time_limit: seconds for that solver, as in `certify`; None for no limit.
        loss: as for `model.compile`; the compiled one by default.
        parameters: as in `find_structure`; or `"all"` for a lower bound with the whole network, x being arrays, by at
            most 300 iterations of LSQR on products of automatic differentiation, whose rounding is only estimated.
        max_bytes: of a plain head, memory for the solver of separability, without which least squares decide. Of a
            gated one, the largest array of features or logits in float64; several are needed, and after the pass over
            the data larger ones are refused. Gates and a factor that are larger are done without, which takes longer.
            For `"all"`, memory for the operator.
        batch_size: samples in one evaluation of arrays.
        verbose: 0 for silence; else what is done, and a progress bar for the features.

    Returns:
        An `AlignmentReport`.

    Raises:
        MemoryError: a gated head, or the whole network, needs more than `max_bytes`.
        ValueError: no linear head, an unsupported loss, no data, labels out of range, or features that are not finite.
    """
    check_bytes("max_bytes", max_bytes)
    seconds = seconds_of(time_limit)
    whole = isinstance(parameters, str) and parameters == "all"
    of_head = "head" if whole else parameters
    structure, loss = understood(model, first_inputs(x), loss, (x, y, sample_weight), of_head, verbose)
    if whole:
        if verbose:
            say(f"at most {PRODUCTS} products with the Jacobian of the whole network")
        return alignment_of_network(structure, loss, x, y, sample_weight, max_bytes, batch_size)
    seconds = seconds if decide_separability else None
    return alignment_of(structure, loss, x, y, sample_weight, seconds, max_bytes, batch_size, verbose)


def alignment_of(
    structure,
    loss,
    x,
    y=None,
    sample_weight=None,
    seconds=None,
    max_bytes: float = MAX_BYTES,
    batch_size=BATCH_SIZE,
    verbose=0,
):
    """Measure the alignment of a `Structure` that is at hand, whose function for features is then compiled once.

    Args:
        structure: a `Structure`.
        loss: a `losses.Loss`.
        x, y, sample_weight, max_bytes, batch_size, verbose: as for `alignment`.
        seconds: of the solver that decides separability, None for none.
    """
    bar = progress_bar("samples", x) if verbose else None
    with SpooledRows(max_bytes) as kept:
        rows = _Samples(kept, loss, structure.num_outputs)
        batches = feature_batches(structure, x, y, sample_weight, batch_size, labelled=True)
        used, alike = _gather(rows, watched(batches, bar))
        if verbose:
            say(announced(np.count_nonzero(used), structure.head().num_parameters, seconds))
        measure = _measure_plain if structure.is_plain else _measure_gated
        return measure(structure, loss, rows, used, alike, seconds, max_bytes)


def alignment_of_cached(structure, loss, data, targets):
    """Measure the alignment of a plain head from `CachedFeatures` and the targets of the loss, by their moments."""
    moments = 0.0
    for rows in arrays.slices(len(data)):
        features = np.asarray(data.features[rows], np.float64)
        columns = np.hstack([features, np.ones((len(features), 1)), loss.label_matrix(targets[rows])])
        moments = moments + columns.T @ (columns * data.weights[rows, None])
    eps = eps_of_features(structure, blocks_of(data.features))
    return alignment_from_moments(moments, len(data), structure, loss, EPS, eps)


def alignment_from_moments(moments, num_samples, structure, loss, eps=None, eps_of_features=None):
    """Measure the alignment of a plain head from sums that were gathered elsewhere.

    Args:
        moments: `[Z, 1, Y]' W [Z, 1, Y]`, float64 of shape `(m + 1 + C, m + 1 + C)`; Z are the inputs of
            `structure.output_layer`.
        num_samples: number of samples in the sums.
        structure: the `Structure` they come from.
        loss: the `losses.Loss` that made the targets Y.
        eps: spacing at one of the numbers that were summed up; by default those of the statistics of a training step.
        eps_of_features: the same of the numbers that the features were computed in; by default what the head takes.

    Returns:
        An `AlignmentReport`; for a gated branch that of the plain head in it, a lower bound, as in float32 without the
        features whose variation is lost beside their offset. Its shares are not numbers where that of all features is,
        or, under the squared error, that of labels.
    """
    c = structure.num_outputs
    moments = np.array(moments, np.float64)
    if moments.shape[0] <= c + 1 or moments.shape != (len(moments),) * 2 or not np.isfinite(moments).all():
        raise ValueError(f"Moments must be a finite matrix of order m + 1 + C. Received: shape {moments.shape}")
    if loss.shift_invariant:
        moments[-c:] -= moments[-c:].mean(axis=0)
        moments[:, -c:] -= moments[:, -c:].mean(axis=1, keepdims=True)
    eps = eps_of(_backend.statistics_dtype()) if eps is None else eps
    eps_of_features = coarsest_eps(structure, []) if eps_of_features is None else eps_of_features
    projection = project_moments(moments, c, structure.use_bias, eps, num_samples, eps_of_features)
    unknown = _unknown(projection, moments[-c:], loss, eps)
    if unknown.any():
        projection = dataclasses.replace(projection, residual=np.where(unknown, np.nan, projection.residual))
    return _report_projection(
        structure,
        loss,
        projection,
        num_samples,
        Finding(Verdict.UNDECIDED, "nothing: sums alone are no witness"),
        num_features=len(moments) - c - 1,
        exact=structure.place != "beside" and (eps <= EPS or projection.complete),
    )


def _unknown(projection, of_labels, loss, eps):
    """Return for which outputs sums do not tell what is left, `(C,)`: constant or not, too small to square or zero."""
    squares = projection.squares
    lost = (squares.centred == 0) & (squares.whole > 0)
    if eps > EPS:
        lost |= (squares.whole < _SMALLEST) & of_labels.any(axis=1)
    nothing = eps > EPS and not projection.complete and not projection.singular_values[1:].any()
    return (loss.quadratic * lost) | nothing


class _Samples:
    """Features, targets and weights of batches; labels are kept, and targets made of them: there may be many classes.

    Args:
        rows: the `SpooledRows` that keep them.
        loss: a `losses.Loss`.
        num_outputs: C.
    """

    def __init__(self, rows, loss, num_outputs):
        self._rows, self._loss, self._num_outputs = rows, loss, num_outputs

    def append(self, features, labels, weight):
        """Add a batch, whose labels are looked at.

        Raises:
            ValueError: as for `Loss.targets`.
        """
        targets = self._loss.targets(labels, self._num_outputs)
        plain = np.asarray(labels).dtype.kind in "biuf"  # whose bytes are numbers
        self._rows.append(features, np.asarray(labels, None if plain else targets.dtype), weight)

    def __iter__(self):
        for features, labels, weight in self._rows:
            yield features, self._loss.targets(labels, self._num_outputs), weight


def _gather(rows, batches):
    """Keeps samples that have a weight; returns which these are, and whether they weigh the same."""
    weights = []
    for features, y, weight in batches:
        kept = weight > 0
        if kept.any():
            rows.append(features[kept], y[kept], weight[kept])
        weights.append(weight)
    used, positives = positive(np.concatenate(weights))
    return used, bool(np.min(positives) == np.max(positives))


def _measure_plain(structure, loss, rows, used, alike, seconds, max_bytes):
    head, qr = structure.head(), StreamedQR(structure.num_features, structure.num_outputs, structure.use_bias)
    for features, targets, weight in rows:
        qr.update(features, loss.seen(loss.label_matrix(targets)), weight)
    eps = _eps(structure, rows)
    projection = qr.project(eps)
    fit = projected(loss, projection, eps)
    per_sample, _ = _residual_squares(head, loss, rows, used, fit.theta)
    finding = Search(head, loss, rows, fit, seconds, used.mean(), max_bytes).finding()
    return _report_projection(
        structure,
        loss,
        projection,
        qr.num_rows,
        finding,
        residual_share_per_sample=projection.squares.share(per_sample),
        alike=alike,
        share_error=projection.share_error,
    )


def projected(loss, projection, eps):
    """Return the `LeastSquares` in a `Projection` of labels on features of this precision."""
    share, least = (decisive_share(loss, each, projection.squares) for each in (projection.residual, projection.least))
    return LeastSquares(projection.coefficients.ravel(), share, least, eps, projection.complete)


def _measure_gated(structure, loss, rows, used, alike, seconds, max_bytes):
    head = structure.head()
    check_fits(int(used.sum()), (structure.num_features, structure.num_outputs), max_bytes)
    features, targets, weights = joined_rows(rows)
    eps = _eps(structure, rows)
    jac = jacobian(head, features, weights, loss.shift_invariant, eps=eps, max_bytes=kept_bytes(max_bytes))
    matrix = loss.label_matrix(targets)
    theta = jac.refined(matrix)
    squares = centred_total(loss.seen(matrix), weights, structure.use_bias)
    per_sample, per_class = _residual_squares(head, loss, rows, used, theta)
    share = decisive_share(loss, per_class, squares)
    least = decisive_share(loss, jac.least_left(matrix), squares) if jac.factorized else share
    fit = LeastSquares(theta, share, least, eps, jac=jac)
    return report(
        structure,
        loss,
        len(features),
        Search(head, loss, rows, fit, seconds, used.mean(), max_bytes).finding(),
        **shares(per_sample, per_class, squares),
        rank=jac.rank,
        tolerance=jac.tolerance,
        singular_values=jac.values,
        sigma_max=jac.sigma_max,
        alike=alike,
        share_error=jac.share_error(squares.share(per_sample.sum())),
        num_parameters=head.num_parameters,
        exact=jac.factorized,
    )


def _report_projection(structure, loss, projection, num_samples, finding, **fields):
    return report(
        structure,
        loss,
        num_samples,
        finding,
        residual_share=min(projection.residual_share, 1.0),
        residual_share_per_class=projection.residual_share_per_class,
        rank=projection.rank * loss.num_seen(structure.num_outputs),
        tolerance=projection.tolerance,
        singular_values=projection.singular_values,
        sigma_max=projection.sigma_max,
        num_parameters=projection.coefficients.size,
        **fields,
    )


def _eps(structure, rows):
    return eps_of_features(structure, (features for features, _, _ in rows if len(features)))


def _residual_squares(head, loss, rows, used, theta):
    """Return the squared, weighted residuals of each sample `(n,)`, zero where it was left out, and output `(C,)`."""
    per_sample, per_class = np.zeros(len(used)), np.zeros(head.num_outputs)
    parts = []
    for features, targets, weight in rows:
        left = loss.label_matrix(targets) - head.logits(features.astype(np.float64), theta)
        squares = weight[:, None] * loss.seen(left) ** 2
        parts.append(squares.sum(axis=1))
        per_class += squares.sum(axis=0)
    per_sample[used] = np.concatenate(parts)
    return per_sample, per_class
