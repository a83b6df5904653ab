"""What is left of a fit when it is over: a result, and whether it is still that of the model."""

from keras_dal.finishing.result import Result, is_written
from keras_dal.training.frozen import checksum


class Outcome:
    """The `Result` of the last convex phase, None before, with a checksum of the model that it speaks of."""

    def __init__(self):
        self.forget()

    def take(self, result: Result):
        """Keep a result of the model as it is now."""
        self.result, self._checksum = result, checksum(result.model, result.structure)

    def forget(self):
        """Keep none."""
        self.result: Result | None = None
        self._checksum: int | None = None

    @property
    def was_replaced(self):
        """Whether there is a result, and the model no longer has the weights that were solved."""
        result = self.result
        return result is not None and not (
            checksum(result.model, result.structure) == self._checksum and is_written(result)
        )
