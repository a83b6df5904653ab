"""What AlignmentMonitor adds to a fit, for heads of 64 to 4,096 features.

    OMP_NUM_THREADS=1 python benchmarks/monitor_price.py

A network whose last hidden layer is wide, on 32 x 32 images, in which the features are nearly all there is to train, so
that this is the most that the monitor can cost; and a ResNet-8. Processor time is compared, which others change
little. Measuring is priced inside one fit: the median epoch that ended in a measurement, against the median of those
that did not. What a step takes more in an epoch without measurements, the second one, is a row of its own: steps of two
models by turns, one of which is watched, so that a drift of the machine is in both.
"""

import functools
import json
import sys
import time
from pathlib import Path

import keras
import machine
import numpy as np
import tensorflow as tf

import keras_dal

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "monitor_price.json"
sys.path.insert(0, str(ROOT / "examples"))

from models import resnet  # noqa: E402

EPOCHS = {64: 60, 256: 60, 1024: 60, 2048: 12, 4096: 12}  # by features; those of the last two take seconds
SAMPLES, BATCH, ALONE = 2048, 128, 6
TURNS, SECONDS = 60, 0.15  # of steps, and how long each takes about
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
    """Notes the processor time of each epoch, and whether something was measured at its end; listed last."""

    def on_train_begin(self, logs=None):
        self.seconds, self.measured, self._values, self._since = [], [], [], time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        values, now = [str(logs.get(name)) for name in MEASURED], time.process_time()
        self.seconds.append(now - self._since)
        self.measured.append(values != self._values)
        self._values, self._since = values, now


def clocked(make, x, y, epochs, callbacks=()):
    model, clocks = make(), Clocks()  # a new one: each traces its step
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[*callbacks, clocks])
    return np.array(clocks.seconds), np.array(clocks.measured)


class Turns(keras.callbacks.Callback):
    """Times steps of the model that is trained and of a plain one, by turns, in the second epoch; then training ends.

    Args:
        monitor: the monitor of the fit, which stands before it in the list.
        plain: a model that has been trained.
        batch: `(x, y)`.
    """

    def __init__(self, monitor, plain, batch):
        super().__init__()
        self._monitor, self._plain = monitor, plain
        self._batches = iter(tf.data.Dataset.from_tensors(batch).repeat())

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            self._plain.make_train_function()
            ways = self._step_alone, self._step
            step, _ = (timed(way, 4) for way in ways)
            count = max(1, round(SECONDS / step))
            pairs = [[timed(way, count) for way in ways[:: (-1) ** turn]][:: (-1) ** turn] for turn in range(TURNS)]
            self.alone, self.watched = np.transpose(pairs)
            self.model.stop_training = True

    def _step_alone(self):
        self._plain.train_function(self._batches)

    def _step(self):
        self._monitor.on_train_batch_begin(0)
        self.model.train_function(self._batches)


def timed(function, count):
    """Return the processor time of one call, in seconds."""
    since = time.process_time()
    for _ in range(count):
        function()
    return (time.process_time() - since) / count


def by_turns(make, epochs, x, y):
    """Return the seconds of steps alone and of watched ones."""
    plain, model, monitor = make(), make(), keras_dal.AlignmentMonitor(verbose=False)
    plain.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, verbose=0)
    turns = Turns(monitor, plain, (tf.constant(x[:BATCH]), tf.constant(y[:BATCH])))
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[monitor, turns])
    return turns.alone, turns.watched


def priced(make, epochs, x, y):
    """Return what the monitor adds to a fit of a model, of so many epochs."""
    steps, watched = by_turns(make, epochs, x, y)
    more = np.median(watched - steps)
    before, _ = clocked(make, x, y, ALONE)
    seconds, measured = clocked(make, x, y, epochs, [keras_dal.AlignmentMonitor(verbose=False)])
    after, _ = clocked(make, x, y, ALONE)
    measured[0] = False  # told apart
    alone, others = np.median([*before[1:], *after[1:]]), np.median(seconds[1:][~measured[1:]])
    measuring = float(np.median(seconds[measured]) - others) if measured.any() else 0.0
    first = float(seconds[0] - np.median([before[0], after[0]]))
    return {
        "epochs": epochs,
        "an epoch alone, seconds": float(alone),
        "the first epoch takes more by, seconds": first,
        "measurements after it": int(measured.sum()),
        "each takes, seconds": measuring,
        "of the fit, share": float((first + measured.sum() * measuring) / (epochs * alone)),
        "a step alone, seconds": float(np.median(steps)),
        "one that measures nothing takes more by, seconds": float(more),
        "which is a share of": float(more / np.median(steps)),
        "standard error of that": float(np.std((watched - steps) / steps, ddof=1) / TURNS**0.5),
        "epochs alone, seconds": [np.round(each, 4).tolist() for each in (before, after)],
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
