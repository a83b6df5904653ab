"""What is measured at the end of an epoch: the alignment of the head, and how far the features have moved."""

from typing import Any

import numpy as np

from keras_dal import _backend
from keras_dal._backend.threads import threads_for
from keras_dal.analysis.alignment import alignment_from_moments, alignment_of
from keras_dal.features.inputs import input_specs
from keras_dal.features.precision import coarsest_eps, halves_in
from keras_dal.output.warning import described, warn
from keras_dal.training.budget import SHARE, Budget
from keras_dal.training.kernel_change import KernelChange, some_samples
from keras_dal.training.logs import as_alignment, as_change
from keras_dal.training.moments import SUMS_BYTES, BadLabels, StepMoments, sums_fit

_OWN_DATA = "Give the monitor its own data, AlignmentMonitor(data=(x, y))"


def measurement_of(structure, loss, data, epochs, max_bytes):
    """Return what measures a fit, on data of its own or on what flows through it.

    Args:
        structure: the `Structure` of the model that `fit` trains.
        loss: the `losses.Loss` it is compiled with.
        data: arguments of `alignment` after the model, or None for what flows through `fit`.
        epochs: number of the last epoch of `fit`.
        max_bytes: as in `alignment`, of data of its own.
    """
    return OnStream(structure, loss, epochs) if data is None else OnData(structure, loss, data, max_bytes)


class Measurement:
    """Alignment and kernel change, epoch by epoch.

    Attributes:
        report: the last `AlignmentReport`, None before the first.
        interval: epochs from one such report to the next, and `reason` why it is not one.
        moments: the `StepMoments` that a training step is to feed, or None.
    """

    interval, reason, moments = 1, "", None
    has_samples: Any

    def __init__(self, structure, loss):
        self._structure, self._loss = structure, loss
        self._kernel_change: Any = None
        self._said: set[str] = set()
        self.report: Any = None

    def begin(self, epoch, now=False, once=False):
        """Start an epoch.

        Args:
            epoch: its number.
            now: whether to measure it whatever that costs.
            once: whether to measure it if that is affordable once in all epochs until then.
        """
        if self.has_samples and self._kernel_change is None:
            self._kernel_change = KernelChange(self._structure)  # here: others restore weights in on_train_begin

    def measure(self, epoch):
        """Return what is known at the end of an epoch, by name; what cannot be measured does not end a training."""
        try:
            return self._measured(epoch)
        except Exception as error:  # of whatever kind: memory, the disk of the data, a layer that cannot be compiled
            self._failed(error)
            return self.unknown()

    def moved(self):
        """Return the kernel change now, by its name."""
        try:
            return self._change_of(self.samples())
        except Exception as error:  # as in `measure`
            self._failed(error)
            return as_change()

    def samples(self):
        """Return a few inputs, as the model takes them, or None."""
        raise NotImplementedError

    def unknown(self):
        """Return nan by the names of what is measured."""
        raise NotImplementedError

    def is_affordable(self, epochs, count):
        """Return whether to measure so many samples once after so many epochs."""
        return True

    def _measured(self, epoch):
        raise NotImplementedError

    def _change_of(self, samples):
        """Return the kernel change of some samples, by its name; nan where there are none yet, or it fails.

        The alignment of that epoch, which decides when to switch, is known still.
        """
        if samples is None:
            return as_change() if self.has_samples else {}
        try:
            return as_change(self._kernel_change.measure(samples))
        except Exception as error:  # as in `measure`
            self._failed(error)
            return as_change()

    def _failed(self, error):
        self._warn_once(
            "The alignment or the kernel change could not be measured, and training goes on. Received: "
            f"{described(error)}",
            error,
        )

    def _warn_once(self, text, cause=None):
        """Warn of each matter once in a fit, whatever the numbers are that were received."""
        matter = text.partition("Received:")[0]
        if matter not in self._said:
            self._said.add(matter)
            warn(text, cause)


class OnData(Measurement):
    """Measures data of its own after every epoch, exactly, in inference mode.

    Args:
        structure, loss, data, max_bytes: as for `measurement_of`.
    """

    has_samples = True

    def __init__(self, structure, loss, data, max_bytes):
        super().__init__(structure, loss)
        self._data, self._samples, self._max_bytes = data, some_samples(data[0]), max_bytes

    def _measured(self, epoch):
        self.report = alignment_of(self._structure, self._loss, *self._data, max_bytes=self._max_bytes)
        return as_alignment(self.report) | self._change_of(self._samples)

    def samples(self):
        return self._samples

    def unknown(self):
        return as_alignment() | as_change()


