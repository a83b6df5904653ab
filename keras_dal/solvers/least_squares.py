r"""Projection of labels on the columns of features, from a streamed QR factorization or from moments.

With J = [Z, 1] kron I_C the alignment is the R^2 of the least-squares regression of the labels on the features: one
factorization of [Z, 1 | Y] serves all outputs. The rule for ranks is that of `features.columns`.
"""

import dataclasses

import numpy as np
from scipy import linalg

from keras_dal._backend.arrays import EPS
from keras_dal.features.columns import gram_tolerance, rank_tolerance, sizes_of_columns
from keras_dal.heads.norms import column_norms, sigma_max_bound, sigma_max_bound_of_gram
from keras_dal.solvers.label_squares import LabelSquares, safe_mean

_LESS = 0.25  # of what is reached along an eigenvector that just counts: so much of it rounding may have made
_BLOCK_RATIO = 4  # rows factorized at once, in widths of the matrix: the carried triangle then costs little


@dataclasses.dataclass(frozen=True)
class Projection:
    """Least-squares regression of labels on features, at a numerical rank.

    Attributes:
        coefficients: shape `(k, C)`, k = m + 1 with a bias, the bias last.
        residual: squared norm of what is left of each column of the labels, `(C,)`.
        least: a lower bound of the same with all directions that float64 can tell from rounding, `(C,)`; None from
            moments.
        complete: whether these are all directions there are; from moments, whether every feature is known to vary, or
            to be zero.
        squares: the `LabelSquares` that it is compared with.
        rank: number of singular values above `tolerance` times the largest.
        tolerance: relative.
        singular_values: of the features, centred where there is a bias, and the column of ones, divided by
            `sizes_of_columns`, descending.
        sigma_max: an upper bound, close to it, of the largest singular value of the features (and the column of ones)
            as they are.
    """

    coefficients: np.ndarray
    residual: np.ndarray
    squares: LabelSquares
    rank: int
    tolerance: float
    singular_values: np.ndarray
    sigma_max: float
    least: np.ndarray | None = None
    complete: bool = False

    @property
    def residual_share(self):
        return float(self.squares.share(self.residual.sum()))

    @property
    def residual_share_per_class(self):
        return self.squares.share_per_class(self.residual)

    @property
    def share_error(self):
        """About how far rounding may have moved `residual_share`, where it is not from moments."""
        return share_error(self.residual_share, self.singular_values, self.rank)


class StreamedQR:
    """The triangle of a QR factorization of `[Z, 1 | Y]`, one block of rows after another, in float64 (TSQR).

    Args:
        num_features: m, the columns of Z.
        num_outputs: C, the columns of Y.
        use_bias: whether there is a column of ones.

    Source: Demmel, Grigori, Hoemmen and Langou, "Communication-optimal parallel and sequential QR and LU
    factorizations", 2012 (the sequential variant).
    """

    def __init__(self, num_features, num_outputs, use_bias):
        self.num_columns = num_features + use_bias
        self.use_bias = use_bias
        self.num_rows = 0
        self.shift = np.zeros(num_features)  # what is subtracted from the features, where a bias undoes it
        self.label_shift, self._squares = np.zeros(num_outputs), np.zeros(num_outputs)  # the same of the labels
        width = self.num_columns + num_outputs
        self._rows = np.zeros((max(_BLOCK_RATIO * width, 1024) + width, width), order="F")
        self._filled = 0

    def update(self, features, targets, weights=None):
        """Add rows: features `(k, m)`, targets `(k, C)`, and weights `(k,)` that are not negative, or None."""
        m = features.shape[1]
        start = 0
        if self.use_bias and not self.num_rows and len(features):
            self.shift, self.label_shift = (safe_mean(each, weights) for each in (features.astype(np.float64), targets))
        while start < len(features):
            stop = start + min(len(features) - start, len(self._rows) - self._filled)
            block = self._rows[self._filled : self._filled + stop - start]
            block[:, :m] = features[start:stop] - self.shift
            block[:, m : self.num_columns] = 1.0
            block[:, self.num_columns :] = targets[start:stop] - self.label_shift
            if weights is not None:
                block *= np.sqrt(weights[start:stop, None])
            self._filled += stop - start
            start = stop
            if self._filled == len(self._rows):
                self._factorize()
        self.num_rows += len(features)
        self._squares += np.sum(targets**2, axis=0) if weights is None else weights @ targets**2

    def _factorize(self):
        rows = self._rows if self._filled == len(self._rows) else np.asfortranarray(self._rows[: self._filled])
        factorize, size_of_work = linalg.get_lapack_funcs(("geqrf", "geqrf_lwork"), (rows,))
        work, _ = size_of_work(*rows.shape)
        rows = factorize(rows, lwork=int(work), overwrite_a=True)[0]  # in place: the buffer is in column order
        self._filled = min(rows.shape)
        self._rows[: self._filled] = np.triu(rows[: self._filled])

    def project(self, eps):
        """Return the `Projection` of the labels, for features of this floating-point spacing at one."""
        self._factorize()
        triangle, k = self._rows[: self._filled], self.num_columns
        columns, labels = triangle[:, :k], triangle[:, k:]
        means, total = np.zeros(k), np.sum(labels**2, axis=0)
        centred = columns.copy()
        if self.use_bias:  # the column of ones in these coordinates: what it explains of the labels is not counted
            ones = columns[:, -1]
            means[:-1] = _mean_along(ones, columns[:, :-1])
            centred[:, :-1] -= np.outer(ones, means[:-1])
            total = np.sum((labels - np.outer(ones, _mean_along(ones, labels))) ** 2, axis=0)
        norms, sizes = column_norms(centred), column_norms(columns)
        varies = norms > EPS * self.num_rows * sizes
        if self.use_bias:
            columns = columns + np.outer(columns[:, -1], np.append(self.shift, 0.0))
        scale = sizes_of_columns(column_norms(columns), norms, eps)
        lost = max(1.0, np.max(sizes[varies] / scale[varies], initial=0.0))  # digits, to the means
        tolerance, finest = (rank_tolerance(self.num_rows, k, each, lost) for each in (eps, EPS))
        scale[~varies] = np.inf
        left, values, right = linalg.svd(centred / scale, full_matrices=False, check_finite=False)
        rank, most = (int(np.sum(values > each * values[0])) for each in (tolerance, finest))
        projected = left[:, :most].T @ labels
        residual, least = (np.sum((labels - left[:, :d] @ projected[:d]) ** 2, axis=0) for d in (rank, most))
        if most:
            turned = 10 * (self.num_rows + k) * EPS * lost * values[0] / values[most - 1]  # the span, by rounding
            least = np.maximum(0.0, np.sqrt(least) - turned * np.sqrt(total)) ** 2
        coefficients = (right[:rank].T / values[:rank]) @ projected[:rank] / scale[:, None]
        if self.use_bias:
            coefficients[-1] += self.label_shift - (means[:-1] + self.shift) @ coefficients[:-1]
        sigma_max = sigma_max_bound(columns, self.num_rows)
        squares = LabelSquares.settled(total, self._squares)
        complete = most == np.count_nonzero(columns.any(axis=0))
        return Projection(coefficients, residual, squares, rank, tolerance, values, sigma_max, least, complete)


