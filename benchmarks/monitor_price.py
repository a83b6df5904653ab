"""What AlignmentMonitor adds to a whole fit, for heads of 64 to 4,096 features.

    python benchmarks/monitor_price.py         # about 10 minutes on two cores

A network whose last hidden layer is wide, on 32 x 32 images; fits with and without the monitor take turns. The features
are nearly all there is to train, so this is the most that the monitor can cost. What it does once, in the first epoch,
is told apart from what it does in every one.
"""

import json
import sys
import time
from pathlib import Path

import keras
import machine
import numpy as np

import keras_dal

RESULT = Path(__file__).parent / "results" / "monitor_price.json"
FEATURES, SAMPLES, EPOCHS, ROUNDS = (64, 256, 1024, 2048, 4096), 2048, 16, 4


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
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(1e-3), loss)
    return model


class Clocks(keras.callbacks.Callback):
    """Notes the time after each epoch; listed last. How long an iterator takes to be let go is not in it."""

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.perf_counter())


def seconds_of(features, x, y, callbacks):
    """Return the seconds of a fit until its first epoch has ended, and of all the others."""
    model, clocks = model_of(features), Clocks()  # a new one: both trace their step
    start = time.perf_counter()
    model.fit(x, y, batch_size=128, epochs=EPOCHS, verbose=0, callbacks=[*callbacks, clocks])
    return clocks.ends[0] - start, clocks.ends[-1] - clocks.ends[0]


def main():
    generator = np.random.default_rng(0)
    x, y = generator.random((SAMPLES, 32, 32, 3), np.float32), generator.integers(0, 10, SAMPLES)
    rows = {}
    for features in FEATURES:
        pairs = [
            (seconds_of(features, x, y, []), seconds_of(features, x, y, [keras_dal.AlignmentMonitor(verbose=False)]))
            for _ in range(ROUNDS)
        ][1:]
        alone, monitored = (np.array(runs) for runs in zip(*pairs, strict=True))
        first, rest = (monitored - alone).T
        rows[f"{features:,} features"] = {
            "seconds alone, median": float(np.median(alone.sum(axis=1))),
            "first epoch takes more by, seconds, median": float(np.median(first)),
            "other epochs take more by, share of theirs, median": float(np.median(rest / alone[:, 1])),
            "other epochs take more by, shares": (rest / alone[:, 1]).tolist(),
            "ratio of the whole fits, median": float(np.median(monitored.sum(axis=1) / alone.sum(axis=1))),
        }
        print(features, rows[f"{features:,} features"], flush=True)
    result = {
        "command": " ".join(["python benchmarks/monitor_price.py", *sys.argv[1:]]),
        "machine": machine.describe(),
        "setting": {"samples": SAMPLES, "epochs": EPOCHS, "rounds": ROUNDS - 1},
        **rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
