"""Coordinates of a head's parameters in which the mean squared change of its logits is about the squared distance."""

from typing import Any

import numpy as np
from scipy import linalg

from keras_dal._backend import arrays
from keras_dal._backend.arrays import EPS
from keras_dal.heads.parameters import join

_RIDGE = 1e-2  # relative: directions the anchors hardly see are not free
_FULL = 4096  # gates or units up to which their moments are factorized whole, which takes the cube of their number
_RANK = 256  # largest eigenvalues that are kept of more
_SPARE, _ITERATIONS = 24, 2  # additional vectors, and iterations, to compute them
_ENTRIES = 2**28  # entries of the matrix they are computed from
_TINY = 1e-30  # squares in float32 below this have lost digits
_SAFETY = 1.1


class Whitening:
    """`theta = T phi` with `(T T')^-1` the Kronecker-factored second moment of the rows of J_S over anchors.

    The row of output j for anchor a is `(V_j * g_a) kron u_a`. Summed over j, the mean of its outer products is
    approximated by `mean(u u') kron (mean(g g') * (V V'))`, as if inputs and gates were independent (the idea of K-FAC,
    Martens and Grosse, 2015); for a plain head it is exact, and a mixture has no `V V'`. Of many units the largest
    eigenvalues stand for the second factor. Parts of a sum are treated apart.

    Args:
        jacobian: a `CachedJacobian` on the anchors.
        samples: the same on the samples that will be moved; anchors that are few, or unlike them, would otherwise make
            coordinates that they do not see free. The anchors by default.
    """

    def __init__(self, jacobian, samples=None):
        self._split, self._on = jacobian.split, jacobian.on
        # moments have the anchors' own scale; a pass over the samples may compute all gates again
        apart = samples is not None and samples.features is not jacobian.features
        input_scales, gate_scales = _scales(samples) if apart else ([0.0] * len(jacobian.parts),) * 2
        inputs, gates = [0.0] * len(jacobian.parts), [_collector(part, jacobian) for part in jacobian.parts]
        for _, block in jacobian.blocks():  # once: where memory is short, each pass computes all gates
            for index, (part_inputs, part_gates) in enumerate(block):
                inputs[index] = inputs[index] + _moments(part_inputs, self._on)
                gates[index].add(part_gates)
        pairs = zip(inputs, input_scales, strict=True)
        self._inputs = [_Full(total / len(jacobian), scale, self._on) for total, scale in pairs]
        self._gates: list[Any] = [each.factor(scale) for each, scale in zip(gates, gate_scales, strict=True)]

    def theta(self, phi):
        """Return `T phi`, float32 of shape `(P,)`, a tensor for a tensor."""
        pairs = zip(self._inputs, self._gates, strict=True)
        return self._mapped(phi, [(inputs.transposed_left, gates.right) for inputs, gates in pairs])

    def transposed(self, gradient):
        """Return `T' gradient`, float64 of shape `(P,)`, a tensor for a tensor."""
        pairs = zip(self._inputs, self._gates, strict=True)
        maps = [(inputs.left, gates.transposed_right) for inputs, gates in pairs]
        pulled_back = self._mapped(gradient, maps)
        return pulled_back.astype(np.float64) if arrays.of(gradient) is arrays.NUMPY else pulled_back

    @property
    def root(self):
        """The matrix R of a plain head with `T' = R kron I`, in float64, as the float32 numbers it consists of."""
        return self._inputs[0].root

    def exact_transposed(self, gradient):
        """Return `T' gradient` of a plain head in float64."""
        root = self.root
        return (root @ gradient.reshape(len(root), -1)).ravel()

    def exact_theta(self, phi):
        """Return `T phi` of a plain head in float64."""
        root = self.root
        return (root.T @ phi.reshape(len(root), -1)).ravel()

    def exact_inverse(self, theta):
        """Return `T^-1 theta` of a plain head in float64, and a bound of its rounding errors."""
        root = self.root
        pieces = theta.reshape(len(root), -1)
        inverse = _inverse(root.copy()).T
        phi = inverse @ pieces
        left = np.abs(pieces - root.T @ phi) + 2 * EPS * len(root) * (np.abs(root.T) @ np.abs(phi))
        return phi.ravel(), (_SAFETY * np.abs(inverse) @ left).ravel()

    def rows(self, inputs, gates):
        """Return inputs and gates of some samples of a mixture, the only part, whose products are rows of `J T`."""
        return self._inputs[0].transposed_right(inputs), self._gates[0].rows(gates)

    def _mapped(self, theta, maps):
        pieces = zip(self._split(theta), maps, strict=True)
        products = [left(right(self._on.array(piece))) for piece, (left, right) in pieces]
        if arrays.of(theta) is arrays.NUMPY:
            products = [self._on.numpy(product) for product in products]
        return join(products, np.float32)


