"""What a wrapper shows of the optimizer inside."""

import contextlib
from typing import Any

import keras

from keras_dal import _keras
from keras_dal.features.tracing import replaced

# options that the base class of every Keras optimizer has, with what it expects where there are none
OPTIONS = {
    "weight_decay": None,
    "clipnorm": None,
    "clipvalue": None,
    "global_clipnorm": None,
    "use_ema": False,
    "ema_momentum": None,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}


class Delegating(keras.optimizers.Optimizer):
    """Public attributes of `inner_optimizer`, read and written as if they were the wrapper's own."""

    inner_optimizer: Any

    @property
    def iterations(self) -> Any:
        return self.inner_optimizer.iterations

    def apply_gradients(self, grads_and_vars: Any) -> Any:
        super().apply_gradients(grads_and_vars)
        return _keras.step_count(innermost(self.inner_optimizer))  # as the optimizer inside returns it

    def scale_loss(self, loss: Any) -> Any:
        return self.inner_optimizer.scale_loss(loss)

    @contextlib.contextmanager
    def _by_itself(self):
        """Hides the inner optimizer's options from what the base class does for the wrapper alone."""
        with replaced(self, "_is_alone", True):
            yield

    def __getattr__(self, name):
        inner = vars(self).get("inner_optimizer")
        if inner is None or name.startswith("_"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(inner, name)

    def __setattr__(self, name, value):
        inner = vars(self).get("inner_optimizer")
        known = name.startswith("_") or name in vars(self) or hasattr(type(self), name)
        if inner is None or known or not hasattr(inner, name):
            super().__setattr__(name, value)
        else:
            setattr(inner, name, value)


def _option(name, default):
    def read(self) -> Any:
        inner = vars(self).get("inner_optimizer")
        return default if inner is None or vars(self).get("_is_alone") else getattr(inner, name)

    def write(self, value):
        if (inner := vars(self).get("inner_optimizer")) is not None:
            setattr(inner, name, value)

    return property(read, write)


for _name, _default in OPTIONS.items():
    setattr(Delegating, _name, _option(_name, _default))


def innermost(optimizer):
    """Return the optimizer inside all wrappers."""
    *_, last = _keras.optimizers(optimizer)
    return last


def path_to(wrap, model):
    """Return how a user reaches a `Wrap`: under a float16 policy `compile` puts a loss scale around it."""
    around = _keras.optimizers(getattr(model, "optimizer", None))
    depth = next((index for index, each in enumerate(around) if each is wrap), None)
    return "optimizer" if depth is None else "model.optimizer" + depth * ".inner_optimizer"


@contextlib.contextmanager
def averaging_only(optimizer, indices, whole=False):
    """Shows the optimizer's moving averages only these variables: Keras averages all it was built with.

    Args:
        optimizer: the innermost optimizer.
        indices: of the variables whose averages may change.
        whole: whether all variables will be handed to it nevertheless; then the other averages are put back.
    """
    if not optimizer.use_ema:
        yield
        return
    averages, optimized = _keras.moving_averages(optimizer), _keras.optimized(optimizer)
    if whole:
        others = [(average, average.value) for i, average in enumerate(averages) if i not in indices]
        try:
            yield
        finally:
            for average, value in others:
                average.assign(value)
        return
    with (
        replaced(optimizer, _keras.AVERAGES, [averages[i] for i in indices]),
        replaced(optimizer, _keras.OPTIMIZED, [optimized[i] for i in indices]),
    ):
        yield


def parameters_of(wrap):
    """Return what `find_structure` takes for the linear parameters of a `Wrap`, or where there is none."""
    return "head" if wrap is None else wrap.exploit
