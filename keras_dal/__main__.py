"""Finish a trained Keras model, certify its last layer, or measure how much of the labels it can reach."""

import argparse
import contextlib
import glob
import inspect
import json
import os
import pathlib
import re
import sys
import tempfile
import warnings
import zipfile
import zlib

import keras
import numpy as np

from keras_dal import __version__
from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.analysis.alignment import alignment
from keras_dal.analysis.certificate import Certificate
from keras_dal.analysis.certify import certify
from keras_dal.features.samples import check_bytes, check_positive
from keras_dal.features.store import abandoned
from keras_dal.finishing.converge import check_options, converge
from keras_dal.finishing.result_rows import WIDTH
from keras_dal.output.tables import as_text, plain
from keras_dal.output.warning import described, say
from keras_dal.solvers.duality import SECONDS
from keras_dal.training.finish import finish


def main(arguments=None):
    """Run one command; return the exit status.

    0 is success, 1 a loss or a minimum that was not reached (the model is saved all the same), 2 bad input or
    whatever else failed, 130 an interrupt, which says whether anything was saved.
    """
    options, saved = _parser().parse_args(arguments), False
    try:
        _check_options(options)
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):  # standard output is for what was found
            warnings.showwarning = _show_warning
            found = _found(options)
        try:
            status = _save(found, options) if "output" in options else 0
        except BaseException:
            with contextlib.suppress(OSError):  # the error is what counts
                _print(found, options, saved)
            raise
        saved = "output" in options
        try:
            _print(found, options, saved)  # last: where nobody reads it, the model is saved all the same
        except BrokenPipeError:  # who reads has read enough, as `head`
            _drop_output()
        return status
    except (ValueError, OSError, MemoryError) as error:
        say(_COLOURS.sub("", str(error) or type(error).__name__), sys.stderr)
        return 2
    except Exception as error:  # of a backend, as for inputs that the model does not take
        say(_COLOURS.sub("", described(error)), sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted" if saved else "interrupted, nothing was saved", sys.stderr)
        return 130


_ABANDONED = 3600  # seconds without a write after which nobody saves a model any more
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # which Keras puts into messages
_EXAMPLES = """examples:
  keras-dal converge model.keras --data train.npz --output done.keras
  keras-dal converge model.keras --data train.npz --validation test.npz --patience 5 --output done.keras
  keras-dal converge model.keras --data train.npz --no-gated --ridge 1e-2 --output done.keras
  keras-dal finish model.keras --data train.npz --output done.keras --quiet
  keras-dal certify model.keras --data train.npz --json > certificate.json
  keras-dal alignment model.keras --data train.npz

train.npz is written by numpy.savez("train.npz", x=x, y=y). `python -m keras_dal` is the same command. Exit status: 0 is
success, 1 a loss or a minimum that was not reached, as by most regressors with the default of --tol (the model is saved
all the same), 2 bad input or whatever else failed, 130 an interrupt, which says whether anything was saved. The result
is on standard output, all else on standard error."""


def _parser():
    parser = argparse.ArgumentParser(
        prog="keras-dal", description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_converge(commands)
    _add_finish(commands)
    _add_deciding_command(commands, certify, "print what is proved about training the head")
    _add_deciding_command(commands, alignment, "print how much of the labels the head can reach")
    return parser


def _add_command(commands, function, text):
    command = commands.add_parser(function.__name__, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(function=function)
    command.add_argument("model", help="a .keras file, compiled")
    command.add_argument("--data", required=True, help=".npz file with x, y and, if wanted, sample_weight")
    command.add_argument("--json", action="store_true", help="print the result as JSON")
    most = "bytes of memory for each of the largest arrays: features, gates, logits (default %(default)s)"
    command.add_argument("--max-bytes", type=int, default=MAX_BYTES, help=most)
    return command


def _add_deciding_command(commands, function, text):
    most = "seconds for each solver, inf for no limit (default %(default)s)"
    _add_command(commands, function, text).add_argument("--time-limit", type=float, default=SECONDS, help=most)


def _add_saving_command(commands, function, text):
    command = _add_command(commands, function, text)
    command.add_argument("--output", required=True, help="where to save the model, a .keras file")
    quiet = {"dest": "verbose", "action": "store_const", "const": 0, "default": 1}
    command.add_argument("--quiet", **quiet, help="print the result and warnings alone")
    return command


def _add_converge(commands):
    text = "fit every training sample by the head, with little change elsewhere, and save the model"
    command = _add_saving_command(commands, converge, text)
    command.add_argument(
        "--tol",
        type=float,
        help="training loss to reach (default 1e-4 times the mean weight, for squared errors times the variance of y)",
    )
    command.add_argument("--validation", dest="validation_data", metavar="VALIDATION", help=".npz file with x and y")
    command.add_argument("--anchors", help=".npz file with x: inputs whose predictions should stay")
    command.add_argument(
        "--gated",
        action=argparse.BooleanOptionalAction,
        default="auto",
        help="whether to add a gated head; by default where the own head is not found to separate the samples",
    )
    command.add_argument("--ridge", type=float, help="minimize the loss plus this times the change of the logits")
    command.add_argument(
        "--patience",
        type=int,
        help="end after so many points without a better validation accuracy; trying the own head does not count",
    )
    command.add_argument("--scaled", action="store_true", help="save at the scale that reaches the loss")
    command.add_argument("--time-limit", type=float, help="seconds for the solver (default: no limit)")
    command.add_argument("--cache", help="directory in which features are kept")


def _add_finish(commands):
    text = "minimize the loss of the head plus a little of the change, as the end of two-phase training does, and save"
    command = _add_saving_command(commands, finish, text)
    command.add_argument("--statistics-from", help=".npz file with x: inputs on which batch statistics are renewed")


_ARRAYS = ("x", "y", "sample_weight")  # of a file of data


def _load(path):
    """Return the model of a file; a ValueError says what to do where Keras does not know one of its classes."""
    _check_there(path)
    if os.path.isdir(path) or (path.endswith(".keras") and not zipfile.is_zipfile(path)):
        raise ValueError(f"The file is not a whole .keras file. Received: {path}")
    try:
        return keras.saving.load_model(path)
    except zipfile.BadZipFile as error:
        raise _altered(path, error) from None
    except ValueError as error:
        if "safe_mode" not in str(error):
            raise
        raise ValueError(
            "The model holds Python code, as Lambda layers do, which Keras runs only from files that you trust. Load "
            "it in Python, keras.saving.load_model(path, safe_mode=False), and call keras_dal there. Received: "
            f"{path}"
        ) from error
    except TypeError as error:
        unknown = re.search(r"Could not locate (\w+ '.+?')", str(error))
        if unknown is None:
            raise ValueError(f"Keras cannot rebuild the model: {error}. Received: {path}") from error
        raise ValueError(
            "Keras cannot rebuild the model. It finds classes of your own only once a module that registers them with "
            "`keras.saving.register_keras_serializable` was imported, which no command does: load the model in Python "
            f"and call keras_dal there. Received: {path} with {unknown[1]}"
        ) from error


def _read(path):
    """Return x, y and sample_weight of an .npz file by their names, None for what it does not have."""
    if not path.endswith(".npz"):
        raise ValueError(f"Data must be an .npz file with x and y. Received: {path}")
    _check_there(path)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"The file is not a whole .npz file. Received: {path}")
    try:
        with np.load(path) as arrays:
            if "x" not in arrays:
                raise ValueError(f"The file must hold an array named x. Received: {path} with {sorted(arrays)}")
            if others := sorted(set(arrays) - set(_ARRAYS)):
                say(f"of {path} only {', '.join(_ARRAYS)} are read, not {', '.join(others)}", sys.stderr)
            return {name: arrays.get(name) for name in _ARRAYS}
    except (zipfile.BadZipFile, zlib.error) as error:
        raise _altered(path, error) from None
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise ValueError(
            f"Arrays of Python objects are not read: save x and y as numbers, y.astype(int) say. Received: {path}"
        ) from None


def _check_there(path):
    """Raise where there is nothing at a path."""
    if not os.path.exists(path):
        raise ValueError(f"There is no such file. Received: {path}")


def _altered(path, error):
    return ValueError(f"The file was altered since it was written. Received: {path}: {error}")


def _inputs(path):
    """Return x of a file."""
    return _read(path)["x"]


def _validation(path):
    """Return x and y of a file, which is to have no weights."""
    arrays = _read(path)
    if arrays["sample_weight"] is not None:
        raise ValueError(f"Validation data have no weights. Received: {path} with sample_weight")
    return arrays["x"], arrays["y"]


# options that name a file or a folder, and what becomes of it
_NAMES = {"validation_data": _validation, "anchors": _inputs, "statistics_from": _inputs, "cache": str}


def _check_options(options):
    """Raise before anything is read for bad numbers, or where the model could not be saved."""
    check_bytes("max_bytes", options.max_bytes)
    if options.function is converge:
        validation = (options.validation_data,) if options.validation_data else None
        check_options(options.tol, options.gated, options.ridge, options.patience, options.time_limit, validation)
    elif getattr(options, "time_limit", None) is not None:
        check_positive("time_limit", options.time_limit)
    if "output" not in options:
        return
    path = pathlib.Path(options.output)
    if path.suffix != ".keras" or not path.parent.is_dir():
        raise ValueError(f"--output must be a .keras file in a directory that exists. Received: {path}")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output cannot be written to: choose another file, or another directory. Received: {path}")


def _found(options):
    """Return what the function of a command finds, whose arguments the options are by their names."""
    given = vars(options) | {"model": _load(options.model)} | _read(options.data)
    # an empty name, as of a variable that a script has not set, is none
    given |= {name: read(given[name]) if given[name] else None for name, read in _NAMES.items() if name in given}
    function = options.function
    return function(**{name: given[name] for name in inspect.signature(function).parameters if name in given})


def _json(found):
    """Return what a command found as a JSON object of its plain fields, numbers first, lists of all samples last."""
    if isinstance(found, Certificate):
        return found.to_json()
    more = {name: getattr(found, name) for name in ("reached", "alignment") if hasattr(found, name)}
    fields = {**more, **plain(found)}
    return json.dumps(dict(sorted(fields.items(), key=lambda field: isinstance(field[1], (list, dict)))))


def _print(found, options, saved):
    """Print what was found, on standard output, and where its model is, if it is saved."""
    shows = getattr(options, "verbose", 0)
    if shows:
        print(file=sys.stderr)  # between the way there and the result
    print(_json(found) if options.json else found, flush=True)
    if shows and saved:
        row = as_text([("saved", options.output)], width=WIDTH)  # one more of the result
        print(row, file=sys.stderr if options.json else sys.stdout)


def _show_warning(message, *rest):
    """Print a warning as a line, without the place in the code, which says nothing to who calls a command."""
    say(_COLOURS.sub("", f"warning: {message}"), sys.stderr)


def _drop_output():
    """Let standard output go nowhere: Python flushes it as it ends, and would complain of a closed pipe."""
    with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _save(result, options):
    """Save the model of a result and return the exit status."""
    if getattr(options, "scaled", False):
        try:
            result.rescale()
        except ValueError as error:  # the model is saved all the same
            say(error, sys.stderr)
    _replace(result.model, options.output)
    return 0 if result.reached else 1


def _replace(model, path):
    """Save under another name first: what was at this path is lost only when the new file is whole."""
    path = pathlib.Path(path)
    _remove_abandoned(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.stem}-", suffix=".partial") as folder:
        model.save(whole := pathlib.Path(folder) / path.name)
        os.replace(whole, path)


def _remove_abandoned(path):
    """Remove what a process that was killed while it saved a model of this name has left: nothing else is in there."""
    for folder in abandoned(path.parent, f"{glob.escape(path.stem)}-????????.partial", _ABANDONED):
        with contextlib.suppress(OSError):  # no folder, or another process was faster
            if all(part.name == path.name for part in folder.iterdir()):
                (folder / path.name).unlink(missing_ok=True)
                folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