class OnStream(Measurement):
    """Measures what flows through `fit` by sums that the training step makes.

    Where the alignment or the kernel change would be more than half a percent of what training computes, it is measured
    only every so many epochs, and the value of the last one stands: see `Budget`.

    Args:
        structure, loss, epochs: as for `measurement_of`.
    """

    def __init__(self, structure, loss, epochs):
        super().__init__(structure, loss)
        self._alignment, self._change = _Last(as_alignment()), _Last({})
        self._count: int | None = None
        self._is_small = sums_fit(structure)
        self.interval = 1 if self._is_small else epochs + 1
        share = f"more than {SHARE:.1%} of the training"
        self.reason = f"it would take {share if self._is_small else f'sums of more than {SUMS_BYTES / 2**30:.3g} GiB'}"
        self._budget = Budget(structure.model, structure.num_features, structure.num_outputs, epochs)
        with _backend.training_scope(structure.model):
            specs, halves = input_specs(structure.model), halves_in(structure.model)
            self.moments = StepMoments(structure, loss, specs, with_sums=self._is_small, halves=halves)

    @property
    def _tells(self):
        """Whether the moments say something: those of what comes before gated units do not."""
        return self._structure.has_dense_part and self._is_small

    @property
    def has_samples(self):
        """Whether there will be samples on which the kernel change is measured."""
        return self.moments.probes is not None

    def begin(self, epoch, now=False, once=False):
        super().begin(epoch)
        self._now, self._once = now, once
        self._sums_up = (once or self._is_due(epoch, self._count)) and self._tells
        self._counts = self._sums_up or self._count is None
        self.moments.clear(measuring=self._sums_up, counting=self._counts)

    def _measured(self, epoch):
        try:
            sums, count = self.moments.read(self._sums_up)
        except BadLabels as error:
            self._warn_once(str(error), error)
            return self.unknown()
        if self.moments.has_failed:  # which has been said
            return self._nothing()
        if self._counts and count == 0:
            self._warn_once(self._why_nothing())
            return self._nothing()
        if self._counts:
            self._count = count
        if sums is not None and not np.isfinite(sums).all():
            self._warn_once(
                "The alignment is not a number: the features or the labels of this epoch are not finite. Lower the "
                "learning rate, or look for NaN in the data. Received: inputs of layer "
                f"{self._structure.layer.name!r}"
            )
            return self.unknown()
        change = self._latest_change(epoch)
        if not self._tells:
            return change
        self.interval = self._budget.alignment(self._count)
        if self._sums_up and self._is_due(epoch, self._count):
            with threads_for((self._structure.num_features + 1) ** 3):
                eps = coarsest_eps(self._structure, self.moments.dtypes())
                self.report = alignment_from_moments(sums, count, self._structure, self._loss, eps_of_features=eps)
            self._alignment.set(as_alignment(self.report), epoch)
        return self._alignment.value | change

    def _nothing(self):
        """Return what there is to say after an epoch without samples: columns that there are stay whole."""
        ever = self.moments.was_fed or self._alignment.is_known or self._change.is_known
        return self.unknown() if ever else {}

    def _why_nothing(self):
        """Return why an epoch has no samples."""
        model = self._structure.model
        if not any(metric is self.moments for metric in model.metrics):
            cause, advice = "the model's metrics leave out those of super().metrics", _OWN_DATA
        elif self.moments.was_fed:
            cause = "the epoch had no samples, or none of a positive weight"
            advice = "Look whether the data ran out, and leave weights out or let some be positive"
        else:
            cause = "the model's train_step does not call compute_loss, or not with the outputs of a call of the model"
            advice = _OWN_DATA
        return f"Nothing was measured: {cause}. {advice}. Received: model {model.name!r}"

    def samples(self):
        return self.moments.samples()

    def unknown(self):
        alignment = as_alignment() if self._tells else {}
        return alignment | (as_change() if self.has_samples else {})

    def is_affordable(self, epochs, count):
        return self._budget.alignment(count) <= epochs

    def _is_due(self, epoch, count):
        """Return whether to measure at the end of an epoch of so many samples, None where that is not known yet."""
        waited = epoch + 1 if self._once else self._alignment.age(epoch)
        return self._now or waited >= self._budget.alignment(count, first=not self._alignment.is_known)

    def _latest_change(self, epoch):
        """Return the kernel change, measured anew where that is due after an epoch."""
        samples, last = self.samples(), self._change
        if samples is not None:
            if last.age(epoch) >= self._budget.kernel_change(self._count, not last.is_known):
                last.set(self._change_of(samples), epoch)
            elif not last.is_known:
                return as_change()
        return last.value


class _Last:
    """What was measured last.

    Args:
        value: what stands for it before.
    """

    def __init__(self, value):
        self.value = value
        self._epoch: int | None = None

    @property
    def is_known(self):
        """Whether it was measured."""
        return self._epoch is not None

    def set(self, value, epoch):
        """Take what was measured after an epoch."""
        self.value, self._epoch = value, epoch

    def age(self, epoch):
        """Return how many epochs ago it was measured, counted from before the first where it never was."""
        return epoch + 1 if self._epoch is None else epoch - self._epoch
