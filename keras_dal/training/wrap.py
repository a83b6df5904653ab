"""Wrap: any Keras optimizer, made to train in two phases."""

import contextlib
import functools
from typing import Any

import keras

from keras_dal import _backend, _keras
from keras_dal.features.tracing import replaced
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import is_held_while_exploring
from keras_dal.models.structure import Structure
from keras_dal.output.warning import warn
from keras_dal.training import arguments, checks
from keras_dal.training.inner import Delegating, averaging_only, innermost
from keras_dal.training.loss_scale import unscaled
from keras_dal.training.saved import order_in
from keras_dal.training.state import State


@keras.saving.register_keras_serializable(package="keras_dal")
class Wrap(Delegating):
    r"""Trains everything with the inner optimizer, then only the parameters in which the output is linear.

    While exploring, each step is the inner optimizer's own, and over the last of them the weights are averaged. At the
    switch the average becomes the weights, the parameters outside \( \theta_S \) freeze, and the loss that is left is
    convex (Kawaguchi, Zhang and Deng, 2022): it is solved on the features of one more pass over the data, and training
    ends. In `fit`, `AlignmentMonitor` does all that. In a loop of your own, `explore=None`, `begin_average()` before
    the last steps and `keras_dal.finish(model, data)` after them do.

    Args:
        optimizer: the `keras.optimizers.Optimizer` (or its name) that explores.
        explore: when to switch: a float in (0, 1) for that fraction of the epochs of `fit`, an int for that many epochs
            counted from epoch 0, None to call `switch`; `"auto"` for 0.71 of the epochs, from the first this optimizer
            trains, after `restart` the first it trains since, and 0.8 where less than a quarter of the labels lies in
            the column space, which is looked at once, after 0.6 of them or as the average begins, whichever is earlier.
        exploit: what is trained after the switch, as `parameters` of `find_structure`: `"head"`, layers by their names,
            or a regular expression over variable paths. The output must be linear in it, which is checked.
        average: share of the exploration, counted from its end, over whose steps the weights are averaged; 0 for none.
            In whole epochs of `fit`, at least one, and only with `finish="solve"`. An inner optimizer with `use_ema`
            brings averages of its own, and those are taken.
        finish: `"solve"`, or `"descend"`: the inner optimizer goes on with gradient steps for the linear parameters,
            from the last weights, until the epochs are over. None: `"solve"`, or `"descend"` with a learning rate.
        noise: standard deviation of the noise that learned gates get at the switch, relative to their own.
        exploit_learning_rate: None for the inner optimizer's own, a float, a Keras schedule counted from the switch, or
            `"auto"` for plain gradient descent with the step 1/beta, beta being the smoothness of the loss: the
            inner optimizer rests, and full-batch training provably converges at a known rate.
        name: name of the optimizer.

    Raises:
        ValueError: an argument outside these ranges, or an inner optimizer that cannot update a part of its variables.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        explore: float | int | str | None = "auto",
        exploit: Any = "head",
        average: float = 0.07,
        finish: str | None = None,
        noise: float = 1e-3,
        exploit_learning_rate: Any = None,
        name: str = "wrap",
        **kwargs: Any,
    ) -> None:
        if kwargs:
            raise ValueError(
                "Wrap has no such arguments: set them on the optimizer it wraps. "
                f"Received: {', '.join(f'{key}={value!r}' for key, value in kwargs.items())}"
            )
        explore, exploit_learning_rate = arguments.plain(explore), arguments.plain(exploit_learning_rate)
        arguments.check_explore(explore)
        arguments.check_exploit(exploit)
        arguments.check_average(average)
        arguments.check_noise(noise)
        arguments.check_learning_rate(exploit_learning_rate)
        finish = finish or ("solve" if exploit_learning_rate is None else "descend")
        arguments.check_finish(finish, exploit_learning_rate)
        rate = exploit_learning_rate if isinstance(exploit_learning_rate, float) else 0.0
        super().__init__(learning_rate=rate, name=name)
        inner = keras.optimizers.get(optimizer)
        if find_wrap(inner) is not None:
            raise ValueError(
                "A Wrap cannot wrap another one: give it the optimizer inside, wrap.inner_optimizer, or compile with "
                f"the Wrap there is. Received: optimizer={inner!r}"
            )
        if isinstance(inner, keras.optimizers.MultiOptimizer):
            raise ValueError(
                "The inner optimizer must be able to update a part of its variables, and a MultiOptimizer cannot. "
                f"Wrap a single optimizer. Received: optimizer={inner!r}"
            )
        self.explore = explore
        self.exploit = exploit.name if isinstance(exploit, keras.layers.Layer) else exploit
        self.average = average
        self.finish = finish
        self.noise = noise
        self.exploit_learning_rate = exploit_learning_rate
        self._state = State(self)
        self.inner_optimizer: Any = inner  # last: what is set from here on may be an attribute of it

    @property
    def phase(self) -> str:
        """`"explore"` or `"exploit"`; saved and restored with the optimizer's variables."""
        return "exploit" if self._state.progress.exploits else "explore"

    def switch(
        self, model: Any, x: Any = None, *, structure: Structure | None = None, learning_rate: float | None = None
    ) -> Structure:
        """Freezes everything but the linear parameters; a second call changes nothing.

        In `fit`, `AlignmentMonitor` keeps batch normalization and dropout of the frozen part in inference mode. In a
        loop of your own, call the model with `training=False` from here on, and trace a `tf.function` anew.

        Args:
            model: the model that is trained.
            x: a few inputs, for a model that does not declare their shape.
            structure: what `find_structure` found in the model; it is looked for by default.
            learning_rate: step size 1/beta, needed with `exploit_learning_rate="auto"` and refused without.

        Returns:
            The `Structure` of the model, with its linear parameters and its head.

        Raises:
            ValueError: no linear head, linear parameters that are not trainable, or a learning rate that is missing or
                was not asked for.
        """
        structure = structure or find_structure(model, x, self.exploit)
        if self.phase == "exploit":
            return structure
        checks.check_same_model(self, model, structure.linear_parameters)
        if self._state.rates.are_proven != (learning_rate is not None):
            raise ValueError(
                "The step size at the switch goes with exploit_learning_rate='auto', and only with it. Received: "
                f"exploit_learning_rate={self.exploit_learning_rate!r}, learning_rate={learning_rate}"
            )
        self._state.switch(model, structure)
        if learning_rate is not None:
            self._state.rates.take(learning_rate)
        return structure

    def restart(self) -> None:
        """Goes back to the first phase: the next steps train everything again, from the weights as they are.

        Step counts and slots of the inner optimizer go on, and learned gates stay where the switch fixed them. With
        `explore="auto"` shares of the epochs count from the first one of the next `fit`. Trace a `tf.function` of your
        own anew.
        """
        self._state.progress.explore_again()
        self._state.auto.forget()
        self.drop_average()

    def begin_average(self) -> None:
        """Starts to average the weights, from the next step on; without a share to average, it changes nothing.

        Raises:
            ValueError: the optimizer has no variables yet.
        """
        self._state.averages.begin()

    def drop_average(self) -> None:
        """Forgets the steps that were averaged, and averages no more."""
        self._state.averages.drop()

    @property
    def is_averaging(self) -> bool:
        """Whether the weights of every step count for the average now."""
        return self._state.averages.are_counting

    @property
    def averaged_steps(self) -> int | None:
        """The number of averaged steps so far, 0 where none has begun, None where the inner optimizer averages."""
        return self._state.averages.steps

    def synchronize(self) -> None:
        """Reads the phase from the optimizer's variables, after they were restored from outside."""
        if self.built:
            self._state.progress.read()

    @property
    def learning_rate(self) -> Any:
        return self._state.rates.get()

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self._state.rates.set(value)

    @property
    def has_renewed_statistics(self) -> bool:
        """Whether the head was solved on batch statistics that were made anew: these are no longer moving ones."""
        return self._state.progress.has_renewed_statistics

    def build(self, var_list: Any) -> None:
        if self.built:
            return
        var_list = list(var_list)
        arguments.check_built_for(innermost(self.inner_optimizer), var_list)
        self._state.progress.build(len(var_list))
        self._state.auto.build()
        if not self.inner_optimizer.built:
            self.inner_optimizer.build(var_list)
        with self._by_itself():
            super().build(var_list)
        self._state.averages.build(var_list)

    @property
    def variables(self) -> list[Any]:
        return super().variables + self.inner_optimizer.variables

    def apply(self, grads: Any, trainable_variables: Any = None) -> None:
        if not self._state.driver.is_there:
            _backend.refuse(self._state.driver.error(), _keras.optimized(self))
        if trainable_variables is not None:
            trainable_variables = list(trainable_variables)
            if not self.built:
                with keras.name_scope(self.name):
                    self.build(trainable_variables)
        self._state.progress.note_model()
        apply = self._apply_linear if self._state.progress.exploits else self._apply_all
        apply(list(grads), trainable_variables or _keras.optimized(self))

    def _apply_all(self, grads, variables):
        _backend.check_in_step(
            self._state.progress.in_step(),
            "This step was traced before the switch, and would train everything. Trace it anew after switch(model). "
            "Received: a step of the first phase",
        )
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if not is_held_while_exploring(v)]
        _backend.apply(self.inner_optimizer, [g for g, _ in pairs], [v for _, v in pairs])
        self._state.averages.update()

    def _apply_linear(self, grads, variables):
        progress, rates, inner = self._state.progress, self._state.rates, self.inner_optimizer
        progress.leave_solution()
        _backend.check_in_step(
            keras.ops.cast(keras.ops.equal(progress.in_step(), 0), "int32"),
            "This step was traced after the switch, and would train the linear parameters only. Trace it anew after "
            "restart(). Received: a step of the second phase",
        )
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if progress.is_linear(v)]
        grads, variables = [g for g, _ in pairs], [v for _, v in pairs]
        if rates.are_proven:
            with self._by_itself():
                super().apply(unscaled(inner, grads), variables)  # plain gradient descent: see `update_step`
            _keras.count_step(innermost(inner))
            return
        with contextlib.ExitStack() as stack:
            if self.exploit_learning_rate is not None:
                rate = rates.after_switch()
                stack.enter_context(replaced(innermost(inner), _keras.RATE, lambda: rate))
            stack.enter_context(
                averaging_only(innermost(inner), progress.linear_indices, _backend.applies_whole(inner))
            )
            _backend.apply(inner, grads, variables)
        _keras.count_step(self)  # the base class' own counter: steps since the switch

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * gradient)

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        self.inner_optimizer.exclude_from_weight_decay(var_list, var_names)

    def finalize_variable_values(self, var_list: Any) -> None:
        progress = self._state.progress
        if not progress.exploits:
            self.inner_optimizer.finalize_variable_values(var_list)
            return
        linear = sorted(filter(progress.is_linear, var_list), key=functools.partial(_keras.index_of, self))
        with averaging_only(innermost(self.inner_optimizer), progress.linear_indices):
            self.inner_optimizer.finalize_variable_values(linear)

    def set_weights(self, weights: Any) -> None:
        for variable, value in zip(self.variables, weights, strict=True):
            variable.assign(value)
        self.synchronize()

    def load_own_variables(self, store: Any) -> None:
        held = order_in(store, super().variables, self.inner_optimizer.variables)
        if held is None:
            warn(
                "The phase was not restored, as the file has other variables than this optimizer: load it into the "
                "same Wrap with the same optimizer inside, after optimizer.build(model.trainable_variables), or train "
                f"on in the phase that it is in. Received: {len(store.keys())} variables for the {len(self.variables)} "
                f"of {self.name!r}"
            )
            return
        for place, variable in enumerate(held):
            variable.assign(store[str(place)])
        self.synchronize()

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "explore": self.explore,
            "exploit": self.exploit,
            "average": self.average,
            "finish": self.finish,
            "noise": self.noise,
            "exploit_learning_rate": keras.saving.serialize_keras_object(self.exploit_learning_rate),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> "Wrap":
        config = dict(config)
        for key in ("optimizer", "exploit_learning_rate"):
            if isinstance(config[key], dict):
                config[key] = keras.saving.deserialize_keras_object(config[key], custom_objects=custom_objects)
        return cls(**config)


_keras.lend_averages(Wrap, lambda wrap: innermost(wrap.inner_optimizer))  # a loss scale may stand in between


def find_wrap(optimizer):
    """Return the `Wrap` inside an optimizer, however deep, or None."""
    return next((each for each in _keras.optimizers(optimizer) if isinstance(each, Wrap)), None)
