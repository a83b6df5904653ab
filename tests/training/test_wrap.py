"""The optimizer-wrapper contract: what Keras expects of an optimizer that holds another one."""

import keras
import numpy as np
import pytest
from fits import Snapshots, compiled, fit, images, moved, small_model, snapshot
from keras.optimizers import schedules

import keras_dal
from keras_dal.training.state import state_of

HEAD = {"logits/kernel", "logits/bias"}
OPTIMIZERS = {
    "sgd": lambda **options: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True, **options),
    "adam": lambda **options: keras.optimizers.Adam(1e-2, **options),
    "adamw": lambda **options: keras.optimizers.AdamW(1e-2, **{"weight_decay": 0.1, **options}),
    "rmsprop": lambda **options: keras.optimizers.RMSprop(1e-2, momentum=0.5, centered=True, **options),
    "lion": lambda **options: keras.optimizers.Lion(1e-3, **options),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def trained(optimizer, epochs=4, explore=2, callbacks=(), compile_options=None, model=None, **wrap):
    """Train through the switch; return the model, its snapshots and the history."""
    model = compiled(
        keras_dal.Wrap(optimizer, explore=explore, finish="descend", **wrap), model, **(compile_options or {})
    )
    snapshots = Snapshots()
    history = fit(model, epochs, [keras_dal.AlignmentMonitor(verbose=False), snapshots, *callbacks])
    return model, snapshots.taken, history


def assert_only_the_head_moves(taken, switch=2):
    assert moved(taken[0], taken[switch]) >= HEAD | {"conv/kernel", "norm/moving_mean", "norm/moving_variance"}
    for before, after in zip(taken[switch:], taken[switch + 1 :], strict=False):
        assert moved(before, after) == HEAD


@every_optimizer
def test_exploration_is_bit_for_bit_the_inner_optimizer(make):
    plain = compiled(make())
    fit(plain, 2, callbacks=[])
    wrapped = compiled(keras_dal.Wrap(make(), explore=5))
    fit(wrapped, 2)
    assert not moved(snapshot(plain), snapshot(wrapped))


@every_optimizer
def test_only_the_head_moves_after_the_switch(make):
    _, taken, history = trained(make())
    assert_only_the_head_moves(taken)
    assert history["phase"] == [0, 0, 1, 1]


@every_optimizer
@pytest.mark.parametrize("options", [{"clipnorm": 0.1}, {"weight_decay": 0.05}, {"global_clipnorm": 0.1}], ids=str)
def test_clipping_and_weight_decay_are_kept(make, options):
    model, taken, _ = trained(make(**options), explore=1, epochs=2)
    assert_only_the_head_moves(taken, switch=1)
    assert [getattr(model.optimizer.inner_optimizer, key) for key in options] == list(options.values())


def test_weight_decay_after_the_switch_is_on_the_head_alone():
    rate, decay = 0.01, 0.5
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(rate, weight_decay=decay), explore=None))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.switch(model)
    before = snapshot(model)
    model.optimizer.apply([keras.ops.zeros(v.shape) for v in model.trainable_variables], model.trainable_variables)
    after = snapshot(model)
    assert moved(before, after) == {"logits/kernel"}  # its bias is zero, and so is its decay
    np.testing.assert_allclose(after["logits/kernel"], before["logits/kernel"] * (1 - rate * decay), rtol=1e-6)


@every_optimizer
def test_moving_averages(make):
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    _, taken, _ = trained(make(use_ema=True, ema_momentum=0.5), callbacks=[swap])
    assert_only_the_head_moves(taken, switch=3)  # what begins an epoch are the averages of the one before


@every_optimizer
def test_moving_averages_leave_the_frozen_part_alone(make):
    _, taken, _ = trained(make(use_ema=True, ema_momentum=0.5))
    assert_only_the_head_moves(taken)


def test_swapping_averages_in_and_out_leaves_the_frozen_part_alone():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, use_ema=True), explore=1, finish="descend"))
    snapshots, swap = Snapshots(), keras.callbacks.SwapEMAWeights()
    callbacks = [keras_dal.AlignmentMonitor(verbose=False), snapshots, swap]
    fit(model, 3, callbacks, validation_data=(x, y))
    assert moved(snapshots.taken[1], snapshots.taken[2]) == HEAD
    assert moved(snapshots.taken[2], snapshots.taken[3]) == HEAD


