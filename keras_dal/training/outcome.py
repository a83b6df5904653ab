"""What is left of a fit when it is over: a result, and whether it is still that of the model."""

from keras_dal.finishing.result import Result, is_written


class Outcome:
    """The `Result` of the last convex phase, None before."""

    def __init__(self):
        self.forget()

    def take(self, result: Result):
        """Keep a result of the model as it is now."""
        self.result = result

    def forget(self):
        """Keep none."""
        self.result: Result | None = None

    @property
    def was_replaced(self):
        """Whether there is a result, and the model no longer has the weights that were solved."""
        return self.result is not None and not is_written(self.result)
