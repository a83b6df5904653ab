"""A plain linear head."""

import numpy as np

from keras_dal.heads.base import Head
from keras_dal.heads.norms import sigma_max_bound
from keras_dal.heads.part import Part


class DenseHead(Head):
    """`f(z) = z K + b`, whose Jacobian is `[Z, 1] kron I_C`."""

    is_plain = True

    def __init__(self, num_features, num_outputs, use_bias=True):
        self.num_outputs = num_outputs
        self.use_bias = use_bias
        self.shapes = ((num_features, num_outputs),) + (((num_outputs,),) if use_bias else ())

    def products(self, on):
        return [DensePart(self.shapes[0][0], self.num_outputs, self.use_bias, on)]

    def kronecker_factor(self, features):
        return np.column_stack([features, np.ones(len(features))]) if self.use_bias else features

    def spectral_norm_bound(self, features, weights, shift_invariant=False):
        return sigma_max_bound(self.kronecker_factor(features) * np.sqrt(weights)[:, None])


class DensePart(Part):
    """`inputs W`, with the features, the features and ones, or ones alone as inputs."""

    def __init__(self, num_features, num_outputs, use_bias, on):
        self.num_features, self.use_bias, self.width = num_features, use_bias, num_features + use_bias
        super().__init__(on, (self.width, num_outputs), num_outputs)

    def prepare(self, features):
        inputs = np.asarray(features[:, : self.num_features], self.on.dtype)
        return self.on.array(_with_ones(inputs) if self.use_bias else inputs), None

    def apply(self, inputs, gates, weight):
        if self.use_bias and self.on.dtype == np.float64:  # last: in sums that begin with a large one the rest is lost
            return self.on.matmul(inputs[:, :-1], weight[:-1]) + weight[-1]
        return self.on.matmul(inputs, weight)

    def transposed(self, inputs, gates, cotangent):
        return self.on.transposed_matmul(inputs, cotangent)


def _with_ones(inputs):
    """Return inputs with a column of ones after theirs, `(n, m + 1)`."""
    return np.concatenate([inputs, np.ones((len(inputs), 1), inputs.dtype)], axis=1)