@every_optimizer
def test_gradient_accumulation(make):
    _, taken, _ = trained(make(gradient_accumulation_steps=4))  # 6 steps an epoch: the switch is no boundary of it
    assert_only_the_head_moves(taken)


@every_optimizer
@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 4}], ids=str)
def test_eager_and_several_steps_per_execution(make, options):
    if keras.backend.backend() == "torch" and "steps_per_execution" in options:
        pytest.skip("Keras itself does not support steps_per_execution on torch")
    _, taken, _ = trained(make(), compile_options=options)
    assert_only_the_head_moves(taken)


@every_optimizer
def test_mixed_precision_with_loss_scaling(make):
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        model, taken, _ = trained(make())
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert isinstance(model.optimizer.inner_optimizer, keras_dal.Wrap)
    assert_only_the_head_moves(taken)


def test_mixed_precision_with_moving_averages():
    keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
        _, taken, _ = trained(keras.optimizers.SGD(0.1, use_ema=True), callbacks=[swap])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert_only_the_head_moves(taken, switch=3)


@every_optimizer
def test_serialization(make):
    wrap = keras_dal.Wrap(make(), explore=0.25, exploit=["a", "b.*"], noise=0.5, exploit_learning_rate=0.125)
    restored = keras.optimizers.deserialize(keras.optimizers.serialize(wrap))
    assert isinstance(restored, keras_dal.Wrap)
    assert restored.get_config() == wrap.get_config()
    assert type(restored.inner_optimizer) is type(wrap.inner_optimizer)


def test_serialization_of_a_schedule():
    schedule = schedules.CosineDecay(0.1, 10)
    wrap = keras_dal.Wrap("sgd", exploit_learning_rate=schedule)
    restored = keras_dal.Wrap.from_config(wrap.get_config())
    assert restored.exploit_learning_rate.get_config() == schedule.get_config()


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="Keras refuses stateless_apply on TensorFlow")
@every_optimizer
def test_stateless_apply(make):
    model = small_model()
    wrap, inner = keras_dal.Wrap(make(), explore=None), make()
    for optimizer in (wrap, inner):
        optimizer.build(model.trainable_variables)
    values = [v.value for v in model.trainable_variables]
    grads = [keras.ops.ones(v.shape) for v in model.trainable_variables]
    ours, state = wrap.stateless_apply([v.value for v in wrap.variables], grads, values)
    theirs, _ = inner.stateless_apply([v.value for v in inner.variables], grads, values)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
    assert len(state) == len(wrap.variables)


def test_the_inner_learning_rate_goes_on_by_default():
    plateau = keras.callbacks.ReduceLROnPlateau(monitor="phase", factor=0.5, patience=0, mode="min", min_delta=0)
    model, _, history = trained(keras.optimizers.SGD(0.1), callbacks=[plateau], epochs=4)
    assert history["learning_rate"][0] == pytest.approx(0.1)
    assert float(model.optimizer.inner_optimizer.learning_rate) == pytest.approx(float(model.optimizer.learning_rate))
    assert float(model.optimizer.learning_rate) < 0.1


def test_an_inner_schedule_goes_on_over_the_switch():
    schedule = schedules.PiecewiseConstantDecay([6, 12, 18], [0.4, 0.3, 0.2, 0.1])
    model, _, _ = trained(keras.optimizers.SGD(schedule), epochs=4, explore=2)
    assert int(model.optimizer.iterations) == 24
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(0.1)


def test_a_float_after_the_switch_can_be_set_by_callbacks():
    halve = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate if epoch < 3 else rate / 2)
    model, _, _ = trained(keras.optimizers.SGD(0.1), exploit_learning_rate=0.04, callbacks=[halve])
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(0.02)
    assert float(keras.ops.convert_to_numpy(model.optimizer.inner_optimizer.learning_rate)) == pytest.approx(0.1)


def test_a_schedule_after_the_switch_counts_from_the_switch():
    schedule = schedules.PiecewiseConstantDecay([11], [0.5, 0.25])
    model, _, _ = trained(keras.optimizers.SGD(0.1), epochs=3, explore=2, exploit_learning_rate=schedule)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == 0.5
    model, _, _ = trained(keras.optimizers.SGD(0.1), epochs=4, explore=2, exploit_learning_rate=schedule)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == 0.25
    with pytest.warns(UserWarning, match="that of its schedule, and a callback.*Received: learning_rate=1.0"):
        model.optimizer.learning_rate = 1.0  # no exception, which would end a training after its first phase
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == 0.25


