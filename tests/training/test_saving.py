"""The phase survives every way Keras has to save and restore, before, at and after the switch."""

import keras
import numpy as np
import pytest
from fits import Snapshots, compiled, fit, moved, snapshot

import keras_dal

HEAD = {"logits/kernel", "logits/bias"}
EPOCHS, SWITCH = 4, 2


def make():
    return compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=SWITCH, finish="descend"))


@pytest.mark.parametrize("epochs", [1, SWITCH, 3])
def test_a_saved_model_goes_on_where_it_was(tmp_path, epochs):
    model = make()
    fit(model, epochs)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.phase == model.optimizer.phase == ("exploit" if epochs > SWITCH else "explore")
    assert moved(snapshot(model), snapshot(loaded)) <= {"seed_generator/seed_generator_state"}  # Keras does not save it
    snapshots = Snapshots()
    history = fit(loaded, EPOCHS, [keras_dal.AlignmentMonitor(verbose=False), snapshots], initial_epoch=epochs)
    assert history["phase"] == [1 + (epoch >= SWITCH) for epoch in range(epochs, EPOCHS)]
    assert moved(snapshots.taken[-2], snapshots.taken[-1]) == HEAD


@pytest.mark.parametrize("epochs", [1, SWITCH, 3])
def test_saved_weights_bring_the_phase(tmp_path, epochs):
    model = make()
    fit(model, epochs)
    model.save_weights(tmp_path / "model.weights.h5")
    other = make()
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "model.weights.h5")
    assert other.optimizer.phase == model.optimizer.phase
    for ours, theirs in zip(model.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))


class Stop(keras.callbacks.Callback):
    """Ends training as a kill would: at the beginning of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize("order", ["backup first", "monitor first"])
@pytest.mark.parametrize("epoch", [1, SWITCH, 3])
def test_backup_and_restore(tmp_path, epoch, order):
    def callbacks(*others):
        pair = [keras.callbacks.BackupAndRestore(tmp_path / "backup"), keras_dal.AlignmentMonitor(verbose=False)]
        return [*(pair if order == "backup first" else reversed(pair)), *others]

    with pytest.raises(KeyboardInterrupt):
        fit(make(), EPOCHS, callbacks(Stop(epoch)), shuffle=False)
    resumed, snapshots = make(), Snapshots()
    history = fit(resumed, EPOCHS, callbacks(snapshots), shuffle=False)
    assert history["phase"] == [1 + (e >= SWITCH) for e in range(epoch, EPOCHS)]
    assert moved(snapshots.taken[-2], snapshots.taken[-1]) == HEAD


def test_a_switched_optimizer_that_is_loaded_does_not_switch_again(tmp_path):
    model = make()
    fit(model, 3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    before = snapshot(loaded)
    loaded.optimizer.switch(loaded)
    assert not moved(before, snapshot(loaded))


def test_a_checkpoint_of_tensorflow_brings_the_phase(tmp_path):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("tf.train.Checkpoint belongs to TensorFlow")
    import tensorflow as tf

    model = make()
    fit(model, 3)
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    other = make()
    other.optimizer.build(other.trainable_variables)
    tf.train.Checkpoint(model=other, optimizer=other.optimizer).restore(path).expect_partial()
    assert fit(other, EPOCHS, initial_epoch=3)["phase"] == [2]
