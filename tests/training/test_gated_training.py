"""Gated heads through the switch in `fit`: what freezes, what moves, and that the outputs do not jump."""

import re

import keras
import numpy as np
import pytest
from fits import NUM_CLASSES, Snapshots, compiled, fit, images, moved, snapshot
from keras import layers

import keras_dal


def gated_model(gates):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(x))
    x = keras_dal.GatedDense(12, gates=gates, sharpness=3.0, name="gated")(x)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES, name="logits")(x))


class OutputsAroundTheSwitch(keras.callbacks.Callback):
    """Before and after the monitor in the list, it keeps what the model computes at the beginning of each epoch."""

    def __init__(self):
        super().__init__()
        self.outputs = []

    def on_epoch_begin(self, epoch, logs=None):
        self.outputs.append(self.model.predict(images()[0], verbose=0))


@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_learned_gates_freeze_at_the_switch_without_a_jump(noise):
    model = compiled(
        keras_dal.Wrap(keras.optimizers.Adam(1e-2), explore=2, noise=noise, finish="descend"), gated_model("learned")
    )
    before, after, snapshots = OutputsAroundTheSwitch(), OutputsAroundTheSwitch(), Snapshots()
    fit(model, 4, [before, keras_dal.AlignmentMonitor(verbose=False), after, snapshots])
    jump = np.abs(after.outputs[2] - before.outputs[2]).max()
    assert jump <= 20 * noise * np.abs(before.outputs[2]).max() + 1e-6
    assert (jump > 1e-6) == (noise > 0)
    taken = snapshots.taken
    assert taken[2]["gated/frozen"] == 1
    assert moved(taken[2], taken[4]) == {"gated/kernel", "gated/bias", "logits/bias"}
    assert moved(taken[0], taken[2]) >= {"gated/kernel", "logits/kernel", "conv/kernel"}


def test_random_gates_are_linear_from_the_start():
    model = compiled(keras_dal.Wrap(keras.optimizers.Adam(1e-2), explore=1, finish="descend"), gated_model("random"))
    snapshots = Snapshots()
    fit(model, 2, [keras_dal.AlignmentMonitor(verbose=False), snapshots])
    fixed = {"gated/gate_kernel", "gated/gate_bias", "gated/frozen"}
    assert not fixed & moved(snapshots.taken[0], snapshots.taken[2])
    assert moved(snapshots.taken[1], snapshots.taken[2]) == {"gated/kernel", "gated/bias", "logits/bias"}


def test_frozen_gates_survive_saving(tmp_path):
    model = compiled(keras_dal.Wrap("adam", explore=1, finish="descend"), gated_model("learned"))
    fit(model, 2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not moved(snapshot(model), snapshot(loaded))
    np.testing.assert_array_equal(model.predict(images()[0], verbose=0), loaded.predict(images()[0], verbose=0))


def test_a_branch_that_was_added_after_exploration_is_trained():
    x, y = images(48)
    model = compiled("adam")
    fit(model, 3, callbacks=[])
    model = keras_dal.add_gated_head(model, x, seed=0, verbose=False)
    compiled(keras_dal.Wrap(keras.optimizers.Adam(1e-2), explore=None), model)
    model.optimizer.switch(model)
    snapshots = Snapshots()
    monitor = keras_dal.AlignmentMonitor(data=(x, y), verbose=False)
    history = model.fit(x, y, epochs=2, callbacks=[monitor, snapshots], verbose=0).history
    assert history["alignment"] == pytest.approx([1.0, 1.0], abs=1e-6)
    head = {"kernel", "bias", "logits/kernel", "logits/bias"}
    assert moved(snapshots.taken[0], snapshots.taken[2]) == {f"logits/{name}" for name in head}


def test_the_certificate_at_the_switch_bounds_what_training_does():
    x, y = images()
    model = compiled(keras_dal.Wrap("adam", explore=1, exploit_learning_rate="auto"), gated_model("learned"))
    monitor = keras_dal.AlignmentMonitor(data=(x, y), verbose=False)
    losses = fit(model, 12, [monitor], batch_size=len(x))["loss"]
    certificate = monitor.certificates["switch"]
    for t, loss in enumerate(losses[1:]):
        assert loss <= certificate.bound(t) * (1 + 1e-5)
    assert monitor.certificates["end"].loss < certificate.loss


def test_the_automatic_step_of_a_gated_head_needs_data():
    model = compiled(keras_dal.Wrap("sgd", explore=1, exploit_learning_rate="auto"), gated_model("learned"))
    with pytest.raises(ValueError, match=r"pass AlignmentMonitor\(data=.*Received: exploit_learning_rate='auto'"):
        fit(model, 2)


def test_the_monitor_needs_no_data_for_a_branch():
    model = keras_dal.add_gated_head(compiled("adam"), images(48)[0], seed=0, verbose=False)
    compiled(keras_dal.Wrap("adam", explore=1, finish="descend"), model)
    history = fit(model, 2)
    x, y = images()
    columns = np.column_stack([keras_dal.find_structure(model).features(x), np.ones(len(x))]).astype(np.float64)
    labels = np.eye(NUM_CLASSES)[y] - 1 / NUM_CLASSES
    left = labels - columns @ np.linalg.lstsq(columns, labels)[0]
    share = np.sum(left**2) / np.sum((labels - labels.mean(axis=0)) ** 2)
    assert history["alignment"][-1] == pytest.approx(1 - share, abs=1e-4)  # that of the head without gates, a bound


def test_moments_of_features_say_nothing_of_gated_units_before_the_head():
    model = compiled(keras_dal.Wrap("adam", explore=1, finish="descend"), gated_model("learned"))
    history = fit(model, 3)
    assert "alignment" not in history
    assert history["phase"] == [0, 1, 1]
    assert history["kernel_change"][0] > 0


def test_the_certificate_at_the_switch_is_of_the_gates_after_the_noise():
    x, y = images()
    model = compiled(keras_dal.Wrap("adam", explore=1, noise=0.5, finish="descend"), gated_model("learned"))
    monitor, snapshots = keras_dal.AlignmentMonitor(data=(x, y), verbose=False), Snapshots()
    fit(model, 2, [monitor, snapshots])
    after = monitor.certificates["switch"]
    for variable in model.variables:
        variable.assign(snapshots.taken[1][re.sub(r"_\d+/", "/", variable.path)])
    again = keras_dal.certify(model, x, y)
    assert again.loss == pytest.approx(after.loss, rel=1e-6)
    assert again.beta == pytest.approx(after.beta, rel=1e-6)