@pytest.mark.parametrize("exploit", ["head", "logits", ["logits"], "logits/(kernel|bias)"], ids=str)
def test_what_is_exploited_has_many_names(exploit):
    _, taken, _ = trained(keras.optimizers.SGD(0.1), exploit=exploit, epochs=2, explore=1)
    assert_only_the_head_moves(taken, switch=1)


def test_a_layer_can_be_exploited():
    model = small_model()
    _, taken, _ = trained("sgd", exploit=model.get_layer("logits"), model=model, epochs=2, explore=1)
    assert_only_the_head_moves(taken, switch=1)


def test_a_loop_of_ones_own_switches_explicitly():
    model = compiled(keras_dal.Wrap("sgd", explore=None))
    model.optimizer.build(model.trainable_variables)
    structure = model.optimizer.switch(model)
    assert [v.path for v in structure.linear_parameters] == ["logits/kernel", "logits/bias"]
    before = snapshot(model)
    model.optimizer.apply([keras.ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    assert moved(before, snapshot(model)) == HEAD
    assert model.optimizer.phase == "exploit"


def test_without_a_monitor_the_first_step_raises():
    model, message = compiled(keras_dal.Wrap("sgd")), "Add keras_dal.AlignmentMonitor.*Received: explore='auto'"
    before = snapshot(model)
    if keras.backend.backend() == "jax":
        with pytest.warns(UserWarning, match=message):  # where a step raises Keras has let go of the weights
            fit(model, 2, callbacks=[])
        return
    with pytest.raises(RuntimeError, match=message):
        fit(model, 2, callbacks=[])
    # an eager step has gone through the network, and its statistics, when it comes to the optimizer
    seen = {"norm/moving_mean", "norm/moving_variance"} if keras.backend.backend() == "torch" else set()
    assert moved(before, snapshot(model)) <= seen


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"explore": 0.0}, "`explore` must be .* Received: explore=0.0"),
        ({"explore": 1.0}, "`explore` must be .* Received: explore=1.0"),
        ({"explore": 0}, "`explore` must be .* Received: explore=0"),
        ({"explore": True}, "`explore` must be .* Received: explore=True"),
        ({"explore": "later"}, "`explore` must be .* Received: explore='later'"),
        ({"exploit": 3}, "`exploit` must be .* Received: exploit=3"),
        ({"exploit": []}, r"`exploit` must be .* Received: exploit=\[\]"),
        ({"exploit": "("}, r"not a valid regular expression.* Received: '\('"),
        ({"noise": -1.0}, "`noise` must be .* Received: noise=-1.0"),
        ({"noise": float("nan")}, "`noise` must be .* Received: noise=nan"),
        ({"exploit_learning_rate": 0.0}, "`exploit_learning_rate` must be .* Received: exploit_learning_rate=0.0"),
        ({"exploit_learning_rate": "fast"}, "Received: exploit_learning_rate='fast'"),
        ({"clipnorm": 1.0}, "set them on the optimizer it wraps. Received: clipnorm=1.0"),
    ],
    ids=str,
)
def test_bad_arguments_get_one_clear_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        keras_dal.Wrap("sgd", **arguments)


def test_an_optimizer_of_optimizers_is_refused():
    several = keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD(0.1))
    with pytest.raises(ValueError, match="a MultiOptimizer cannot.*Received: optimizer="):
        keras_dal.Wrap(several)


def test_tensorboard_logs_the_learning_rate_and_the_alignment(tmp_path):
    trained(keras.optimizers.SGD(0.1), epochs=2, explore=1, callbacks=[keras.callbacks.TensorBoard(tmp_path)])
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("events*"))
    assert b"epoch_alignment" in written
    assert b"epoch_learning_rate" in written


def test_averages_behind_a_loss_scale_stay_those_of_what_is_frozen():
    inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9))
    model = compiled(keras_dal.Wrap(inner, explore=1, finish="descend"))
    snapshots = Snapshots()
    history = fit(model, 3, [keras_dal.AlignmentMonitor(verbose=False), snapshots])
    assert history["phase"] == [0, 1, 1]
    assert moved(snapshots.taken[1], snapshots.taken[3]) == {"logits/kernel", "logits/bias"}


HEAD = {"logits/kernel", "logits/bias"}


def trained_by(model, before, after):
    """Return the paths of the trainable variables that changed."""
    return moved(before, after) & {variable.path for variable in model.trainable_variables}


