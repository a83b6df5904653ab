"""Ctrl-C in any hook of a callback, before the switch and in the epoch that reads the data: nothing is lost."""

import cells
import keras
import numpy as np
import pytest

import keras_dal

EXPLORED, EPOCHS = 2, 4
HOOKS = [name for name in dir(keras.callbacks.Callback) if name.startswith(("on_train_", "on_test_", "on_epoch_"))]
ONCE = "on_train_begin", "on_train_end"  # in a fit
CASES = [
    (hook, epoch, place)
    for hook in HOOKS
    for epoch in (1, EXPLORED)
    for place in ("first", "last")
    if epoch == EXPLORED or hook not in ONCE
]
# where nothing is compiled they take half a second each
AT_ONCE = CASES if keras.backend.backend() == "torch" else CASES[::5]


class Interrupt(keras.callbacks.Callback):
    """Raises KeyboardInterrupt in one hook during one epoch."""

    def __init__(self, hook, epoch):
        super().__init__()
        self.hook, self.epoch, self.at = hook, epoch, 0
        setattr(self, hook, self.interrupt)

    def on_epoch_begin(self, epoch, logs=None):
        self.at = epoch

    def on_epoch_end(self, epoch, logs=None):
        self.at = epoch + 1  # validation and saving of the epoch are over, on_train_end comes next

    def interrupt(self, *arguments, logs=None):
        at = arguments[0] if "epoch" in self.hook else self.at
        if at == self.epoch or self.hook in ONCE:
            raise KeyboardInterrupt


def trained(folder, place=None, interrupt=None, model=None):
    """Train to the end that the fit finds by itself, or to an interrupt before or behind all other callbacks."""
    model = model or cells.model_of("functional")
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=EXPLORED, average=0.6)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(wrap, loss, metrics=["accuracy"])
    backup = keras.callbacks.BackupAndRestore(folder, delete_checkpoint=False)
    callbacks = [keras_dal.AlignmentMonitor(verbose=False), backup]
    if interrupt:
        callbacks.insert(0 if place == "first" else 2, interrupt)
    x, y = cells.data_of("functional")
    fit = {"batch_size": 8, "epochs": EPOCHS, "shuffle": False, "verbose": 0, "validation_data": (x, y)}
    model.fit(x, y, callbacks=callbacks, **fit)
    return cells.weights_of(model)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("whole") / "backup")


@pytest.mark.parametrize(
    ("hook", "epoch", "place"),
    [pytest.param(*case, marks=[pytest.mark.whole] * (case not in AT_ONCE)) for case in CASES],
)
@pytest.mark.filterwarnings("ignore:this fit begins in the second phase")  # where the head was solved before
def test_a_fit_that_was_interrupted_anywhere_ends_with_the_same_weights(tmp_path, expected, hook, epoch, place):
    model = cells.model_of("functional")
    trains = [variable.trainable for variable in model.weights]
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "backup", place, Interrupt(hook, epoch), model)
    assert [variable.trainable for variable in model.weights] == trains
    for ours, theirs in zip(trained(tmp_path / "backup", model=model), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
