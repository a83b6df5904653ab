"""Coordinates of a head's parameters in which the mean squared change of its logits is about the squared distance."""

import numpy as np
from scipy import linalg

_RIDGE = 1e-2  # relative: directions the anchors hardly see are not free
_FULL = 4096  # gated units up to which their second moments are factorized whole, which takes the cube of their number
_RANK = 256  # largest eigenvalues that are kept of more units
_SPARE, _ITERATIONS = 24, 2  # additional vectors, and iterations, to compute them
_ROWS = 2**28  # entries of the matrix they are computed from


class Whitening:
    """`theta = T phi` with `(T T')^-1` the Kronecker-factored second moment of the rows of J_S over anchors.

    The row of output j for anchor a is `(V_j * g_a) kron u_a`. Summed over j, the mean of its outer products is
    approximated by `mean(u u') kron (mean(g g') * (V V'))`, as if inputs and gates were independent (the idea of K-FAC,
    Martens and Grosse, 2015); for a plain head it is exact. Of many units the largest eigenvalues stand for the second
    factor. Parts of a sum are treated apart.

    Args:
        jacobian: a `CachedJacobian` on the anchors.
    """

    def __init__(self, jacobian):
        self._split, self._on = jacobian.split, jacobian.on
        self._inputs = [_Full(_mean_square(jacobian, index), self._on) for index in range(len(jacobian.parts))]
        self._gates = [_gate_factor(jacobian, index, part) for index, part in enumerate(jacobian.parts)]

    def theta(self, phi):
        """Return `T phi`, float32 of shape `(P,)`."""
        pairs = zip(self._inputs, self._gates, strict=True)
        return self._mapped(phi, [(inputs.transposed_left, gates.right) for inputs, gates in pairs])

    def transposed(self, gradient):
        """Return `T' gradient`, float64 of shape `(P,)`."""
        pairs = zip(self._inputs, self._gates, strict=True)
        return self._mapped(gradient, [(inputs.left, gates.transposed_right) for inputs, gates in pairs]).astype(
            np.float64
        )

    def _mapped(self, theta, maps):
        pieces = zip(self._split(theta), maps, strict=True)
        products = (left(right(self._on.array(piece))) for piece, (left, right) in pieces)
        return np.concatenate([self._on.numpy(product).ravel() for product in products])


def _mean_square(jacobian, index):
    """Return the mean outer product of the inputs of one part."""
    on = jacobian.on
    inputs = (block[index][0] for _, block in jacobian.blocks())
    return sum(on.numpy(on.transposed_matmul(each, each)).astype(np.float64) for each in inputs) / len(jacobian)


def _gate_factor(jacobian, index, part):
    """Return the second factor of one part."""
    gates = (block[index][1] for _, block in jacobian.blocks())
    units = part.shape[1]
    if not part.gated:
        return _Identity()
    if units <= _FULL:
        return _Full(sum(part.gate_moments(each).astype(np.float64) for each in gates) / len(jacobian), jacobian.on)
    generator, step = np.random.default_rng(0), -(-len(jacobian) * units // _ROWS)
    signs = (-1.0, 1.0)
    thinned = (each[::step] for each in gates)
    rows = [part.gate_rows(each, generator.choice(signs, (len(each), jacobian.num_outputs))) for each in thinned]
    return _LowRank(np.concatenate(rows), jacobian.on)


class _Identity:
    """No second factor: the outputs of a plain head have the same inputs."""

    def right(self, piece):
        return piece

    transposed_right = right


class _Full:
    """Products with `L^-1` for `L L'` the second moments, slightly regularized in the scale of each coordinate."""

    def __init__(self, moments, on):
        scale = np.diag(moments).copy()
        scale[scale <= 0] = 1.0  # an input that is always zero; its gradient is zero too
        moments[np.diag_indices_from(moments)] += _RIDGE * scale
        lower = linalg.cholesky(moments, lower=True, check_finite=False, overwrite_a=True)
        (invert,) = linalg.get_lapack_funcs(("trtri",), (lower,))
        inverse, _ = invert(lower, lower=1, overwrite_c=1)  # a third of the work of solving for the identity
        inverse = inverse.astype(np.float32)
        self._on, self._root, self._transpose = on, on.array(inverse), on.array(inverse.T)

    def left(self, piece):
        return self._on.matmul(self._root, piece)

    def transposed_left(self, piece):
        return self._on.matmul(self._transpose, piece)

    def right(self, piece):
        return self._on.matmul(piece, self._root)

    def transposed_right(self, piece):
        return self._on.matmul(piece, self._transpose)


class _LowRank:
    """Products with the inverse root of second moments of which the largest eigenvalues are kept and the rest averaged.

    The eigenvectors are those of the moments at unit diagonal, by subspace iteration from a random start (Halko,
    Martinsson and Tropp, 2011).

    Args:
        rows: matrix `(k, H)` whose mean outer product the moments are; it is overwritten.
        on: one of `arithmetic`.
    """

    def __init__(self, rows, on):
        scale = np.sqrt(np.mean(np.square(rows), axis=0))
        scale[scale <= 0] = 1.0
        rows /= scale * np.float32(np.sqrt(len(rows)))
        units, rank = len(scale), min(_RANK, len(scale))
        matrix, basis = on.array(rows), np.random.default_rng(0).standard_normal((units, min(units, rank + _SPARE)))
        for _ in range(_ITERATIONS):
            image = on.matmul(matrix, on.array(_orthonormal(basis)))
            basis = on.numpy(on.transposed_matmul(matrix, image))
        basis = _orthonormal(basis)
        image = on.numpy(on.matmul(matrix, on.array(basis)))
        values, vectors = linalg.eigh(image.T @ image, check_finite=False)
        values, vectors = values[::-1][:rank], basis @ vectors[:, ::-1][:, :rank]
        rest = max((units - values.sum()) / max(units - rank, 1), _RIDGE)  # the trace is the number of units
        roots = np.maximum(values, rest) ** -0.5 - rest**-0.5
        self._on, self._scale, self._rest = on, on.array(scale), float(rest**-0.5)
        self._vectors, self._weighted = on.array(vectors), on.array((vectors * roots).T)

    def right(self, piece):
        return self._root(piece) / self._scale

    def transposed_right(self, piece):
        return self._root(piece / self._scale)

    def _root(self, piece):
        return self._rest * piece + self._on.matmul(self._on.matmul(piece, self._vectors), self._weighted)


def _orthonormal(matrix):
    return linalg.qr(np.asarray(matrix, np.float32), mode="economic", check_finite=False)[0]
