"""What training the head of a model from here can reach, and how fast: the parts of a `Certificate`, computed."""

import dataclasses
from typing import Any

import numpy as np
from scipy import linalg

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.analysis import assumptions
from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.descent_bound import Objective
from keras_dal.analysis.misses import any_missed
from keras_dal.analysis.separability import announced
from keras_dal.analysis.verdict import ABOVE, Evidence, by_bounds, decisive_share, too_large
from keras_dal.features.batches import BATCH_SIZE, feature_batches, first_inputs
from keras_dal.features.precision import eps_of, eps_of_features
from keras_dal.features.progress_bar import progress_bar, watched
from keras_dal.features.samples import (
    check_bytes,
    check_fits,
    checked_weight,
    joined,
    kept_bytes,
    positive,
    seconds_of,
)
from keras_dal.losses import common_scale
from keras_dal.models.regularizers import l2_factors, penalty_at
from keras_dal.models.understood import understood
from keras_dal.output.tables import apart
from keras_dal.output.warning import say
from keras_dal.solvers.duality import SECONDS
from keras_dal.solvers.jacobian import MAX_JACOBIAN_BYTES, jacobian
from keras_dal.solvers.label_squares import centred_total


def certify(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    max_jacobian_bytes: int = MAX_JACOBIAN_BYTES,
    time_limit: float | None = SECONDS,
    loss: Any = None,
    parameters: Any = "head",
    max_bytes: int = MAX_BYTES,
    batch_size: int = BATCH_SIZE,
    verbose: int = 1,
) -> Certificate:
    """Certify what training theta_S alone can reach on these samples, and how fast.

    Args:
        model: a Keras model that `find_structure` understands.
        x: inputs as Keras takes them, `(n, ...)`, or a dataset of `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them: `(n, C)`, or `(n,)` of integer classes or of one output.
        sample_weight: weights, shape `(n,)`; the loss is the sum of the weighted losses divided by n.
        max_jacobian_bytes: of a head with gates, the largest Jacobian whose singular values are computed; beyond it no
            rank is decided, and the witness comes from a Cholesky factor (for a mixture, where `max_bytes` has room for
            it) or from LSQR, which can take long. A plain head is always factorized.
        time_limit: seconds after which a solver ends with what it knows by then, None for no limit; its last tries for
            a proof may take twice as long again, and where directions count as rounding there are two solvers.
            Factorizations are not interrupted.
        loss: as for `model.compile`; the compiled one by default.
        parameters: as in `find_structure`.
        max_bytes: of features, and of logits, in float64, of each of which several arrays are needed; more are refused
            as soon as they are seen. Of the gates and the factor of a head with gates, too, which are done without
            beyond it. Infinity refuses nothing; gates and factor then have the default limit. Labels are copied for as
            many outputs at a time as it has room for.
        batch_size: samples in one evaluation of arrays.
        verbose: 0 for silence; else what is done, and a progress bar for the features.

    Returns:
        A `Certificate`.

    Raises:
        MemoryError: features or logits are larger than `max_bytes`.
        ValueError: no linear head, an unsupported loss, bad data or bad arguments.
    """
    check_bytes("max_bytes", max_bytes)
    check_bytes("max_jacobian_bytes", max_jacobian_bytes)
    seconds = seconds_of(time_limit)
    structure, resolved = understood(model, first_inputs(x), loss, (x, y, sample_weight), parameters, verbose)
    bar = progress_bar("samples", x) if verbose else None
    batches, count = [], 0
    for batch in watched(feature_batches(structure, x, y, sample_weight, batch_size, labelled=True), bar):
        used = batch[2] > 0
        count += np.count_nonzero(used)
        check_fits(count, (structure.num_features, structure.num_outputs), max_bytes)
        batches.append((*(part[used] for part in batch[:2]), batch[2]))
    features, labels, weights = map(joined, zip(*batches, strict=True))
    weights = positive(weights)[1]
    targets = resolved.targets(labels, structure.num_outputs)
    head = structure.head()
    if verbose:
        say(announced(len(features), head.num_parameters, seconds))
    theta, factors = structure.theta(), l2_factors(structure.linear_parameters)
    found = certify_head(
        head,
        resolved,
        features,
        targets,
        theta,
        weights,
        penalty=factors,
        max_jacobian_bytes=max_jacobian_bytes,
        max_bytes=max_bytes,
        eps=eps_of_features(structure, [features]),
        seconds=seconds,
    )
    return of_model(found, structure, factors, theta)


