"""The monitor in `fit`: what it measures, what it says, and that it leaves no trace."""

import csv

import keras
import numpy as np
import pytest
from cases import BACKEND
from fits import NUM_CLASSES, Snapshots, compiled, features_of, fit, images, moved, small_model, snapshot
from keras import layers

import keras_dal
from keras_dal.training.kernel_change import NUM_PROBES
from keras_dal.training.moments import StepMoments
from keras_dal.training.state import state_of


def r_squared(features, y):
    """Return the share of the labels' variance that a least-squares fit explains, and the rank, from a dense SVD."""
    columns = np.hstack([features, np.ones((len(features), 1))])
    u, s, _ = np.linalg.svd(columns, full_matrices=False)
    rank = int((s > 1e-6 * s[0]).sum())
    labels = np.eye(NUM_CLASSES)[y]
    labels = labels - labels.mean(axis=0)
    return np.sum((u[:, :rank].T @ labels) ** 2) / np.sum(labels**2), rank * (NUM_CLASSES - 1)


def test_data_is_measured_exactly_in_inference_mode():
    x, y = images()
    model = compiled("sgd")
    history = fit(model, 1, [keras_dal.AlignmentMonitor(data=(x, y))])
    expected, rank = r_squared(features_of(model, x), y)
    assert history["alignment"][-1] == pytest.approx(expected, abs=1e-6)
    assert history["alignment_rank"][-1] == rank


class Batches(keras.utils.PyDataset):
    def __init__(self):
        super().__init__()
        self.x, self.y = images()

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.x[16 * index : 16 * (index + 1)], self.y[16 * index : 16 * (index + 1)]


def _tf_data():
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(images()).batch(16)


def _data_loader():
    torch = pytest.importorskip("torch")
    own = torch.Generator()  # or it would draw from the one that trains
    return torch.utils.data.DataLoader(list(zip(*images(), strict=True)), batch_size=16, generator=own)


def _list_of_batches():
    return [Batches()[index] for index in range(6)]


def _in_a_list():
    return list(images())


@pytest.mark.parametrize("make", [_tf_data, Batches, _data_loader, _list_of_batches, _in_a_list])
def test_data_of_every_kind_are_measured_and_certified_as_arrays_are(make):
    monitors = [keras_dal.AlignmentMonitor(data=data, verbose=False) for data in (images(), make())]
    found = [fit(compiled(keras_dal.Wrap("sgd", explore=1, finish="descend")), 2, [each]) for each in monitors]
    for name in ("alignment", "alignment_rank"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4)
    assert found[1]["kernel_change"][-1] > 0  # of the first batch
    for moment in ("switch", "end"):
        arrays, others = (each.certificates[moment] for each in monitors)
        assert others.verdict == arrays.verdict
        assert others.num_samples == arrays.num_samples == 96
        assert others.loss == pytest.approx(arrays.loss, rel=1e-5)


def test_a_certificate_of_the_end_is_of_the_weights_that_there_are_whenever_it_was_asked_for():
    (x, y), seen = images(), []
    monitor = keras_dal.AlignmentMonitor(data=(x, y), verbose=0)
    ask = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(monitor.certificates["end"].loss))
    model = compiled(keras_dal.Wrap("sgd", explore=2))
    fit(model, 4, [monitor, ask])
    assert seen[0] != seen[-1]
    for scale in (1.0, 0.5):
        model.get_layer("logits").kernel.assign(scale * model.get_layer("logits").kernel)
        loss = model.evaluate(x, y, verbose=0)[0]
        assert monitor.certificates["end"].loss == pytest.approx(loss, rel=1e-4)
    assert monitor.certificates["end"] is monitor.certificates["end"]  # not made anew for nothing


def test_what_flows_through_fit_is_exact_once_features_are_constant():
    x, y = images()
    model = compiled(keras_dal.Wrap("sgd", explore=1))
    history = fit(model, 2)
    expected, rank = r_squared(features_of(model, x), y)
    assert history["alignment"][-1] == pytest.approx(expected, abs=1e-5)
    assert history["alignment_rank"][-1] == rank


