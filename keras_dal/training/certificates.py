"""The certificates of a fit: at the switch, and of the weights there are at the end."""

import math

from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.certify import certify


class Certificates(dict[str, Certificate]):
    """Certificates by moment; that at the `"end"` is made when it is asked for, of the weights there are then.

    Args:
        model: the model that is trained.
        data: what `certify` takes after the model, `(x, y)`, `(x, y, sample_weight)` or `(dataset,)`; None for none.
        parameters: as in `certify`.
    """

    def __init__(self, model, data, parameters):
        super().__init__()
        self._model, self._data, self._parameters = model, data, parameters

    def renew(self, moment):
        """Make the certificate of a moment, of the weights as they are now."""
        if self._data is None:
            raise KeyError("Certificates need data: AlignmentMonitor(data=(x, y)). Received: data=None")
        options = {"max_bytes": math.inf, "verbose": 0}  # a training is not to fail by a limit that nobody has set
        self[moment] = certify(self._model, *self._data, parameters=self._parameters, **options)

    def at(self, moment):
        """Return the certificate of a moment, which is made where there is none yet."""
        if moment not in self:
            self.renew(moment)
        return self[moment]

    def __missing__(self, moment):
        if moment != "end":
            raise KeyError(moment)
        return self.at(moment)
