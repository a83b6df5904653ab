"""Time of a training step: bare optimizer, wrapped, monitored, and after the switch.

All variants take turns in one process, so that their ratios mean something on a machine that is not quiet.

    python benchmarks/step_time.py            # 3 to 5 minutes on two cores
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
            seconds[variant].append(clock.seconds[SKIPPED:])
    return {variant: float(np.median(np.concatenate(parts))) for variant, parts in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    seconds = measure(arguments.depth, arguments.batch, arguments.steps, arguments.rounds)
    bare, explore = seconds["bare optimizer"], seconds["wrapped, monitor"]
    ratios = {
        "wrapped over bare": seconds["wrapped, no monitor"] / bare,
        "monitored over bare": seconds["bare optimizer, monitor"] / bare,
        "wrapped and monitored over bare": explore / bare,
        "after the switch over before it": seconds["after the switch"] / explore,
    }
    RESULT.parent.mkdir(exist_ok=True)
    result = {
        "command": " ".join(["python benchmarks/step_time.py", *sys.argv[1:]]),
        "machine": machine.describe(),
        "backend": keras.backend.backend(),
        "settings": vars(arguments),
        "median_seconds_per_step": seconds,
        "ratios": ratios,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in {**seconds, **ratios}.items():
        print(f"{name:<34}{value:10.4f}")


if __name__ == "__main__":
    main()
