"""The method of conjugate gradients, where the arrays are."""

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from keras_dal._backend import arrays


def conjugate_gradients(product, right, rtol, maxiter, precondition=None):
    """Return an approximate solution of `A x = right`, from zero, for a symmetric positive definite A.

    Args:
        product: function of a vector v that returns `A v`.
        right: vector of NumPy, which is SciPy's task, or a tensor.
        rtol: size of the residual, relative to `right`, at which it ends.
        maxiter: number of products, at most.
        precondition: function of a vector that nearly undoes `product`, symmetric positive definite; None for none.
    """
    if arrays.of(right) is arrays.NUMPY:
        operators = [each and _operator(each, right) for each in (product, precondition)]
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # where A is zero, as far as numbers tell
            return cg(operators[0], right, rtol=rtol, maxiter=maxiter, M=operators[1])[0]
    return _of_tensors(product, right, rtol, maxiter, arrays.of(right).dot, precondition)


def _operator(function, right):
    return LinearOperator((len(right),) * 2, matvec=function, dtype=right.dtype)  # pyright: ignore[reportCallIssue]


def _of_tensors(product, right, rtol, maxiter, dot, precondition):
    """Do the same without a copy to the host, but for a few numbers a product (Hestenes and Stiefel, 1952)."""
    x, residual, direction = 0.0 * right, right, precondition(right) if precondition else right
    left = dot(right, right)
    square, enough = dot(residual, direction) if precondition else left, rtol**2 * left
    for _ in range(maxiter):
        if not left > enough or not np.isfinite(square):
            break
        image = product(direction)
        bend = dot(direction, image)
        if not bend > 0:
            break
        length = square / bend
        x, residual = x + length * direction, residual - length * image
        before, left, towards = square, dot(residual, residual), precondition(residual) if precondition else residual
        square = dot(residual, towards) if precondition else left  # each is waited for
        direction = towards + (square / before) * direction
    return x
