"""The mean of the weights over the last steps of exploration, kept in an optimizer's variables."""

import functools

import keras
import numpy as np
from keras import ops

from keras_dal import _backend, _keras
from keras_dal.features.tracing import HALVES, to_numpy
from keras_dal.features.variables import assign_all, values_of
from keras_dal.training.inner import innermost


class WeightAverage:
    r"""The running mean \( \bar\theta_k = \bar\theta_{k-1} + (\theta_k - \bar\theta_{k-1}) / k \) since `begin`.

    An average over the steps does at once what a decaying learning rate does in time (Polyak and Juditsky, 1992;
    Izmailov et al., 2018). Whether steps count is a variable, so that a traced step need not be traced anew.

    Args:
        track: function that makes a `keras.Variable` part of an optimizer's state.
        variables: the trainable variables of the model, in the order of the optimizer.
    """

    def __init__(self, track, variables):
        self._variables = list(variables)
        self.is_wanted = False  # on the host, as a variable may be put back to what it was
        self._collecting = self._kept(track, (), "float32", "collecting")
        self._count = self._kept(track, (), "float32", "averaged_steps")
        self._means = [
            self._kept(track, v.shape, _precise(v.dtype), f"{v.path.replace('/', '_')}_mean", v) for v in variables
        ]

    @staticmethod
    def _kept(track, shape, dtype, name, like=None):
        # every replica averages its own copy of the same weights: nothing is sent
        kept = keras.Variable(
            initializer="zeros",
            shape=shape,
            dtype=dtype,
            trainable=False,
            aggregation="only_first_replica",
            synchronization="on_read",
            layout=_keras.layout_of(like),
            name=name,
        )
        track(kept)
        return kept

    @property
    def steps(self):
        """Number of steps in the mean."""
        return int(to_numpy(self._count))

    @property
    def has_begun(self):
        return bool(to_numpy(self._collecting))

    def begin(self):
        """Start a mean with the next step."""
        self.end()
        self._collecting.assign(1.0)
        self.is_wanted = True

    def end(self):
        """Let no more steps count, and forget those that did."""
        self._count.assign(0.0)
        self._collecting.assign(0.0)
        self.is_wanted = False
        for mean in self._means:  # what was not finite would stay so
            mean.assign(np.zeros(mean.shape, mean.dtype))

    def update(self):
        """Count the weights as they are now; part of the training step."""
        _backend.where_set(self._collecting, self._count_step)

    def _count_step(self):
        weight = self._collecting / (self._count + 1.0)
        for mean, variable in zip(self._means, self._variables, strict=True):
            mean.assign_add(ops.cast(weight, mean.dtype) * (ops.cast(variable, mean.dtype) - mean))
        self._count.assign_add(self._collecting)

    def values(self):
        """Return the means as NumPy arrays, in the order of the variables."""
        return values_of(self._means)


def _precise(dtype):
    """Return a dtype in which small steps towards a mean are not lost."""
    return "float32" if dtype in HALVES else dtype


class Averages:
    """The average of an optimizer's own, or those of the optimizer inside where that has `use_ema`.

    Args:
        optimizer: the `Wrap`.
    """

    def __init__(self, optimizer):
        self._optimizer = optimizer
        self.own: WeightAverage | None = None

    @property
    def _inner(self):
        return innermost(self._optimizer.inner_optimizer)

    @property
    def has_own(self):
        """Whether there is an average of its own, or will be, for the linear parameters to be solved for."""
        return self._optimizer.finish == "solve" and self._optimizer.average > 0 and not self._inner.use_ema

    def build(self, variables):
        if self.has_own:
            self.own = WeightAverage(functools.partial(_keras.track, self._optimizer), variables)

    def begin(self):
        """As `Wrap.begin_average`."""
        if not self._optimizer.built and self.has_own:
            raise ValueError(
                "There are no weights to average before the first step: call optimizer.build(model."
                f"trainable_variables) first. Received: an unbuilt optimizer {type(self._optimizer).__name__!r}"
            )
        if self.own is not None:
            self.own.begin()

    def drop(self):
        """Forget the steps that were averaged, and average no more."""
        if self.own is not None:
            self.own.end()

    def update(self):
        """Count the weights as they are now, where steps count; part of the training step."""
        if self.own is not None:
            self.own.update()

    @property
    def are_counting(self):
        """Whether the weights of every step count now."""
        return self.own is not None and self.own.has_begun

    @property
    def steps(self):
        """Number of steps so far: 0 where no average has begun, None where the inner optimizer averages."""
        if self._inner.use_ema:
            return None
        return 0 if self.own is None else self.own.steps

    @property
    def are_lacking(self):
        """Whether an average was begun, and no step has counted since."""
        return self.own is not None and self.own.is_wanted and not self.own.steps

    @property
    def are_there(self):
        """Whether there is an average to solve for: those of the inner optimizer are zero until its first step."""
        inner = self._inner
        if inner.use_ema:
            return self._optimizer.finish == "solve" and inner.built and int(to_numpy(inner.iterations)) > 0
        return self.steps > 0

    def of_inner(self):
        """Return the inner optimizer's own averages, of which there may be none."""
        inner = self._inner
        return list(_keras.moving_averages(inner)) if inner.use_ema and inner.built else []

    def adopt(self):
        """Give the model the averaged weights, where there are any; batch statistics are then no longer theirs."""
        if self._optimizer.finish != "solve" or not self.are_there:
            return
        variables = _keras.optimized(self._optimizer)
        assign_all(variables, values_of(self.of_inner()) if self._inner.use_ema else self.own.values())
        for variable in variables:
            if variable.constraint is not None:  # of unit norms, say, a mean has none
                variable.assign(variable.constraint(ops.convert_to_tensor(variable)))

    def settle(self, but=()):
        """Set the inner optimizer's averages to the variables: swapping them changes nothing.

        Args:
            but: indices of the variables whose averages go on.
        """
        inner = self._inner
        if inner.use_ema:
            pairs = zip(_keras.optimized(self._optimizer), _keras.moving_averages(inner), strict=True)
            for index, (variable, average) in enumerate(pairs):
                if index not in but:
                    average.assign(to_numpy(variable).copy())  # JAX would share the buffer
