"""AlignmentMonitor: measures the alignment condition in `fit`, and drives the two phases of `Wrap`."""

import weakref
from typing import Any

import keras

from keras_dal import _keras
from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.features.batches import as_arguments
from keras_dal.features.samples import check_bytes
from keras_dal.finishing.result import Result
from keras_dal.output.warning import warn
from keras_dal.training import checks, messages
from keras_dal.training.announcer import Announcer
from keras_dal.training.certificates import Certificates
from keras_dal.training.fit import Fit
from keras_dal.training.inner import parameters_of
from keras_dal.training.outcome import Outcome
from keras_dal.training.wrap import find_wrap


class AlignmentMonitor(keras.callbacks.Callback):
    """Measures how far the labels are in the column space of the Jacobian, each epoch, and drives `Wrap`.

    Every epoch it adds to `logs`: `alignment` in [0, 1], `alignment_rank`, `phase` (0 while exploring, 1 after the
    switch) and `kernel_change`, the relative change of the feature kernel since the start of this `fit`; the last value
    again, or NaN, where measuring would take more than half a percent of training. Callbacks that read them (CSVLogger,
    TensorBoard) come after it in the list.

    With `Wrap(finish="solve")` the epoch of the switch trains nothing: it reads the data once, for the batch statistics
    of the averaged weights and for features; the head is solved on these, and training ends as `EarlyStopping` ends it.
    What puts other weights back when training ends, as `EarlyStopping(restore_best_weights=True)` does, undoes that,
    and a warning says so. Whatever fails there is said in a warning, the weights from before are put back, and
    exploration goes on.

    Without data it measures what flows through `fit`, with no second pass. That is an estimate: the features are those
    of the training step, of a model that still changes while they are summed up. With data it measures exactly, in
    inference mode, but for the epoch that solves, which measures what it reads; with `finish="descend"` it also
    certifies what is proved at the switch: see `certificates`. With a plain optimizer it only measures, and with
    `Wrap(explore=None)` it solves nothing: `switch` in a callback leaves the last layer to gradient steps.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, also as a list, or a dataset of such batches, measured at the end of
            every epoch; None for what flows through `fit`.
        max_bytes: as in `finish` for the head that is solved, in `alignment` and `certify` for data. What would need
            more is left out with a warning, and training goes on, as where it fails for another reason.
        verbose: 1 to say in a few lines what was found, frozen and solved, 0 for warnings alone.

    Attributes:
        result: the `Result` of the solved head, None before; with a warning where the model has other weights by now.
        certificates: with data, the `Certificate` at `"switch"` (where the second phase descends) and at `"end"`, made
            when it is asked for, of the weights the model has then. A fit that begins in the second phase has
            none at the switch, or with `exploit_learning_rate="auto"` one of the weights that it begins with.

    Raises:
        ValueError: a limit that is no number of bytes; when training begins, a model without a linear head, a loss
            outside the theory, or arrays of labels in `data` that the loss does not take.
    """

    def __init__(self, data: Any = None, *, max_bytes: int = MAX_BYTES, verbose: int = 1) -> None:
        super().__init__()
        check_bytes("max_bytes", max_bytes)
        self.data, self.max_bytes, self.verbose = data, max_bytes, verbose
        self.certificates = Certificates(None, None, "head")
        self._outcome = Outcome()
        self._wrap: Any = None
        self._fit: Any = None  # what runs, None before and after

    @property
    def phase(self) -> str:
        """`"explore"` or `"exploit"`; always `"explore"` with a plain optimizer."""
        return self._wrap.phase if self._wrap is not None else "explore"

    @property
    def result(self) -> Result | None:
        if self._outcome.was_replaced:
            warn(messages.other_weights(self.model))
        return self._outcome.result

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        checks.check_data(self.data)
        checks.check_epochs(self.params)
        model, rows, self._fit = self.model, as_arguments(self.data), None
        checks.check_rows(rows)
        self._wrap = find_wrap(model.optimizer)
        if self._wrap is None or getattr(self._outcome.result, "model", None) is not model:
            self._outcome.forget()
        self.certificates = Certificates(model, rows, parameters_of(self._wrap), self.max_bytes)
        kept = self._outcome, self.certificates
        self._fit = Fit(model, self._wrap, rows, self.params, *kept, Announcer(model, self.verbose), self.max_bytes)
        if (callbacks := _keras.calling_list()) is not None:
            weakref.finalize(callbacks, _let_go, weakref.ref(self._fit)).atexit = False
            callbacks.callbacks.append(_AfterAll(self._fit))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._fit.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._fit.begin_step()

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        if self._fit is not None and self._fit.params is self.params:  # else it is `evaluate` that calls
            self._fit.begin_validation()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        found = self._fit.end_epoch(epoch)
        if logs is not None:
            logs.update(found)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._fit is not None:  # else it was listed twice
            self._fit.end()
        self._fit = None

    def __getstate__(self):
        """Return what outlasts a fit: hooks and compiled functions do not."""
        return {**vars(self), "_fit": None, "_wrap": None}

    def __setstate__(self, state):
        vars(self).update(state)
        self._wrap = find_wrap(getattr(self.model, "optimizer", None))  # that of the model, which was copied with it


class _AfterAll(keras.callbacks.Callback):
    """Looks at what callbacks that come after the monitor leave of what a fit solved."""

    def __init__(self, fit):
        super().__init__()
        self._fit = fit

    def on_train_end(self, logs=None):
        if self._fit is not None:
            self._fit.check_weights()
        self._fit = None  # a list of the caller's own outlasts its fit


def _let_go(fit):
    """Let a fit that an exception ended drop what it has read: nothing else tells callbacks that it is over."""
    if (left := fit()) is not None:
        left.drop()
