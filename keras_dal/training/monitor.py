"""AlignmentMonitor: measures the alignment condition in `fit`, and drives the switch of `Wrap`."""

import warnings
from typing import Any

import keras
import numpy as np

from keras_dal import _backend
from keras_dal.analysis.alignment import alignment, alignment_from_moments
from keras_dal.analysis.certificate import Certificate, certify
from keras_dal.analysis.descent_bound import l2_factors
from keras_dal.features.tracing import input_specs
from keras_dal.losses import loss_of
from keras_dal.models.structure import find_structure
from keras_dal.training.kernel_change import KernelChange, first_samples
from keras_dal.training.moments import StepMoments
from keras_dal.training.schedule import SwitchSchedule
from keras_dal.training.train_step import StepHooks
from keras_dal.training.wrap import find_wrap


class AlignmentMonitor(keras.callbacks.Callback):
    """Measures how far the labels are in the column space of the Jacobian, each epoch, and switches `Wrap`.

    Every epoch it adds to `logs`: `alignment` in [0, 1], `alignment_rank`, `phase` (0 while exploring, 1 after the
    switch) and `kernel_change`, the relative change of the feature kernel since the start of this `fit`. Callbacks that
    read them (CSVLogger, EarlyStopping, TensorBoard) come after it in the list.

    Without data it measures what flows through `fit`, with no second pass: the features are then those of the training
    step, of a model that still changes while they are summed up, and an estimate. After the switch they no longer
    change. With data it measures exactly, in inference mode, and certifies what is proved at the switch and at the end:
    see `certificates`. With a plain optimizer it only measures.

    Args:
        data: `(x, y)`, `(x, y, sample_weight)` or a dataset of such batches, measured at the end of every epoch; None
            for what flows through `fit`.
        verbose: whether to say in a few lines what was found and frozen at the switch.

    Attributes:
        certificates: with data, the `Certificate` at `"switch"` and at `"end"`.

    Raises:
        ValueError: when training begins, for a model without a linear head or a loss outside the theory.
    """

    def __init__(self, data: Any = None, verbose: bool = True) -> None:
        super().__init__()
        self.data = data
        self.verbose = verbose
        self.certificates: dict[str, Certificate] = {}
        self._wrap = None

    @property
    def phase(self) -> str:
        """`"explore"` or `"exploit"`; always `"explore"` with a plain optimizer."""
        return self._wrap.phase if self._wrap is not None else "explore"

    def on_train_begin(self, logs=None):
        model = self.model
        self._wrap = find_wrap(model.optimizer)
        self._samples = None if self.data is None else first_samples(self.data)
        self._structure = find_structure(model, self._samples, self._parameters)
        self._loss = loss_of(model, self._structure.activation)
        self._check_step_size()
        self._check_explore()
        self._schedule = SwitchSchedule(self._wrap.explore if self._wrap else None, self.params["epochs"])
        self._moments = None
        self.certificates = {}
        if self.data is None:
            self._moments = self._make_moments(model)
        driven = self._wrap if self._wrap is not None and self._wrap.explore is not None else None
        self._hooks = StepHooks(model, self._structure.layer, self._moments, driven)
        self._kernel_change = None
        self._report = None
        self._installed_phase = None

    def _make_moments(self, model):
        structure = self._structure
        with _backend.training_scope(model):
            return StepMoments(structure.num_features, structure.num_outputs, self._loss, input_specs(model))

    def on_epoch_begin(self, epoch, logs=None):
        model = self.model
        if self._kernel_change is None:  # here, not earlier: other callbacks restore weights in on_train_begin
            self._kernel_change = KernelChange(model, self._structure.layer)
        if self._wrap is not None:
            self._wrap.synchronize()
            if self.phase == "explore" and self._schedule.is_due(epoch):
                self._switch(model, epoch)
            elif self.phase == "exploit" and self._is_automatic and self._report is not None:
                self._wrap.learning_rate = self._step_size()  # now of constant features: exact
        if self._moments is not None:
            self._moments.clear()
        if self.phase != self._installed_phase:
            self._hooks.install(self._structure.linear_parameters if self.phase == "exploit" else None)
            self._installed_phase = self.phase

    def on_train_batch_begin(self, batch, logs=None):
        self._hooks.arm()

    def on_epoch_end(self, epoch, logs=None):
        measured = self._measure(self.model)
        self._schedule.observe(measured.get("alignment", np.nan))
        if logs is not None:
            logs.update(measured, phase=float(self.phase == "exploit"))

    def on_train_end(self, logs=None):
        self._hooks.remove()
        if self.data is not None and self._wrap is not None:
            self._certify("end")

    def _measure(self, model):
        if self._moments is None:
            self._report = alignment(
                model, *self._data_arguments(), parameters=self._parameters, decide_separability=False
            )
            samples = self._samples
        else:
            sums, count = self._moments.read()
            if count == 0:
                warnings.warn(
                    "Nothing was measured: the model's train_step does not call compute_loss. Give the monitor its "
                    f"own data, AlignmentMonitor(data=(x, y)). Received: model {model.name!r}",
                    stacklevel=2,
                )
                return {}
            if not np.isfinite(sums).all():
                warnings.warn(
                    "The alignment is not a number: the features or the labels of this epoch are not finite. Lower the "
                    f"learning rate, or look for NaN in the data. Received: inputs of layer {self._hooks.layer.name!r}",
                    stacklevel=2,
                )
                return {"alignment": np.nan, "alignment_rank": np.nan}
            if not self._moments_tell:
                return {} if (samples := self._moments.samples()) is None else self._moved(samples)
            self._report = alignment_from_moments(sums, count, self._structure, self._loss)
            samples = self._moments.samples()
        measured = {"alignment": self._report.alignment, "alignment_rank": self._report.rank}
        return measured if samples is None else measured | self._moved(samples)

    def _moved(self, samples):
        return {"kernel_change": self._kernel_change.measure(samples)}

    @property
    def _moments_tell(self):
        """Whether moments of the features say something about J_S: those of gated units before the head do not."""
        return self._structure.layer is self._structure.output_layer

    def _switch(self, model, epoch):
        if self.data is not None:
            self._wrap.freeze_gates(self._structure)  # the certificate is of the gates that will be
            self._certify("switch")
        self._structure = self._wrap.switch(
            model, self._samples, learning_rate=self._step_size() if self._is_automatic else None
        )
        if self.verbose and _backend.is_chief(model):
            print(self._message(model, epoch), flush=True)

    def _certify(self, when):
        self.certificates[when] = certify(self.model, *self._data_arguments(), parameters=self._parameters)

    def _data_arguments(self):
        return self.data if isinstance(self.data, tuple) else (self.data,)

    @property
    def _parameters(self):
        return self._wrap.exploit if self._wrap is not None else "head"

    @property
    def _is_automatic(self):
        return self._wrap is not None and self._wrap.exploit_learning_rate == "auto"

    def _check_step_size(self):
        if not self._is_automatic:
            return
        if l2_factors(self._structure.linear_parameters) is None:
            raise ValueError(
                "A step size that provably works needs a penalty of known curvature: give the head no regularizer but "
                "L2 and no constraint, or set exploit_learning_rate. Received: exploit_learning_rate='auto' and "
                f"{[(v.path, v.regularizer, v.constraint) for v in self._structure.linear_parameters]}"
            )
        if self._structure.gated_layers and self.data is None:
            raise ValueError(
                "The step size for a gated head is computed from its features: pass AlignmentMonitor(data=(x, y)). "
                "Received: exploit_learning_rate='auto' and data=None"
            )

    def _check_explore(self):
        if self._wrap is not None and self._wrap.explore == "auto" and self.data is None and not self._moments_tell:
            raise ValueError(
                "Gated units before the head are measured on data only: pass AlignmentMonitor(data=(x, y)), or say "
                "when to switch. Received: explore='auto' and data=None"
            )

    def _step_size(self):
        """Return 1/beta, exact where features are those of inference mode."""
        if self.data is not None:
            if "switch" not in self.certificates:  # this fit began after the switch
                self._certify("switch")
            return self.certificates["switch"].step
        if self._report is None:
            return 0.0  # resumed right at the switch: the first epoch only measures
        curvature = self._loss.curvature(self._report.num_outputs)
        penalty = np.max(np.asarray(l2_factors(self._structure.linear_parameters)))
        return 1.0 / (curvature * self._report.sigma_max**2 / self._report.num_samples + 2 * penalty)

    def _message(self, model, epoch):
        trained = self._structure.linear_parameters
        frozen = [v for v in model.trainable_variables if not any(v is other for other in trained)]
        measured = "not measured yet" if self._report is None else self._report.summary().removesuffix(", undecided")
        penalties = ["its regularizers"] if any(v.regularizer is not None for v in trained) else []
        lines = [
            f"keras_dal: exploitation begins at epoch {epoch + 1} of {self.params['epochs']}",
            f"  labels in the column space of the head: {measured}",
            f"  trained:   {_listed(trained)}",
            f"  frozen:    {len(frozen)} variables with {_size(frozen):,} parameters, batch statistics and dropout too",
            f"  minimized: {' plus '.join([self._loss.name, *penalties])}, convex in what is trained",
        ]
        if "switch" in self.certificates:
            lines.append(str(self.certificates["switch"]))
        return "\n".join(lines)


def _size(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _listed(variables):
    return f"{', '.join(v.path for v in variables)} ({_size(variables):,} parameters)"
