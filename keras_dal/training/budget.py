"""How often the alignment and the kernel change may be measured: what that computes, against what training computes."""

import math

import keras

from keras_dal import _backend, _keras
from keras_dal.features.variables import num_entries
from keras_dal.training.kernel_change import NUM_PROBES

SHARE = 0.005  # of training's arithmetic that each may cost
_FORWARD, _BACKWARD = 2, 4  # operations for each product of the forward pass, and for the gradients of it
_SAMPLE, _EPOCH = 1e6, 1e9  # operations that these cost at least, with all that is no arithmetic
_ALIGNMENT, _KERNEL_CHANGE = 5e9, 5e8  # the same of one measurement: of the first most is threads of BLAS that wait
_CHEAP, _OFTEN = 2e10, 5  # operations of a fraction of a second; so many of them are no matter in any fit
_FEW = 128  # samples of an epoch, where their number is not known yet
_EIGENVALUES = 10  # multiplications for each entry of a matrix and each of its columns
_FLOAT64 = 2  # times what float32 takes
_ACCELERATED = 3000  # operations of convolutions on an accelerator, in the time of one of eigenvalues on its host


class Budget:
    """Says after how many epochs to measure again; from shapes alone, and so the same in every run on a kind of device.

    Sums of products of features take the square of their number for each sample, and eigenvalues its cube.

    Args:
        model: a built Keras model.
        num_features: m.
        num_outputs: C.
        epochs: number of the last one of the fit.
    """

    def __init__(self, model, num_features, num_outputs, epochs):
        self._epochs, products = epochs, _products(model, "weights")
        self._host = _ACCELERATED if _backend.has_accelerator() else 1
        self._step = max(_SAMPLE, _FORWARD * products + _BACKWARD * _products(model, "trainable_weights"))
        self._sums = 2 * _FLOAT64 * (num_features + 1 + num_outputs) ** 2
        self._eigenvalues = _EIGENVALUES * (num_features + 1) ** 3
        self._probes = NUM_PROBES * _FORWARD * products

    def alignment(self, count=None, first=False):
        """Return after how many epochs to measure it again.

        Args:
            count: samples of an epoch, None where that is not known yet.
            first: whether it has not been measured yet. What is cheap is so after the first epoch, because callbacks
                that compare take a number that is not one for the best for ever.
        """
        count = count or _FEW
        return self._interval(self._sums * count, self._eigenvalues + _ALIGNMENT, count, first)

    def kernel_change(self, count=None, first=False):
        """Return the same for the kernel change."""
        return self._interval(self._probes, _KERNEL_CHANGE, count or _FEW, first)

    def _interval(self, there, here, count, first):
        """Return the interval for operations where the model is trained, and for those on the host."""
        interval = (there + self._host * here) / (SHARE * (self._step * count + _EPOCH * self._host))
        if there / self._host + here <= _CHEAP:
            interval = 1 if first else min(interval, self._epochs // _OFTEN)
        return max(1, math.ceil(interval))


def _products(model, kind):
    """Return how many multiplications of weights of a kind a sample takes: a kernel is used at every position."""
    leaves = [layer for layer in _keras.sublayers(model) if not _keras.parts(layer)]
    return sum(_parameters(layer, kind) * _positions(layer) for layer in leaves)


def _parameters(layer, kind):
    """Return the number of weights that are multiplied: a table is looked up in."""
    return 0 if isinstance(layer, keras.layers.Embedding) else num_entries(getattr(layer, kind))


def _positions(layer):
    """Return at how many positions of an image or a sequence a layer is used, 1 where that is not known."""
    try:
        shape = layer.output.shape
    except (AttributeError, RuntimeError):  # never called on symbolic inputs, as in a subclassed model
        return 1
    positions = shape[2:] if getattr(layer, "data_format", None) == "channels_first" else shape[1:-1]
    return math.prod(size or 1 for size in positions)