def of_model(certificate, structure, factors, theta):
    """Complete the `Certificate` of a head by what its model does in training.

    Args:
        certificate: of the head with these L2 factors.
        structure: the `Structure` of the model.
        factors: from `l2_factors`; of a penalty that is not L2, only its value is in the certificate.
        theta: theta_S now, shape `(P,)`.
    """
    open_points = (*certificate.not_covered, *assumptions.of_training(structure, factors))
    if certificate.beta is None:
        open_points = (*open_points, assumptions.CURVATURE)
    beta = None if factors is None else certificate.beta
    now = penalty_at(structure.linear_parameters, factors, theta)
    comparisons = () if factors is None else certificate.comparisons  # whose objectives have L2 penalties alone
    return dataclasses.replace(certificate, beta=beta, comparisons=comparisons, penalty=now, not_covered=open_points)


def certify_head(
    head,
    loss,
    features,
    targets,
    theta,
    weights=None,
    *,
    penalty: Any = None,
    max_jacobian_bytes=MAX_JACOBIAN_BYTES,
    max_bytes=MAX_BYTES,
    eps=None,
    seconds=None,
):
    """Certify a head on cached features, in float64 throughout and without Keras.

    Args:
        head: a `heads.Head` with P parameters and C outputs.
        loss: a `losses.Loss`.
        features: array `(n, m)`, whose dtype says how precise it is.
        targets: from `loss.targets`, shape `(n, C)`.
        theta: theta_S now, shape `(P,)`.
        weights: sample weights `(n,)`, not negative, ones by default.
        penalty: L2 factors of theta_S, a number or an array `(P,)`, none by default.
        max_jacobian_bytes: largest Jacobian whose singular values are computed.
        max_bytes: memory for gates and for a factor, each, of a larger one; infinity is the default.
        eps: spacing of floating-point numbers at one where the features were computed; by default that of their dtype.
        seconds: after which a solver ends with what it knows by then; `SECONDS` by default.

    Raises:
        ValueError: sample weights that are negative or all zero.
    """
    kept, weights = positive(checked_weight(weights, len(features)))
    eps = eps_of(features.dtype) if eps is None else eps
    features, targets = features[kept].astype(np.float64), targets[kept]
    jac = jacobian(head, features, weights, loss.shift_invariant, max_jacobian_bytes, eps, kept_bytes(max_bytes))
    objective = Objective(jac, loss, targets, weights, 0.0 if penalty is None else penalty)
    matrix = loss.label_matrix(targets)
    scale, v = common_scale(loss.scales(targets)), jac.refined(matrix)
    squares, left = centred_total(jac.seen(matrix), weights, head.use_bias), _left(jac, matrix, v, weights)
    v = scale * v if scale is not None and np.isfinite(scale) else v
    found = objective.infimum((theta, v), seconds)
    share, witnessed = (decisive_share(loss, each, squares) for each in left)
    finding = _Enclosed(found, share, witnessed, objective, scale, v, max_bytes).finding()
    residual_share = min(1.0, float(squares.share(left[0].sum())))
    beta = objective.smoothness() if np.isfinite(theta).all() else None  # from there no step leads anywhere
    of_labels = assumptions.of_labels(loss, targets, scale, found.lower > objective.floor)
    return Certificate(
        loss_name=loss.name,
        num_samples=len(features),
        num_features=features.shape[1],
        num_outputs=head.num_outputs,
        num_parameters=head.num_parameters,
        loss=objective.loss_at(theta),
        penalty=objective.penalty_of(theta),
        rank=jac.rank,
        full_rank=jac.full_rank,
        tolerance=jac.tolerance,
        method=jac.method,
        exact=jac.factorized,
        residual_share=residual_share,
        verdict=finding.verdict,
        decided_by=finding.decided_by,
        infimum=(float(found.lower), float(found.upper)),
        margin=None if found.margin is None or np.isinf(found.margin) else found.margin,
        witness_norm=float(linalg.norm(found.theta)),
        beta=beta,
        comparisons=() if beta is None else objective.comparisons(theta, [v] if found.theta is v else [v, found.theta]),
        not_covered=(*assumptions.ALWAYS, *[assumptions.RANK] * jac.factorized, *of_labels),
        floor=objective.floor,
        mean_weight=float(np.mean(weights)),
        share_error=jac.share_error(residual_share),
        weighted=bool(np.any(weights != 1)),
    )