def share_error(share, values, rank):
    """Return about how far rounding in float64 may have moved a residual share: the span it is of turns by no more.

    Args:
        share: as computed.
        values: singular values of columns of norm one, descending.
        rank: how many of them count.

    Source: Wedin, "Perturbation bounds in connection with singular value decomposition", 1972.
    """
    turned = EPS * len(values) * values[0] / values[rank - 1] if rank else 0.0  # nothing is reached, and exactly so
    return float(turned * (2 * np.sqrt(share) + turned))


def project_moments(moments, num_outputs, use_bias, eps, num_samples, eps_of_features=0.0):
    """Return the `Projection` of the labels from sums alone.

    A Gram matrix squares the condition number: only singular values above the square root of the rounding count, and
    above what the rounding of the features themselves may be.

    Args:
        moments: `[Z, 1, Y]' W [Z, 1, Y]`, float64 of shape `(m + 1 + C, m + 1 + C)`.
        num_outputs: C.
        use_bias: whether the column of ones belongs to the head.
        eps: spacing at one of the numbers that were summed up.
        num_samples: number of samples in the sums, however much they weigh.
        eps_of_features: spacing at one of the numbers that the features were computed in.
    """
    moments = np.asarray(moments, np.float64)
    y = slice(len(moments) - num_outputs, None)
    one = len(moments) - num_outputs - 1
    k, rounding = one + use_bias, max(eps, EPS)
    raw, labels = moments[:k, :k], np.diag(moments[y, y])
    means = moments[one] / moments[one, one] * use_bias
    means[one] = 0.0
    centred = moments - moments[one, one] * np.outer(means, means)
    if use_bias:
        centred[one, np.arange(len(moments)) != one] = centred[np.arange(len(moments)) != one, one] = 0.0
    gram, cross, total = centred[:k, :k], centred[:k, y], np.maximum(np.diag(centred[y, y]), 0.0)
    size, left = np.diag(raw), np.diag(gram)
    varies = left > gram_tolerance(k, rounding) ** 2 * size  # what is left of the others by centring may be rounding
    scale = np.sqrt(np.where(varies, size, np.inf))
    squares, vectors = linalg.eigh(gram / np.outer(scale, scale))
    values, vectors = np.sqrt(np.maximum(squares, 0.0))[::-1], vectors[:, ::-1]
    of_sums = gram_tolerance(k, rounding)
    tolerance = max(of_sums, float(rank_tolerance(num_samples, k, eps_of_features)))
    rank = int(np.sum(values > tolerance * values[0]))
    projected = vectors[:, :rank].T @ (cross / scale[:, None]) / values[:rank, None]
    sure = 1.0 - _LESS * (of_sums / values[:rank, None]) ** 2
    coefficients = vectors[:, :rank] @ (projected / values[:rank, None]) / scale[:, None]
    if use_bias:
        coefficients[-1] += means[y] - means[:one] @ coefficients[:-1]
    return Projection(
        coefficients=coefficients,
        residual=np.clip(total - np.sum(sure * projected**2, axis=0), 0.0, total),
        squares=LabelSquares.settled(total, labels, k * eps),
        rank=rank,
        tolerance=tolerance,
        singular_values=values,
        sigma_max=float(sigma_max_bound_of_gram(raw, num_samples, rounding)),
        complete=bool((varies | (size == 0))[:one].all()),
    )


def _mean_along(ones, columns):
    """Return the coefficients of the column of ones, found twice: the second time, of what rounding left of it."""
    square = ones @ ones
    first = ones @ columns / square
    return first + ones @ (columns - np.outer(ones, first)) / square
