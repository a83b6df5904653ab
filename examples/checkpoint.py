"""Exact resume: all that training depends on, in one file that is replaced as a whole after every epoch."""

import contextlib
import json
import os
import signal
from pathlib import Path

import keras
import numpy as np


def replace_file(path, write):
    """Write a file under another name first, so that whoever reads it, at whatever time, finds all of it."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    with open(temporary, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Checkpoint(keras.callbacks.Callback):
    """Saves weights, optimizer state and the history; with them the order of the data, which the epoch decides.

    Args:
        path: the file.
        history: dict of lists that is saved along, one value per epoch; `restore` fills it.
        write: whether this process is the one that writes.
    """

    def __init__(self, path, history, write=True):
        super().__init__()
        self.path, self.history, self.write = Path(path), history, write

    def restore(self, model):
        """Bring a compiled and built model to where the file was written; return the epoch that comes next."""
        if not self.path.exists():
            return 0
        with np.load(self.path) as saved:
            for index, variable in enumerate(_variables(model)):
                variable.assign(saved[str(index)])
            self.history.update(json.loads(str(saved["history"])))
            return int(saved["epochs"])

    def on_epoch_end(self, epoch, logs=None):
        if not self.write:
            return
        values = {str(index): _value(variable) for index, variable in enumerate(_variables(self.model))}
        state = {"epochs": epoch + 1, "history": json.dumps(self.history)}
        replace_file(self.path, lambda file: np.savez(file, **state, **values))


def _variables(model):
    return [*model.variables, *model.optimizer.variables]


def _value(variable):
    return keras.ops.convert_to_numpy(variable.value if isinstance(variable, keras.Variable) else variable)


class Preempted(Exception):
    """The machine is about to be taken away."""


class _StopAtStep(keras.callbacks.Callback):
    asked = training = False

    def on_train_begin(self, logs=None):
        self.training = True

    def on_train_end(self, logs=None):
        self.training = False

    def on_train_batch_end(self, batch, logs=None):
        if self.asked:
            raise Preempted

    on_test_batch_end = on_train_batch_end


@contextlib.contextmanager
def preemptible():
    """Lets SIGTERM end training between two steps, and anything else at once, as the exception `Preempted`.

    Yields:
        The callback that does it.
    """
    callback = _StopAtStep()

    def ask(*_):
        if not callback.training:
            raise Preempted
        callback.asked = True

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield callback
    finally:
        signal.signal(signal.SIGTERM, before)
