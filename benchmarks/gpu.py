"""The two lines on an accelerator: images per second, share of the card's peak, price of the switch, test accuracy.

    KERAS_BACKEND=jax python benchmarks/gpu.py resnet20 resnet18 resnet9 --data cifar10.npz
    KERAS_BACKEND=jax python benchmarks/gpu.py resnet9 --small       # made-up images, a minute on one core

The file holds uint8 images x_train and x_test `(n, h, w, c)` and labels y_train and y_test. Each network is trained
from one start by the optimizer alone and wrapped; a layer of the model shifts, mirrors and cuts the images. Only with
one of `--ways` in a process of its own does neither compile what the other needs, too. `resnet9`
is the recipe of Page (2018), who reached 94 % of CIFAR-10 in about a minute: few epochs, a triangle of rates; here
with smoothed labels. `groups` is that of Jordan (2024), who reached 96 % in less: a fixed whitening layer, three groups
of convolutions, biases that learn 64 times as fast; here without his moving average and alternating mirror images. Set
JAX_COMPILATION_CACHE_DIR, or every training compiles its own step again. The share of the peak is that of the card's
own matrix products of the same precision, measured in the same run; only operations of convolutions and dense layers
count, three times those of the forward pass. Adds a line for each training to benchmarks/results/gpu.jsonl, but not
with `--small`.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import keras  # noqa: E402
import models  # noqa: E402
import numpy as np  # noqa: E402
from basics import images_of  # noqa: E402
from card import Compiling, described, peaks  # noqa: E402
from keras import layers, ops  # noqa: E402
from machine import describe  # noqa: E402

import keras_dal  # noqa: E402

RESULT = Path(__file__).parent / "results" / "gpu.jsonl"
PADDING = 4


def images(path):
    """Return training and test images and labels, from a file or made up: stripes in noise."""
    if path is not None:
        return images_of(path)
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, 640).astype("int32")
    x = generator.integers(0, 128, (640, 16, 16, 3))
    x[np.arange(640), y] += 100
    return [x[:512].astype("uint8"), y[:512], x[512:].astype("uint8"), y[512:]]


class Augmentation(layers.Layer):
    """Shifts every image by up to 4 pixels, mirrors every other one, and cuts a square out of it.

    Args:
        cut: side of the square, 0 for none.
    """

    def __init__(self, cut):
        super().__init__()
        self.cut, self.seed_generator = cut, keras.random.SeedGenerator(0)

    def call(self, x, training=False):
        if not training:
            return x
        count, height, width, _ = x.shape if x.shape[0] else ops.shape(x)
        rows, columns = self._drawn(count, 2 * PADDING + 1), self._drawn(count, 2 * PADDING + 1)
        rows, columns = rows + ops.arange(height), columns + ops.arange(width)
        columns = ops.where(self._drawn(count, 2) == 0, columns, ops.flip(columns, axis=1))
        x = ops.pad(x, [[0, 0], [PADDING, PADDING], [PADDING, PADDING], [0, 0]], mode="reflect")
        x = ops.take_along_axis(x, rows[:, :, None, None], axis=1)
        x = ops.take_along_axis(x, columns[:, None, :, None], axis=2)
        if not self.cut:
            return x
        begins = self._drawn(count, height), self._drawn(count, width)
        inside = [
            ops.logical_and(ops.arange(size) >= first, ops.arange(size) < first + self.cut)
            for size, first in zip((height, width), begins, strict=True)
        ]
        return ops.where(ops.logical_and(inside[0][:, :, None], inside[1][:, None, :])[..., None], 0.0, x)

    def _drawn(self, count, most):
        return keras.random.randint((count, 1), 0, most, seed=self.seed_generator)


def resnet9(num_classes, shape, width=64):
    """Return the network of Page (2018): eight convolutions and a linear head."""

    def convolved(x, filters, pool):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))
        return layers.MaxPooling2D()(x) if pool else x

    inputs = keras.Input(shape)
    x = convolved(inputs, width, pool=False)
    for factor, residual in ((2, True), (4, False), (8, True)):
        x = convolved(x, factor * width, pool=True)
        if residual:
            y = convolved(x, factor * width, pool=False)
            x = layers.Add()([x, convolved(y, factor * width, pool=False)])
    x = layers.Rescaling(0.125)(layers.GlobalMaxPooling2D(name="features")(x))
    return keras.Model(inputs, layers.Dense(num_classes, use_bias=False, dtype="float32", name="logits")(x))


class FastBias(layers.Layer):
    """Adds a bias for each channel that learns as with a rate 64 times as large."""

    factor = 8.0  # its square is what the rate is multiplied by

    def build(self, shape):
        self.bias = self.add_weight(shape=(shape[-1],), initializer="zeros", name="bias")

    def call(self, x):
        return x + ops.cast(self.factor * self.bias, x.dtype)


def whitening(images, size=2, count=5000):
    """Return a kernel of the principal components of patches of standardized images, and of their negatives.

    Args:
        images: uint8 `(n, h, w, c)`.
        size: side of a patch.
        count: of images that are looked at.

    Returns:
        Array `(size, size, c, 2 * size * size * c)`.
    """
    x = images[:count].astype("float64")
    x = (x - images[:10_000].mean((0, 1, 2))) / images[:10_000].astype("float64").std((0, 1, 2))
    patches = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(1, 2))  # (n, h, w, c, size, size)
    rows = patches.transpose(0, 1, 2, 4, 5, 3).reshape(-1, size * size * x.shape[-1])
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    components = (vectors / np.sqrt(values + 5e-4)).reshape(size, size, x.shape[-1], -1)
    return np.concatenate([components, -components], axis=-1)


def groups(num_classes, shape, kernel, widths=(128, 384, 512)):
    """Return the network of Jordan (2024) for 96 %: three groups of three convolutions each.

    Args:
        num_classes: width of the logits.
        shape: of an image.
        kernel: of the fixed first layer, as `whitening` returns it.
        widths: channels of the groups.
    """

    def first_identity(shape, dtype=None):
        each = np.arange(min(shape[2:]))
        kernel = ops.convert_to_numpy(keras.initializers.HeUniform()(shape, dtype)) / np.sqrt(6.0)  # as PyTorch's own
        kernel[..., each] = 0.0
        kernel[1, 1, each, each] = 1.0
        return ops.convert_to_tensor(kernel)

    def convolved(x, filters, pool=False):
        x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer=first_identity)(x)
        x = layers.MaxPooling2D()(x) if pool else x
        return FastBias()(layers.BatchNormalization(momentum=0.6, scale=False, center=False)(x))

    def active(x):
        return layers.Activation("gelu")(x)

    inputs = keras.Input(shape)
    first = layers.Conv2D(kernel.shape[-1], kernel.shape[:2], trainable=False, use_bias=False)
    x = active(FastBias()(first(inputs)))
    first.set_weights([kernel])
    for width in widths:
        x = active(convolved(x, width, pool=True))
        x = active(layers.Add()([x, convolved(active(convolved(x, width)), width)]))
    x = layers.Rescaling(1 / 9)(layers.GlobalMaxPooling2D(name="features")(x))
    return keras.Model(inputs, layers.Dense(num_classes, use_bias=False, dtype="float32", name="logits")(x))


class Recipe:
    """What one of the networks is trained with."""

    def __init__(self, build, policy, batch, epochs, cut, smoothing, optimizer):
        self.build, self.policy, self.batch, self.epochs = build, policy, batch, epochs
        self.cut, self.smoothing, self.optimizer = cut, smoothing, optimizer

    def model(self, data, wrapped, steps):
        """Return a compiled network, the same at every call but for its optimizer."""
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy(self.policy)
        x, y = data[:2]
        mean, variance = x[:10_000].mean((0, 1, 2)), x[:10_000].astype("float64").var((0, 1, 2))
        inputs = keras.Input(x.shape[1:])
        standardized = layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), dtype="float32")(inputs)
        outputs = self.build(int(y.max()) + 1, x)(Augmentation(self.cut)(standardized))
        model = keras.Model(inputs, outputs)
        optimizer = self.optimizer(self.epochs, steps)
        model.compile(
            keras_dal.Wrap(optimizer) if wrapped else optimizer,
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=self.smoothing),
            metrics=["accuracy"],
        )
        return model


def cosine(rate):
    def optimizer(epochs, steps):
        schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * steps)
        return keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True)

    return optimizer


class Triangle(keras.optimizers.schedules.LearningRateSchedule):
    """Rises to a rate, and falls again.

    Args:
        rate: the largest.
        steps: of the whole training.
        peak: share of the steps after which it is reached.
        ends: rates at the begin and at the end, shares of the largest.
    """

    def __init__(self, rate, steps, peak=0.2, ends=(0.0, 0.0)):
        self.rate, self.steps, self.peak, self.ends = rate, steps, peak, ends

    def __call__(self, step):
        share, (first, last) = ops.cast(step, "float32") / self.steps, self.ends
        rising = first + (1 - first) * share / self.peak
        falling = last + (1 - last) * (1 - share) / (1 - self.peak)
        return self.rate * ops.minimum(rising, falling)

    def get_config(self):
        return {"rate": self.rate, "steps": self.steps, "peak": self.peak, "ends": self.ends}


def triangle(rate, decay, momentum=0.9, **shape):
    def optimizer(epochs, steps):
        schedule = Triangle(rate, epochs * steps, **shape)
        return keras.optimizers.SGD(schedule, momentum, nesterov=True, weight_decay=decay)

    return optimizer


RECIPES = {
    "resnet20": Recipe(lambda n, x: models.resnet(20, n, x.shape[1:]), "float32", 250, 60, 0, 0.0, cosine(0.2)),
    "resnet18": Recipe(lambda n, x: models.resnet18(n, x.shape[1:]), "mixed_bfloat16", 250, 60, 0, 0.0, cosine(0.2)),
    "resnet9": Recipe(
        lambda n, x: resnet9(n, x.shape[1:]), "mixed_bfloat16", 500, 40, 8, 0.1, triangle(0.4, decay=5e-3)
    ),
    "groups": Recipe(
        lambda n, x: groups(n, x.shape[1:], whitening(x)),
        "mixed_bfloat16", 1000, 45, 12, 0.2, triangle(1.15, decay=9e-3, momentum=0.85, peak=0.23, ends=(0.2, 0.07)),
    ),
}  # fmt: skip


class Epochs(keras.callbacks.Callback):
    """Keeps phase and seconds of every epoch; without a look at its steps, so that Keras can run ahead."""

    def __init__(self, compiling):
        super().__init__()
        self.rows, self.compiling, self.began = [], compiling, None

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.model.optimizer
        averages = isinstance(optimizer, keras_dal.Wrap) and optimizer.is_averaging
        self.phase, self.started = "average" if averages else "explore", time.perf_counter()
        self.before = self.compiling.now()
        self.began = self.began or self.started

    def on_epoch_end(self, epoch, logs=None):
        phase = "read" if logs.get("phase") else self.phase
        seconds, compiled = time.perf_counter() - self.started, self.compiling.since(self.before)
        self.rows.append({"phase": phase, "epoch": seconds, "compiling": compiled})

    def of(self, phase):
        return [row["epoch"] for row in self.rows if row["phase"] == phase]


def later(seconds):
    """Return the median of all epochs of a phase but its first, which compiles; None where there is none."""
    return float(np.median(seconds[1:])) if len(seconds) > 1 else None


def operations(model):
    """Return the floating-point operations of convolutions and dense layers in a training step of one image."""
    total = 0
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            positions = math.prod(layer.output.shape[1:-1])
            total += 2 * positions * math.prod(layer.kernel.shape)
    return 3 * total


def train(name, data, options, wrapped, seed, compiling):
    """Return what one training took and reached."""
    x, y, xt, yt = data
    recipe = RECIPES[name]
    recipe.epochs = options.epochs or recipe.epochs
    model = recipe.model(data, wrapped, -(-len(x) // recipe.batch))
    keras.utils.set_random_seed(seed)
    for layer in model._flatten_layers():  # one start for both, another one for each seed
        if isinstance(layer, (layers.Conv2D, layers.Dense)) and layer.trainable:
            layer.kernel.assign(layer.kernel_initializer(layer.kernel.shape))
    epochs, monitor = Epochs(compiling), keras_dal.AlignmentMonitor(verbose=0)
    callbacks = [monitor, epochs] if wrapped else [epochs]
    started, before = time.perf_counter(), compiling.now()
    one_hot = np.eye(int(y.max()) + 1, dtype="float32")[y]
    model.fit(x, one_hot, batch_size=recipe.batch, epochs=recipe.epochs, callbacks=callbacks, verbose=0)
    seconds = time.perf_counter() - started
    compiled = compiling.since(before)
    logits, mirrored = (model.predict(images, batch_size=500, verbose=0) for images in (xt, xt[:, :, ::-1]))
    explored = later(epochs.of("explore"))
    speed = operations(model) * len(x) / explored / 1e12
    row = {
        "test_accuracy": float(np.mean(logits.argmax(axis=1) == yt)),
        "test_accuracy_with_mirrored": float(np.mean((logits + mirrored).argmax(axis=1) == yt)),
        "seconds": seconds,
        "compiling_seconds": compiled[0],
        "programs": compiled[1],
        "epochs": len(epochs.rows),
        "first_epoch_seconds": epochs.rows[0]["epoch"],
        "epoch_seconds": explored,
        "images_per_second": len(x) / explored,
        "training_tflops": speed,
        "share_of_peak": options.peaks and speed / options.peaks[recipe.policy],
    }
    if not wrapped:
        return row
    averaged, last = epochs.of("average"), epochs.rows[-1]
    result = monitor.result
    return row | {
        "averaging_seconds": later(averaged),
        "first_averaging_seconds": averaged[0],
        "switch_seconds": last["epoch"],
        "switch_compiling_seconds": last["compiling"][0],
        "switch_programs": last["compiling"][1],
        "before_first_epoch_seconds": epochs.began - started,
        "solver_seconds": result and result.seconds,
        "gap": result and float(result.point.gap),
        "ended_by": result and str(result.stopped_by),
        "training_accuracy": result and result.accuracy,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", choices=RECIPES)
    parser.add_argument("--data", type=Path, help="images in an .npz file")
    parser.add_argument("--small", action="store_true", help="try everything on tiny images, and write nothing")
    parser.add_argument("--epochs", type=int, help="the recipe's own by default")
    parser.add_argument("--ways", nargs="+", choices=("base", "wrapped"), default=["base", "wrapped"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.epochs is not None and options.epochs < 8:
        parser.error("--epochs must be at least 8: epochs of every phase are timed")
    if options.small:
        options.epochs = options.epochs or 8
    elif options.data is None:
        parser.error("--data FILE.npz names the images; --small makes some up")
    options.peaks = None if options.small else peaks()
    compiling = Compiling()
    data, machine = images(options.data), describe() | {"card": described(), "peaks": options.peaks}
    for name in options.networks:
        for seed in options.seeds:
            for way in options.ways:
                row = {"network": name, "seed": seed, "way": way, "alone_in_process": len(options.ways) == 1}
                row |= train(name, data, options, way == "wrapped", seed, compiling)
                print(json.dumps(row), flush=True)
                if not options.small:
                    recipe = RECIPES[name]
                    row |= {"policy": recipe.policy, "batch": recipe.batch, "of_epochs": recipe.epochs}
                    with options.result.open("a") as file:
                        file.write(json.dumps(row | {"images": len(data[0]), "machine": machine}) + "\n")


if __name__ == "__main__":
    main()
