"""The mean of the weights over the last steps of exploration, kept in an optimizer's variables."""

from typing import Any

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


class Averaging:
    """What `Wrap` offers of the average of its own, or of those of the inner optimizer where it has `use_ema`."""

    finish: str
    built: bool
    averages_itself: Any
    has_trained: Any
    inner_optimizer: Any
    _average: WeightAverage | None
    _linear_indices: tuple[int, ...] | None
    is_solved: Any

    def begin_average(self) -> None:
        """Starts to average the weights, from the next step on; without a share to average, it changes nothing.

        Raises:
            ValueError: the optimizer has no variables yet.
        """
        if not self.built and self.averages_itself:
            raise ValueError(
                "There are no weights to average before the first step: call optimizer.build(model."
                f"trainable_variables) first. Received: an unbuilt optimizer {type(self).__name__!r}"
            )
        if self._average is not None:
            self._average.begin()

    def drop_average(self) -> None:
        """Forgets the steps that were averaged, and averages no more."""
        if self._average is not None:
            self._average.end()

    @property
    def is_averaging(self) -> bool:
        """Whether the weights of every step count for the average now."""
        return self._average is not None and self._average.has_begun

    @property
    def averaged_steps(self) -> int | None:
        """Number of steps in the average so far: 0 where none has begun, None where the inner optimizer averages."""
        if innermost(self.inner_optimizer).use_ema:
            return None
        return 0 if self._average is None else self._average.steps

    @property
    def lacks_average(self) -> bool:
        """Whether `begin_average` was called, and no step has counted since."""
        return self._average is not None and self._average.is_wanted and not self._average.steps

    @property
    def has_average(self) -> bool:
        """Whether there is an average whose batch statistics are still to be found.

        Of averages of the inner optimizer that is known once the linear parameters are solved for.
        """
        steps = self.averaged_steps
        if steps is None:
            return self.finish == "solve" and self._inner_has_averages and not self.is_solved
        return steps > 0

    @property
    def _inner_has_averages(self):
        """Whether the inner optimizer has taken a step: its averages are zero until then."""
        inner = innermost(self.inner_optimizer)
        return inner.use_ema and inner.built and self.has_trained

    def inner_averages(self) -> list[Any]:
        """Return the inner optimizer's own averages, of which there may be none."""
        inner = innermost(self.inner_optimizer)
        return list(_keras.moving_averages(inner)) if inner.use_ema and inner.built else []

    def adopt_average(self) -> None:
        """Gives the model the averaged weights, where there are any; batch statistics are then no longer theirs."""
        if self.finish != "solve":
            return
        variables = _keras.optimized(self)
        if self._inner_has_averages:
            assign_all(variables, values_of(self.inner_averages()))
        elif self.averaged_steps:
            assign_all(variables, self._average.values())
        else:
            return
        for variable in variables:
            if variable.constraint is not None:  # of unit norms, say, a mean has none
                variable.assign(variable.constraint(ops.convert_to_tensor(variable)))

    def settle_averages(self, also_linear: bool = True) -> None:
        """Sets the inner optimizer's averages to the variables, or to the frozen: swapping them changes nothing."""
        inner = innermost(self.inner_optimizer)
        if inner.use_ema:
            pairs = zip(_keras.optimized(self), _keras.moving_averages(inner), strict=True)
            for index, (variable, average) in enumerate(pairs):
                if also_linear or index not in (self._linear_indices or ()):
                    average.assign(to_numpy(variable).copy())  # JAX would share the buffer