def trained_by_a_fit(model):
    """Return the same of an epoch without the monitor."""
    before = snapshot(model)
    fit(model, 1, callbacks=[])
    return trained_by(model, before, snapshot(model))


def test_a_model_that_was_loaded_in_the_second_phase_goes_back_to_the_first(tmp_path):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None))
    model.optimizer.switch(model)
    model.save(tmp_path / "switched.keras")
    again = keras.saving.load_model(tmp_path / "switched.keras")
    assert trained_by_a_fit(again) == HEAD
    again.optimizer.restart()
    assert trained_by_a_fit(again) > HEAD


def test_weights_that_bring_the_second_phase_freeze_a_model_that_has_trained(tmp_path):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None))
    model.optimizer.switch(model)
    model.save_weights(tmp_path / "switched.weights.h5")
    other = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None))
    assert trained_by_a_fit(other) > HEAD
    other.load_weights(tmp_path / "switched.weights.h5")
    assert trained_by_a_fit(other) == HEAD


@pytest.mark.parametrize("explore", [None, 1])
def test_a_step_that_is_kept_is_not_taken_for_that_of_the_other_phase(explore):
    kept = []
    keeping = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda *_, **__: kept.append(model.train_function))
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=explore, finish="descend"))
    monitor = [] if explore is None else [keras_dal.AlignmentMonitor(verbose=False)]
    snapshots = Snapshots()
    fit(model, 1 if explore is None else 3, [keeping, *monitor, snapshots])
    if explore is None:
        model.optimizer.switch(model)
        fit(model, 1, [keeping, snapshots])
    assert trained_by(model, *snapshots.taken[-2:]) == HEAD


def rates_of_steps(wrap, model):
    """Yield how far each step moves the head's bias for gradients of one, once the second phase has begun."""
    wrap.switch(model)
    before = keras.ops.convert_to_numpy(model.get_layer("logits").bias)
    for _ in range(4):
        wrap.apply([keras.ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
        yield float((before - (before := keras.ops.convert_to_numpy(model.get_layer("logits").bias)))[0])


def test_a_schedule_counts_from_every_switch():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.25])
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, exploit_learning_rate=schedule)
    model = compiled(wrap)
    first = list(rates_of_steps(wrap, model))
    wrap.restart()
    assert first == pytest.approx([0.5, 0.5, 0.25, 0.25], rel=1e-5)
    assert list(rates_of_steps(wrap, model)) == pytest.approx(first, rel=1e-5)


def test_a_rate_that_was_set_in_one_second_phase_is_not_that_of_the_next():
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, exploit_learning_rate=0.5)
    model = compiled(wrap)
    wrap.switch(model)
    wrap.learning_rate = 0.01
    wrap.restart()
    assert list(rates_of_steps(wrap, model)) == pytest.approx(4 * [0.5], rel=1e-5)


def test_averages_of_the_head_go_on_over_the_switch():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, use_ema=True), explore=None, finish="descend"))
    model.optimizer.build(model.trainable_variables)
    for _ in range(2):
        model.optimizer.apply([keras.ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    before = [np.array(keras.ops.convert_to_numpy(each)) for each in state_of(model.optimizer).averages.of_inner()]
    model.optimizer.switch(model)
    averages = zip(model.trainable_variables, state_of(model.optimizer).averages.of_inner(), before, strict=True)
    for variable, average, value in averages:
        expected = value if variable.path.startswith("logits") else variable
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (average, expected)))


def test_a_wrap_in_a_wrap_is_refused():
    with pytest.raises(ValueError, match="cannot wrap another.*Received"):
        keras_dal.Wrap(keras_dal.Wrap("sgd"))


def test_what_is_set_on_the_wrap_is_set_on_the_optimizer_inside():
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9))
    wrap.momentum = 0.5
    assert wrap.inner_optimizer.momentum == wrap.momentum == 0.5
    assert "momentum" not in vars(wrap)


def test_an_optimizer_with_attributes_of_the_same_names_keeps_them():
    class Noisy(keras.optimizers.SGD):
        def __init__(self, **options):
            super().__init__(**options)
            self.noise, self.average = 0.5, 7

    wrap = keras_dal.Wrap(Noisy(), noise=0.25, average=0.1)
    assert (wrap.inner_optimizer.noise, wrap.inner_optimizer.average) == (0.5, 7)
    assert (wrap.noise, wrap.average) == (0.25, 0.1)


