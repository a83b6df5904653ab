"""What more gates beside the head would gain: residual share, infimum and rank by width, with no training.

The column space only grows with the width, and training stops gaining once the labels are in it (Kawaguchi, Zhang and
Deng, 2022). Gates beside the head are random and features stay as they are, so that both are known beforehand.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy import optimize

from keras_dal._backend import arrays
from keras_dal._backend.arrays import MAX_BYTES
from keras_dal._backend.threads import threads_for
from keras_dal.analysis.assumptions import ROUNDED
from keras_dal.analysis.misses import misses_some
from keras_dal.analysis.reports import WidthCurve
from keras_dal.analysis.samples_fitted import samples_fitted
from keras_dal.analysis.verdict import ALIGNED, decisive_share
from keras_dal.analysis.widths import affordable, check_widths, num_columns
from keras_dal.features.batches import BATCH_SIZE, first_inputs
from keras_dal.features.cache import cached_features
from keras_dal.features.precision import blocks_of, eps_of_features
from keras_dal.features.samples import check_bytes, check_count, check_seed, seconds_of
from keras_dal.heads import DenseHead, SumHead
from keras_dal.heads.array_backend import Host
from keras_dal.losses import common_scale
from keras_dal.models.gated_layers import GatedBranch
from keras_dal.models.understood import understood
from keras_dal.output.warning import say
from keras_dal.solvers.duality import SECONDS, enclose_infimum
from keras_dal.solvers.jacobian import jacobian
from keras_dal.solvers.label_squares import centred_total
from keras_dal.solvers.nested_columns import CHUNK, NestedColumns
from keras_dal.solvers.rounded import largest_loss, smallest_margin

_ENCLOSED = 2**26  # samples times squared columns up to which a solver encloses the infimum from both sides
_LARGEST_SCALE = 1e3  # of the least-squares logits, relative to their root mean square, that is tried


def width_curve(
    model: Any,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    *,
    widths: Sequence[int] | None = None,
    draws: int = 3,
    time_limit: float | None = SECONDS,
    loss: Any = None,
    cache: str | os.PathLike[str] | None = None,
    max_bytes: int = MAX_BYTES,
    batch_size: int = BATCH_SIZE,
    seed: int = 0,
    verbose: int = 1,
) -> WidthCurve:
    """Predict, from one pass over the data and no training, what more gates beside the head would gain.

    For each draw of the gates there is one set of columns: a wider head has those of the narrower ones and more. With
    p columns a draw takes `n p^2` products in float64 and `8 p (n + 3 p) + 128 C (n + 2 p)` bytes, and up to 1,280
    columns more while these are made. Ranks follow the rule of `alignment`, for features in float32. Shares are what
    evaluated coefficients leave, exact to about 1e-9 where no direction lies near the tolerance; those that do are left
    out column by column, each with about an nth part of the labels. Constraints on the parameters, and which of them
    are trainable, count for nothing here.

    Args:
        model: a Keras model that `find_structure` understands; of a `GatedBranch`, the head beside it is width 0.
        x: inputs as Keras takes them, or a dataset of `(x, y)` or `(x, y, sample_weight)`.
        y: labels as the loss takes them, `(n, ...)`.
        sample_weight: weights `(n,)`; weight 0 removes a sample.
        widths: ascending numbers of gates. By default 0, 1, 2, 4, ... up to an eighth of the samples as columns, and
            4,096 at most; with 1,000 samples or fewer, up to as many columns as samples.
        draws: how often the gates are drawn.
        time_limit: seconds for each solver, as in `certify`: one for each width with few columns.
        loss: as for `model.compile`; the compiled one by default.
        cache: directory in which features of arrays are kept and found again.
        max_bytes: memory for features, and for columns with their Gram matrix, its factors, and labels; more columns
            are refused.
        batch_size: samples in one evaluation of arrays.
        seed: integer for the gates and for the order of the samples.
        verbose: 0 for silence; else a line for each width of each draw.

    Returns:
        A `WidthCurve`.

    Raises:
        MemoryError: the columns of the widths need more than `max_bytes`.
        ValueError: no linear head, or one after gated units; an unsupported loss, bad data or bad arguments.
    """
    check_widths(widths)
    widths = None if widths is None else tuple(widths)
    check_count("draws", draws)
    seconds = seconds_of(time_limit)
    check_seed(seed)
    check_bytes("max_bytes", max_bytes)
    structure, loss = understood(model, first_inputs(x), loss, (x, y, sample_weight), verbose=verbose)
    if not structure.has_dense_part:
        raise ValueError(
            "The gates counted here stand beside the head, and this head comes after gated units. Pass the model that "
            f"it was made from. Received: layer {structure.layer.name!r} ({type(structure.layer).__name__})"
        )
    data = cached_features(structure, x, y, sample_weight, batch_size, cache, max_bytes, labelled=True).weighted
    widths = affordable(widths, len(data), structure.num_features, structure.num_outputs, max_bytes)
    problem = _problem(structure, loss, data)
    with threads_for(Host.block * (2 * structure.num_features + 2) ** 2):
        found = [_one_draw(problem, widths, seed + draw, draw, verbose) for draw in range(draws)]
        infimum = _infimum(problem, widths, found[0], seed, seconds)
    shares = np.array([[point.share for point in points] for points in found])
    return WidthCurve(
        widths=widths,
        residual_share=tuple(shares.mean(axis=0).tolist()),
        residual_share_spread=tuple(shares.std(axis=0).tolist()),
        infimum=infimum,
        rank=tuple(point.rank * loss.num_seen(structure.num_outputs) for point in found[0]),
        bytes=tuple(4 * problem.num_variables(width) for width in widths),
        settled=_settled(problem, widths, found, infimum),
        samples_fitted=problem.samples_fitted(seed),
        num_samples=len(data),
        num_features=structure.num_features,
        num_outputs=structure.num_outputs,
        loss_name=loss.name,
        draws=draws,
        not_covered=() if data.are_exact(structure) else (ROUNDED,),
    )


def _settled(problem, widths, found, infimum):
    """Return the first width from which nothing is to be gained, None where there is none.

    Args:
        problem: the `_WidthData`.
        widths: of the heads.
        found: for each draw a `_Point` for each width.
        infimum: of the first draw, bounds for each width.
    """
    labels_tell = problem.share_tells and not problem.hard
    for width, (lower, upper), *points in zip(widths, infimum, *found, strict=True):
        in_reach = all(point.decisive <= ALIGNED and not point.missed for point in points)
        if upper <= problem.floor or (labels_tell and in_reach and lower <= points[0].noise):
            return width
    return None


class _Point(NamedTuple):
    """One width of one draw: rank, residual share and the one that decides, and bounds of the infimum from the fit.

    `noise` is the largest squared error of labels that are aligned and rounded; `missed` is what `misses_some` says.
    """

    rank: int
    share: float
    decisive: float
    lower: float
    upper: float
    noise: float
    missed: bool


class _WidthData:
    """Features, labels and loss, and what does not depend on the gates."""

    def __init__(self, features, targets, weights, loss, use_bias, eps):
        self.features, self.targets, self.weights = np.asarray(features, np.float64), targets, weights
        self.loss, self.use_bias, self.eps = loss, use_bias, eps
        self.labels = loss.seen(loss.label_matrix(targets))
        self.squares = centred_total(self.labels, weights, use_bias)
        self.hard, self.share_tells = loss.are_hard(targets), common_scale(loss.scales(targets)) is not None
        self.floor = loss.floor(targets, weights)

    def num_columns(self, width):
        return num_columns(width, self.features.shape[1])

    def num_variables(self, width):
        m, outputs = self.features.shape[1], self.targets.shape[1]
        gated = 2 * m + width * (m + 1) * (outputs + 1) if width else 0  # mean, scale, gates and maps
        return (m + self.use_bias) * outputs + gated

    def shares(self, residual):
        """Return the residual share, and the one that decides, of residual squares `(C,)`."""
        both = self.squares.share(residual.sum()), decisive_share(self.loss, residual, self.squares)
        return tuple(min(1.0, float(share)) for share in both)

    def samples_fitted(self, seed):
        return samples_fitted(self.features, self.labels, self.loss, self.use_bias, self.eps, seed)

    def mixture(self, width, seed):
        """Return the gates that a `GatedBranch` of this width would have after `adapt`."""
        branch = GatedBranch(keras.layers.Dense(self.targets.shape[1], dtype="float32"), width, seed=seed)
        branch.adapt(self.features)
        return branch.linear_head()[0].parts[0]

    def fit_bounds(self, fit):
        """Return what a least-squares fit proves about the infimum: a lower and an upper bound."""
        values = self.targets, self.weights
        if self.hard and smallest_margin(self.loss, fit.logits, fit.errors, self.targets) > 0:
            return 0.0, 0.0
        scale = 1.0 if self.loss.quadratic else self._best_scale(fit.logits)
        upper = largest_loss(self.loss, scale * fit.logits, scale * fit.errors, *values)
        return self.loss.of_squares(fit.least, *values) if self.loss.quadratic else self.floor, upper

    def misses_some(self, fit):
        """Return whether labels are missed that others hide: of hard ones margins tell."""
        fitted = self.loss.seen(fit.logits)
        return not self.hard and misses_some(self.labels, fitted, fit.noise - fit.errors, self.use_bias)

    def noise_of(self, fit):
        """Return the largest squared error of labels that are aligned, as this fit says, and rounded."""
        if not self.loss.quadratic:
            return np.inf
        return float(np.mean(self.weights * self.loss.values(self.targets + fit.noise, self.targets)))

    def descended_bound(self, found):
        """Return the upper bound that a few steps towards the minimum prove."""
        if self.hard and smallest_margin(self.loss, found.logits, found.errors, self.targets) > 0:
            return 0.0
        return largest_loss(self.loss, found.logits, found.errors, self.targets, self.weights)

    def _best_scale(self, logits):
        """Return about the best factor of the logits; any is a witness."""
        size = float(np.sqrt(np.mean(logits**2))) or 1.0

        def mean_loss(log):
            return float(np.mean(self.weights * self.loss.values(np.exp(log) / size * logits, self.targets)))

        bounds = (-np.log(_LARGEST_SCALE), np.log(_LARGEST_SCALE))
        return float(np.exp(optimize.minimize_scalar(mean_loss, bounds=bounds, method="bounded").x)) / size


def _problem(structure, loss, data):
    """Return the `_WidthData` of cached features."""
    targets = loss.targets(data.labels, structure.num_outputs)
    eps = eps_of_features(structure, blocks_of(data.features))
    return _WidthData(data.features, targets, data.weights, loss, structure.use_bias, eps)


def _one_draw(problem, widths, seed, draw, verbose):
    """Return a `_Point` for each width, from one set of columns that grows."""
    n = len(problem.targets)
    columns = NestedColumns(problem.num_columns(widths[-1]), problem.weights, problem.use_bias, problem.eps)
    columns.append(problem.features)
    if widths[-1]:
        mixture = problem.mixture(widths[-1], seed)
        gates = mixture.gates(problem.features)
        inputs = np.column_stack([mixture.standardize(problem.features), np.ones(n)])
    points, before, descended = [], 0, None
    for width in widths:
        if points and points[-1].rank == n:  # every labelling is in the column space, and stays in it
            points.append(points[-1])
            continue
        if width:
            for block in _products(gates[:, before:width], inputs):
                columns.append(block, products=True)
        before = width
        fit = columns.solve(problem.labels)
        lower, upper = problem.fit_bounds(fit) if draw == 0 else (problem.floor, np.inf)
        open_still = draw == 0 and not problem.loss.quadratic
        if open_still and min([upper, *(point.upper for point in points)]) > problem.floor:
            descended = columns.descend(problem.loss, problem.targets, descended)
            upper = min(upper, problem.descended_bound(descended))
        share, decisive = problem.shares(fit.residual)
        if points:  # which zero maps reach too
            share, decisive = min(share, points[-1].share), min(decisive, points[-1].decisive)
        missed = decisive <= ALIGNED and problem.misses_some(fit)
        points.append(_Point(fit.rank, share, decisive, lower, upper, problem.noise_of(fit), missed))
        if verbose:
            say(f"draw {draw + 1}, {width:,} gates, residual share {points[-1].share:.6f}")
    return points


def _products(gates, inputs):
    """Yield the columns of gates `(n, k)` and inputs `(n, m + 1)`, few at a time: all would take as much again."""
    for some in arrays.slices(gates.shape[1], max(1, CHUNK // inputs.shape[1])):
        yield (gates[:, some, None] * inputs[:, None, :]).reshape(len(gates), -1)


def _infimum(problem, widths, points, seed, seconds):
    """Return the bounds for each width, by the fits, and by a solver where the columns are few.

    A wider head can do what a narrower one does: an upper bound holds for all wider, a lower one for all narrower.
    """
    lower, upper = np.array([point.lower for point in points]), np.array([point.upper for point in points])
    mixture = problem.mixture(widths[-1], seed) if widths[-1] else None
    for index, width in enumerate(widths):
        few = len(problem.targets) * problem.num_columns(width) ** 2 <= _ENCLOSED
        if few and min(upper[: index + 1]) > problem.floor:
            found = _enclosed(problem, mixture, width, seconds)
            lower[index], upper[index] = max(lower[index], found.lower), min(upper[index], found.upper)
    upper = np.minimum.accumulate(upper)
    lower = np.minimum(np.maximum.accumulate(lower[::-1])[::-1], upper)
    return tuple(zip(lower.tolist(), upper.tolist(), strict=True))


def _enclosed(problem, mixture, width, seconds):
    m, outputs = problem.features.shape[1], problem.targets.shape[1]
    head = DenseHead(m, outputs, problem.use_bias)
    if width:
        head = SumHead([mixture.first(width), head])
    jac = jacobian(head, problem.features, problem.weights, problem.loss.shift_invariant, eps=problem.eps)
    return enclose_infimum(jac, problem.loss, problem.targets, problem.weights, seconds)
