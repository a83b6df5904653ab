"""The model's training step, seen from inside: hooks that exist only while it runs."""

import contextlib
import functools
import threading
from typing import Any

from keras import ops, tree

from keras_dal import _backend, _keras
from keras_dal.features.tracing import Swap, pooled, recorded, replaced
from keras_dal.models.gated_layers import GatedBranch
from keras_dal.output.warning import described, warn
from keras_dal.training.evaluated import loss_arguments
from keras_dal.training.moments import StepMoments

_MARK = "_keras_dal_hooked"  # of the train functions made here


class StepHooks:
    """Lets a callback see features in the training step, and make the frozen part constant after the switch.

    What the model computes is changed only while its train function runs, so its weights and calls are its own whenever
    training ends. Where a step raises, or is interrupted, nothing else is left behind either; after an exception of
    another callback, of which nobody tells, the model keeps this train function and the metric of the moments until it
    is trained again.

    Args:
        model: the model that `fit` trains.
        layer: the layer whose inputs are the features.
        moments: a `StepMoments` that is fed with every batch, or None.
        driver: the `Driver` of the `Wrap` whose switch is promised, or None.
        trained: called after every step that trains, with its logs. In `on_train_batch_end` of the monitor the same
            would make Keras wait for the device after every step.
    """

    def __init__(self, model, layer, moments, driver, trained):
        self._model, self._trained = model, trained
        self.layer = layer
        self._moments = moments
        self._driver = driver
        self._frozen = ()
        self._exploiting = self._skips_mixture = False
        self._armed = self._by_hand = False
        self._armed_in: int | None = None  # call of `fit`
        self._dropped: Any = None  # called where no step will be made any more
        self._made_from: Any = None  # function from a train function of Keras to what stands in for it
        places = (layer, "call"), (model, "call"), (model, "compute_loss")
        self._seen, self._swap = _Seen(), Swap(places, self._hooked_model)

    def install(self, linear_parameters=None):
        """Makes the train function anew, so that it is traced with the hooks of the phase that begins.

        Args:
            linear_parameters: the variables that are trained from now on, or None while all are.
        """
        model = self._model
        self._exploiting, self._dropped = linear_parameters is not None, None
        self._swap.forget()
        self._skips_mixture = not self._exploiting and isinstance(self.layer, GatedBranch) and self.layer.is_zero
        if linear_parameters is not None:
            linear = {id(variable) for variable in linear_parameters}
            self._frozen = [v for v in model.trainable_variables if id(v) not in linear]
        metrics = _keras.tracked_metrics(model)
        for left in [m for m in metrics if isinstance(m, StepMoments) and m is not self._moments]:
            metrics.remove(left)  # by a fit that ended in an exception outside of a step
            model.test_function = None
        if self._moments is not None and self._moments not in metrics:
            metrics.append(self._moments)  # part of the state that JAX carries
            model.test_function = None  # which JAX compiles into this one, too, where a model is distributed
        _backend.make_train_function(model)
        self._put(self._training)

    def _training(self, function):
        """Return a train function that trains with the hooks around it."""
        is_first = True

        def training(*args):
            nonlocal is_first
            if is_first and self._model.optimizer.built:  # or the step makes variables all the same
                _backend.build_metrics(self._model, *args)
            is_first = False
            with self._hooks():
                returned = function(*args)
            if not self._by_hand:
                self._trained(_flat(_backend.logs_of(returned) or {}))
            return returned

        return training

    def _put(self, made_from):
        """Lets what a function makes of the train function stand in for it."""
        self._made_from = made_from
        self._model.train_function = self._hooked(made_from(self._model.train_function))

    def read_only(self, function, read, forget, dropped, ended=lambda: None):
        """Lets a function that only reads the data stand in for the train function.

        Args:
            function: of the arguments of a train function.
            read: is called after every step, when the model has its variables.
            forget: is called instead after a step that is none of `fit`.
            dropped: is called when these hooks are removed, after an exception too.
            ended: is called where it finds that the data are used up, before other callbacks know.
        """

        def reading(*args):
            try:
                try:
                    returned = function(*args)
                finally:
                    _backend.reattach(self._model, *args)
            except _backend.END_OF_DATA:
                if not self._by_hand:
                    ended()
                raise
            if self._by_hand:
                forget()
            else:
                read()
            return returned

        self._dropped = dropped
        self._put(lambda _: reading)

    def remove(self):
        """Leaves the model as it was before `install`; the next `fit` traces its own train function.

        Where that fit has no driver it ends before its first step: in a step JAX would lose the weights.
        """
        if self._dropped is not None:
            self._dropped()
        self._model.train_function = None if self._driver is None else _undriven(self._model, self._driver)
        if self._moments in _keras.tracked_metrics(self._model):
            _keras.tracked_metrics(self._model).remove(self._moments)
            self._model.test_function = None

    def arm(self):
        """Says that the next step belongs to the `fit` these hooks were installed in."""
        self._armed, self._armed_in = True, _keras.running()
        if _keras.is_own(self._model.train_function):  # made anew by another callback, which unfroze layers, say
            self._put(self._made_from)

    def _hooked(self, function):
        """Return a train function that works in the fit which these hooks were installed in, and in no other."""

        def hooked(*args):
            is_near = self._armed_in == _keras.running()  # else there are many frames to look at
            self._by_hand = not is_near and _keras.steps_in_fit(self._model)  # of another callback
            if not self._armed and not self._by_hand:  # of an interrupted fit, and found by one without this callback
                self.remove()
                self._model.make_train_function()
                return self._model.train_function(*args)
            self._armed = self._armed and self._by_hand
            try:
                return function(*args)
            except _backend.END_OF_DATA:
                raise
            except BaseException:
                if not self._by_hand:  # whoever took that step may go on without it
                    self.remove()
                raise

        setattr(hooked, _MARK, True)
        return hooked

    @contextlib.contextmanager
    def _hooks(self):
        self._seen = _Seen()
        with contextlib.ExitStack() as stack:
            if self._driver is not None:
                stack.enter_context(self._driver.at_work())
            stack.enter_context(self._swap.in_place())
            if self._drops_gradients:
                stack.enter_context(_backend.without_gradients(self._frozen))
            yield

    @property
    def _drops_gradients(self):
        """Whether gradients of the frozen part are not computed: a step of the user's own may work on each of them."""
        return self._exploiting and not _keras.has_own_train_step(self._model)

    @contextlib.contextmanager
    def _hooked_model(self):
        """Lets the model and its layer be what a step needs; entered once, see `Swap`."""
        with contextlib.ExitStack() as stack:
            if self._driver is not None and self._skips_mixture:
                stack.enter_context(replaced(self.layer, "call", self.layer.without_mixture))
            if self._moments is not None:
                stack.enter_context(self._measuring())
            if self._exploiting:
                stack.enter_context(replaced(self._model, "call", _in_inference_mode(self._model)))
            if self._drops_gradients:
                stack.enter_context(replaced(self.layer, "call", _on_constants(self.layer)))
            yield

    def _measure(self, *batch):
        """Add a batch to the moments; a step of the user's own that they cannot follow goes on without them."""
        if self._moments.has_failed:
            return
        try:
            self._moments.add(*batch)
        except Exception as error:  # labels of another form, or variables that a step on JAX keeps for itself
            self._moments.has_failed = True
            warn(
                "The alignment cannot be measured in this training step, and training goes on: perhaps labels have "
                "another form than the loss takes, or on JAX a train_step calls compute_loss outside of a stateless "
                "scope. With AlignmentMonitor(data=(x, y)) it is measured on these. Received: "
                f"{described(error)}"
            )

    @contextlib.contextmanager
    def _measuring(self):
        compute_loss = self._model.compute_loss

        def note(call):
            if call.layer is self.layer:
                self._seen.features = pooled(self.layer, call.inputs)
            else:
                self._seen.calls.append((tree.flatten(call.outputs)[0], self._seen.features))

        def measured_loss(*args, **kwargs):
            loss, given = compute_loss(*args, **kwargs), loss_arguments(compute_loss, *args, **kwargs)
            features = None if given is None else self._seen.behind(given.y_pred)
            if features is not None:
                weight = None if given.sample_weight is None else tree.flatten(given.sample_weight)[0]
                self._measure(given.x, tree.flatten(given.y)[0], features, weight)
            return loss

        with (
            recorded([self.layer, self._model], note),
            replaced(self._model, "compute_loss", functools.wraps(compute_loss)(measured_loss)),
        ):
            yield


