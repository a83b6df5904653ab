"""The second phase as gradient steps, `finish="descend"`: a switch, and the step for which convergence is proved."""

from typing import Any

from keras_dal.output.warning import described, warn
from keras_dal.training.frozen import Snapshot
from keras_dal.training.state import state_of
from keras_dal.training.step_size import step_size


class Descent:
    """What `ConvexPhase` is where the user's own optimizer goes on after the switch.

    Args:
        wrap: the `Wrap` inside the optimizer of the model that is trained.
        structure: the `Structure` of that model.
        loss: a `losses.Loss`.
        certificates: the `Certificates` of the fit.
        has_data: whether there are data for a certificate at the switch.
    """

    def __init__(self, wrap, structure, loss, certificates, has_data):
        self._wrap, self._structure, self._loss = wrap, structure, loss
        self._certificates, self._has_data = certificates, has_data
        self._before: Any = None  # what is put back where the switch fails

    @property
    def certificate(self):
        """That at the switch, None where there is none."""
        return self._certificates.get("switch")

    def begin(self, report, needed):
        """Switch the optimizer, which trains the linear parameters alone from now on.

        Args:
            report: the last `AlignmentReport`, or None.
            needed: whether it must be known by now, as for `step_size`.
        """
        self._before = Snapshot(self._structure.model, self._wrap)
        if self._has_data:
            state_of(self._wrap).freeze_gates(self._structure)  # the certificate is of the gates that will be
            self._certify()
        rate = self._step_size(report, needed) if state_of(self._wrap).rates.are_proven else None
        self._wrap.switch(self._structure.model, learning_rate=rate, structure=self._structure)
        self._before = None

    def _certify(self):
        """Certify the switch; without room for it only the step that is proved cannot do."""
        try:
            self._certificates.renew("switch")
        except MemoryError as error:
            if state_of(self._wrap).rates.are_proven:
                raise
            warn(f"There is no certificate of the switch, and training goes on. Received: {described(error)}", error)

    def undo(self):
        """Put back what there was before a switch that failed."""
        if self._before is not None:
            self._before.restore()
            self._before = None
            self._certificates.pop("switch", None)

    def take_exact_step(self, report):
        """Take the step of what was measured last, now of constant features."""
        try:
            state_of(self._wrap).rates.take(self._step_size(report))
        except Exception as error:  # of whatever kind: hours of training are at stake
            warn(f"The proven step stays what it was. Received: {described(error)}", error)

    def _step_size(self, report, needed=False):
        if self._has_data:
            self._certificates.at("switch")
        return step_size(self._structure, self._loss, report, self.certificate, needed)