def _left(jac, matrix, v, weights):
    """Return squares of what of Y_l the columns that count do not reach, where known, and v does not, evaluated."""
    missed = matrix - jac.logits(v)
    return [weights @ jac.seen(each) ** 2 for each in (jac.left_of(matrix) if jac.factorized else missed, missed)]


class _Enclosed(Evidence):
    """What a witness and an enclosure of the infimum prove.

    Args:
        found: the `Enclosure`.
        share: what least squares leaves of the labels, as `decisive_share` returns it.
        witnessed: what v leaves, evaluated.
        objective: the `Objective`.
        scale: as for `Evidence`.
        v: the witness of least squares, times the scale where that is finite.
        max_bytes: memory for labels, of some outputs at a time.
    """

    def __init__(self, found, share, witnessed, objective, scale, v, max_bytes):
        self._found, self._witnessed, self._objective = found, witnessed, objective
        self.scale, self._v, self._max_bytes = scale, v, max_bytes
        self.share = max(share, witnessed)  # beside an offset a witness may differ by less than it can show

    def reaches_all(self):
        if np.isinf(self.scale):  # margins tell
            return self._found.margin is None or self._found.margin > 0
        jac, objective = self._objective.jacobian, self._objective
        rows = [(jac.features, objective.targets, objective.weights)]
        missed = any_missed(jac.head, objective.loss, rows, self._v / self.scale, jac.eps, self._max_bytes)
        return not missed and not self._is_above_rounding()

    def _is_above_rounding(self):
        """Whether a quadratic loss is above what features and labels that were rounded may leave of aligned ones."""
        jac, targets, loss = self._objective.jacobian, self._objective.targets, self._objective.loss
        if not loss.quadratic or self._found.lower <= self._objective.floor:
            return False
        size = jac.head.magnitudes(jac.features, np.abs(self._v)) + np.abs(targets)
        return self._found.lower > self._objective.loss_of(targets + jac.eps * size)

    def of_aligned(self):
        at = f", and the loss is least at {self.scale:.3g} v" if self.scale not in (1.0, np.inf) else ""
        return f"J v = Y_l up to a residual share of {self._witnessed:.1e}, v evaluated in float64{at}"

    def by_infimum(self):
        objective = self._objective
        return by_bounds(self._found, self.scale, objective.jacobian, objective.floor, np.mean(objective.weights))

    def exclusion(self):
        objective, lower = self._objective, self._found.lower
        above = ABOVE * np.mean(objective.weights) * (not objective.loss.quadratic)
        if not objective.jacobian.factorized or lower <= objective.floor + above:
            return None
        return f"no parameters have a loss below {apart(lower, objective.floor, 3)[0]}, and {self._remains}"

    @property
    def _remains(self):
        return f"least squares leaves a residual share of {self.share:.2e}"

    def of_undecided(self):
        jac = self._objective.jacobian
        if not jac.factorized:
            return too_large(jac)
        return f"{self._remains}, and nothing shows that directions that count as rounding do not reach the labels"
