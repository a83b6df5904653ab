"""Time of a training step: bare optimizer, wrapped, averaging, monitored, and after the switch.

All variants take turns in one process, so that their ratios mean something on a machine that is not quiet: a ratio is
the median over rounds of that of the medians of a round.

    python benchmarks/step_time.py            # ten minutes on two cores
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import machine  # noqa: E402
from models import resnet  # noqa: E402

import keras_dal  # noqa: E402

RESULT = Path(__file__).parent / "results" / "step_time.json"
SKIPPED = 3  # the first steps of a fit trace and compile


class Clock(keras.callbacks.Callback):
    """Keeps the seconds of every step."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_begin(self, batch, logs=None):
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)


def sgd():
    return keras.optimizers.SGD(1e-3, momentum=0.9)


VARIANTS = {
    "bare optimizer": lambda: (sgd(), []),
    "wrapped, no monitor": lambda: (keras_dal.Wrap(sgd(), explore=None), []),
    "wrapped, averaging": lambda: (keras_dal.Wrap(sgd(), explore=None), []),
    "bare optimizer, monitor": lambda: (sgd(), [keras_dal.AlignmentMonitor(verbose=False)]),
    "wrapped, monitor": lambda: (keras_dal.Wrap(sgd(), explore=10**6), [keras_dal.AlignmentMonitor(verbose=False)]),
    "after the switch": lambda: (keras_dal.Wrap(sgd(), explore=None), [keras_dal.AlignmentMonitor(verbose=False)]),
}


def build(variant, depth):
    keras.utils.set_random_seed(0)
    model = resnet(depth=depth, num_classes=10, input_shape=(32, 32, 3))
    optimizer, callbacks = VARIANTS[variant]()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    if variant == "after the switch":
        optimizer.switch(model)
    if variant == "wrapped, averaging":
        optimizer.build(model.trainable_variables)
        optimizer.begin_average()
    return model, callbacks


def measure(depth, batch, steps, rounds):
    generator = np.random.default_rng(0)
    n = batch * (steps + SKIPPED)
    x, y = generator.standard_normal((n, 32, 32, 3)).astype("float32"), generator.integers(0, 10, n)
    models = {variant: build(variant, depth) for variant in VARIANTS}
    seconds = {variant: [] for variant in VARIANTS}
    for _ in range(rounds):
        for variant, (model, callbacks) in models.items():
            clock = Clock()
            model.fit(x, y, batch_size=batch, epochs=1, verbose=0, callbacks=[*callbacks, clock])
            seconds[variant].append(np.median(clock.seconds[SKIPPED:]))
    return {variant: np.array(medians) for variant, medians in seconds.items()}


def ratio(seconds, name, variant, other):
    """Return the ratio of two variants, and its standard error over rounds, by name."""
    ratios = seconds[variant] / seconds[other]
    error = np.std(ratios, ddof=1) / len(ratios) ** 0.5
    return {name: float(np.median(ratios)), f"{name}, standard error": float(error)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=16)
    arguments = parser.parse_args()
    seconds = measure(arguments.depth, arguments.batch, arguments.steps, arguments.rounds)
    bare = "bare optimizer"
    ratios = {
        **ratio(seconds, "wrapped over bare", "wrapped, no monitor", bare),
        **ratio(seconds, "averaging over wrapped", "wrapped, averaging", "wrapped, no monitor"),
        **ratio(seconds, "monitored over bare", "bare optimizer, monitor", bare),
        **ratio(seconds, "wrapped and monitored over bare", "wrapped, monitor", bare),
        **ratio(seconds, "after the switch over before it", "after the switch", "wrapped, monitor"),
    }
    medians = {variant: float(np.median(values)) for variant, values in seconds.items()}
    RESULT.parent.mkdir(exist_ok=True)
    result = {
        "command": " ".join(["python benchmarks/step_time.py", *sys.argv[1:]]),
        "machine": machine.describe(),
        "backend": keras.backend.backend(),
        "settings": vars(arguments),
        "median_seconds_per_step": medians,
        "ratios": ratios,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in {**medians, **ratios}.items():
        print(f"{name:<50}{value:10.4f}")


if __name__ == "__main__":
    main()
