"""A plain linear head."""

import numpy as np

from keras_dal.heads.base import Head


class DenseHead(Head):
    """`f(z) = z K + b`, whose Jacobian is `[Z, 1] kron I_C`."""

    def __init__(self, num_features, num_outputs, use_bias=True):
        self.num_outputs = num_outputs
        self.use_bias = use_bias
        self.shapes = ((num_features, num_outputs),) + (((num_outputs,),) if use_bias else ())

    def columns(self, features):
        return np.column_stack([features, np.ones(len(features))]) if self.use_bias else features

    def logits(self, features, theta):
        kernel, *bias = self.split(theta.astype(features.dtype, copy=False))
        return features @ kernel + (bias[0] if bias else 0)

    def adjoint(self, features, cotangent):
        kernel = features.T @ cotangent
        return self.join([kernel, cotangent.sum(axis=0)] if self.use_bias else [kernel], features.dtype)
