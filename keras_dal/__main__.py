"""`python -m keras_dal converge|certify|alignment model.keras --data train.npz`: the package from the shell."""

import argparse
import sys

import keras
import numpy as np

from keras_dal.alignment import alignment
from keras_dal.certificate import certify
from keras_dal.converge import converge


def main(arguments=None):
    """Run one command; return the exit status: 0, 1 where the wanted loss was not reached, 2 for bad input."""
    options = _parser().parse_args(arguments)
    try:
        model = keras.saving.load_model(options.model)
        x, y, weight = _read(options.data)
        return options.run(options, model, x, y, weight)
    except (ValueError, OSError) as error:
        print(f"keras_dal: {error}", file=sys.stderr)
        return 2


def _parser():
    parser = argparse.ArgumentParser(prog="python -m keras_dal", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    for name, run, text in (
        ("converge", _converge, "solve the head for its global optimum and save the model"),
        ("certify", _certify, "print what is proved about training the head"),
        ("alignment", _alignment, "print how much of the labels the head can reach"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        command.add_argument("model", help="a .keras file, compiled")
        command.add_argument("--data", required=True, help=".npz file with x, y and, if wanted, sample_weight")
        command.add_argument("--json", action="store_true", help="print JSON") if name == "certify" else None
        if name == "converge":
            command.add_argument("--output", required=True, help="where to save the model")
            command.add_argument("--tol", type=float, default=1e-4, help="training loss to reach (default %(default)s)")
            command.add_argument("--validation", help=".npz file with x and y")
            command.add_argument("--anchors", help=".npz file with x: inputs whose predictions should stay")
            command.add_argument("--gated", choices=("auto", "always", "never"), default="auto")
            command.add_argument("--scaled", action="store_true", help="save at the scale that reaches the loss")
            command.add_argument("--time-limit", type=float, help="seconds for the solver")
            command.add_argument("--cache", help="directory in which features are kept")
    return parser


def _read(path):
    """Return x, y and sample_weight of an .npz file, None for what it does not have."""
    if not path.endswith(".npz"):
        raise ValueError(f"Data must be an .npz file with x and y. Received: {path}")
    with np.load(path) as arrays:
        if "x" not in arrays:
            raise ValueError(f"The file must hold an array named x. Received: {path} with {sorted(arrays)}")
        return tuple(arrays.get(name) for name in ("x", "y", "sample_weight"))


def _converge(options, model, x, y, weight):
    result = converge(
        model,
        x,
        y,
        weight,
        tol=options.tol,
        validation_data=_read(options.validation)[:2] if options.validation else None,
        anchors=_read(options.anchors)[0] if options.anchors else None,
        gated={"auto": "auto", "always": True, "never": False}[options.gated],
        time_limit=options.time_limit,
        cache=options.cache,
    )
    if options.scaled:
        result.rescale()
    result.model.save(options.output)
    print(f"\n{result}\nsaved              {options.output}")
    return 0 if result.reached else 1


def _certify(options, model, x, y, weight):
    certificate = certify(model, x, y, weight)
    print(certificate.to_json() if options.json else certificate)
    return 0


def _alignment(options, model, x, y, weight):
    print(alignment(model, x, y, weight))
    return 0


if __name__ == "__main__":
    sys.exit(main())
