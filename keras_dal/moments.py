"""What the monitor gathers inside the training step: moments of features and targets, and a few images."""

import keras
import numpy as np
from keras import ops

from keras_dal import _backend
from keras_dal.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy

NUM_PROBES = 64  # samples on which the change of the feature kernel is measured


class StepMoments(keras.metrics.Metric):
    r"""Sums \( [Z, 1, Y]^\top W [Z, 1, Y] \) over one epoch, and keeps the first few inputs it ever saw.

    A Keras metric, so that the sums are reset every epoch, added up over replicas and part of the state on JAX. Its
    result is empty: the sums are read on the host, once an epoch.

    Args:
        num_features: m, the width of the features Z.
        num_outputs: C, the width of the targets Y.
        loss: the `keras_dal.losses.Loss` that says what the targets are.
        input_shape: shape of one input, or None where it is not known; then no inputs are kept.
    """

    def __init__(self, num_features, num_outputs, loss, input_shape=None):
        super().__init__(name="keras_dal_moments", dtype=_backend.statistics_dtype())
        self.num_outputs = num_outputs
        self.loss = loss
        size = num_features + 1 + num_outputs
        self.sums = self.add_variable((size, size), "zeros", dtype=self.dtype, name="sums")
        self.count = self.add_variable((), "zeros", dtype=self.dtype, name="count")
        self.probes = None
        if input_shape is not None:
            shape = (NUM_PROBES, *input_shape)
            once = {"dtype": "float32", "aggregation": "only_first_replica"}
            self.probes = self.add_variable(shape, "zeros", name="probes", **once)
            self.probed = self.add_variable((), "zeros", name="probed", **once)

    def update_state(self, x, y, features, sample_weight=None):
        """Adds one batch.

        Args:
            x: inputs of the model, `(k, ...)`.
            y: labels as Keras takes them.
            features: inputs of the head, `(k, m)`.
            sample_weight: `(k,)`, or None for ones.
        """
        features = ops.cast(ops.stop_gradient(features), self.dtype)
        rows = ops.concatenate([features, ops.ones_like(features[:, :1]), self._targets(y)], axis=1)
        weight = ops.ones_like(rows[:, :1])
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, self.dtype), (-1, 1))
        self.sums.assign_add(ops.matmul(ops.transpose(rows), weight * rows))
        self.count.assign_add(ops.sum(ops.cast(weight > 0, self.dtype)))
        if self.probes is not None:
            self._keep(ops.cast(x, "float32"))

    def _targets(self, y):
        y = ops.cast(y, self.dtype)
        if isinstance(self.loss, SoftmaxCrossEntropy):
            if len(y.shape) == 1 or y.shape[-1] != self.num_outputs:
                y = ops.one_hot(ops.cast(ops.reshape(y, (-1,)), "int32"), self.num_outputs, dtype=self.dtype)
            return y
        y = ops.reshape(y, (-1, self.num_outputs))
        return 2 * y - 1 if isinstance(self.loss, SigmoidCrossEntropy) else y

    def _keep(self, x):
        index = ops.minimum(ops.arange(NUM_PROBES), ops.shape(x)[0] - 1)  # a small batch repeats its last sample
        self.probes.assign(ops.where(self.probed == 0, ops.take(x, index, axis=0), self.probes))
        self.probed.assign(ops.ones_like(self.probed))

    def reset_state(self):
        self.sums.assign(ops.zeros_like(self.sums))
        self.count.assign(ops.zeros_like(self.count))

    def result(self):
        return {}

    def read(self):
        """Return the sums as float64 `(m + 1 + C, m + 1 + C)` and the number of samples in them."""
        return (
            np.asarray(ops.convert_to_numpy(self.sums), np.float64),
            round(float(ops.convert_to_numpy(self.count))),
        )