def test_sample_weights_reach_the_measurement():
    x, y = images()
    keep = np.arange(len(x)) % 3 > 0
    model = compiled(keras_dal.Wrap("sgd", explore=1))
    history = fit(model, 2, sample_weight=keep.astype("float32"))
    expected, _ = r_squared(features_of(model, x)[keep], y[keep])
    assert history["alignment"][-1] == pytest.approx(expected, abs=1e-5)


def _generator():
    while True:
        yield from (Batches()[index] for index in range(6))


@pytest.mark.parametrize("make", [Batches, _generator, _tf_data])
def test_every_kind_of_data_is_measured(make):
    keras.utils.set_random_seed(1)
    model = compiled(keras_dal.Wrap("sgd", explore=1))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    steps = 6 if make is _generator else None
    history = model.fit(make(), epochs=2, steps_per_epoch=steps, callbacks=[monitor], shuffle=False, verbose=0)
    x, y = images()
    assert history.history["alignment"][-1] == pytest.approx(r_squared(features_of(model, x), y)[0], abs=1e-5)


@pytest.mark.parametrize("labels", ["integers in a column", "one-hot"])
def test_labels_come_in_several_shapes(labels):
    x, y = images()
    if labels == "one-hot":
        shaped, loss = np.eye(NUM_CLASSES)[y], keras.losses.CategoricalCrossentropy(from_logits=True)
    else:
        shaped, loss = y[:, None], keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = small_model()
    model.compile(optimizer=keras_dal.Wrap("sgd", explore=1), loss=loss)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(x, shaped, epochs=2, callbacks=[monitor], verbose=0).history
    assert history["alignment"][-1] == pytest.approx(r_squared(features_of(model, x), y)[0], abs=1e-5)


def test_validation_does_not_disturb_the_measurement():
    x, y = images()
    model = compiled(keras_dal.Wrap("sgd", explore=1))
    history = fit(model, 2, validation_data=images(seed=3))
    assert history["alignment"][-1] == pytest.approx(r_squared(features_of(model, x), y)[0], abs=1e-5)


def test_kernel_change_against_the_kernels_themselves():
    """Of 96 samples every other one is looked at, 64 at most."""
    x, y = images()
    model = compiled("sgd")
    before = features_of(model, x[::2])
    history = fit(model, 1, [keras_dal.AlignmentMonitor(data=(x, y))])
    after = features_of(model, x[::2])
    expected = np.linalg.norm(after @ after.T - before @ before.T) / np.linalg.norm(before @ before.T)
    assert history["kernel_change"][-1] == pytest.approx(expected, rel=1e-4)


class Remainders(layers.Layer):
    """Which of four remainders a whole number leaves, as ids that are hashed do."""

    def call(self, ids):
        return keras.ops.one_hot(keras.ops.cast(ids[:, 0] % 4, "int32"), 4, dtype="float32")

    def compute_output_spec(self, ids):
        return keras.KerasTensor((ids.shape[0], 4), "float32")


@pytest.mark.parametrize("dtype", ["int32", "uint32"] if BACKEND == "jax" else ["int32", "int64", "uint32"])
def test_kernel_change_of_large_ids_is_that_of_these_and_not_of_their_neighbours(dtype):
    """Of numbers above 2^24 float32 holds every second one at most."""
    keras.utils.set_random_seed(0)
    ids = (2**25 + np.random.default_rng(0).integers(0, 1000, (NUM_PROBES, 1))).astype(dtype)
    inputs = keras.Input((1,), dtype=dtype)
    hidden = layers.Dense(6, "tanh", name="hidden")(Remainders()(inputs))
    model = keras.Model(inputs, layers.Dense(NUM_CLASSES, name="logits")(hidden))
    compiled(keras.optimizers.SGD(0.5), model)
    before = features_of(model, ids)
    options = {"epochs": 2, "batch_size": NUM_PROBES, "shuffle": False, "verbose": 0}
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    history = model.fit(ids, ids[:, 0] % NUM_CLASSES, callbacks=[monitor], **options).history
    after = features_of(model, ids)
    expected = np.linalg.norm(after @ after.T - before @ before.T) / np.linalg.norm(before @ before.T)
    assert history["kernel_change"][-1] == pytest.approx(expected, rel=1e-4)


