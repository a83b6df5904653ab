"""The method of conjugate gradients, where the arrays are."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from keras_dal._backend import arrays


def conjugate_gradients(product, right, rtol, maxiter):
    """Return an approximate solution of `A x = right`, from zero, for a symmetric positive definite A.

    Args:
        product: function of a vector v that returns `A v`.
        right: vector of NumPy, which is SciPy's task, or a tensor.
        rtol: size of the residual, relative to `right`, at which it ends.
        maxiter: number of products, at most.
    """
    if arrays.of(right) is arrays.NUMPY:
        operator = LinearOperator((len(right),) * 2, matvec=product, dtype=right.dtype)  # pyright: ignore[reportCallIssue]
        return cg(operator, right, rtol=rtol, maxiter=maxiter)[0]
    return _of_tensors(product, right, rtol, maxiter, arrays.of(right).dot)


def _of_tensors(product, right, rtol, maxiter, dot):
    """Do the same without a copy to the host, but for a few numbers a product (Hestenes and Stiefel, 1952)."""
    x, residual, direction, square = 0.0 * right, right, right, dot(right, right)
    enough = rtol**2 * square
    for _ in range(maxiter):
        if not square > enough or not np.isfinite(square):
            break
        image = product(direction)
        bend = dot(direction, image)
        if not bend > 0:
            break
        length = square / bend
        x, residual = x + length * direction, residual - length * image
        before, square = square, dot(residual, residual)
        direction = residual + (square / before) * direction
    return x