def test_a_layer_that_became_trainable_is_named():
    model = small_model()
    model.get_layer("conv").trainable = False
    compiled(keras_dal.Wrap("sgd", explore=5), model)
    fit(model, 1)
    model.get_layer("conv").trainable = True
    compiled(model.optimizer, model)
    with pytest.raises(ValueError, match="before these variables became trainable.*conv/kernel"):
        fit(model, 2)


@pytest.mark.filterwarnings("ignore:Batch statistics have not settled")  # of few steps, which descend
def test_a_schedule_is_not_heard_where_the_step_is_proven():
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1, exploit_learning_rate="auto")
    callbacks = [keras_dal.AlignmentMonitor(verbose=False), keras.callbacks.LearningRateScheduler(lambda epoch: 7.0)]
    with pytest.warns(UserWarning, match="the one for which convergence is proved.*learning_rate=7"):
        fit(compiled(wrap), 4, callbacks)
    assert 0 < float(keras.ops.convert_to_numpy(wrap.learning_rate)) < 7


def test_a_callback_that_sets_another_step_than_the_proven_one_is_told_once_and_one_that_sets_the_same_never(recwarn):
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1, exploit_learning_rate="auto")
    model = compiled(wrap)
    fit(model, 2)
    for factor, warnings in ((1, 0), (2, 1), (3, 1)):
        wrap.learning_rate = factor * float(keras.ops.convert_to_numpy(wrap.learning_rate))
        said = [each for each in recwarn if "is not heard" in str(each.message)]
        assert len(said) == warnings
    wrap.restart()
    fit(model, 2)
    wrap.learning_rate = 7.0
    assert len([each for each in recwarn if "is not heard" in str(each.message)]) == 2


@pytest.mark.parametrize("head", [{"kernel_regularizer": "l1"}, {"kernel_constraint": "non_neg"}], ids=str)
def test_a_proven_step_for_a_penalty_of_unknown_curvature_is_refused_before_training(head):
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1, exploit_learning_rate="auto")
    with pytest.raises(ValueError, match="needs a penalty of known curvature.*Received: exploit_learning_rate='auto'"):
        fit(compiled(wrap, small_model(**head)), 2)


def test_steps_follow_an_optimizer_that_is_put_back_to_the_other_phase():
    x, y = images()
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None)
    model = compiled(wrap)
    model.train_on_batch(x, y)
    kernel, before = model.trainable_variables[0], [keras.ops.convert_to_numpy(v).copy() for v in wrap.variables]

    def moves():
        start = keras.ops.convert_to_numpy(kernel).copy()
        model.train_on_batch(x, y)
        return np.abs(keras.ops.convert_to_numpy(kernel) - start).max() > 0

    wrap.switch(model)
    after = [keras.ops.convert_to_numpy(v).copy() for v in wrap.variables]
    assert not moves()
    for values, expected in ((before, True), (after, False)):
        for variable, value in zip(wrap.variables, values, strict=True):
            variable.assign(value)
        wrap.synchronize()
        assert moves() == expected


def test_what_a_wrap_shows_beside_an_optimizer_is_documented():
    shown = {name for name in dir(keras_dal.Wrap("sgd")) if not name.startswith("_")} - set(dir(keras.optimizers.SGD()))
    options = {"explore", "exploit", "average", "finish", "noise", "exploit_learning_rate", "inner_optimizer"}
    phases = {"phase", "switch", "restart", "begin_average", "drop_average", "is_averaging", "averaged_steps"}
    assert shown == options | phases | {"synchronize", "has_renewed_statistics"}


def test_an_optimizer_inside_that_was_built_for_another_model_is_refused_before_any_step():
    inner = keras.optimizers.Adam(0.01)
    fit(compiled(inner), 1, [])
    other = compiled(keras_dal.Wrap(inner))
    before = other.get_weights()
    with pytest.raises(ValueError, match="inside Wrap was built for other variables.*Adam that does not know conv"):
        fit(other, 3)
    for value, expected in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_an_optimizer_that_has_trained_a_model_may_be_wrapped_for_it():
    inner = keras.optimizers.Adam(0.01)
    model = compiled(inner)
    fit(model, 1, [])
    assert fit(compiled(keras_dal.Wrap(inner, explore=1), model), 2)["phase"] == [0, 1]


@pytest.mark.parametrize(("explore", "plain"), [(np.int64(3), 3), (np.float32(0.5), 0.5)])
def test_numbers_of_numpy_are_numbers(explore, plain):
    wrap = keras_dal.Wrap("sgd", explore=explore)
    assert wrap.get_config()["explore"] == plain