def test_sample_weights_of_its_own_data_reach_the_measurement():
    x, y = images()
    keep = np.arange(len(x)) % 3 > 0
    model, monitor = compiled("sgd"), keras_dal.AlignmentMonitor(data=(x, y, keep.astype("float32")), verbose=False)
    history = fit(model, 1, [monitor])
    expected, _ = r_squared(features_of(model, x)[keep], y[keep])
    assert history["alignment"][-1] == pytest.approx(expected, abs=1e-6)


def test_kernel_change_is_since_weights_that_another_callback_put_back():
    x, y = images()
    model, other = compiled("sgd"), small_model(seed=5)
    put_back = keras.callbacks.LambdaCallback(on_train_begin=lambda logs: model.set_weights(other.get_weights()))
    history = fit(model, 1, [keras_dal.AlignmentMonitor(data=(x, y), verbose=False), put_back])
    before, after = features_of(other, x[::2]), features_of(model, x[::2])
    expected = np.linalg.norm(after @ after.T - before @ before.T) / np.linalg.norm(before @ before.T)
    assert history["kernel_change"][-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weights", [(), (np.ones((96, 1)),)], ids=["", "weighted"])
def test_labels_of_its_own_data_that_no_loss_takes_are_refused_before_the_first_step(weights):
    x, y = images()
    wrong = np.where(np.arange(len(y)) == 90, NUM_CLASSES, y)
    model = compiled(keras_dal.Wrap("sgd"))
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"Received: .*{NUM_CLASSES}"):
        fit(model, 2, [keras_dal.AlignmentMonitor(data=(x, wrong, *weights), verbose=0)])
    assert not moved(before, snapshot(model))
    of_no_weight = (np.arange(len(y)) != 90).astype("float32")
    history = fit(model, 2, [keras_dal.AlignmentMonitor(data=(x, wrong, of_no_weight), verbose=0)])
    assert history["phase"] == [0, 1]


def test_with_a_plain_optimizer_it_only_measures():
    plain, measured = compiled("adam"), compiled("adam")
    fit(plain, 2, callbacks=[])
    history = fit(measured, 2)
    assert not moved(snapshot(plain), snapshot(measured))
    assert history["phase"] == [0, 0]
    assert len(history["alignment"]) == 2


def test_other_callbacks_have_its_numbers(tmp_path):
    log = tmp_path / "log.csv"
    stop = keras.callbacks.EarlyStopping(monitor="alignment", mode="max", patience=0, min_delta=2.0)
    model = compiled("sgd")
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = fit(model, 5, [monitor, keras.callbacks.CSVLogger(str(log)), stop])
    assert len(history["loss"]) == 2  # nothing improves by 2, so patience ends at once
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert [float(row["alignment"]) for row in rows] == pytest.approx(history["alignment"])
    assert {"alignment_rank", "phase", "kernel_change"} <= set(rows[0])


def assert_untouched(model):
    assert model.train_function is None or model.train_function.__name__ == "undriven"  # which makes it anew
    assert not [metric for metric in model.metrics if metric.name == "keras_dal_moments"]
    changed = {"call", "compute_loss", "train_step"}
    assert not changed & set(vars(model))
    assert not changed & set(vars(model.get_layer("logits")))
    assert all(layer.trainable for layer in model.layers)


