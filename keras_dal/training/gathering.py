"""One pass over the stream of `fit` that trains nothing: batch statistics of frozen weights, then their features."""

import keras
import numpy as np
from keras import tree

from keras_dal import _backend, _keras
from keras_dal.features.batches import BatchCheck
from keras_dal.features.cache import FeatureRows
from keras_dal.features.tracing import features_and_outputs, inference
from keras_dal.output.warning import described, warn
from keras_dal.training.evaluated import evaluated
from keras_dal.training.statistics import STEPS, BatchStatistics

_BYTES = 2**30  # of inputs that wait until the statistics are known, at most


class Gathering:
    """Features, labels and weights of what flows through `fit`, with the batch statistics of the weights as they are.

    The statistics come from the first steps, whose inputs are kept until then; the features of all are those of
    inference mode. Of the rest of the model only metrics may move, which are reset, where no step has shown them their
    shapes, and what a `test_step` of the user's own keeps: it says what the batches are.

    Args:
        structure: the `Structure` of the model that `fit` trains.
        renew: whether batch statistics are to be renewed, as after averaging weights.
        max_bytes: size from which features are memory-mapped.

    Attributes:
        arrived: batches that nobody has looked at yet.
        batches: how many were read.
        batch_size: samples in the largest of them.
        steps_of_statistics: how many of them gave batch statistics.
    """

    def __init__(self, structure, renew, max_bytes):
        self._model = model = structure.model
        self._features, self._check = _backend.over_replicas(_features(structure), model), BatchCheck(structure)
        statistics = BatchStatistics(model, lambda batch: evaluated(model, batch)[0])
        self._statistics = statistics if renew and statistics.are_there else None
        self.arrived, self._waiting, self._bytes = [], [], 0
        self._rows = FeatureRows(max_bytes)
        self.batches = self.steps_of_statistics = self.batch_size = 0
        self._discarded = False

    def train_function(self, logs):
        """Return what stands in for the model's train function: it only reads, and returns these logs."""
        return _backend.reading(self._model, self._arrive, logs)

    def _arrive(self, batch):
        self.batches += 1
        if not self._discarded:
            self.arrived.append(batch)

    def forget(self):
        """Drop the batches that nobody has looked at yet."""
        self.batches -= len(self.arrived)
        self.arrived.clear()

    def take(self):
        """Look at the batches that arrived since the last call."""
        arrived, self.arrived[:] = list(self.arrived), []
        for batch in arrived:
            if not len(self._rows) and not self._waiting:
                _let_metrics_know(self._model, batch)
            if self._statistics is None:
                self._keep(batch)
                continue
            self._statistics.add(batch)
            self._waiting.append(batch)
            self._bytes += _size(batch)
            if len(self._waiting) >= STEPS or self._bytes >= _BYTES:
                self._settle()

    def _settle(self):
        """Go on to features, with the statistics so far."""
        self._statistics.settle()
        self._statistics.warn()
        self.steps_of_statistics, self._statistics = len(self._waiting), None
        while self._waiting:
            self._keep(self._waiting.pop(0))

    def _keep(self, batch):
        features, outputs, labels, weights = self._features(batch)
        self.batch_size = max(self.batch_size, len(features))
        self._rows.add(features, labels, self._check(features, outputs, weights))

    def finish(self):
        """Return the `CachedFeatures` of everything that was read.

        Raises:
            ValueError: nothing was.
        """
        self.take()
        if self._statistics is not None:
            self._settle()
        if not len(self._rows):
            raise ValueError("The stream of the last epoch was empty. Received: no batches")
        return self._rows.finish()

    def discard(self):
        """Drop what was read, and what is still to come."""
        self._discarded = True
        self.arrived.clear()
        self._waiting.clear()
        self._rows.discard()


def _let_metrics_know(model, batch):
    """Let metrics know their shapes where no step has: `fit` asks for their results."""

    def updated(batch):
        x, y, weight = evaluated(model, batch)
        model.compute_metrics(x, y, inference(model, x), weight)
        return ()

    try:
        model.get_metrics_result()
    except ValueError:
        _backend.in_replica(updated, model, batch)
        model.reset_metrics()


def evaluated_once(model, batch):
    """Return loss and metrics of one batch, by their names: what `fit` logs where it only looks at the data."""

    def logs(batch):
        x, y, weight = evaluated(model, batch)
        outputs = inference(model, x)
        loss = model.compute_loss(x=x, y=y, y_pred=outputs, sample_weight=weight)
        return {**model.compute_metrics(x, y, outputs, weight), "loss": _keras.whole_loss(loss)}

    try:
        _let_metrics_know(model, batch)
        return _keras.logged(_backend.in_replica(logs, model, batch))
    except Exception as error:  # of a compute_loss or a metric of the user's own: no reason to end a fit
        warn(f"Loss and metrics are not known. Received: {described(error)}", error)
        return {}
    finally:
        model.reset_metrics()


def _features(structure):
    """Return a function from a batch of `fit` to features, outputs, labels and weights."""
    model = structure.model

    def gathered(batch):
        x, y, weight = evaluated(model, batch)
        features, outputs = features_and_outputs(model, structure.layer, x)
        ones = keras.ops.ones(keras.ops.shape(features)[:1], "float32")
        return features, outputs, tree.flatten(y)[0], ones if weight is None else tree.flatten(weight)[0]

    return gathered


def _size(batch):
    """Return the bytes of a batch: the parts of all replicas, the values of what is ragged."""
    return sum(_bytes(each) for part in tree.flatten(batch) for each in _pieces(part))


def _pieces(part):
    values = getattr(part, "values", part)
    values = part if callable(values) else values  # a method of a tensor of PyTorch
    return values if isinstance(values, (tuple, list)) else [values]


def _bytes(tensor):
    if not hasattr(tensor, "shape"):
        return 0
    size = np.dtype(keras.backend.standardize_dtype(tensor.dtype).replace("string", "S16")).itemsize
    return int(np.prod(tensor.shape)) * size
