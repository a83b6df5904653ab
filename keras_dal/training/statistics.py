"""Batch statistics as means over batches, not as the exponential averages that training leaves behind."""

import contextlib
import threading

import keras
import numpy as np
from keras import tree

from keras_dal import _backend, _keras
from keras_dal.features.moving_statistics import at_first, moving_of, statistics_of, with_statistics
from keras_dal.features.tracing import recorded, replaced, takes_training
from keras_dal.features.variables import Kept, are_equal, assign_all, values_of
from keras_dal.output.warning import warn

STEPS = 100  # of a stream that give its batch statistics, at most


class BatchStatistics:
    """Sets the moving statistics of a model's layers to the means over the batches that it is shown, by their size.

    Every layer with a `momentum` and moving variables is one, as `BatchNormalization` is. At momentum 0 such a layer
    holds the statistics of one batch after a step in training mode; their mean in float64 is what is kept. Under a
    strategy it is the mean over replicas too (as torch's and SWA's `update_bn`, Izmailov et al., 2018).

    Args:
        model: the model, whose other variables stay as they are, after every batch.
        inputs_of: function from a batch to the inputs of the model; by default they come first in it.
    """

    def __init__(self, model, inputs_of=lambda batch: keras.utils.unpack_x_y_sample_weight(batch)[0]):
        self._sublayers, pairs = list(_keras.sublayers(model)), with_statistics(model)
        self._layers = [layer for layer, _ in pairs]
        self._variables = [variable for _, variables in pairs for variable in variables]
        divided = [layer for layer in self._sublayers if isinstance(layer, keras.layers.SpectralNormalization)]
        kernels = [variable for layer in divided for variable in layer.trainable_variables]
        self._others = [v for v in model.non_trainable_variables if not any(v is own for own in self._variables)]
        self._others += kernels
        self._is_left_alone = _backend.leaves_variables(model)
        self._sums, self.count = [np.zeros(variable.shape) for variable in self._variables], 0
        # replicas are traced in threads, which take turns where statistics are synchronized
        self._seen = threading.local()
        self._step = _backend.over_replicas(self._of_one_batch(model, inputs_of), model)

    def _of_one_batch(self, model, inputs_of):
        def statistics(batch):
            self._forget()
            x = inputs_of(batch)
            self._forget()  # what calls of the model that was
            model(x, training=True)
            rows = keras.ops.cast(keras.ops.shape(tree.flatten(x)[0])[0], "float32")
            found = [_mean(layer, self._seen.of_layers[id(layer)]) for layer in self._layers]
            return rows * keras.ops.ones((1,), "float32"), [
                keras.ops.expand_dims(v, 0) for values in found for v in values
            ]

        return statistics

    def _forget(self):
        self._seen.of_layers = {id(layer): [] for layer in self._layers}

    def _note(self, call):
        """Keep the moving variables of a layer that was called: the next call of it assigns to them."""
        self._seen.of_layers[id(call.layer)].append([variable.value + 0.0 for variable in moving_of(call.layer)])

    @property
    def are_there(self):
        """Whether the model has any."""
        return bool(self._variables)

    def add(self, batch):
        """Show it one batch as `fit` gets it; `settle` gives the model the means, or has done so already."""
        others = [] if self._is_left_alone else values_of(self._others)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_backend.buffers_kept(self._sublayers))
            for layer in self._layers:
                stack.enter_context(replaced(layer, "momentum", 0.0))
            stack.enter_context(recorded(self._layers, self._note))
            rows, found = self._step(batch)
        self.count += np.sum(rows)  # a last batch of a few samples counts for a few
        for total, replicas in zip(self._sums, found, strict=True):
            seen = rows > 0  # a replica of a last batch may have no samples
            total += np.tensordot(rows[seen], np.asarray(replicas, np.float64)[seen], 1)
        if not self._is_left_alone:  # now, because an interrupt may be next
            self.settle()
            assign_all(self._others, others)  # seeds of dropout among them

    def settle(self):
        """Set the statistics to the means over the batches so far.

        Raises:
            ValueError: means that are not finite, which compiled units may hide: on JAX they make NaN zero.
        """
        lost = [v.path for v, total in zip(self._variables, self._sums, strict=True) if not np.isfinite(total).all()]
        if lost:
            raise ValueError(
                "Batch statistics are not finite: the data hold NaN, or the training has diverged. Received: "
                f"{', '.join(lost)}"
            )
        if self.count:
            for variable, total in zip(self._variables, self._sums, strict=True):
                variable.assign((total / self.count).astype(variable.dtype))

    def warn(self):
        """Warn of variances that are zero: those of batches of one sample, which features are divided by later."""
        pairs = zip(self._variables, self._sums, strict=True)
        constant = [v.path for v, total in pairs if v.name == "moving_variance" and not total.any()]
        if constant:
            warn(
                "Batch statistics have no spread, and other samples will be far from them: they are those of batches "
                "of one sample, or all that a layer normalizes is constant. Have them taken over larger batches. "
                f"Received: zeros only in {', '.join(constant)}"
            )


def have_moved(model, since=None):
    """Return whether training moves the batch statistics of a model.

    It does not where `call` of a subclass has no `training` and Keras' own training step runs it in inference mode.
    Statistics of batches would be those of another network then.

    Args:
        model: the model.
        since: values of `statistics_of` from before some training steps. Without them, or where layers have come since,
            it is looked at what `call` takes, and whether statistics are what they begin with: a loop of one's own may
            train such a model otherwise.
    """
    variables = statistics_of(model)
    since = since if since is not None and len(since) == len(variables) else None
    if since is None and takes_training(model):
        return bool(variables)
    return not are_equal(values_of(variables), map(at_first, variables) if since is None else since)


class UnknownStatistics:
    """What training changes beside what it trains and the statistics of `with_statistics`: nobody will average it.

    Args:
        model: the model, before it is trained.
    """

    def __init__(self, model):
        layers = _keras.sublayers(model)
        still = [layer for layer in layers if not layer.trainable]  # a frozen backbone, say
        still += [layer for layer in layers if isinstance(layer, keras.layers.SpectralNormalization)]
        known = {id(v) for layer in still for v in layer.variables}
        known |= {id(v) for v in statistics_of(model)}
        others = [v for v in model.non_trainable_variables if id(v) not in known]
        self._before = Kept([(v.path, v) for v in others] + _backend.buffers(layers))

    def warn(self):
        """Warn of those that have changed since."""
        moved = self._before.moved()
        if moved:
            warn(
                "These variables keep what the last steps left in them, beside weights that are averaged: statistics "
                "are renewed where a Keras layer has a momentum and their names begin with moving_, as "
                f"BatchNormalization has it; Wrap(average=0) averages nothing. Received: {', '.join(moved)}"
            )


def _mean(layer, values):
    """Return the mean over calls of each moving variable; as it is where the layer was not called."""
    if not values:
        return [v.value for v in moving_of(layer)]
    return [sum(call) / len(values) for call in zip(*values, strict=True)]
