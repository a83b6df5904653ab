"""When the monitor's messages are printed: never on a line that Keras still writes, nor at the price of a training."""

from keras_dal import _backend
from keras_dal.output.warning import described, say, warn


class Announcer:
    """Prints what functions of `messages` return, called only where somebody reads it.

    Args:
        model: the model that is trained; only its chief speaks.
        verbose: whether anything is printed.
    """

    def __init__(self, model, verbose):
        self._model, self._verbose, self._unsaid = model, verbose, []

    def say(self, message, *arguments):
        """Print a message now."""
        self.say_later(message, *arguments)
        self.say_all()

    def say_later(self, message, *arguments):
        """Print it when the line of this epoch is complete: Keras writes on it until then."""
        if self._verbose and (text := _text(self._model, message, *arguments)):
            self._unsaid.append(text)

    def insist(self, message, *arguments):
        """Print a message now; where nothing is printed, warn of it."""
        if self._verbose:
            self.say(message, *arguments)
        elif text := _text(self._model, message, *arguments):
            warn(f"{text}. Received: model {self._model.name!r}")

    def say_all(self):
        """Print what is still to be said."""
        for text in self._unsaid:
            say(text)
        self._unsaid = []


def _text(model, message, *arguments):
    """Return a message, None where another process speaks or it cannot be made."""
    if not _backend.is_chief(model):
        return None
    try:
        return message(*arguments)
    except Exception as error:  # of whatever kind: a line of text is not worth a training
        text = "A message of the monitor could not be made, and training goes on without it"
        warn(f"{text}. Received: {described(error)}", error)
        return None
