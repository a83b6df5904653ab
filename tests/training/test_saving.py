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
    assert history["phase"] == [int(epoch >= SWITCH) for epoch in range(epochs, EPOCHS)]
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
    assert history["phase"] == [int(e >= SWITCH) for e in range(epoch, EPOCHS)]
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
    assert fit(other, EPOCHS, initial_epoch=3)["phase"] == [1]


def _save_as_at_first(model, path):
    """Save steps, step size, one flag for each variable, and then what the optimizer inside has."""
    wrap = model.optimizer
    steps, rate, progress = keras.optimizers.Optimizer.variables.fget(wrap)[:3]
    flags = keras.Variable(keras.ops.convert_to_numpy(progress) > 0, dtype="int32", trainable=False)
    old = [steps, rate, flags, *wrap.inner_optimizer.variables]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keras_dal.Wrap, "variables", old)
        model.save_weights(path)


@pytest.mark.parametrize("epochs", [1, 3])
def test_what_was_saved_before_weights_were_averaged_goes_on_where_it_was(tmp_path, epochs):
    model, other = (
        compiled(keras_dal.Wrap(keras.optimizers.Adam(0.01), explore=SWITCH, finish=finish))
        for finish in ("descend", "solve")
    )
    fit(model, epochs)
    _save_as_at_first(model, tmp_path / "old.weights.h5")
    other.optimizer.build(other.trainable_variables)
    other.load_weights(tmp_path / "old.weights.h5")
    assert other.optimizer.phase == model.optimizer.phase == ("exploit" if epochs > SWITCH else "explore")
    pairs = zip(model.optimizer.inner_optimizer.variables, other.optimizer.inner_optimizer.variables, strict=True)
    for theirs, ours in pairs:
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(ours), keras.ops.convert_to_numpy(theirs))


def test_a_file_with_other_variables_says_that_the_phase_was_not_restored(tmp_path):
    model = make()
    fit(model, 1)
    model.save_weights(tmp_path / "model.weights.h5")
    other = compiled(keras_dal.Wrap(keras.optimizers.Adam(0.1), explore=SWITCH))
    other.optimizer.build(other.trainable_variables)
    of_inner = pytest.warns(UserWarning, match="Skipping variable loading for optimizer 'adam")  # by Keras
    with of_inner, pytest.warns(UserWarning, match="The phase was not restored, .* Received: "):
        other.load_weights(tmp_path / "model.weights.h5")
    assert other.optimizer.phase == "explore"
