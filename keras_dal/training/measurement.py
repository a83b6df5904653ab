"""What is measured at the end of an epoch: the alignment of the head, and how far the features have moved."""

import warnings

import numpy as np

from keras_dal import _backend
from keras_dal.analysis.alignment import alignment, alignment_from_moments
from keras_dal.features.tracing import input_specs
from keras_dal.training.kernel_change import KernelChange, first_samples
from keras_dal.training.moments import BadLabels, StepMoments

_SHARE = 0.01  # of an epoch's arithmetic that measuring it may cost
_EIGENVALUES = 10  # multiplications for each entry of a matrix and each of its columns


class Measurement:
    """Alignment and kernel change, from what flows through `fit` or from data of its own.

    Eigenvalues of moments take the cube of the number of features. Where that is more than a hundredth of what an
    epoch at least computes, only every so many epochs are measured, and the value of the last one stands.

    Args:
        model: the model that `fit` trains.
        structure: its `Structure`.
        loss: the `losses.Loss` it is compiled with.
        data: arguments of `alignment`, or None for what flows through `fit`.
        parameters: as in `find_structure`.
    """

    def __init__(self, model, structure, loss, data, parameters):
        self._structure, self._loss, self._data, self._parameters = structure, loss, data, parameters
        self._samples = None if data is None else first_samples(data)
        self._kernel_change = None
        self._parameters_of_model = model.count_params()
        self._last, self._measured_at = {}, None
        self.report = None
        self.moments = None
        if data is None:
            with _backend.training_scope(model):
                self.moments = StepMoments(structure.num_features, structure.num_outputs, loss, input_specs(model))

    @property
    def moments_tell(self):
        """Whether moments of the features say something about J_S: those of gated units before the head do not."""
        return self._structure.layer is self._structure.output_layer

    def begin(self):
        """Start an epoch."""
        if self._kernel_change is None:  # here, not earlier: other callbacks restore weights in on_train_begin
            self._kernel_change = KernelChange(self._structure)
        if self.moments is not None:
            self.moments.clear()

    def measure(self, model, epoch, now=False):
        """Return what is known at the end of an epoch, by name.

        Args:
            model: the model.
            epoch: its number.
            now: whether to measure whatever it costs.
        """
        if self.moments is None:
            self.report = alignment(model, *self._data, parameters=self._parameters, decide_separability=False)
            return self._told(self.report) | self._moved(self._samples)
        try:
            sums, count = self.moments.read()
        except BadLabels as error:
            warnings.warn(str(error), stacklevel=3)
            return {"alignment": np.nan, "alignment_rank": np.nan}
        if count == 0:
            warnings.warn(
                "Nothing was measured: the model's train_step does not call compute_loss. Give the monitor its "
                f"own data, AlignmentMonitor(data=(x, y)). Received: model {model.name!r}",
                stacklevel=3,
            )
            return {}
        if not np.isfinite(sums).all():
            warnings.warn(
                "The alignment is not a number: the features or the labels of this epoch are not finite. Lower the "
                "learning rate, or look for NaN in the data. Received: inputs of layer "
                f"{self._structure.layer.name!r}",
                stacklevel=3,
            )
            return {"alignment": np.nan, "alignment_rank": np.nan}
        moved = self._moved(self.moments.samples())
        if not self.moments_tell:
            return moved
        if now or self._measured_at is None or epoch - self._measured_at >= self._interval(count):
            self.report = alignment_from_moments(sums, count, self._structure, self._loss)
            self._last, self._measured_at = self._told(self.report), epoch
        return self._last | moved

    def _interval(self, count):
        """Return after how many epochs of so many samples to measure again; the same on every machine."""
        epoch = 6 * self._parameters_of_model * count  # every parameter is used once at least, and twice for gradients
        return max(1, round(_EIGENVALUES * (self._structure.num_features + 1) ** 3 / (_SHARE * epoch)))

    @staticmethod
    def _told(report):
        return {"alignment": report.alignment, "alignment_rank": report.rank}

    def moved(self):
        """Return the kernel change now, by its name."""
        if self.moments is None:
            return self._moved(self._samples)
        samples = self.moments.samples()
        if samples is None and self.moments.probes is not None:
            return {"kernel_change": np.nan}  # a fit that was resumed at its last pass has not seen any
        return self._moved(samples)

    def _moved(self, samples):
        return {} if samples is None else {"kernel_change": self._kernel_change.measure(samples)}
