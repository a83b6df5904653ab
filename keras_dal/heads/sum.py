"""Several heads on the same features."""

import numpy as np

from keras_dal.heads.base import Head


class SumHead(Head):
    """The sum of several heads on the same features: a gated branch beside a dense head."""

    def __init__(self, parts):
        self.parts = tuple(parts)
        self.mixture = self.parts[0].mixture
        self.num_outputs = self.parts[0].num_outputs
        self.use_bias = self.parts[-1].use_bias  # a mixture, which comes first, has none
        self.shapes = sum((part.shapes for part in self.parts), ())

    def products(self, on):
        return [part for each in self.parts for part in each.products(on)]

    def kronecker_factor(self, features):
        factors = [part.kronecker_factor(features) for part in self.parts]
        return None if any(each is None for each in factors) else np.hstack(factors)

    def spectral_norm_bound(self, features, weights, shift_invariant=False):
        return np.sqrt(sum(part.spectral_norm_bound(features, weights, shift_invariant) ** 2 for part in self.parts))
