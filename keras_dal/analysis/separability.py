"""Aligned, separable or not: each with its proof, and undecided where there is none.

A theta_S whose smallest margin is positive after all rounding is counted proves that labels are separable; for a cross-
entropy a dual point that an exact one is near proves that they are not. Where the infimum is attained, as for the
squared error and for smoothed labels, there are only aligned and not aligned; labels that are mixed otherwise are not
aligned where a dual point shows it, and undecided else.
"""

import dataclasses
import enum
from typing import Any

import numpy as np

from keras_dal._backend import arrays
from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.analysis.assumptions import NO_SCALE, NO_SCALE_OF_MIXED
from keras_dal.analysis.misses import allowances, are_missed, middles
from keras_dal.losses import common_scale
from keras_dal.solvers import duality
from keras_dal.solvers.jacobian import jacobian
from keras_dal.solvers.label_squares import centred_total
from keras_dal.solvers.rounded import smallest_margin
from keras_dal.tables import apart, at_least

ALIGNED = 1e-8  # largest residual share that still counts as aligned; the share itself is always reported
NEITHER = "a solver that found neither a separating head nor a bound above zero"
_BY_ROUNDING = "a solver that found a separating head only along directions that count as rounding of the features"
_ABOVE = 1e-7  # by which a dual point must exceed the least loss of any model to prove something, for weights of one
_ARRAYS = 16  # of the size of features, or logits, in float64 that a solver of separability may need


class Verdict(enum.StrEnum):
    """What a verdict says; a string for whoever reads it."""

    ALIGNED = "aligned"
    SEPARABLE = "separable"
    NOT_SEPARABLE = "not separable"
    NOT_ALIGNED = "not aligned"
    UNDECIDED = "undecided"

    __repr__ = str.__repr__


@dataclasses.dataclass(frozen=True)
class Finding:
    """A `Verdict`, and how it was decided."""

    verdict: Verdict
    decided_by: str


def below_one(alignment, verdict):
    """Return an alignment as it is to be printed, by a lower bound: it is one only where labels are aligned."""
    return alignment if verdict == Verdict.ALIGNED else min(alignment, np.nextafter(1.0, 0.0))


OF_MIXED_LABELS = Finding(Verdict.UNDECIDED, f"nothing: {NO_SCALE_OF_MIXED}")


def by_residual(share, otherwise, reason):
    """Return that labels are aligned, where their residual share is small enough, or another verdict."""
    if share <= ALIGNED:
        return Finding(Verdict.ALIGNED, f"a residual share of {share:.1e}, at most {ALIGNED:.0e}")
    return Finding(otherwise, f"{reason}, with a residual share of {share:.1e}")


def hidden(share):
    """Return that labels whose residual share is small may be missed, some of them, beside others."""
    return Finding(
        Verdict.UNDECIDED,
        f"a residual share of {share:.1e} of all labels together, which may hide that some are missed",
    )


def any_missed(head, loss, rows, theta, eps, max_bytes):
    """Return whether theta may miss labels, as `are_missed` says, by more than rounding of features and labels.

    What evaluating it in float64 may hide counts as missed.

    Args:
        head, loss, rows: as for `decide`.
        theta: what is to reach them, `(P,)`.
        eps: spacing at one of the numbers that the features were computed in.
        max_bytes: memory for labels, of some outputs at a time.
    """
    known = [
        (middle := middles(labels, head.use_bias), allowances(labels, middle))
        for labels in _labels_by_output(loss, rows, max_bytes)
    ]
    offset, allowed = (np.concatenate(parts) for parts in zip(*known, strict=True))
    theta = theta - np.pad(offset, (len(theta) - len(offset), 0))  # of the bias, which comes last
    for features, targets, _ in rows:
        features, matrix = features.astype(np.float64), loss.label_matrix(targets)
        labels, size = loss.seen(loss.seen(matrix) - offset), head.magnitudes(features, np.abs(theta)) + np.abs(matrix)
        noise = eps * size - head.rounding(features, theta)
        noise += _largest(noise) * loss.shift_invariant  # of what is centred, too
        if are_missed(labels, loss.seen(head.logits(features, theta)), noise, allowed):
            return True
    return False