def test_the_model_is_left_as_it_was():
    model = compiled(keras_dal.Wrap("sgd", explore=1))
    fit(model, 2)
    assert_untouched(model)
    model.optimizer = keras.optimizers.SGD(0.1)
    before = snapshot(model)
    fit(model, 1, callbacks=[])
    assert moved(before, snapshot(model)) >= {"conv/kernel", "norm/moving_mean"}


class Interruption(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        raise KeyboardInterrupt


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("explore", [1, 3])
def test_an_exception_in_the_data_leaves_the_model_as_it_was(error, explore):
    seen = []

    def failing():
        x, y = images()
        for _ in range(8):
            seen.append(explore)
            yield x[:16], y[:16]
        raise error

    model = compiled(
        keras_dal.Wrap("sgd", explore=explore, finish="descend"), run_eagerly=keras.backend.backend() == "tensorflow"
    )
    with pytest.raises(BaseException):  # noqa: B017, PT011 - TensorFlow turns it into an error of its own
        model.fit(
            failing(), epochs=4, steps_per_epoch=6, shuffle=False, callbacks=[keras_dal.AlignmentMonitor()], verbose=0
        )
    assert len(seen) == 8
    if keras.backend.backend() == "torch":  # which reads the data outside of the step
        fit(model, 1, [keras_dal.AlignmentMonitor()])  # which says that it begins in the second phase
    assert_untouched(model)


def test_after_an_exception_elsewhere_the_next_fit_is_an_ordinary_one():
    model = compiled(keras_dal.Wrap("sgd", explore=1))
    with pytest.raises(KeyboardInterrupt):
        fit(model, 2, [keras_dal.AlignmentMonitor(), Interruption()])
    with pytest.raises(RuntimeError, match="Add keras_dal.AlignmentMonitor"):
        fit(model, 2, callbacks=[])
    model.train_function = None  # of the second fit, which made it for itself
    assert_untouched(model)


@pytest.mark.parametrize("explore", [0.5, 2])
def test_the_switch_counts_epochs_from_zero(explore):
    model = compiled(keras_dal.Wrap("sgd", explore=explore, finish="descend"))
    assert fit(model, 4, initial_epoch=1)["phase"] == [0, 1, 1]


def test_an_int_may_be_reached_by_a_later_fit():
    model = compiled(keras_dal.Wrap("sgd", explore=3, finish="descend"))
    assert fit(model, 2)["phase"] == [0, 0]
    assert fit(model, 5, initial_epoch=2)["phase"] == [0, 1, 1]


@pytest.mark.parametrize("explore", [0.5, "auto"])
def test_too_few_epochs_for_two_phases_are_refused(explore):
    model = compiled(keras_dal.Wrap("sgd", explore=explore))
    with pytest.raises(ValueError, match=f"at least one epoch.*Received: explore={explore!r}, epochs=1"):
        fit(model, 1)


def test_fits_of_ones_own_switching(tmp_path):
    model = compiled(keras_dal.Wrap("sgd", explore=None))
    assert fit(model, 2)["phase"] == [0, 0]
    model.optimizer.switch(model)
    assert fit(model, 2)["phase"] == [1, 1]


def test_a_fit_after_ones_own_switch_trains_the_head_alone_without_the_monitor_too():
    model = compiled(keras_dal.Wrap("sgd", explore=None))
    fit(model, 1, callbacks=[])
    model.optimizer.switch(model)
    before = snapshot(model)
    fit(model, 1, callbacks=[])
    weights = {path for path in moved(before, snapshot(model)) if "norm/moving" not in path and "seed" not in path}
    assert weights == {"logits/kernel", "logits/bias"}  # batch statistics wait for the monitor, or for training=False


def test_the_automatic_step_is_there_in_a_fit_that_begins_after_the_switch():
    model = compiled(keras_dal.Wrap("adam", explore=1, exploit_learning_rate="auto"))
    monitor = keras_dal.AlignmentMonitor(data=images(), verbose=False)
    fit(model, 2, [monitor], batch_size=96)
    rate = float(model.optimizer.learning_rate)
    assert fit(model, 5, [monitor], batch_size=96, initial_epoch=2)["phase"] == [1, 1, 1]
    assert float(model.optimizer.learning_rate) == pytest.approx(rate, rel=1e-5)


def test_training_that_diverges_is_not_ended_by_the_monitor():
    model = compiled(keras.optimizers.SGD(1e30))
    with pytest.warns(UserWarning, match="not a number.*Received: inputs of layer 'logits'"):
        history = fit(model, 1)
    assert np.isnan(history["alignment"][0])


def test_inputs_that_differ_from_their_declaration_are_no_probes():
    inputs = keras.Input((8, 8, 1))
    model = compiled("sgd", keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs))))
    x, y = images()
    history = model.fit(
        x[..., 0], y, callbacks=[keras_dal.AlignmentMonitor()], verbose=0
    ).history  # Keras adds the axis
    assert "kernel_change" not in history
    assert 0 < history["alignment"][0] < 1


