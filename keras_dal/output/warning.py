"""What users are told: lines that are printed, and warnings that point to the user's own line."""

import inspect
import warnings

import keras

_INSIDE = {"keras_dal", "keras", keras.backend.backend(), "contextlib", "functools"}


def say(text, file=None):
    """Print a text under the name of the package.

    Args:
        text: one line, or several of which the first is a heading.
        file: where to; standard output by default.
    """
    print(f"keras_dal: {text}", file=file, flush=True)


def warn(message, cause=None):
    """Warn as of the innermost line outside of this package and of what calls it: Keras, and backends that trace.

    Args:
        message: what was met, what to do, and what was received.
        cause: an exception that is not raised: `warnings.simplefilter("error")` shows its traceback, too.
    """
    warning = UserWarning(message)
    warning.__cause__ = cause
    frame, level = inspect.currentframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(warning, stacklevel=level)


def described(error):
    """Return an error as the end of a message."""
    return f"{type(error).__name__}: {error}"