class _Seen(threading.local):
    """Features of the calls in one step; replicas are traced in threads that take turns."""

    def __init__(self):
        self.features, self.calls = None, []

    def behind(self, outputs):
        """Return the features behind some outputs, None where a step calls the model more than once and not for these.

        A step of the user's own may call the model for images without labels, too.
        """
        calls, self.calls = self.calls, []
        outputs = tree.flatten(outputs)[0]
        own = [features for each, features in calls if each is outputs]
        return own[-1] if own else self.features if len(calls) < 2 else None


def _undriven(model, driver):
    """Return a train function that ends a fit whose `Wrap` nobody drives; it holds nothing of the fit before."""

    def undriven(*args):
        try:
            driver.check(model)
        except RuntimeError:
            _backend.reattach(model, *args)
            raise
        _backend.make_train_function(model)
        return model.train_function(*args)

    setattr(undriven, _MARK, True)
    return undriven


def is_hooked(train_function):
    """Return whether a train function is one that `StepHooks` made."""
    return hasattr(train_function, _MARK)


def _flat(logs):
    """Return logs as callbacks get them: what stands in a dict within them beside the others."""
    pairs = ((_flat(value) if isinstance(value, dict) else {name: value}) for name, value in logs.items())
    return {name: value for found in pairs for name, value in found.items()}


def _on_constants(layer):
    """Return the layer's `call` without gradients for its inputs: a loss scale would look at those of the trunk."""
    layer_call = layer.call

    @functools.wraps(layer_call)
    def call(inputs, *args, **kwargs):
        return layer_call(ops.stop_gradient(inputs), *args, **kwargs)

    return call


def _in_inference_mode(model):
    """Return the model's `call` with training=False for it and for all it calls."""
    model_call = model.call

    @functools.wraps(model_call)
    def call(*args, **kwargs):
        if "training" in kwargs:
            kwargs["training"] = False
        with _keras.inference_mode(model):
            return model_call(*args, **kwargs)

    return call
