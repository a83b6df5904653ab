"""A fit that ends by itself: averages, batch statistics, features of the stream, the solved head, and what is said."""

import csv
import re

import keras
import numpy as np
import pytest
from fits import NUM_CLASSES, Snapshots, StopsReading, compiled, features_of, fit, images, moved, small_model, snapshot
from scipy import optimize

import keras_dal
from keras_dal.finishing.stopping import Ending
from keras_dal.training.state import state_of
from keras_dal.training.statistics import BatchStatistics

HEAD = {"logits/kernel", "logits/bias"}
SWITCH = 3


class Weights(keras.callbacks.Callback):
    """Keeps the trainable weights after every step of the given epochs."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs, self.taken = epochs, []

    def on_epoch_begin(self, epoch, logs=None):
        self.counts = epoch in self.epochs

    def on_train_batch_end(self, batch, logs=None):
        if self.counts:
            self.taken.append(
                [np.array(keras.ops.convert_to_numpy(v), np.float64) for v in self.model.trainable_variables]
            )

    def mean(self):
        return [np.mean(values, axis=0) for values in zip(*self.taken, strict=True)]


def ended(optimizer=None, epochs=9, model=None, callbacks=(), data=None, **options):
    """Train to the end that the fit finds by itself; return model, monitor and history."""
    wrap = {name: options.pop(name) for name in ("explore", "average", "exploit") if name in options}
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9) if optimizer is None else optimizer
    compile_options = options.pop("compile_options", {})
    wrapped = keras_dal.Wrap(optimizer, **{"explore": SWITCH, "average": 0.7, **wrap})
    model = compiled(wrapped, model, **compile_options)
    monitor = keras_dal.AlignmentMonitor(data=data, verbose=False)
    history = fit(model, epochs, [monitor, *callbacks], **options)
    return model, monitor, history


def test_training_ends_one_epoch_after_the_switch_with_a_complete_history(tmp_path):
    log, seen = tmp_path / "log.csv", images(seed=1)
    model, monitor, history = ended(callbacks=[keras.callbacks.CSVLogger(str(log))], validation_data=seen)
    assert history["phase"] == [0, 0, 0, 1]
    assert {len(values) for values in history.values()} == {4}
    for name, data in (("val_", seen), ("", images())):
        for metric, value in model.evaluate(*data, verbose=0, return_dict=True).items():
            assert history[name + metric][-1] == pytest.approx(value, rel=1e-4)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert float(rows[-1]["val_loss"]) == pytest.approx(history["val_loss"][-1])
    assert monitor.result.model is model
    assert model.optimizer.phase == "exploit"


def test_the_frozen_weights_are_the_mean_over_the_last_steps():
    weights = Weights({1, 2})  # 0.7 of three epochs
    model, _, _ = ended(callbacks=[weights])
    for variable, mean in zip(model.trainable_variables, weights.mean(), strict=True):
        if variable.path not in HEAD:
            np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), mean, rtol=1e-4, atol=1e-6)


def test_exploration_is_that_of_the_inner_optimizer_while_weights_are_averaged():
    plain, snapshots = compiled(keras.optimizers.SGD(0.1, momentum=0.9)), Snapshots()
    fit(plain, SWITCH, callbacks=[])
    ended(callbacks=[Before(snapshots, SWITCH)])
    assert not moved(snapshot(plain), snapshots.taken[0])


class Before(keras.callbacks.Callback):
    """Lets a `Snapshots` look at the end of the last explored epoch."""

    def __init__(self, snapshots, epochs):
        super().__init__()
        self.snapshots, self.epochs = snapshots, epochs

    def on_epoch_end(self, epoch, logs=None):
        if epoch == self.epochs - 1:
            self.snapshots.taken.append(snapshot(self.model))


def test_averages_keep_the_constraints_of_what_is_frozen():
    """Unit vectors do not have a mean of norm one."""
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(6, 3, kernel_constraint=keras.constraints.UnitNorm([0, 1, 2]), name="conv")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x))
    model = keras.Model(inputs, keras.layers.Dense(NUM_CLASSES, name="logits")(x))
    weights = Weights({1, 2})
    model, monitor, _ = ended(keras.optimizers.SGD(3.0), model=model, callbacks=[weights])
    assert np.max(np.abs(np.linalg.norm(weights.mean()[0].reshape(-1, 6), axis=0) - 1)) > 1e-3
    kernel = keras.ops.convert_to_numpy(model.get_layer("conv").kernel).reshape(-1, 6)
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, atol=1e-5)
    assert monitor.result.point.gap <= 1e-4


def test_weights_that_were_not_averaged_stay_as_they_are_whatever_their_constraints():
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(6, 3, kernel_constraint="non_neg", name="conv")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(keras.layers.GlobalAveragePooling2D()(x)))
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, average=0), model)
    before = keras.ops.convert_to_numpy(model.get_layer("conv").kernel).copy()
    keras_dal.finish(model, *images(), verbose=0)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.get_layer("conv").kernel), before)


@pytest.mark.parametrize("factor", [1e-4, 1.0])
def test_a_penalty_on_features_of_very_different_size_is_minimized_all_the_same(factor):
    """It is a million times stiffer than the loss, in the coordinates of the solver, where features are small."""
    generator = np.random.default_rng(0)
    x = np.maximum(generator.standard_normal((400, 16)), 0) * np.geomspace(1e-6, 1, 16)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((16,)), keras.layers.Dense(3, kernel_regularizer=keras.regularizers.L2(factor))]
    )
    compiled("sgd", model)
    result = keras_dal.finish(model, x.astype("float32"), generator.integers(0, 3, 400), verbose=0)
    assert result.stopped_by == Ending.CERTIFIED
    assert result.gradient_steps is None


@pytest.mark.filterwarnings("ignore:The last layer is solved for the compiled loss alone")
def test_the_penalty_of_a_gated_head_is_left_out():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_regularizer="l2")])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((50, 4)).astype("float32")
    gated = keras_dal.add_gated_head(model, x, verbose=0)
    result = keras_dal.finish(gated, x, np.sin(3 * x[:, :1]), verbose=0)
    assert not result.penalized
    assert "left out" in str(result)


def test_samples_between_two_classes_are_not_yet_on_their_right_side():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((50, 4)).astype("float32"), generator.integers(0, 3, 50)
    gated = keras_dal.add_gated_head(compiled("sgd", model), x, verbose=0)
    assert keras_dal.finish(gated, x, y, verbose=0).accuracy == 1.0


def test_batch_statistics_are_means_over_the_batches_of_the_averaged_weights():
    model, _, _ = ended(shuffle=False)
    x, _ = images()
    before = keras.Model(model.inputs, model.get_layer("norm").input)
    batches = [before.predict(x[i : i + 16], verbose=0).astype(np.float64) for i in range(0, 96, 16)]
    mean = np.mean([batch.mean(axis=(0, 1, 2)) for batch in batches], axis=0)
    variance = np.mean([batch.var(axis=(0, 1, 2)) for batch in batches], axis=0)
    norm = model.get_layer("norm")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(norm.moving_mean), mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(norm.moving_variance), variance, rtol=1e-4)


@pytest.mark.parametrize("factor", [0.0, 0.03])
def test_the_head_is_the_minimum_that_scipy_finds_and_the_proved_gap_holds(factor):
    """With the L2 penalty of its kernel beside a loss that counts double."""
    weights, penalty = Weights({1, 2}), keras.regularizers.L2(2 * factor)
    model = small_model(kernel_regularizer=penalty if factor else None)
    model, monitor, _ = ended(
        callbacks=[weights], model=model, compile_options={"loss_weights": [2.0 if factor else 1.0]}
    )
    x, y = images()
    columns = np.hstack([features_of(model, x), np.ones((len(x), 1))])
    kernel, bias = weights.mean()[-2:]
    start = np.vstack([kernel, bias[None]])
    second = columns.T @ columns / len(x)
    scale = np.diag(second) + (np.diag(second) == 0)
    held = second + 1e-2 * np.diag(scale)  # what holds directions that no sample sees, and dead features

    def objective(flat):
        theta = flat.reshape(start.shape)
        logits = columns @ theta
        top = logits.max(axis=1, keepdims=True)
        loss = np.mean(np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(y)), y])
        change = theta - start
        moved_logits = np.mean(np.sum((columns @ change) ** 2, axis=1))
        return loss + 0.01 * (moved_logits + np.sum(change * (held @ change))) + factor * np.sum(theta[:-1] ** 2)

    least = optimize.minimize(objective, start.ravel(), method="BFGS", options={"gtol": 1e-9}).fun
    theta = np.vstack([keras.ops.convert_to_numpy(v).reshape(-1, NUM_CLASSES) for v in model.trainable_variables[-2:]])
    reached = objective(theta.astype(np.float64).ravel())
    assert reached - least <= monitor.result.point.gap + 1e-7
    assert monitor.result.point.gap <= 1e-4
    assert (monitor.result.gradient_steps is None) == bool(factor)
    if not factor:
        steps = accelerated(objective, least, start, np.linalg.cholesky(held), second)
        assert steps <= monitor.result.gradient_steps <= 10 * steps


def accelerated(objective, least, start, lower, second):
    """Return after how many of Nesterov's steps in the coordinates `L' (theta - start)` the gap is 1e-4."""
    inverse = np.linalg.inv(lower)
    values = np.linalg.eigvalsh(inverse @ second @ inverse.T)
    largest, smallest = 0.5 * values[-1] + 0.02 * (values[-1] + 1), 0.02 * (values[0] + 1)
    q = np.sqrt(smallest / largest)
    phi = ahead = np.zeros_like(start)

    def at(flat):
        return objective((start + inverse.T @ flat.reshape(start.shape)).ravel())

    for steps in range(1_000):
        if at(phi.ravel()) - least <= 1e-4:
            return steps
        before, slope = phi, optimize.approx_fprime(ahead.ravel(), at, 1e-7).reshape(start.shape)
        phi = ahead - slope / largest
        ahead = phi + (1 - q) / (1 + q) * (phi - before)
    raise AssertionError("the steps did not get there")


@pytest.mark.filterwarnings("ignore:Batch statistics have not settled")  # no average renews them
@pytest.mark.parametrize("average", [0, 0.7])
def test_without_an_average_the_last_weights_and_their_statistics_stay(average):
    snapshots = Snapshots()
    model, _, _ = ended(average=average, callbacks=[Before(snapshots, SWITCH)])
    changed = moved(snapshots.taken[0], snapshot(model))
    assert (changed - {"dropout/seed_generator_state"} == HEAD) == (average == 0)


def test_moving_averages_of_the_inner_optimizer_serve():
    before = Averages()
    model, _, _ = ended(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9), callbacks=[before])
    for variable, average in zip(model.trainable_variables, before.taken, strict=True):
        if variable.path not in HEAD:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), average)
    assert model.evaluate(*images(), verbose=0)[0] == pytest.approx(before.loss, rel=1e-4)  # not averaged away


class Averages(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == SWITCH - 1:
            inner = self.model.optimizer.inner_optimizer
            self.taken = [np.array(keras.ops.convert_to_numpy(v)) for v in inner._model_variables_moving_average]
        self.loss = logs["loss"]


def test_sample_weights_of_the_stream_reach_the_solver():
    weights = (np.arange(96) % 3 > 0).astype("float32")
    _, monitor, _ = ended(sample_weight=weights, shuffle=False)
    np.testing.assert_array_equal(monitor.result._data.train.weights > 0, np.ones(64, bool))
    assert monitor.result.point.gap <= 1e-4


def test_metrics_of_the_last_epoch_are_of_all_samples_with_their_weights(monkeypatch):
    monkeypatch.setattr("keras_dal._backend.arrays.BLOCK", 40)
    x, y = images()
    weights = np.where(y == 0, 5.0, 1.0)
    metrics = [keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="weighted")]
    model, _, history = ended(compile_options={"weighted_metrics": metrics}, sample_weight=weights)
    expected = model.evaluate(x, y, sample_weight=weights, verbose=0, return_dict=True)
    assert abs(expected["weighted"] / expected["loss"] - 1) > 1e-2
    for name in ("weighted", "accuracy"):
        assert history[name][-1] == pytest.approx(expected[name], rel=1e-4)


def test_a_large_loss_of_small_weight_is_compared_with_what_training_logs():
    keras.utils.set_random_seed(0)
    model, monitor = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]), keras_dal.AlignmentMonitor(verbose=0)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1), "mse", loss_weights=[1e-4])
    x = np.random.default_rng(0).standard_normal((64, 4)).astype("float32")
    model.fit(x, 100 * np.sin(3 * x[:, :1]), epochs=2, verbose=0, callbacks=[monitor])
    assert monitor.result is not None


@pytest.mark.parametrize("options", [{"run_eagerly": True}, {"steps_per_execution": 4}], ids=str)
def test_eager_and_several_steps_per_execution_end_at_the_same_head(options):
    if keras.backend.backend() == "torch" and "steps_per_execution" in options:
        pytest.skip("Keras itself does not support steps_per_execution on torch")
    expected, _, _ = ended(shuffle=False)
    model, monitor, history = ended(compile_options=options, shuffle=False)
    assert history["phase"] == [0, 0, 0, 1]
    assert len(monitor.result._data.train.features) == 96
    if "steps_per_execution" in options:
        for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_gated_head_ends_with_every_sample_right_and_leaves_exploration_alone():
    x, _ = images()
    y = np.random.default_rng(5).integers(0, NUM_CLASSES, len(x))  # labels that no plain head separates
    plain, snapshots = compiled(keras.optimizers.SGD(0.1, momentum=0.9)), Snapshots()
    keras.utils.set_random_seed(1)
    plain.fit(x, y, epochs=SWITCH, batch_size=16, verbose=0)
    gated = keras_dal.add_gated_head(compiled("sgd"), num_samples=len(x), seed=0, verbose=False)
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=SWITCH), gated)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    keras.utils.set_random_seed(1)
    callbacks = [monitor, Before(snapshots, SWITCH)]
    history = gated.fit(x, y, epochs=9, batch_size=16, verbose=0, callbacks=callbacks).history
    explored = {re_named(path): value for path, value in snapshots.taken[0].items()}
    for path, value in snapshot(plain).items():
        assert value.tobytes() == explored[path].tobytes(), path
    assert history["phase"] == [0, 0, 0, 1]
    assert history["accuracy"][-1] == 1.0
    assert gated.evaluate(x, y, verbose=0)[1] == 1.0
    assert monitor.result.scaled_loss <= 1e-4
    assert monitor.result.certificate.infimum == (0.0, 0.0)


def re_named(path):
    """Return the path of a variable of the dense head without its branch; the branch has paths of its own."""
    layer, *rest = path.split("/")
    return path if layer != "logits" else "/".join(("logits", *rest[1:]) if len(rest) > 1 else ("branch", *rest))


def test_a_gap_that_was_not_computed_in_float64_is_not_called_proved():
    x, y = images()
    gated = keras_dal.add_gated_head(compiled("sgd"), num_samples=len(x), seed=0, verbose=False)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    gated.compile(keras_dal.Wrap("sgd", explore=1), loss)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    gated.fit(x, np.eye(NUM_CLASSES)[y], epochs=3, batch_size=16, verbose=0, callbacks=[monitor])
    assert monitor.result.stopped_by == Ending.GAP
    assert list(monitor.result.proof()) == []


def test_what_fails_at_the_switch_is_said_and_exploration_goes_on(monkeypatch):
    def failing(*arguments, **options):
        raise ValueError("no features today")

    monkeypatch.setattr("keras_dal.training.convex_phase.solve_head", failing)
    snapshots = Snapshots()
    with pytest.warns(UserWarning, match="exploration goes on with the weights from before.*no features today"):
        _, monitor, history = ended(epochs=6, callbacks=[snapshots])
    assert len(history["phase"]) == 6
    assert history["phase"][-1] == 0
    assert monitor.result is None
    assert "conv/kernel" in moved(snapshots.taken[4], snapshots.taken[5])


def test_after_a_switch_that_failed_the_last_epochs_of_all_are_averaged(monkeypatch):
    def failing(*arguments, **options):
        raise ValueError("not today")

    monkeypatch.setattr("keras_dal.training.convex_phase.solve_head", failing)
    weights = Weights(epochs=(6, 7))
    with pytest.warns(UserWarning, match="call keras_dal.finish after training"):
        model, _, _ = ended(epochs=8, average=0.25, callbacks=[weights])
    assert model.optimizer.averaged_steps == len(weights.taken) > 0
    monkeypatch.undo()
    keras_dal.finish(model, *images(), verbose=0)
    trained = zip(model.trainable_variables, weights.mean(), strict=True)
    for variable, mean in [(v, mean) for v, mean in trained if v.path not in HEAD]:
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), mean, rtol=1e-5, atol=1e-7)


def test_after_a_switch_that_failed_the_average_begins_anew_where_it_should_have_begun_earlier(monkeypatch):
    def failing(*arguments, **options):
        raise ValueError("not today")

    monkeypatch.setattr("keras_dal.training.convex_phase.solve_head", failing)
    with pytest.warns(UserWarning, match="exploration goes on"):
        model, _, _ = ended(epochs=SWITCH + 2)
    assert model.optimizer.averaged_steps == 6  # of the epoch after the one that failed


@pytest.mark.parametrize("part", ["solve_head", "Gathering"])
@pytest.mark.parametrize("kind", [RuntimeError, OSError, TypeError, MemoryError])
def test_whatever_fails_leaves_nothing_frozen_and_a_complete_history(monkeypatch, part, kind):
    def failing(*arguments, **options):
        raise kind("not today")

    monkeypatch.setattr(f"keras_dal.training.convex_phase.{part}", failing)
    plain, snapshots = compiled(keras.optimizers.SGD(0.1, momentum=0.9)), Snapshots()
    fit(plain, SWITCH, callbacks=[])
    with pytest.warns(UserWarning, match=f"exploration goes on.*{kind.__name__}: not today"):
        model, _, history = ended(epochs=SWITCH + 1 + (part == "solve_head"), callbacks=[snapshots])
    assert {len(values) for values in history.values()} == {len(snapshots.taken) - 1}
    assert model.optimizer.phase == "explore"
    before = snapshots.taken[SWITCH + (part == "solve_head")]
    if part == "solve_head":  # the other fails before the epoch of the switch, which then trains
        assert not {path for path in moved(snapshot(plain), before) if "seed" not in path}
    assert {"conv/kernel", "norm/moving_mean"} <= moved(before, snapshots.taken[-1])


def switched():
    """Return a model whose optimizer has switched, and whose head is not solved yet."""
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    fit(model, 2)
    model.optimizer.switch(model)
    return model


def test_a_fit_that_begins_in_the_second_phase_and_fails_explores(monkeypatch):
    model = switched()

    def failing(*arguments, **options):
        raise ValueError("not today")

    monkeypatch.setattr("keras_dal.training.convex_phase.solve_head", failing)
    before = snapshot(model)
    with pytest.warns(UserWarning, match="exploration goes on"):
        fit(model, 3)
    assert "conv/kernel" in moved(before, snapshot(model))


class Reader(keras.callbacks.Callback):
    """Takes for granted that the logs of every step and epoch have a loss."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(logs["loss"])

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(logs["loss"])


def test_other_callbacks_never_miss_the_loss_nor_see_one_that_is_zero():
    model = compiled(keras_dal.Wrap("sgd", explore=SWITCH))
    reader = Reader()
    fit(model, 9, [reader, keras_dal.AlignmentMonitor(verbose=False), Reader()])
    assert len(reader.losses) == 4 * 7
    assert min(reader.losses) > 0


def test_other_callbacks_have_the_loss_of_a_fit_that_begins_with_the_second_phase():
    reader = Reader()
    history = fit(switched(), 9, [reader, keras_dal.AlignmentMonitor(verbose=False), Reader()], initial_epoch=4)
    assert len(reader.losses) == 7
    assert history["loss"] == reader.losses[-1:]
    assert np.isfinite(history["accuracy"]).all()


def test_losses_that_layers_add_do_not_end_the_training():
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(4, 3, activity_regularizer="l2", kernel_regularizer="l2")(inputs)
    logits = keras.layers.Dense(NUM_CLASSES, name="logits")(keras.layers.GlobalAveragePooling2D()(x))
    model, monitor, history = ended(model=keras.Model(inputs, logits))
    kernel = np.asarray(keras.ops.convert_to_numpy(model.layers[1].kernel))
    assert history["loss"][-1] == pytest.approx(monitor.result.loss + 0.01 * np.sum(kernel**2), rel=1e-5)


def test_training_that_diverged_is_not_ended_by_the_switch():
    with pytest.warns(UserWarning, match="exploration goes on|not a number"):
        _, monitor, history = ended(keras.optimizers.SGD(1e30), epochs=5)
    assert len(history["loss"]) == 5
    assert monitor.result is None


@pytest.mark.filterwarnings("ignore:Batch statistics have not settled")  # no average renews them
def test_a_head_that_diverged_alone_is_not_taken_for_solved():
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == SWITCH - 1:
                self.model.get_layer("logits").bias.assign([np.nan] * NUM_CLASSES)

    with pytest.warns(UserWarning, match="exploration goes on.*Weights are not finite.*logits.bias"):
        model, monitor, history = ended(average=0, epochs=SWITCH + 1, callbacks=[Spoil()])
    assert history["phase"][-1] == 0
    assert model.optimizer.phase == "explore"
    assert monitor.result is None


@pytest.mark.filterwarnings("ignore:Batch statistics have not settled")  # no average renews them
def test_a_trunk_that_diverged_is_named():
    class Spoil(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == SWITCH - 1:
                kernel = self.model.get_layer("conv").kernel
                kernel.assign(np.full(kernel.shape, np.nan))

    with pytest.warns(UserWarning, match="exploration goes on.*Weights are not finite.*conv.kernel"):
        ended(average=0, epochs=SWITCH + 1, callbacks=[Spoil()])


def test_a_fit_in_the_second_phase_says_so_solves_and_ends(capsys):
    model, monitor = switched(), keras_dal.AlignmentMonitor()
    capsys.readouterr()
    assert fit(model, 9, [monitor], initial_epoch=4)["phase"] == [1]
    assert "begins in the second phase" in capsys.readouterr().out
    assert list(monitor.result.proof())


def test_what_is_solved_is_not_solved_again(capsys, tmp_path):
    model, _, _ = ended()
    model.save(tmp_path / "model.keras")
    for again in (model, keras.saving.load_model(tmp_path / "model.keras")):
        before, monitor = snapshot(again), keras_dal.AlignmentMonitor()
        assert fit(again, 9, [monitor], initial_epoch=4)["phase"] == [1]
        assert "was solved, and it ends at once" in capsys.readouterr().out
        assert monitor.result is None
        assert moved(before, snapshot(again)) == set()


@pytest.fixture
def half():
    keras.config.set_dtype_policy("mixed_float16")
    yield
    keras.config.set_dtype_policy("float32")


def told(text, model):
    """Do what a text tells to, which is a call, with the model at hand."""
    (call,) = re.findall(r"[\w.]*optimizer[\w.]*\(\)", text)
    eval(call, {"model": model, "optimizer": model.optimizer})


@pytest.mark.usefixtures("half")
def test_what_is_told_to_call_is_there_inside_a_loss_scale(capsys, tmp_path):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=8, average=0.5))
    wrap = model.optimizer.inner_optimizer
    fit(model, 6, [keras_dal.AlignmentMonitor()])
    told(capsys.readouterr().out, model)
    assert wrap.averaged_steps == 0
    fit(model, 11, [keras_dal.AlignmentMonitor()], initial_epoch=6)
    capsys.readouterr()
    fit(model, 11, [keras_dal.AlignmentMonitor()])
    told(capsys.readouterr().out, model)
    assert wrap.phase == "explore"
    wrap.switch(model)
    model.save(tmp_path / "model.keras")
    with pytest.raises(RuntimeError, match="is in its second phase") as error:
        fit(model, 1, callbacks=[])
    told(str(error.value), model)
    assert wrap.phase == "explore"
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inside = "is in its second phase.*of the Wrap, which may be inside a loss scale"
    on_jax = keras.backend.backend() == "jax"  # where a first fit is not ended, as the weights would be lost
    refused = pytest.warns(UserWarning, match=inside) if on_jax else pytest.raises(RuntimeError, match=inside)
    with refused:
        fit(loaded, 1, callbacks=[])


def test_a_reading_epoch_that_another_callback_stops_solves_nothing():
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    with pytest.warns(UserWarning, match="reads the data was stopped.*2 of 6 batches"):
        fit(model, 9, [monitor, StopsReading()])
    assert monitor.result is None
    assert model.optimizer.phase == "explore"


@pytest.mark.filterwarnings("ignore:Your input ran out of data")  # Keras says so of every stream of unknown length
def test_a_stream_of_unknown_length_is_read_to_its_end(tmp_path):
    tf = pytest.importorskip("tensorflow")
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2, average=0.5))
    data = tf.data.Dataset.from_tensor_slices(images()).batch(16).filter(lambda x, y: True)
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5", save_weights_only=True)
    model.fit(data, epochs=4, verbose=0, shuffle=False, callbacks=[saved, keras_dal.AlignmentMonitor(verbose=False)])
    solved, statistics = snapshot(model), BatchStatistics(model)
    for x, _ in data:
        statistics.add((x.numpy(),))
    statistics.settle()
    for name, value in snapshot(model).items():
        np.testing.assert_allclose(solved[name], value, atol=1e-6, err_msg=name)
    if keras.backend.backend() != "torch":  # where a callback before the monitor is the first to know of the end
        model.load_weights(tmp_path / "3.weights.h5")
        assert not moved(solved, snapshot(model))


def test_finish_says_which_weights_it_takes(capsys):
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=8, average=0.5))
    fit(model, 6, [keras_dal.AlignmentMonitor()])
    assert "after model.optimizer.drop_average() of those there are" in capsys.readouterr().out
    before = snapshot(model)
    model.optimizer.drop_average()
    keras_dal.finish(model, x, y, statistics_from=x)
    assert "becomes the weights" not in capsys.readouterr().out
    assert "conv/kernel" not in moved(before, snapshot(model))


def test_finish_says_that_the_average_becomes_the_weights(capsys):
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=8, average=0.5))
    fit(model, 6)
    before = snapshot(model)
    keras_dal.finish(model, x, y)
    printed = capsys.readouterr().out
    assert "the mean of the weights over 12 steps becomes the weights" in printed
    assert "conv/kernel" in moved(before, snapshot(model))
    parts = (
        "batch statistics of the first batches, at most 100\n",
        "features of the training samples\n",
        f"{len(x)}/{len(x)}",
    )
    places = [printed.index(part) for part in parts]  # what takes long is said before it is done
    assert places == sorted(places)


def test_an_interrupted_reading_is_finished_with_the_statistics_of_the_averages(monkeypatch, capsys):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), explore=2))

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_dal.training.convex_phase.ConvexPhase.take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(model, 4)
    before = snapshot(model)
    keras_dal.finish(model, *images())
    assert "norm/moving_mean" in moved(before, snapshot(model))
    printed = capsys.readouterr().out
    assert "the weights are averages since the switch; their batch statistics are renewed" in printed
    assert "become" not in printed


def test_a_history_has_columns_of_one_length():
    class Own(keras.Sequential):
        def call(self, inputs, training=None):
            return super().call(inputs[..., None], training=training)

    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((64, 6, 6)).astype("float32"), generator.integers(0, NUM_CLASSES, 64)
    model = Own([keras.layers.Flatten(), keras.layers.Dense(8, "relu"), keras.layers.Dense(NUM_CLASSES)])
    model.build((None, 6, 6, 1))
    compiled(keras_dal.Wrap("sgd", explore=2), model)
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)]).history
    assert {len(column) for column in history.values()} == {3}


def test_restart_goes_back_to_the_first_phase():
    model, _, _ = ended()
    model.optimizer.restart()
    before = snapshot(model)
    assert fit(model, 2)["phase"] == [0, 0]
    assert {"conv/kernel", "norm/moving_mean"} <= moved(before, snapshot(model))


def test_a_fit_that_ends_before_its_switch_says_so(capsys):
    fit(compiled(keras_dal.Wrap("sgd", explore=100)), 2, [keras_dal.AlignmentMonitor()])
    printed = capsys.readouterr().out
    assert "ended before the switch, which comes after 100 epochs: nothing was solved" in printed
    assert "keras_dal.finish(model, x, y, statistics_from=x) solves the head now; a fit" in printed


def test_a_fit_that_was_ended_as_it_diverged_advises_nothing_that_cannot_be(capsys):
    class Diverging(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.get_layer("norm").beta.assign(np.full(6, np.nan))
            self.model.stop_training = True

    model = compiled(keras_dal.Wrap("sgd", explore=100))
    fit(model, 2, [keras_dal.AlignmentMonitor(), Diverging()])
    printed = capsys.readouterr().out
    assert "ended before the switch, with weights that are not finite: nothing was solved, or can be" in printed
    assert "keras_dal.finish" not in printed


def test_what_is_said_at_the_end_is_what_was_done(capsys):
    model = compiled(keras_dal.Wrap("sgd", explore=1, average=1))
    monitor = keras_dal.AlignmentMonitor()
    fit(model, 5, [monitor])
    said = capsys.readouterr().out
    assert "the mean of the weights over 6 steps" in said
    assert "training ends at epoch 2 of 5: 3 spared" in said
    assert "statistics: means over 6 batches" in said
    (shown,) = re.findall(r"proved:     at most (\S+) above the minimum", said)
    assert monitor.result.point.gap <= float(shown) <= 1.1 * monitor.result.point.gap
    assert f"{monitor.result.accuracy:.2%} of what this epoch read is right" in said


@pytest.mark.parametrize("steps", [None, 3])
def test_what_was_solved_is_said_to_be_of_the_batches_that_were_asked_for(capsys, steps):
    model = compiled(keras_dal.Wrap("sgd", explore=1))
    x, y = images()
    model.fit(x, y, batch_size=16, epochs=5, steps_per_epoch=steps, callbacks=[keras_dal.AlignmentMonitor()], verbose=0)
    assert ("the 3 batches of steps_per_epoch were read" in capsys.readouterr().out) == bool(steps)


def test_a_fit_that_begins_at_its_switch_says_so(capsys):
    model = compiled(keras_dal.Wrap("sgd", explore=2, average=0.5))
    fit(model, 2, [keras_dal.AlignmentMonitor()])
    capsys.readouterr()
    fit(model, 5, [keras_dal.AlignmentMonitor()], initial_epoch=2)
    assert "exploration is over; epoch 3 of 5 reads the data once more" in capsys.readouterr().out


def test_a_fit_that_descends_from_its_first_epoch_on_says_so_even_in_silence():
    model = compiled(keras_dal.Wrap("sgd", explore=1, finish="descend"))
    fit(model, 2, [keras_dal.AlignmentMonitor(verbose=0)])
    with pytest.warns(UserWarning, match="begins in the second phase, as the optimizer has switched: only the linear"):
        fit(model, 2, [keras_dal.AlignmentMonitor(verbose=0)])  # as of another fold
    fit(model, 4, [keras_dal.AlignmentMonitor(verbose=0)], initial_epoch=2)  # is meant to


def test_several_labels_are_right_where_all_are(capsys):
    x, _ = images()
    y = np.random.default_rng(0).integers(0, 2, (len(x), NUM_CLASSES))
    model = small_model()
    model.compile(keras_dal.Wrap("sgd", explore=1), keras.losses.BinaryCrossentropy(from_logits=True))
    monitor = keras_dal.AlignmentMonitor()
    model.fit(x, y, epochs=5, callbacks=[monitor], verbose=0)
    for text in (capsys.readouterr().out, str(monitor.result)):
        assert re.search(rf"right in all {NUM_CLASSES} outputs|% in all {NUM_CLASSES} outputs, smallest", text)


@pytest.mark.parametrize(("name", "most"), [("STEPS", 2), ("_BYTES", 10_000)])
def test_statistics_come_from_the_first_batches_and_features_from_all(name, most, monkeypatch):
    """Inputs of a batch are 8 KiB."""
    monkeypatch.setattr(f"keras_dal.training.gathering.{name}", most)
    model, monitor, _ = ended(shuffle=False)
    x, _ = images()
    before = keras.Model(model.inputs, model.get_layer("norm").input)
    means = [before.predict(x[i : i + 16], verbose=0).astype(np.float64).mean(axis=(0, 1, 2)) for i in (0, 16)]
    moving = keras.ops.convert_to_numpy(model.get_layer("norm").moving_mean)
    np.testing.assert_allclose(moving, np.mean(means, axis=0), rtol=1e-4, atol=1e-6)
    assert len(monitor.result._data.train) == 96


def test_data_that_are_not_numbers_are_not_solved_on():
    model, monitor, (x, y) = switched(), keras_dal.AlignmentMonitor(verbose=False), images()
    x[5] = np.nan
    with pytest.warns(UserWarning, match="Batch statistics are not finite"):
        model.fit(x, y, epochs=1, verbose=0, callbacks=[monitor])
    assert monitor.result is None
    assert all(np.isfinite(value).all() for value in snapshot(model).values())
    assert model.optimizer.phase == "explore"


def test_metrics_of_the_last_epoch_are_of_probabilities_where_the_model_returns_them():
    model = small_model(activation="softmax")
    metrics = [keras.metrics.SparseCategoricalCrossentropy(name="entropy")]
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1)
    model.compile(wrap, "sparse_categorical_crossentropy", metrics=metrics)
    history = fit(model, 3)
    expected = model.evaluate(*images(), verbose=0, return_dict=True)
    assert history["entropy"][-1] == pytest.approx(expected["entropy"], rel=1e-4)


@pytest.mark.parametrize("keras_prints", [0, 1])
def test_a_monitor_that_is_not_verbose_prints_nothing(keras_prints, capsys):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1))
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    fit(model, 3, [monitor], verbose=keras_prints)
    assert monitor.result is not None
    assert "keras_dal" not in capsys.readouterr().out


def test_what_is_said_is_said_once_and_on_lines_of_its_own(capsys):
    """Keras writes on the line of an epoch until all callbacks have had it."""
    fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)), 4, [keras_dal.AlignmentMonitor()], verbose=1)
    printed = capsys.readouterr().out
    lines = re.findall(r"^keras_dal: .*", printed, re.MULTILINE)
    assert printed.count("keras_dal: ") == len(lines) == len(set(lines)) >= 2


@pytest.mark.parametrize(("every", "skipped"), [(2, False), (3, True), (None, False)])
def test_a_solved_model_that_is_not_validated_is_said_to_be_so(capsys, every, skipped):
    data = {} if every is None else {"validation_data": images(seed=1), "validation_freq": every}
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=3))
    history = fit(model, 6, [keras_dal.AlignmentMonitor()], **data)
    assert len(history["loss"]) == 4
    said = capsys.readouterr().out
    assert "training ends at epoch 4 of 6" in said
    assert ("validation_freq skips its epoch" in said) is skipped


def test_a_loop_of_ones_own_ends_with_finish():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=None))
    weights = Weights({1})
    keras.utils.set_random_seed(1)
    model.fit(x, y, batch_size=16, verbose=0)
    model.optimizer.begin_average()
    weights.set_model(model)
    model.fit(x, y, batch_size=16, initial_epoch=1, epochs=2, verbose=0, callbacks=[weights])
    result = keras_dal.finish(model, x, y, verbose=0)
    conv = next(v for v in model.trainable_variables if v.path == "conv/kernel")
    index = [v.path for v in model.trainable_variables].index("conv/kernel")
    np.testing.assert_allclose(keras.ops.convert_to_numpy(conv), weights.mean()[index], rtol=1e-4, atol=1e-6)
    assert model.optimizer.phase == "exploit"
    assert result.point.gap <= 1e-4
    assert result.loss == pytest.approx(model.evaluate(x, y, verbose=0)[0], rel=1e-4)


def test_an_average_that_was_begun_and_lost_is_warned_of():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None))
    fit(model, 1, callbacks=[])
    before = [np.array(keras.ops.convert_to_numpy(v)) for v in model.optimizer.variables]
    model.optimizer.begin_average()
    for variable, value in zip(model.optimizer.variables, before, strict=True):  # as a loop without side effects does
        variable.assign(value)
    fit(model, 1, callbacks=[])
    with pytest.warns(UserWarning, match="No step was averaged since begin_average.*Received: averaged_steps=0"):
        keras_dal.finish(model, x, y, statistics_from=x, verbose=0)
    model.optimizer.restart()
    keras_dal.finish(model, x, y, statistics_from=x, verbose=0)  # of which no average was asked


def test_an_average_that_was_begun_and_has_no_steps_is_warned_of():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None))
    fit(model, 1, callbacks=[])
    model.optimizer.begin_average()
    with pytest.warns(UserWarning, match="No step was averaged since begin_average.*Received: averaged_steps=0"):
        keras_dal.finish(model, x, y, statistics_from=x, verbose=0)


def test_finish_takes_no_optimizer_that_was_switched_for_another_model():
    (x, y), models = images(), (small_model(0), small_model(1))
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, average=0)
    wrap.build([variable for model in models for variable in model.trainable_variables])
    for model in models:
        compiled(wrap, model)
    keras_dal.finish(models[0], x, y, statistics_from=x, verbose=0)
    before = snapshot(models[1])
    with pytest.raises(ValueError, match="was switched for another model.*Received: the second phase of other"):
        keras_dal.finish(models[1], x, y, verbose=0)
    assert not moved(before, snapshot(models[1]))
    keras_dal.finish(models[0], x, y, statistics_from=x, verbose=0)  # the one it is of, again


def test_a_copy_or_another_last_layer_needs_an_optimizer_of_its_own():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, average=0))
    fit(model, 1, callbacks=[])
    keras_dal.finish(model, x, y, statistics_from=x, verbose=0)
    wrap, copy = model.optimizer, compiled(model.optimizer, keras.models.clone_model(model))
    other = keras.Model(model.inputs[0], keras.layers.Dense(NUM_CLASSES)(model.layers[-1].input))
    compiled(wrap, other)
    for phase in ("exploit", "explore"):
        with pytest.raises(ValueError, match="belongs to the model it was first used with"):
            keras_dal.finish(copy, x, y, statistics_from=x, verbose=0)
        with pytest.raises(ValueError, match="compile with a new Wrap of a new optimizer"):
            keras_dal.finish(other, x, y, statistics_from=x, verbose=0)
        assert wrap.phase == phase
        wrap.restart()
    with pytest.raises(ValueError, match="belongs to the model it was first used with"):
        wrap.switch(copy)


def test_what_can_be_read_once_is_refused_only_where_statistics_are_renewed_on_it():
    x, y = images()
    plain = keras.Sequential([keras.Input(x.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(NUM_CLASSES)])
    models = [
        compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None), each) for each in (plain, small_model())
    ]
    for model in models:
        model.optimizer.build(model.trainable_variables)
        model.optimizer.begin_average()
        fit(model, 1, callbacks=[])
    batches = [(x[:48], y[:48]), (x[48:], y[48:])]
    assert keras_dal.finish(plain, iter(batches), verbose=0).stopped_by == Ending.CERTIFIED
    data = iter(batches)
    with pytest.raises(ValueError, match="read twice, for batch statistics and for features"):
        keras_dal.finish(model, data, verbose=0)
    model.optimizer.drop_average()
    with pytest.raises(ValueError, match="read twice, for batch statistics and for features"):
        keras_dal.finish(model, data, statistics_from=data, verbose=0)
    assert len(list(data)) == len(batches)


def test_finish_says_that_a_model_without_an_optimizer_has_no_averages(capsys):
    keras_dal.finish(small_model(), *images(), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert "the model has no optimizer in which averaged weights could be" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "said"), [({}, True), ({"average": 0}, False), ({"finish": "descend"}, False)])
def test_finish_says_that_no_steps_were_averaged_where_some_could_have_been(capsys, options, said):
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, **options))
    fit(model, 1, callbacks=[])
    keras_dal.finish(model, x, y, statistics_from=x)
    assert ("no steps were averaged, and the weights stay" in capsys.readouterr().out) is said
    keras_dal.finish(model, x, y, statistics_from=x)  # solved again, which is no matter of averages
    assert "no steps were averaged" not in capsys.readouterr().out


class Killed(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.when = epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            raise KeyboardInterrupt


@pytest.mark.parametrize("when", [(0, 3), (2, 3), (SWITCH, 1), (SWITCH, 4)], ids=["explore", "average", "read", "late"])
def test_a_training_that_was_interrupted_ends_with_the_same_weights(tmp_path, when):
    def run(*others):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        return ended(model=small_model(dropout=0), callbacks=[backup, *others], shuffle=False)[0]

    expected, _, _ = ended(model=small_model(dropout=0), shuffle=False)
    with pytest.raises(KeyboardInterrupt):
        run(Killed(*when))
    resumed = run()
    for ours, theirs in zip(resumed.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def test_an_interrupt_before_the_first_batch_was_read_does_not_lose_the_statistics():
    expected, _, _ = ended(model=small_model(dropout=0), shuffle=False)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=SWITCH, average=0.7),
                     small_model(dropout=0))  # fmt: skip
    stop = keras.callbacks.LambdaCallback(on_epoch_begin=interrupt)
    with pytest.raises(KeyboardInterrupt):
        fit(model, 9, [keras_dal.AlignmentMonitor(verbose=False), stop], shuffle=False)
    fit(model, 9, shuffle=False, initial_epoch=SWITCH)
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


def interrupt(epoch, logs=None):
    if epoch == SWITCH:
        raise KeyboardInterrupt


def test_steps_of_a_fit_that_was_stopped_are_not_in_the_average_of_the_next(capsys):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model = compiled(keras_dal.Wrap("sgd", explore=SWITCH, average=0.7))
    fit(model, 9, [keras_dal.AlignmentMonitor(verbose=False), Stop()])
    assert model.optimizer.averaged_steps == 6
    fit(model, 9, [keras_dal.AlignmentMonitor()])
    assert "the mean of the weights over 12 steps" in capsys.readouterr().out


def test_steps_of_an_epoch_that_was_interrupted_are_not_in_the_average_twice(capsys):
    model = compiled(keras_dal.Wrap("sgd", explore=SWITCH, average=0.7))
    with pytest.raises(KeyboardInterrupt):
        fit(model, 9, [keras_dal.AlignmentMonitor(verbose=False), Killed(1, 3)])
    assert model.optimizer.averaged_steps == 4
    fit(model, 9, [keras_dal.AlignmentMonitor()], initial_epoch=1)
    assert "the mean of the weights over 12 steps" in capsys.readouterr().out


def test_statistics_may_be_those_of_other_batches_than_the_features():
    x, y = images()
    changed = (x + 1.0).astype("float32")

    def finished(**options):
        model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None), small_model(dropout=0))
        fit(model, 1, [])
        model.optimizer.begin_average()
        fit(model, 1, [])
        result = keras_dal.finish(model, x, y, verbose=0, **options)
        return result, model.get_layer("norm")

    _, own = finished()
    result, theirs = finished(statistics_from=changed)
    shift = keras.ops.convert_to_numpy(theirs.moving_mean) - keras.ops.convert_to_numpy(own.moving_mean)
    assert np.abs(shift).min() > 1e-3
    assert result.point.gap <= 1e-4
    _, batches = finished(statistics_from=[(changed[i : i + 32], y[i : i + 32]) for i in range(0, 96, 32)])
    np.testing.assert_allclose(batches.moving_mean, theirs.moving_mean, rtol=1e-3, atol=1e-4)


def test_two_monitors_are_refused_before_the_first_step():
    monitors = [keras_dal.AlignmentMonitor(verbose=False) for _ in range(2)]
    with pytest.raises(ValueError, match="leave one AlignmentMonitor"):
        fit(compiled(keras_dal.Wrap("sgd", explore=SWITCH)), 5, monitors)


def test_finish_refuses_bad_data_and_constraints_and_changes_nothing():
    x, y = images()
    model = compiled(keras_dal.Wrap("sgd", explore=None))
    fit(model, 1, [])
    model.optimizer.begin_average()
    fit(model, 1, [])
    before = snapshot(model)
    with pytest.raises(ValueError, match="pass y"):
        keras_dal.finish(model, x, verbose=0)
    with pytest.raises(ValueError, match="read only once"):
        keras_dal.finish(model, iter([(x, y)]), verbose=0)
    assert not moved(before, snapshot(model))
    assert model.optimizer.phase == "explore"
    with pytest.raises(ValueError, match="without constraints"):
        keras_dal.finish(compiled("sgd", small_model(kernel_constraint="non_neg")), x, y, verbose=0)


def test_an_average_that_could_not_begin_is_said():
    with pytest.raises(ValueError, match="no weights to average before the first step"):
        keras_dal.Wrap("sgd", explore=None).begin_average()


def test_a_fit_without_a_monitor_after_the_end_says_that_the_switch_was_made():
    model, _, _ = ended()
    with pytest.raises(RuntimeError, match="is in its second phase"):
        fit(model, 1, [])


def test_a_wrap_with_the_automatic_step_can_be_finished_too():
    model = compiled(keras_dal.Wrap("sgd", explore=None, exploit_learning_rate="auto"), small_model())
    x, y = images()
    model.fit(x, y, epochs=1, verbose=0)
    assert keras_dal.finish(model, x, y, statistics_from=x, verbose=0).stopped_by == Ending.CERTIFIED
    assert model.optimizer.phase == "exploit"


def test_a_callback_that_takes_the_stop_back_finds_the_solved_head_unmoved():
    class GoesOn(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = False

    model, monitor, history = ended(callbacks=[GoesOn()], epochs=6)
    assert history["phase"] == [0, 0, 0, 1, 1, 1]
    assert {len(values) for values in history.values()} == {6}
    assert history["alignment"][3] > 0
    for name in ("loss", "accuracy"):
        assert history[name][3:] == pytest.approx([model.evaluate(*images(), return_dict=True, verbose=0)[name]] * 3)
    expected, _, _ = ended(epochs=6)
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert monitor.result.stopped_by == Ending.CERTIFIED


class StopsTheReading(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = self.epoch == SWITCH and batch == 1


def test_an_epoch_whose_reading_is_stopped_is_one_of_exploration_and_finish_takes_its_average():
    model = compiled(keras_dal.Wrap("sgd", explore=SWITCH))
    with pytest.warns(UserWarning, match="stops training before the head is solved.*stopped by another callback"):
        history = fit(model, SWITCH + 2, [keras_dal.AlignmentMonitor(verbose=0), StopsTheReading()])
    assert history["phase"] == [0] * (SWITCH + 1)
    assert model.optimizer.phase == "explore"
    expected = state_of(model.optimizer).averages.own.values()
    result = keras_dal.finish(model, *images(), verbose=0)
    assert result.stopped_by == Ending.CERTIFIED
    trained = zip(model.trainable_variables, expected, strict=True)
    for variable, mean in (pair for pair in trained if "logits" not in pair[0].path):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), mean)


def test_a_switched_fit_whose_reading_is_stopped_is_left_switched_and_finish_renews_its_statistics(capsys):
    model = compiled(keras_dal.Wrap("sgd", explore=SWITCH))
    fit(model, SWITCH, [keras_dal.AlignmentMonitor(verbose=0)])  # its average has begun, and nothing is solved
    model.optimizer.switch(model)
    before = snapshot(model)
    options = {"initial_epoch": SWITCH, "callbacks": [keras_dal.AlignmentMonitor(verbose=0), StopsTheReading()]}
    with pytest.warns(UserWarning, match="stops training before the head is solved"):
        model.fit(*images(), batch_size=32, epochs=SWITCH + 2, verbose=0, **options)
    assert (model.optimizer.phase, moved(before, snapshot(model))) == ("exploit", set())
    capsys.readouterr()
    keras_dal.finish(model, *images())
    assert "the weights are averages since the switch" in capsys.readouterr().out
    assert "norm/moving_mean" in moved(before, snapshot(model))


def test_an_average_forgets_what_was_not_finite():
    model = compiled(keras_dal.Wrap("sgd", explore=SWITCH, average=0.7))
    good = model.get_weights()
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    optimizer.begin_average()
    model.set_weights([np.full_like(weight, np.nan) for weight in good])
    state_of(optimizer).averages.own.update()
    model.set_weights(good)
    optimizer.begin_average()
    state_of(optimizer).averages.own.update()
    for mean, variable in zip(state_of(optimizer).averages.own.values(), model.trainable_variables, strict=True):
        np.testing.assert_array_equal(mean, keras.ops.convert_to_numpy(variable))


def test_small_steps_in_half_precision_are_not_lost_from_the_average():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float16")])
    optimizer, values = keras_dal.Wrap("sgd", explore=SWITCH), 1 + np.arange(300) / 1024
    optimizer.build(model.trainable_variables)
    optimizer.begin_average()
    for value in values:
        model.layers[0].kernel.assign(np.full((2, 1), value))
        state_of(optimizer).averages.own.update()
    np.testing.assert_allclose(state_of(optimizer).averages.own.values()[0], values.mean(), rtol=1e-5)


def test_what_was_averaged_is_taken_once(capsys):
    x, y = images()
    for options in ({}, {"use_ema": True}):
        model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, **options), explore=None))
        model.optimizer.build(model.trainable_variables)
        model.optimizer.begin_average()
        fit(model, 1, [])
        keras_dal.finish(model, x, y)
        said, statistics = capsys.readouterr().out, snapshot(model)["norm/moving_mean"]
        assert "weights" in said.splitlines()[0]
        assert not state_of(model.optimizer).has_average
        keras_dal.finish(model, x[:48], y[:48])
        assert "the weights" not in capsys.readouterr().out
        np.testing.assert_array_equal(snapshot(model)["norm/moving_mean"], statistics)


def test_steps_after_finish_train_the_head_alone():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, average=0))
    fit(model, 1, [])
    keras_dal.finish(model, x, y, statistics_from=x, verbose=0)
    model.optimizer.synchronize()  # as after restoring a checkpoint
    before = snapshot(model)
    with pytest.warns(UserWarning, match="steps move it from there"):
        model.optimizer.apply([keras.ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    assert moved(before, snapshot(model)) == HEAD


def test_batch_statistics_leave_the_seeds_of_dropout_where_they_are():
    model = small_model()
    before, statistics = snapshot(model), BatchStatistics(model)
    statistics.add(images())
    statistics.settle()
    assert moved(before, snapshot(model)) == {"norm/moving_mean", "norm/moving_variance"}


def test_no_statistics_are_told_of_a_model_without_any(capsys):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Flatten(), keras.layers.Dense(8, "relu"), keras.layers.Dense(NUM_CLASSES, name="logits")]
    model = keras.Sequential([keras.Input((8, 8, 2)), *layers])
    compiled(keras_dal.Wrap("sgd", explore=SWITCH), model)
    fit(model, 9, [keras_dal.AlignmentMonitor()])
    said = capsys.readouterr().out
    assert "the head is solved" in said
    assert "statistics:" not in said


def test_finish_undoes_what_it_began():
    model = compiled(keras_dal.Wrap("sgd", explore=None))
    x, y = images()
    model.optimizer.build(model.trainable_variables)
    model.optimizer.begin_average()
    model.fit(x, y, epochs=1, verbose=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match="Integer labels must lie in"):
        keras_dal.finish(model, x, np.full(len(x), NUM_CLASSES), verbose=0)
    assert model.optimizer.phase == "explore"
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    keras_dal.finish(model, x, y, verbose=0)  # of the average, which is still there
    assert any(np.any(ours != theirs) for ours, theirs in zip(model.get_weights()[:2], before[:2], strict=True))


def test_finish_undoes_what_it_did_to_the_averages_of_the_inner_optimizer():
    inputs = keras.Input((8, 8, 2))
    x = keras.layers.Conv2D(6, 3, kernel_constraint=keras.constraints.UnitNorm([0, 1, 2]))(inputs)
    model = keras.Model(inputs, keras.layers.Dense(NUM_CLASSES)(keras.layers.GlobalAveragePooling2D()(x)))
    compiled(keras_dal.Wrap(keras.optimizers.SGD(3.0, use_ema=True, ema_momentum=0.9), explore=None), model)
    x, _ = images()
    fit(model, 1, [])
    before = [np.array(keras.ops.convert_to_numpy(each)) for each in state_of(model.optimizer).averages.of_inner()]
    with pytest.raises(ValueError, match="Integer labels must lie in"):
        keras_dal.finish(model, x, np.full(len(x), NUM_CLASSES), verbose=0)
    for average, value in zip(state_of(model.optimizer).averages.of_inner(), before, strict=True):
        np.testing.assert_array_equal(average, value)


def test_masked_samples_do_not_count_at_the_end():
    x, y = images()
    labels, weights = np.eye(NUM_CLASSES)[y], np.ones(len(x))
    labels[:10], weights[:10] = 0.0, 0.0  # no class at all
    model = small_model()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=SWITCH), loss, metrics=["accuracy"])
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(x, labels, sample_weight=weights, epochs=9, verbose=0, callbacks=[monitor]).history
    assert np.isfinite(history["alignment"][-1])
    data = keras_dal.alignment(model, x, labels, weights)
    assert data.alignment == pytest.approx(keras_dal.alignment(model, x[10:], labels[10:]).alignment)


def test_a_generator_may_say_that_there_are_no_weights():
    x, y = images()

    def batches():
        while True:
            for start in range(0, len(x), 32):
                yield x[start : start + 32], y[start : start + 32], None

    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=SWITCH))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.fit(batches(), steps_per_epoch=3, epochs=9, verbose=0, callbacks=[monitor], shuffle=False)
    assert monitor.result.stopped_by == Ending.CERTIFIED


def test_a_model_that_was_refused_trains_without_the_monitor():
    class Tanh(keras.Model):
        def __init__(self):
            super().__init__()
            self.flat, self.dense = keras.layers.Flatten(), keras.layers.Dense(NUM_CLASSES)

        def call(self, x):
            return keras.ops.tanh(self.dense(self.flat(x)))

    x, y = images()
    model = Tanh()
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="Received"):
        model.fit(x, np.eye(NUM_CLASSES)[y], verbose=0, callbacks=[keras_dal.AlignmentMonitor()])
    model.fit(x, np.eye(NUM_CLASSES)[y], verbose=0)


def test_averages_that_have_seen_no_step_are_not_adopted():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, use_ema=True), explore=None))
    before = snapshot(model)
    keras_dal.finish(model, x, y, verbose=0)
    assert moved(before, snapshot(model)) <= HEAD


def test_statistics_of_a_layer_that_is_called_twice_are_of_both_calls():
    keras.utils.set_random_seed(0)
    a, b = keras.Input((4,)), keras.Input((4,))
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Model([a, b], keras.layers.Dense(3)(keras.layers.Concatenate()([norm(a), norm(b)])))
    statistics = BatchStatistics(model)
    generator = np.random.default_rng(0)
    parts = [generator.standard_normal((50, 4)).astype("float32") + shift for shift in (0.0, 10.0)]
    statistics.add((tuple(parts),))
    statistics.settle()
    expected = np.mean([part.mean(axis=0) for part in parts], axis=0)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(norm.moving_mean), expected, rtol=1e-5)


def test_statistics_after_a_kernel_that_each_step_divides_are_those_of_the_same_kernel():
    """SpectralNormalization changes its kernel in every step in training mode; the batches must not see that."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.SpectralNormalization(keras.layers.Dense(4))
    model = keras.Sequential([keras.Input((4,)), dense, keras.layers.BatchNormalization(), keras.layers.Dense(3)])
    x = np.random.default_rng(0).standard_normal((20, 4)).astype("float32")
    before, statistics, moving = snapshot(model), BatchStatistics(model), model.layers[1].moving_variance
    found = []
    for _ in range(3):
        statistics.add((x,))
        statistics.settle()
        found.append(keras.ops.convert_to_numpy(moving).copy())
    np.testing.assert_allclose(found, [found[0]] * 3, rtol=1e-5)
    assert not moved({path: value for path, value in before.items() if "moving" not in path}, snapshot(model))


def test_a_branch_that_computes_something_keeps_its_gates():
    x, y = images()
    gated = keras_dal.add_gated_head(compiled("sgd"), num_samples=len(x), verbose=False)
    compiled(keras_dal.Wrap("sgd", explore=SWITCH), gated)
    fit(gated, 9)
    before = {path: value for path, value in snapshot(gated).items() if "gate" in path or "scale" in path}
    keras_dal.finish(gated, x, y, verbose=0)
    assert before
    assert not moved(before, snapshot(gated))


@pytest.mark.parametrize("finish", ["solve", "descend"])
def test_averages_are_those_of_the_inner_optimizer_wherever_keras_swaps_them(finish):
    found = []
    for order in (1, -1):
        inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        model = compiled(keras_dal.Wrap(inner, explore=SWITCH, finish=finish))
        swap = [keras_dal.AlignmentMonitor(verbose=False), keras.callbacks.SwapEMAWeights(swap_on_epoch=True)]
        fit(model, SWITCH + 1, swap[::order])
        found.append(keras.ops.convert_to_numpy(model.get_layer("conv").kernel))
    np.testing.assert_array_equal(*found)


@pytest.mark.filterwarnings("ignore:this fit begins in the second phase")
def test_a_fit_after_the_last_keeps_the_result(monkeypatch):
    def refuse(*arguments):
        raise ValueError("refused")

    model, monitor = (
        compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)),
        keras_dal.AlignmentMonitor(verbose=0),
    )
    fit(model, 4, callbacks=[monitor])
    result = monitor.result
    fit(model, 4, callbacks=[monitor])
    assert monitor.result is result
    with monkeypatch.context() as patched:
        patched.setattr("keras_dal.training.fit.find_structure", refuse)
        with pytest.raises(ValueError, match="refused"):
            fit(model, 4, callbacks=[monitor])
    assert monitor.result is result
    model.optimizer.restart()
    fit(model, 1, callbacks=[monitor])
    assert monitor.result is None


def test_a_last_batch_of_a_few_samples_counts_for_a_few_in_batch_statistics():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
    x = np.random.default_rng(0).standard_normal((20, 3)).astype("float32")
    statistics = BatchStatistics(model)
    for rows in (x[:16], x[16:]):
        statistics.add((rows,))
    statistics.settle()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model.layers[0].moving_mean), x.mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("step", ["fit", "train_on_batch"])
def test_that_steps_move_what_was_solved_is_said_once(step):
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None), small_model(dropout=0))
    model.fit(x, y, epochs=1, verbose=0)
    keras_dal.finish(model, x, y, statistics_from=x, verbose=0)
    go_on = {"fit": lambda: model.fit(x, y, verbose=0), "train_on_batch": lambda: model.train_on_batch(x, y)}[step]
    for _ in range(2):
        with pytest.warns(UserWarning, match=r"what was proved is no longer so.*restart\(\)") as said:
            go_on()
        assert len([each for each in said if each.category is UserWarning]) == 1
        model.optimizer.synchronize()  # as the monitor does in every epoch
        go_on()
        keras_dal.finish(model, x, y, verbose=0)
    model.optimizer.restart()
    go_on()