def _moments(inputs, on):
    """Return the sum of outer products of inputs, float64, multiplied in float32 unless that has no room for them."""
    with np.errstate(over="ignore", under="ignore"):
        square = on.numpy(on.transposed_matmul(inputs, inputs)).astype(np.float64)
    small = np.flatnonzero(np.diag(square) < _TINY)
    if np.isfinite(square).all() and not (len(small) and on.numpy(inputs)[:, small].any()):
        return square
    inputs = on.numpy(inputs).astype(np.float64)
    return inputs.T @ inputs


def _scales(jacobian):
    """Return the mean square of every input and of every gate, in lists by part, whose gates may be none."""
    inputs, gates = [0.0] * len(jacobian.parts), [0.0] * len(jacobian.parts)
    for _, block in jacobian.blocks():
        for index, (part, (part_inputs, part_gates)) in enumerate(zip(jacobian.parts, block, strict=True)):
            inputs[index] = inputs[index] + jacobian.on.squares(part_inputs) / len(jacobian)
            gates[index] = gates[index] + part.gate_squares(part_gates) / len(jacobian)
    return inputs, gates


def _collector(part, jacobian):
    """Return what makes the second factor of a part from its gates, block by block."""
    if not part.copies:
        return _Identity()
    collector = (_Moments if part.shape[1] // part.copies <= _FULL else _Rows)(part, jacobian)
    return collector if part.copies == 1 else _Shared(collector, part.copies, jacobian.on)


class _Moments:
    """Sums the second moments of gates."""

    def __init__(self, part, jacobian):
        self._part, self._jacobian, self._total = part, jacobian, 0.0

    def add(self, gates):
        self._total = self._total + self._part.gate_moments(gates).astype(np.float64)

    def factor(self, scale):
        return _Full(self._total / len(self._jacobian), scale, self._jacobian.on)


class _Rows:
    """Keeps rows whose mean outer product the second moments are, of every sample or of every so many."""

    def __init__(self, part, jacobian):
        self._part, self._jacobian, self._rows = part, jacobian, []
        self._generator = np.random.default_rng(0)
        self._step = -(-len(jacobian) * part.shape[1] // (part.copies * _ENTRIES))

    def add(self, gates):
        gates = gates[:: self._step]
        signs = self._generator.choice((-1.0, 1.0), (len(gates), self._jacobian.num_outputs))
        self._rows.append(self._part.gate_rows(gates, signs))

    def factor(self, scale):
        return _LowRank(np.concatenate(self._rows), scale, self._jacobian.on)


class _Shared:
    """A factor for gates that several outputs have in common, applied to each output's parameters."""

    def __init__(self, collector, outputs, on):
        self._outputs, self._on = outputs, on
        self.add, self._collected = collector.add, collector.factor

    def factor(self, scale):
        self._factor = self._collected(scale)
        return self

    def rows(self, gates):
        return self._factor.rows(gates)

    def right(self, piece):
        return self._each(piece, self._factor.right)

    def transposed_right(self, piece):
        return self._each(piece, self._factor.transposed_right)

    def _each(self, piece, product):
        rows, gates = piece.shape[0], piece.shape[1] // self._outputs
        by_output = self._on.swapped(piece, (rows, gates, self._outputs))
        mapped = product(self._on.reshape(by_output, (-1, gates)))
        return self._on.reshape(self._on.swapped(mapped, (rows, self._outputs, gates)), piece.shape)


class _Identity:
    """No second factor: the outputs of a plain head have the same inputs."""

    def add(self, gates):
        pass

    def factor(self, scale):
        return self

    def right(self, piece):
        return piece

    transposed_right = right


class _Full:
    """Products with `L^-1` for `L L'` the second moments, slightly regularized in the scale of each coordinate.

    Args:
        moments: matrix `(k, k)`; it is overwritten.
        scale: least scale of each coordinate, `(k,)`.
        on: an `array_backend`.
    """

    def __init__(self, moments, scale, on):
        scale = np.maximum(np.diag(moments), scale)
        scale[scale <= 0] = 1.0  # an input that is always zero; its gradient is zero too
        moments[np.diag_indices_from(moments)] += _RIDGE * scale
        lower = linalg.cholesky(moments, lower=True, check_finite=False, overwrite_a=True)
        inverse = _inverse(lower).astype(np.float32)
        self._on, self._root, self._transpose = on, on.array(inverse), on.array(inverse.T)

    @property
    def root(self):
        """`L^-1` in float64."""
        return np.asarray(self._on.numpy(self._root), np.float64)

    def left(self, piece):
        return self._on.matmul(self._root, piece)

    def transposed_left(self, piece):
        return self._on.matmul(self._transpose, piece)

    def right(self, piece):
        return self._on.matmul(piece, self._root)

    def transposed_right(self, piece):
        return self._on.matmul(piece, self._transpose)

    rows = transposed_right


class _LowRank:
    """Products with the inverse root of second moments of which the largest eigenvalues are kept and the rest averaged.

    The eigenvectors are those of the moments at unit diagonal, by subspace iteration from a random start (Halko,
    Martinsson and Tropp, 2011).

    Args:
        rows: matrix `(k, H)` whose mean outer product the moments are; it is overwritten.
        scale: least scale of each coordinate's square, `(H,)`.
        on: an `array_backend`.
    """

    def __init__(self, rows, scale, on):
        scale = np.sqrt(np.maximum(np.mean(np.square(rows), axis=0), scale)).astype(np.float32)
        scale[scale <= 0] = 1.0
        rows /= scale * np.float32(np.sqrt(len(rows)))
        units, rank, trace = len(scale), min(_RANK, len(scale)), np.sum(np.square(rows), dtype=np.float64)
        matrix, basis = on.array(rows), np.random.default_rng(0).standard_normal((units, min(units, rank + _SPARE)))
        for _ in range(_ITERATIONS):
            image = on.matmul(matrix, on.array(_orthonormal(basis)))
            basis = on.numpy(on.transposed_matmul(matrix, image))
        basis = _orthonormal(basis)
        image = on.numpy(on.matmul(matrix, on.array(basis)))
        values, vectors = linalg.eigh(image.T @ image, check_finite=False)
        values, vectors = values[::-1][:rank], basis @ vectors[:, ::-1][:, :rank]
        rest = max((trace - values.sum()) / max(units - rank, 1), _RIDGE)
        roots = np.maximum(values, rest) ** -0.5 - rest**-0.5
        self._on, self._scale, self._rest = on, on.array(scale), float(rest**-0.5)
        self._vectors, self._weighted = on.array(vectors), on.array((vectors * roots).T)

    def right(self, piece):
        return self._root(piece) / self._scale

    def transposed_right(self, piece):
        return self._root(piece / self._scale)

    rows = transposed_right

    def _root(self, piece):
        return self._rest * piece + self._on.matmul(self._on.matmul(piece, self._vectors), self._weighted)


def _inverse(lower):
    """Return the inverse of a lower triangular matrix, which is overwritten."""
    (invert,) = linalg.get_lapack_funcs(("trtri",), (lower,))
    return invert(lower, lower=1, overwrite_c=1)[0]  # a third of the work of solving for the identity


def _orthonormal(matrix):
    return linalg.qr(np.asarray(matrix, np.float32), mode="economic", check_finite=False)[0]
