"""What each part of the end of training costs, beside an epoch that trains: averages, statistics, features, solver.

    python benchmarks/switch_price.py cifar10 --images 5000 --data-dir ~/tensorflow_datasets

trains a ResNet-8 for a few epochs as benchmarks/two_lines.py does, the last of which averages, and takes the time of
what follows, part by part; what the first call of a part takes more than the others is tracing. Writes
benchmarks/results/switch_price.json, and with KERAS_BACKEND=jax or torch a file of that name.
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import keras  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
from settings import SETS  # noqa: E402
from two_lines import Training  # noqa: E402

import keras_dal  # noqa: E402
from keras_dal.training.convex_phase import ConvexPhase  # noqa: E402
from keras_dal.training.gathering import Gathering  # noqa: E402
from keras_dal.training.statistics import BatchStatistics  # noqa: E402

BACKEND = keras.backend.backend()
RESULT = Path(__file__).parent / "results" / f"switch_price{f'_{BACKEND}' * (BACKEND != 'tensorflow')}.json"
EXPLORED = 6  # epochs, of which the last averages
PARTS = {"statistics": (BatchStatistics, "add"), "features": (Gathering, "_keep")}
ONCE = {"metrics and alignment": (ConvexPhase, "show")}


class Epochs(keras.callbacks.Callback):
    """Keeps the seconds of epochs, with and without those of validation."""

    def __init__(self):
        super().__init__()
        self.whole, self.validation, self.begun, self.test = [], [], 0.0, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.begun = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.whole.append(time.perf_counter() - self.begun)

    def on_test_begin(self, logs=None):
        self.test = time.perf_counter()

    def on_test_end(self, logs=None):
        self.validation.append(time.perf_counter() - self.test)


@contextlib.contextmanager
def timed(of_class, name, seconds):
    """Adds the seconds of every call of a method to a list."""
    method = getattr(of_class, name)

    def call(*args, **kwargs):
        started = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    with mock.patch.object(of_class, name, call):
        yield


def measured(training):
    """Return seconds by the name of a part."""
    calls, epochs, monitor = {name: [] for name in PARTS | ONCE}, Epochs(), keras_dal.AlignmentMonitor(verbose=False)
    model = training.model(keras_dal.Wrap(training.optimizer(60), explore=EXPLORED))
    with contextlib.ExitStack() as stack:
        for name, (of_class, method) in (PARTS | ONCE).items():
            stack.enter_context(timed(of_class, method, calls[name]))
        training.fit(model, EXPLORED + 2, [monitor, epochs])  # in this order, validation begins after the solver
    trains = np.subtract(epochs.whole, epochs.validation)
    parts = {name: float(len(calls[name]) * np.median(calls[name])) for name in PARTS}
    parts |= {name: float(sum(calls[name])) for name in ONCE} | {"solver": monitor.result.seconds}
    tracing = {name: calls[name][0] - float(np.median(calls[name])) for name in PARTS}
    reading = float(trains[EXPLORED])
    return {
        "an epoch that trains": float(np.median(trains[1 : EXPLORED - 1])),
        "an epoch that averages, too": float(trains[EXPLORED - 1]),
        "validation": float(epochs.validation[EXPLORED]),
        "the epoch that reads": reading,
        **parts,
        **{f"tracing of {name}": value for name, value in tracing.items()},
        "the rest of it": reading - sum(parts.values()) - sum(tracing.values()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=SETS)
    parser.add_argument("--images", type=int)
    parser.add_argument("--data-dir")
    options = parser.parse_args(namespace=argparse.Namespace(recipe="sgd", augment="model", epochs=60, explore=None))
    seconds = {name: round(value, 3) for name, value in measured(Training(options, 0)).items()}
    command = f"python benchmarks/switch_price.py {options.dataset} --images {options.images} --data-dir DIR"
    command = f"KERAS_BACKEND={BACKEND} " * (BACKEND != "tensorflow") + command
    RESULT.write_text(
        json.dumps({"command": command, "machine": machine.describe(), "seconds": seconds}, indent=1) + "\n"
    )
    for name, value in seconds.items():
        print(f"{name:<32}{value:10.3f} s")


if __name__ == "__main__":
    main()
