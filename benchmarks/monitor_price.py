"""What AlignmentMonitor adds to a whole fit, for heads of 64 to 4,096 features.

    python benchmarks/monitor_price.py         # about 4 minutes on two cores

A network whose last hidden layer is wide, on 32 x 32 images; fits with and without the monitor take turns. The features
are nearly all there is to train, so this is the most that the monitor can cost.
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
FEATURES, SAMPLES, EPOCHS, ROUNDS = (64, 256, 1024, 2048, 4096), 2048, 4, 4


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


def seconds_of(features, x, y, callbacks):
    model = model_of(features)  # a new one: both trace their step
    start = time.perf_counter()
    model.fit(x, y, batch_size=128, epochs=EPOCHS, verbose=0, callbacks=callbacks)
    return time.perf_counter() - start


def main():
    generator = np.random.default_rng(0)
    x, y = generator.random((SAMPLES, 32, 32, 3), np.float32), generator.integers(0, 10, SAMPLES)
    rows = {}
    for features in FEATURES:
        pairs = [
            (seconds_of(features, x, y, []), seconds_of(features, x, y, [keras_dal.AlignmentMonitor(verbose=False)]))
            for _ in range(ROUNDS)
        ][1:]
        ratios = [there / here for here, there in pairs]
        rows[f"{features:,} features"] = {
            "seconds alone": float(np.median([pair[0] for pair in pairs])),
            "seconds with the monitor": float(np.median([pair[1] for pair in pairs])),
            "ratio, median": float(np.median(ratios)),
            "ratio, least": min(ratios),
            "ratio, most": max(ratios),
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