def _labels_by_output(loss, rows, max_bytes):
    """Yield all labels as the loss sees them, `(n, k)`, of some outputs at a time, where quantiles make copies."""
    shapes = [targets.shape for _, targets, _ in rows]
    at_once = max(1, int(min(max_bytes, MAX_BYTES)) // (32 * sum(n for n, _ in shapes)))
    for some in arrays.slices(shapes[0][1], at_once):
        yield np.concatenate([loss.seen(loss.label_matrix(targets))[:, some] for _, targets, _ in rows])


def _largest(noise):
    """Return of each row `(k, C)` the entry that is furthest from zero."""
    return np.take_along_axis(noise, np.argmax(np.abs(noise), axis=1, keepdims=True), axis=1)


def decisive_share(loss, residual, squares):
    """Return the residual share that decides: of classes together, of outputs in units of their own the largest.

    Args:
        loss: a `losses.Loss`.
        residual: squares of what is left of each output, `(C,)`.
        squares: the `LabelSquares`.
    """
    return float(squares.share_per_class(residual).max() if loss.quadratic else squares.share(residual.sum()))


def announced(num_samples, num_parameters, seconds):
    """Return in a line what is about to be decided, and how long a solver may take, if there is one."""
    if seconds is None:
        return f"measuring what {num_parameters:,} parameters can do for {num_samples:,} samples"
    limit = f"each solver has {seconds:g} seconds" if np.isfinite(seconds) else "solvers have no time limit"
    return f"deciding what {num_parameters:,} parameters can do for {num_samples:,} samples; {limit}"


@dataclasses.dataclass(frozen=True)
class LeastSquares:
    """What least squares on the labels found.

    Attributes:
        theta: their solution `(P,)`, the first candidate for a witness.
        share: its residual share, as `decisive_share` returns it.
        least: the share that all directions leave that float64 can tell from rounding.
        eps: spacing at one of the numbers that the features were computed in.
        complete: whether it is known that there are no other directions.
        columns: the `Jacobian`, where there is one already.
    """

    theta: np.ndarray
    share: float
    least: float
    eps: float
    complete: bool = False
    columns: Any = None


def decide(head, loss, rows, fit, seconds, used=1.0, max_bytes=MAX_BYTES):
    """Return the `Finding` for a head.

    Args:
        head: a `heads.Head`.
        loss: a `losses.Loss`.
        rows: an iterable of features, targets and weights, batch by batch.
        fit: the `LeastSquares`.
        seconds: of a solver, which is run where least squares are no witness; None for none.
        used: share of all samples, for means over them, that `rows` are.
        max_bytes: memory for a solver.
    """
    scale, columns = common_scale(np.concatenate([loss.scales(t) for _, t, _ in rows if len(t)])), fit.columns
    if scale is None:
        return OF_MIXED_LABELS if seconds is None else _separability(head, loss, rows, fit, seconds, used, max_bytes)
    if np.isfinite(scale):
        if columns is None and seconds is not None and not fit.complete and fit.share > ALIGNED:
            columns, least = _factorized(head, loss, rows, max_bytes)
            fit = dataclasses.replace(fit, least=fit.least if least is None else least)
        found = _by_least_squares(fit, columns)
        if found.verdict == Verdict.ALIGNED and any_missed(head, loss, rows, fit.theta, fit.eps, max_bytes):
            return hidden(fit.share)
        return found
    margin = min(
        _smallest_margin(head, loss, features.astype(np.float64), targets, fit.theta)
        for features, targets, _ in rows
        if len(features)
    )
    if margin > 0:
        at = at_least(margin, 2, "e")
        return by_residual(fit.share, Verdict.SEPARABLE, f"least squares, with a smallest margin of {at}")
    if seconds is None:
        reason = "least squares, which do not separate the samples"
        return Finding(Verdict.UNDECIDED, f"{reason}, with a residual share of {fit.share:.1e}")
    return _separability(head, loss, rows, fit, seconds, used, max_bytes)


def _by_least_squares(fit, columns):
    """Return the verdict where the infimum is attained: labels that no direction at all reaches are not aligned."""
    if columns is not None and not columns.factorized:
        return by_residual(fit.share, Verdict.UNDECIDED, f"{columns.method}, which bounds the alignment from below")
    known = fit.complete or fit.share <= ALIGNED or (columns is not None and columns.is_complete())
    if fit.least <= ALIGNED or not known:
        reason = "least squares, where what counts as rounding may reach the labels"
        return by_residual(fit.share, Verdict.UNDECIDED, reason)
    return by_residual(fit.share, Verdict.NOT_ALIGNED, "least squares")


def _factorized(head, loss, rows, max_bytes):
    """Return the `Jacobian` on all rows and a lower bound of the share it leaves, where these are known."""
    if _num_bytes(rows) > max_bytes:
        return None, None
    features, targets, weights = joined_rows(rows)
    columns = jacobian(head, features, weights, shift_invariant=loss.shift_invariant)
    matrix = loss.label_matrix(targets)
    squares = centred_total(loss.seen(matrix), weights, head.use_bias)
    return columns, decisive_share(loss, columns.least_left(matrix), squares)


def _num_bytes(rows):
    """Return about how much memory a solver needs: what is large is the features of all samples, or their logits."""
    return _ARRAYS * 8 * int(np.max(np.sum([(features.size, targets.size) for features, targets, _ in rows], axis=0)))


def joined_rows(rows):
    """Return features, targets and weights of all batches, in float64."""
    return (np.concatenate(parts).astype(np.float64) for parts in zip(*rows, strict=True))


def _smallest_margin(head, loss, features, targets, theta):
    errors = head.rounding(features, theta)
    return smallest_margin(loss, head.logits(features, theta), errors, targets)


def _separability(head, loss, rows, fit, seconds, used, max_bytes):
    if (size := _num_bytes(rows)) > max_bytes:
        return Finding(
            Verdict.UNDECIDED,
            f"least squares alone, because a solver may need {size:,} bytes, above {max_bytes=:,}",
        )
    features, targets, weights = joined_rows(rows)
    columns = fit.columns
    if columns is None:
        columns = jacobian(head, features, weights, shift_invariant=loss.shift_invariant, eps=fit.eps)
    if not columns.factorized:
        return Finding(Verdict.UNDECIDED, _too_large(columns))
    infimum = duality.enclose_infimum(columns, loss, targets, weights, seconds=seconds)
    if not loss.are_hard(targets):
        return _of_mixed(infimum.lower, loss.floor(targets, weights), np.mean(weights), used)
    return _of_hard(infimum, columns, used)


def _of_hard(enclosure, columns, used=1.0, floor=0.0):
    """Return the verdict for hard labels whose infimum is enclosed.

    Args:
        enclosure: the `Enclosure`.
        columns: the `Jacobian`.
        used: share of all samples that were counted, for means over them.
        floor: least loss of any model.
    """
    if enclosure.margin is not None and enclosure.margin > 0:
        least = at_least(enclosure.margin, 3, "e")
        return Finding(Verdict.SEPARABLE, f"parameters with a smallest margin of at least {least}, rounding counted")
    if enclosure.lower > floor:
        least = at_least(used * enclosure.lower, 4, "e")
        return Finding(Verdict.NOT_SEPARABLE, f"a dual point: no parameters have a loss below {least}")
    return Finding(Verdict.UNDECIDED, _found_neither(enclosure) if columns.factorized else _too_large(columns))


def _of_mixed(lower, floor, weight, used=1.0):
    """Return the verdict for labels that no one scale of theirs fits: whether the least loss of any model is missed.

    Args:
        lower: lower bound of the infimum.
        floor: least loss of any model.
        weight: mean weight of the samples.
        used: share of all samples that they are.
    """
    if lower > floor + _ABOVE * weight:
        least, most = apart(used * lower, used * floor, 6)
        return Finding(Verdict.NOT_ALIGNED, f"a dual point: no parameters have a loss below {least}, above {most}")
    return Finding(Verdict.UNDECIDED, f"{NO_SCALE}; the least loss of any model is {used * floor:.6g}")


def _found_neither(enclosure):
    found = _BY_ROUNDING if enclosure.by_rounding else NEITHER
    return found if enclosure.out_of_time is None else f"{found} within {enclosure.out_of_time:g} seconds"


def finding_of(found, share, witnessed, objective, scale, v, max_bytes):
    """Return the `Finding` of a certificate.

    Args:
        found: the `Enclosure` of the infimum.
        share: what least squares leaves of the labels, as `decisive_share` returns it.
        witnessed: what v leaves, evaluated.
        objective: the `Objective`.
        scale: the factor of Y_l that is optimal, infinite if labels are hard, None if there is none.
        v: the witness of least squares, times the scale where that is finite.
        max_bytes: memory for labels, of some outputs at a time.
    """
    floor = objective.floor
    if scale is None:
        return _of_mixed(found.lower, floor, np.mean(objective.weights))
    left = max(share, witnessed)  # beside an offset a witness may differ by less than it can show
    if left <= ALIGNED and _is_proved(found, objective, scale, v, max_bytes):
        at = f", and the loss is least at {scale:.3g} v" if scale not in (1.0, np.inf) else ""
        return Finding(
            Verdict.ALIGNED, f"J v = Y_l up to a residual share of {witnessed:.1e}, v evaluated in float64{at}"
        )
    if np.isfinite(scale):
        return _of_attained(found, left, objective)
    return _of_hard(found, objective.jacobian, floor=floor)


def _is_proved(found, objective, scale, v, max_bytes):
    """Return whether no label is missed that others outweigh: of hard ones margins tell."""
    if np.isinf(scale):
        return found.margin is None or found.margin > 0
    jac = objective.jacobian
    rows = [(jac.features, objective.targets, objective.weights)]
    missed = any_missed(jac.head, objective.loss, rows, v / scale, jac.eps, max_bytes)
    return not missed and not _is_above_rounding(found.lower, objective, v)


def _of_attained(found, left, objective):
    """Return the `Finding` for labels whose infimum is attained, if any parameters reach them."""
    remains, above = f"least squares leaves a residual share of {left:.2e}", _ABOVE * np.mean(objective.weights)
    if objective.jacobian.factorized and found.lower > objective.floor + above * (not objective.loss.quadratic):
        least, _ = apart(found.lower, objective.floor, 3)
        return Finding(Verdict.NOT_ALIGNED, f"no parameters have a loss below {least}, and {remains}")
    if left <= ALIGNED:
        return hidden(left)
    if not objective.jacobian.factorized:
        return Finding(Verdict.UNDECIDED, _too_large(objective.jacobian))
    reason = "nothing shows that directions that count as rounding do not reach the labels"
    return Finding(Verdict.UNDECIDED, f"{remains}, and {reason}")


def _too_large(columns):
    return f"least squares alone, because the head is too large to factorize ({columns.method})"


def _is_above_rounding(lower, objective, v):
    """Whether a quadratic loss is above what features and labels that were rounded may leave of aligned ones."""
    jac, targets = objective.jacobian, objective.targets
    if not objective.loss.quadratic or lower <= objective.floor:
        return False
    size = jac.head.magnitudes(jac.features, np.abs(v)) + np.abs(targets)
    return lower > objective.loss_of(targets + jac.eps * size)