def test_a_model_may_leave_the_size_of_its_images_open():
    inputs = keras.Input((None, None, 2))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="relu")(inputs))
    model = compiled(keras_dal.Wrap("sgd", explore=1), keras.Model(inputs, layers.Dense(3)(x)))
    assert fit(model, 2)["phase"] == [0, 1]


def test_gradient_descent_with_the_automatic_step_against_numpy():
    """Full-batch exploitation equals gradient descent on cached features in NumPy, and its loss never rises."""
    x, y = images()
    model = compiled(keras_dal.Wrap("adam", explore=1, exploit_learning_rate="auto"))
    snapshots = Snapshots()
    monitor = keras_dal.AlignmentMonitor(data=(x, y), verbose=False)
    losses = fit(model, 6, [monitor, snapshots], batch_size=len(x), shuffle=False)["loss"]
    features = np.hstack([features_of(model, x), np.ones((len(x), 1))])
    start = snapshots.taken[1]
    theta = np.vstack([start["logits/kernel"], start["logits/bias"][None]]).astype(np.float64)
    labels = np.eye(NUM_CLASSES)[y]
    step = 1 / (0.5 * np.linalg.norm(features, 2) ** 2 / len(x))
    for loss in losses[1:]:
        logits = features @ theta
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        assert loss == pytest.approx(-np.mean(np.log(p[labels == 1])), rel=1e-4)
        theta -= step * features.T @ (p - labels) / len(x)
    assert losses[1:] == sorted(losses[1:], reverse=True)
    np.testing.assert_allclose(snapshot(model)["logits/bias"], theta[-1], atol=1e-4)


def test_a_model_without_a_linear_head_is_refused_before_training():
    model = keras.Sequential([keras.Input((8, 8, 2)), layers.Flatten(), layers.Dense(3), layers.ReLU()])
    compiled(keras_dal.Wrap("sgd", explore=1), model)
    before = snapshot(model)
    with pytest.raises(ValueError, match="Received: layer 'dense"):
        fit(model, 2)
    assert not moved(before, snapshot(model))


def test_an_unsupported_loss_is_refused_before_training():
    model, (x, y) = small_model(), images()
    model.compile(optimizer=keras_dal.Wrap("sgd", explore=1), loss="mae")
    with pytest.raises(ValueError, match="The supported losses are .*Received: loss='mae'"):
        model.fit(x, np.eye(NUM_CLASSES)[y], callbacks=[keras_dal.AlignmentMonitor(verbose=False)], verbose=0)


@pytest.mark.parametrize("error", [MemoryError("of eigenvalues"), np.linalg.LinAlgError("no convergence")])
def test_what_cannot_be_measured_does_not_end_a_training(monkeypatch, error):
    def failing(*arguments):
        raise error

    monkeypatch.setattr("keras_dal.training.measurement.alignment_from_moments", failing)
    with pytest.warns(UserWarning, match="could not be measured, and training goes on.*Received: ") as said:
        history = fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=3)), 5)
    assert len([warning for warning in said if "could not be measured" in str(warning.message)]) == 1
    assert np.isnan(history["alignment"][:3]).all()
    assert history["phase"][-1] == 1


