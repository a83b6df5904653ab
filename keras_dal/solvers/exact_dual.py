r"""Dual points in floating point that an exact one is provably close to: what `not separable` rests on.

Masses q >= 0, not all zero, on pairs of a sample and a wrong class are a dual point if `J' u = 0` for the u they make.
Floats leave a residual `r = J' u`. With D the least masses of the samples an exact dual point differs from q by a share
of at most `|r| / sigma_min(D J)`; docs/theory.md has the proof. Here are bounds of both with all rounding counted.

`sigma_min` is the smallest singular value that is not zero. Where columns are dependent this needs to be known of the
matrix itself, the features (and gates) as the model gave them, and not of its rounding.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import linalg, optimize
from scipy.sparse import csgraph

from keras_dal._backend.arrays import EPS

_PRIMES = (2147483629, 2147483587)
_MODULAR_WORK = 5e8  # multiplications modulo a prime, a few seconds, spent once; a tenth of it on a block
_PAIR_WORK = 3e9  # multiplications of a factorization, a few seconds
_LIMIT = 1  # of HiGHS: the time is over
_HEAVIEST, _ENTRIES = 4, 4e6  # pairs per direction of a linear program, which takes a second or two, and its entries
_REFINEMENTS = 4
_LARGEST_SHARE = 1e-3  # by which an exact dual point may differ from that found
_LARGEST_EXPONENT = 1000  # of a factor that float64 holds
_FAINTEST = 1e-30  # shares of the mass below it are none, so that their squares do not vanish


@dataclasses.dataclass(frozen=True)
class Block:
    """Samples and outputs whose masses make a dual point by themselves.

    Attributes:
        columns: `(k, p)`, float64, in which an entry has an error of at most 4 roundings of `magnitude`.
        magnitude: `(k, p)`.
        signs: `(k, t)`, those with which masses enter u; 0 where there is no mass.
        own: `(k, t)`, 1 where a sample's masses enter u together, with a minus.
        mass: `(k, t)`, positive where `signs` is not 0.
        residues: returns the exact matrix modulo a prime.
        rank_bound: returns the rank of the matrix of all blocks, modulo primes as `exact_rank`, or None.
    """

    columns: np.ndarray
    magnitude: np.ndarray
    signs: np.ndarray
    own: np.ndarray
    mass: np.ndarray
    residues: Callable
    rank_bound: Callable

    def near_exact(self):
        """Return masses `(k, t)` and the share by which those of an exact dual point may differ, None if unknown."""
        paired = self.signs != 0
        unit = self.mass.max(initial=0.0)
        least = np.min(np.where(paired, self.mass, np.inf), axis=1, initial=np.inf) / (unit or 1.0)
        if not len(least) or least.min() < _FAINTEST:
            return None
        used = self.magnitude.any(axis=0)
        if not used.any():
            return self.mass, 0.0  # samples that no theta moves
        metric = _Metric(self.columns[:, used], self.magnitude[:, used], least)
        if not metric.rank or (metric.rank < used.sum() and metric.rank not in self._rank_bounds()):
            return None
        mass, terms = self.mass / unit, sum(self.mass.shape) + 16
        for refinement in range(_REFINEMENTS):
            dual = self.signs * mass - self.own * mass.sum(axis=1, keepdims=True)
            residual, size = metric.pulled_back(dual)
            share = np.linalg.norm(np.abs(residual) + 1.1 * terms * EPS * size, axis=0).max() / metric.smallest
            worst = np.max(share * least / np.min(np.where(paired, mass, np.inf), axis=1))
            if refinement == _REFINEMENTS - 1 or (refinement and worst < 1e-9):
                return (mass * unit, worst) if worst <= _LARGEST_SHARE else None
            mass = np.where(paired, mass - self.signs * metric.correction(residual), 0.0)
            if np.min(mass[paired]) <= 0:
                break
        return None

    def _rank_bounds(self):
        yield self.rank_bound()
        yield exact_rank(self.residues, len(self.columns), self.columns.shape[1], _MODULAR_WORK / 10)


class _Metric:
    """`D J` with columns scaled by powers of two, factorized: `rank`, and a lower bound of its `smallest` value."""

    def __init__(self, columns, magnitude, least):
        self.columns, self.magnitude, self.least = columns, magnitude, least
        largest = np.max(least[:, None] * np.abs(columns), axis=0)
        self.scale = np.ldexp(1.0, np.minimum(-np.frexp(np.where(largest > 0, largest, 1.0))[1], _LARGEST_EXPONENT))
        self.weighted = columns * self.scale * least[:, None]
        triangle = linalg.qr(self.weighted, mode="r", check_finite=False)[0][: min(columns.shape)]
        _, values, self.right = linalg.svd(triangle, full_matrices=False, check_finite=False)
        rounding = 10 * sum(columns.shape) * EPS * values[0]
        rounding += 4 * EPS * np.linalg.norm(magnitude * self.scale * least[:, None])
        self.rank = int(np.sum(values > 4 * rounding))
        self.values, self.right = values[: self.rank], self.right[: self.rank]
        self.smallest = self.values[-1] - rounding if self.rank else 0.0

    def pulled_back(self, dual):
        """Return the scaled `J' u`, and the sums of magnitudes that bound its rounding."""
        scale = self.scale[:, None]
        return scale * (self.columns.T @ dual), scale * (self.magnitude.T @ np.abs(dual))

    def correction(self, residual):
        """Return `D^2 J (J' D^2 J)^+` times a scaled residual."""
        solved = self.right.T @ ((self.right @ residual) / self.values[:, None] ** 2)
        return self.least[:, None] * (self.weighted @ solved)


def nearby_dual(jacobian, sides, shares, weights, negligible, by_pair=False):
    """Return shares `(n, C)` near those given, by which part of themselves `(n,)` an exact dual point's may differ.

    Args:
        jacobian: a `FactorizedJacobian`.
        sides: of the loss, in float64; where one class is right, pairs are of a sample and another class.
        shares: masses per weight, `(n, C)`, in [0, 1].
        weights: positive, `(n,)`.
        negligible: shares up to it count as zero.
        by_pair: whether every pair may have mass by itself, where outputs share their columns; a larger problem.

    Returns:
        The shares, zero where no exact dual point is known near them, the parts, and whether one is near all blocks:
        by class, masses on classes that no sample has belong to none.
    """
    found, part, complete = np.zeros_like(shares), np.zeros(len(shares)), True
    split = _by_class if sides.exclusive else _by_output
    if jacobian.copies == 1 or (by_pair and sides.exclusive):
        split = _by_pair
    for index, block in split(jacobian, sides, shares, weights, max(negligible, _FAINTEST)):
        near = block.near_exact()
        if near is None:
            complete = False
        else:
            found[index] = near[0].reshape(found[index].shape)
            part[index[0].ravel()] = np.maximum(part[index[0].ravel()], near[1])
    return found / weights[:, None], part, complete


def _by_class(jacobian, sides, shares, weights, negligible):
    """Yield a block for every set of classes that overlap, of the samples that have mass on all others of the set."""
    targets = sides.targets
    linked = np.zeros((targets.shape[1],) * 2)
    np.maximum.at(linked, np.argmax(targets, axis=1), np.where(targets == 0, shares, 0.0))
    count, sets = csgraph.connected_components(linked > negligible, directed=True, connection="strong")
    for classes in (np.flatnonzero(sets == each) for each in range(count)):
        own = targets[:, classes]
        least = np.min(np.where(own == 0, shares[:, classes], np.inf), axis=1)
        rows = np.flatnonzero(own.any(axis=1) & (least > negligible))
        if len(classes) > 1 and len(rows):
            yield _shared(jacobian, np.ix_(rows, classes), 1.0 - own[rows], own[rows], shares, weights)


def _by_output(jacobian, sides, shares, weights, negligible):
    for output in range(shares.shape[1]):
        rows = np.flatnonzero(shares[:, output] > negligible)
        if len(rows):
            signs = -sides.targets[rows][:, [output]]
            yield _shared(jacobian, np.ix_(rows, np.array([output])), signs, np.zeros_like(signs), shares, weights)


def _shared(jacobian, index, signs, own, shares, weights):
    """Return an index into the shares and the block of it, for outputs that share their columns."""
    rows = index[0].ravel()
    columns, magnitude = (matrix[rows, 0] for matrix in (jacobian.centred, jacobian.magnitude))

    def residues(prime):
        return residues_modulo(jacobian.matrix(jacobian.features[rows])[:, 0], prime)

    mass = (shares * weights[:, None])[index] * (signs != 0)
    return index, Block(columns, magnitude, signs, own, mass, residues, lambda: jacobian.exact_rank)


def _by_pair(jacobian, sides, shares, weights, negligible):
    """Yield one block of all pairs."""
    pairs = np.nonzero(sides.pairs(np.where(shares > negligible, shares, 0.0)))
    if len(pairs[0]) and len(pairs[0]) * jacobian.num_directions**2 <= _PAIR_WORK:
        yield pairs, _of_pairs(jacobian, sides, pairs, (shares * weights[:, None])[pairs])


def _of_pairs(jacobian, sides, pairs, mass):
    """Return the block of pairs, each with a mass by itself."""
    i, j = pairs
    signs = np.ones(len(i)) if sides.exclusive else -sides.targets[pairs]
    columns, magnitude = (jacobian.rows(matrix, i, j) for matrix in (jacobian.centred, jacobian.magnitude))
    right = np.argmax(sides.targets, axis=1)[i]
    if sides.exclusive:
        columns = columns - jacobian.rows(jacobian.centred, i, right)
        magnitude = magnitude + np.abs(jacobian.rows(jacobian.magnitude, i, right))

    def residues(prime):
        samples, at = np.unique(i, return_inverse=True)
        modular = residues_modulo(jacobian.matrix(jacobian.features[samples]), prime)
        gaps = jacobian.rows(modular, at, j)
        return (gaps - jacobian.rows(modular, at, right)) % prime if sides.exclusive else gaps

    signs, mass = signs[:, None], mass[:, None]
    return Block(columns, magnitude, signs, np.zeros_like(signs), mass, residues, lambda: None)


def sparse_dual(jacobian, sides, shares, weights, seconds):
    """Return what `nearby_dual` does for a dual point of few pairs, which may be far from the shares.

    Where a rare feature separates some pairs of samples that others do not share, the masses of these vanish near a
    minimum, and what is left is no dual point. A linear program finds masses among the heaviest pairs that are.

    Args:
        jacobian, sides, shares, weights: as for `nearby_dual`.
        seconds: after which the program ends without one.

    Returns:
        Shares and parts, as from there, and whether the program ended so.
    """
    found, part = np.zeros_like(shares), np.zeros(len(shares))
    count = _HEAVIEST * jacobian.num_directions
    if count * jacobian.num_directions > _ENTRIES:
        return found, part, False
    masses = sides.pairs(shares * weights[:, None]).ravel()
    heaviest = np.argpartition(masses, -min(count, len(masses)))[-count:]
    heaviest = np.sort(heaviest[masses[heaviest] > 0])
    if not len(heaviest):
        return found, part, False
    pairs = np.unravel_index(heaviest, shares.shape)
    block = _of_pairs(jacobian, sides, pairs, masses[heaviest])
    vertex, ended_early = _vertex(block.signs * block.columns, seconds)
    kept = vertex > 0
    if not kept.any():
        return found, part, ended_early
    pairs = tuple(index[kept] for index in pairs)
    block = _of_pairs(jacobian, sides, pairs, vertex[kept])
    block = dataclasses.replace(block, rank_bound=lambda: exact_rank(block.residues, *block.columns.shape))
    near = block.near_exact()
    if near is not None:
        found[pairs] = near[0].ravel()
        part[pairs[0]] = near[1]
    return found / weights[:, None], part, ended_early


def _vertex(rows, seconds):
    """Return masses that sum to one with `rows' mass = 0`, as few as a vertex has, and whether the search ended early.

    Where none are found, the masses are zeros.
    """
    scale = np.max(np.abs(rows), axis=0, initial=0.0)
    equations = np.vstack([(rows[:, scale > 0] / scale[scale > 0]).T, np.ones(len(rows))])
    sums = np.append(np.zeros(len(equations) - 1), 1.0)
    found = optimize.linprog(np.zeros(len(rows)), A_eq=equations, b_eq=sums, options={"time_limit": seconds})
    return found.x if found.status == 0 else np.zeros(len(rows)), found.status == _LIMIT


def residues_modulo(matrix, prime):
    """Return a matrix of floats, which are whole numbers times powers of two, modulo an odd prime below 2^31."""
    fractions, exponents = np.frexp(matrix)
    powers, which = np.unique(exponents - 53, return_inverse=True)
    factors = np.array([pow(2, int(power), prime) for power in powers], np.int64)
    return np.ldexp(fractions, 53).astype(np.int64) % prime * factors[which.reshape(matrix.shape)] % prime


def exact_rank(residues, num_rows, num_columns, work=_MODULAR_WORK):
    """Return the rank of a matrix given by its residues modulo primes, None where that takes too long."""
    if num_rows * num_columns * min(num_rows, num_columns) > work:
        return None
    return max(rank_modulo(residues(prime), prime) for prime in _PRIMES)


def rank_modulo(residues, prime):
    """Return the rank of an integer matrix modulo a prime below 2^31, by elimination."""
    rows, rank = residues.copy(), 0
    for column in range(rows.shape[1]):
        pivots = np.flatnonzero(rows[rank:, column])
        if not len(pivots):
            continue
        rows[[rank, rank + pivots[0]]] = rows[[rank + pivots[0], rank]]
        rows[rank] = rows[rank] * pow(int(rows[rank, column]), -1, prime) % prime
        below = rank + 1 + np.flatnonzero(rows[rank + 1 :, column])
        rows[below] = (rows[below] - rows[below, column][:, None] * rows[rank] % prime) % prime
        rank += 1
        if rank == len(rows):
            break
    return rank
