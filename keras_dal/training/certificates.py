"""The certificates of a fit: at the switch, and of the weights there are at the end."""

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.certify import certify
from keras_dal.features.variables import checksum


class Certificates(dict[str, Certificate]):
    """Certificates by moment; that at the `"end"` is of the weights that there are when it is asked for.

    Args:
        model: the model that is trained.
        data: what `certify` takes after the model, `(x, y)`, `(x, y, sample_weight)` or `(dataset,)`; None for none.
        parameters, max_bytes: as in `certify`.
    """

    def __init__(self, model, data, parameters, max_bytes=MAX_BYTES):
        super().__init__()
        self._model, self._data, self._options = model, data, {"parameters": parameters, "max_bytes": max_bytes}
        self._weights: int | None = None  # a checksum of those that the certificate at the end is of

    def renew(self, moment):
        """Make the certificate of a moment, of the weights as they are now."""
        if self._data is None:
            raise KeyError("Certificates need data: AlignmentMonitor(data=(x, y)). Received: data=None")
        self[moment] = certify(self._model, *self._data, **self._options, verbose=0)

    def at(self, moment):
        """Return the certificate of a moment, which is made where there is none yet."""
        if moment not in self:
            self.renew(moment)
        return self[moment]

    def __getitem__(self, moment):
        if moment == "end":
            weights = None if self._data is None else checksum(self._model.weights)
            if moment not in self or weights != self._weights:
                self.renew(moment)
                self._weights = weights
        return super().__getitem__(moment)