@pytest.mark.parametrize("own_data", [False, True])
def test_an_alignment_is_known_where_the_kernel_change_is_not(monkeypatch, own_data):
    """It decides when to switch: after 8 of 10 epochs where there is too little of it, after 7 where it is unknown."""

    def failing(*arguments):
        raise MemoryError("of features")

    def history():
        monitor = keras_dal.AlignmentMonitor(images() if own_data else None, verbose=0)
        return fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01))), 10, [monitor])

    monkeypatch.setattr("keras_dal.training.schedule.ENOUGH", 2.0)
    before = history()
    monkeypatch.setattr("keras_dal.training.measurement.KernelChange.measure", failing)
    with pytest.warns(UserWarning, match="could not be measured, and training goes on.*of features") as said:
        now = history()
    assert sum("could not be measured" in str(warning.message) for warning in said) == 1
    np.testing.assert_allclose(now["alignment"], before["alignment"], rtol=1e-5)
    assert np.isfinite(before["kernel_change"]).all()
    assert np.isnan(now["kernel_change"]).all()
    assert now["phase"] == before["phase"] == [0.0] * 8 + [1.0]


def test_a_message_that_cannot_be_made_does_not_end_a_training(monkeypatch, capsys):
    def failing(*arguments):
        raise MemoryError("of conflicts")

    monkeypatch.setattr("keras_dal.training.messages.num_conflicting", failing)
    monitor = keras_dal.AlignmentMonitor()
    with pytest.warns(UserWarning, match="A message of the monitor could not be made.*of conflicts"):
        fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01), explore=1)), 3, [monitor])
    assert monitor.result is not None


def test_sums_that_would_not_fit_are_not_made(monkeypatch, capsys):
    monkeypatch.setattr("keras_dal.training.moments.SUMS_BYTES", 100)
    with pytest.raises(ValueError, match="so many features.*Received: 6 features"):
        fit(compiled(keras_dal.Wrap("sgd", explore=2, exploit_learning_rate="auto")), 4)
    monitor = keras_dal.AlignmentMonitor()
    history = fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)), 4, [monitor])
    assert "is not measured in this fit: it would take sums of more than" in capsys.readouterr().out
    assert "alignment" not in history
    assert {len(column) for column in history.values()} == {3}
    assert monitor.result is not None


def test_samples_are_counted_in_the_first_epoch_and_in_those_that_measure(monkeypatch):
    monkeypatch.setattr("keras_dal.training.budget.Budget.alignment", lambda self, count=None, first=False: 3)
    cleared, clear = [], StepMoments.clear
    monkeypatch.setattr(StepMoments, "clear", lambda self, **which: (cleared.append(which), clear(self, **which)))
    history = fit(compiled("sgd"), 6)
    assert [(which["counting"], which["measuring"]) for which in cleared] == [
        (True, False), (False, False), (True, True), (False, False), (False, False), (True, True),
    ]  # fmt: skip
    np.testing.assert_array_equal(np.isfinite(history["alignment"]), [False, False, True, True, True, True])


def test_after_a_fit_the_optimizer_does_not_hold_the_monitor():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1))
    fit(model, 3)
    assert state_of(model.optimizer).driver.fit is None


def test_evaluate_takes_a_monitor_that_has_not_trained():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1))
    assert model.evaluate(*images(), verbose=0, callbacks=[keras_dal.AlignmentMonitor()])


def test_an_alignment_that_is_no_number_is_said_once_in_a_fit(recwarn):
    x, y = images()
    x[0] = np.nan
    model = compiled("sgd")
    model.fit(x, y, epochs=3, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])
    assert len([each for each in recwarn if "The alignment is not a number" in str(each.message)]) == 1
