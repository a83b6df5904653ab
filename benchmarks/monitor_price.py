"""What AlignmentMonitor adds to a fit, for heads of 64 to 4,096 features.

    OMP_NUM_THREADS=1 python benchmarks/monitor_price.py

A network whose last hidden layer is wide, on 32 x 32 images, in which the features are nearly all there is to train, so
that this is the most that the monitor can cost; and a ResNet-8. Processor time is compared, which others change
little. Measuring is priced inside one fit: the median epoch that ended in a measurement, against the median of those
that did not. What these take more than epochs without a monitor is a row of its own, from short fits with and without
one by turns, so that a drift of the machine is in both; these measure as rarely as whole ones, and stop early.
"""

import functools
import json
import sys
import time
from pathlib import Path

import keras
import machine
import numpy as np

import keras_dal

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "monitor_price.json"
sys.path.insert(0, str(ROOT / "examples"))

from models import resnet  # noqa: E402

EPOCHS = {64: 60, 256: 60, 1024: 60, 2048: 12, 4096: 12}  # by features; those of the last two take seconds
SAMPLES, SHORT, TURNS = 2048, 5, 4
MEASURED = ("alignment", "kernel_change")


def model_of(features):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(16, 3, 2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(features, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    return compiled(model)


def resnet_8():
    keras.utils.set_random_seed(0)
    return compiled(resnet(depth=8))


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss)
    return model


class Clocks(keras.callbacks.Callback):
    """Notes the processor time of each epoch, and whether something was measured at its end; listed last.

    Args:
        last: the number of epochs after which training stops, whatever number `fit` was told.
    """

    def __init__(self, last=None):
        super().__init__()
        self._last = last

    def on_train_begin(self, logs=None):
        self.seconds, self.measured, self._values, self._since = [], [], [], time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        values, now = [str(logs.get(name)) for name in MEASURED], time.process_time()
        self.seconds.append(now - self._since)
        self.measured.append(values != self._values)
        self._values, self._since = values, now
        self.model.stop_training = epoch + 1 == self._last


def clocked(make, x, y, epochs, callbacks=(), last=None):
    model, clocks = make(), Clocks(last)  # a new one: each traces its step
    model.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=[*callbacks, clocks])
    return np.array(clocks.seconds), np.array(clocks.measured)


def monitor():
    return [keras_dal.AlignmentMonitor(verbose=False)]


def priced(make, epochs, x, y):
    """Return what the monitor adds to a fit of a model, of so many epochs."""
    seconds, measured = clocked(make, x, y, epochs, monitor())
    measured[0] = False  # told apart
    measuring = float(np.median(seconds[measured]) - np.median(seconds[1:][~measured[1:]])) if measured.any() else 0.0
    alone, ratios, first = [], [], []
    for turn in range(TURNS):
        fits = {}
        for with_monitor in (False, True) if turn % 2 else (True, False):
            fits[with_monitor] = clocked(make, x, y, epochs, monitor() if with_monitor else (), last=SHORT)
        (plain, _), (watched, seen) = fits[False], fits[True]
        first.append(watched[0] - plain[0])
        alone.append(np.median(plain[1:]))
        ratios.append(np.median(watched[1:][~seen[1:]]) / alone[-1])
    epoch, more = float(np.median(alone)), float(np.median(first))
    return {
        "epochs": epochs,
        "an epoch alone, seconds": epoch,
        "the first epoch takes more by, seconds": more,
        "measurements after it": int(measured.sum()),
        "each takes, seconds": measuring,
        "of the fit, share": (more + int(measured.sum()) * measuring) / (epochs * epoch),
        "another epoch takes more by, share": float(np.mean(ratios) - 1),
        "standard error of that": float(np.std(ratios, ddof=1) / TURNS**0.5),
        "another epoch over one alone, by turns": np.round(ratios, 4).tolist(),
        "epochs, seconds": np.round(seconds, 4).tolist(),
        "measured after": np.flatnonzero(measured).tolist(),
    }


def main():
    generator = np.random.default_rng(0)
    x, y = generator.random((SAMPLES, 32, 32, 3), np.float32), generator.integers(0, 10, SAMPLES)
    cases = {f"{features:,} features": (functools.partial(model_of, features), EPOCHS[features]) for features in EPOCHS}
    cases["ResNet-8, 64 features"] = resnet_8, EPOCHS[64]
    rows = {}
    for name, (make, epochs) in cases.items():
        rows[name] = priced(make, epochs, x, y)
        print(name, {key: value for key, value in rows[name].items() if not isinstance(value, list)}, flush=True)
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/monitor_price.py",
        "machine": machine.describe(),
        "setting": {"samples": SAMPLES},
        **rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
