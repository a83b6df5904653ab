"""What is asked of the wrapper is answered by the optimizer inside, for all that Keras' base class offers."""

import inspect

import keras
import numpy as np
import pytest
from fits import compiled, fit, snapshot

import keras_dal
from keras_dal.features.tracing import to_numpy

OWN = {  # what the wrapper must answer itself, and why
    "add_optimizer_variables": "slots are those of whoever asks",
    "add_variable": "likewise",
    "add_variable_from_reference": "likewise",
    "apply": "it says what is trained",
    "apply_gradients": "calls apply",
    "assign": "an operation on a variable",
    "assign_add": "likewise",
    "assign_sub": "likewise",
    "build": "builds both",
    "finalize_variable_values": "it says what is averaged",
    "from_config": "makes a wrapper",
    "get_config": "describes both",
    "learning_rate": "that of the phase",
    "load_own_variables": "those of both",
    "minimize": "calls apply",
    "save_own_variables": "those of both",
    "set_weights": "those of both",
    "stateless_apply": "of the state of both",
    "update_step": "of plain gradient descent with the proven step",
    "variables": "those of both",
}


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("accumulated", [None, 2])
def test_apply_gradients_returns_the_steps_of_the_optimizer_inside(accumulated):
    returned = []
    for wraps in (False, True):
        optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=accumulated)
        optimizer = keras_dal.Wrap(optimizer, explore=None) if wraps else optimizer
        variable = keras.Variable(np.ones(2, "float32"))
        steps = [optimizer.apply_gradients([(keras.ops.ones(2), variable)]) for _ in range(3)][-1]
        returned.append(int(keras.ops.convert_to_numpy(steps)))
    assert returned == [3, 3]


def test_every_public_name_of_an_optimizer_is_delegated_or_the_wrappers_own():
    inner = keras.optimizers.SGD(0.1, momentum=0.9)
    wrap = keras_dal.Wrap(inner)
    trackable = public(type(inner).__mro__[-2]) if keras.backend.backend() == "torch" else set()
    for name in sorted((public(keras.optimizers.Optimizer) | set(vars(inner))) - set(OWN) - trackable):
        if name.startswith("_") or name in ("name", "built"):
            continue
        ours, theirs = getattr(wrap, name), getattr(inner, name)
        if inspect.ismethod(theirs):
            own = getattr(type(wrap), name, None)
            assert own is not getattr(keras.optimizers.Optimizer, name), f"{name} is neither delegated nor listed"
        else:
            assert ours is theirs or ours == theirs, name


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("weight_decay", 0.5),
        ("clipnorm", 0.25),
        ("clipvalue", 0.5),
        ("global_clipnorm", 0.5),
        ("use_ema", True),
        ("loss_scale_factor", 8.0),
        ("gradient_accumulation_steps", 2),
    ],
)
def test_options_are_read_from_the_inner_optimizer(option, value):
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1, **{option: value}))
    assert getattr(wrap, option) == value
    assert keras.optimizers.deserialize(keras.optimizers.serialize(wrap)).inner_optimizer.get_config()[option] == value


def test_variables_are_excluded_from_weight_decay_through_the_wrapper():
    def trained(optimizer):
        optimizer.exclude_from_weight_decay(var_names=["kernel"])
        model = compiled(optimizer)
        fit(model, 2, None if isinstance(optimizer, keras_dal.Wrap) else [])
        return snapshot(model)

    plain = trained(keras.optimizers.SGD(0.1, weight_decay=0.5))
    wrapped = trained(keras_dal.Wrap(keras.optimizers.SGD(0.1, weight_decay=0.5), explore=9))
    for path, value in plain.items():
        np.testing.assert_array_equal(wrapped[path], value)


def test_the_proven_step_waits_for_a_loss_scale_that_is_not_too_large():
    """Gradients in float16 overflow at first; each time the scale is halved, and nothing moves."""
    dense = keras.layers.Dense(3, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "relu", dtype="mixed_float16"), dense])
    scaled = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-4), initial_scale=2.0**20)
    wrap = keras_dal.Wrap(scaled, exploit_learning_rate="auto", explore=None)
    model.compile(wrap, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wrap.build(model.trainable_variables)
    wrap.switch(model, learning_rate=1e-6)
    overflowing = [keras.ops.full(v.shape, np.inf) for v in model.trainable_variables]
    before, scale = model.get_weights(), float(scaled.dynamic_scale)
    wrap.apply(overflowing, model.trainable_variables)
    assert float(scaled.dynamic_scale) == scale / 2
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    wrap.apply([keras.ops.full(v.shape, scale) for v in model.trainable_variables], model.trainable_variables)
    assert float(scaled.dynamic_scale) == scale / 2
    np.testing.assert_allclose(to_numpy(dense.bias), -2e-6, rtol=1e-3)


def test_a_loss_scale_is_undone_before_the_proven_step():
    def losses(inner):
        model = compiled(keras_dal.Wrap(inner, explore=1, exploit_learning_rate="auto"))
        return fit(model, 4, batch_size=96)["loss"]

    plain = losses(keras.optimizers.SGD(0.05))
    np.testing.assert_allclose(losses(keras.optimizers.SGD(0.05, loss_scale_factor=128.0)), plain, rtol=1e-4)
    dynamic = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05))
    np.testing.assert_allclose(losses(dynamic), plain, rtol=1e-4)


def test_iterations_count_updates_under_accumulation():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2), explore=9))
    fit(model, 1)
    assert int(model.optimizer.iterations) == int(model.optimizer.inner_optimizer.iterations) == 3


def test_a_name_that_neither_has_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'SGD' object has no attribute 'momentums'"):
        keras_dal.Wrap("sgd").momentums  # noqa: B018
