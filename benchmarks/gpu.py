"""The two lines on an accelerator, and `converge` there, on the host, and against PyTorch's L-BFGS on the same device.

    KERAS_BACKEND=jax python benchmarks/gpu.py --data cifar10.npz --peak-tflops 67
    KERAS_BACKEND=jax python benchmarks/gpu.py --small          # made-up images, about a minute on one core

The file holds uint8 images x_train and x_test `(n, h, w, c)` and labels y_train and y_test. Each network is trained
from one start by the optimizer alone and wrapped; layers of the model change the images. Training uses the precision
that Keras has by default, so `--peak-tflops` is that of float32 products as the backend makes them. Only the operations
of convolutions and dense layers count, three times those of the forward pass. The heads are of made-up features and
noisy labels; seconds are those to a training loss 1e-2 and 1e-4 above the least that any of the methods reached, 0 for
a gated head. Writes benchmarks/results/gpu.json, but not with `--small`.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX and torch share the card
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import keras  # noqa: E402
import models  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from basics import head_model  # noqa: E402
from keras import layers  # noqa: E402
from machine import describe  # noqa: E402
from torch_lbfgs import torch_lbfgs  # noqa: E402

import keras_dal  # noqa: E402
from keras_dal import _backend  # noqa: E402
from keras_dal.losses import SoftmaxCrossEntropy  # noqa: E402

RESULT = Path(__file__).parent / "results" / "gpu.json"
TARGETS = (1e-2, 1e-4)
HEADS = [(50_000, 64, 10), (50_000, 512, 10)]
LARGE = (1_000_000, 2048, 1000)
BLOCK = 4096  # samples whose maps PyTorch has at a time
SOFTMAX = SoftmaxCrossEntropy()


def devices():
    """Return the names of what the backends compute on."""
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"card": card, "keras": keras.distribution.list_devices(), "backend": keras.backend.backend()}


def images(path):
    """Return training and test images and labels, from a file or made up: stripes in noise."""
    if path is not None:
        with np.load(path) as file:
            x, y, xt, yt = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
            return [x, y.ravel(), xt, yt.ravel()]
    generator = np.random.default_rng(0)
    y = generator.integers(0, 10, 640)
    x = generator.integers(0, 128, (640, 16, 16, 3))
    x[np.arange(640), y] += 100
    return [x[:512].astype("uint8"), y[:512], x[512:].astype("uint8"), y[512:]]


class Epochs(keras.callbacks.Callback):
    """Keeps phase and seconds of every epoch: those of its steps, and those until its end."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def on_epoch_begin(self, epoch, logs=None):
        optimizer = self.model.optimizer
        averages = isinstance(optimizer, keras_dal.Wrap) and optimizer.is_averaging
        self.phase, self.started = "average" if averages else "explore", time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self.stepped = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        phase = "read" if logs.get("phase") else self.phase
        now = time.perf_counter()
        self.rows.append({"phase": phase, "steps": self.stepped - self.started, "epoch": now - self.started})

    def median(self, phase):
        """Return the median seconds of an epoch, without the first, which compiles; None where there is none."""
        found = [row["epoch"] for row in self.rows[1:] if row["phase"] == phase]
        return float(np.median(found)) if found else None


def operations(model, shape):
    """Return the floating-point operations of convolutions and dense layers in a training step of one image."""
    total = 0
    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, (layers.Conv2D, layers.Dense)):
            positions = math.prod(layer.output.shape[1:-1])
            total += 2 * positions * math.prod(layer.kernel.shape)
    return 3 * total


def network(name, images, optimizer, num_classes):
    """Return a compiled network behind layers that mirror and shift images in training."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(images.shape[1:])
    shift = layers.RandomTranslation(1 / 8, 1 / 8, fill_mode="constant", interpolation="nearest")
    trunk = models.build(name, 20, num_classes, images)
    model = keras.Model(inputs, trunk(shift(layers.RandomFlip("horizontal")(inputs))))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def train(name, data, options, wrapped):
    """Return what one training took and reached."""
    x, y, xt, yt = data
    steps = -(-len(x) // options.batch)
    optimizer = keras.optimizers.SGD(
        keras.optimizers.schedules.CosineDecay(0.1, options.epochs * steps), momentum=0.9, nesterov=True
    )
    model = network(name, x, keras_dal.Wrap(optimizer) if wrapped else optimizer, int(y.max()) + 1)
    epochs, monitor = Epochs(), keras_dal.AlignmentMonitor()
    started = time.perf_counter()
    model.fit(
        x.astype("float32"),
        y,
        batch_size=options.batch,
        epochs=options.epochs,
        callbacks=[monitor, epochs] if wrapped else [epochs],
        verbose=0,
    )
    seconds = time.perf_counter() - started
    logits = model.predict(xt.astype("float32"), batch_size=500, verbose=0)
    explored = epochs.median("explore")
    row = {
        "test_accuracy": float(np.mean(logits.argmax(axis=1) == yt)),
        "seconds": seconds,
        "epochs": len(epochs.rows),
        "first_epoch_seconds": epochs.rows[0]["epoch"],
        "images_per_second": len(x) / explored,
        "training_tflops": operations(model, x.shape[1:]) * len(x) / explored / 1e12,
        "explore_seconds": explored,
    }
    if options.peak_tflops:
        row["share_of_peak"] = row["training_tflops"] / options.peak_tflops
    if not wrapped:
        return row
    last, averaged = epochs.rows[-1], epochs.median("average")
    return row | {
        "averaging_images_per_second": averaged and len(x) / averaged,
        "reading_images_per_second": len(x) / last["steps"],
        "switch_seconds": last["epoch"],
        "switch_in_epochs": last["epoch"] / explored,
        "solver_seconds": monitor.result and monitor.result.seconds,
        "gap": monitor.result and float(monitor.result.point.gap),
        "training_accuracy": monitor.result and monitor.result.accuracy,
    }


def trainings(data, options):
    """Yield the rows of every network."""
    for name in options.networks:
        base, wrapped = (train(name, data, options, each) for each in (False, True))
        overhead = wrapped["explore_seconds"] / base["explore_seconds"] - 1
        yield {"network": name, "base": base, "wrapped": wrapped, "monitor_overhead": overhead}


# heads ----------------------------------------------------------------------------------------------------------------


def features(samples, width, classes):
    """Return float32 features and labels that a linear teacher gives to most of them."""
    generator = np.random.default_rng(0)
    z, y = np.empty((samples, width), np.float32), np.empty(samples, np.int64)
    teacher = generator.standard_normal((width, classes), np.float32)
    for start in range(0, samples, 50_000):
        rows = slice(start, start + 50_000)
        z[rows] = np.maximum(generator.standard_normal(z[rows].shape, np.float32), 0)
        noise = generator.standard_normal((len(z[rows]), classes), np.float32)
        y[rows] = np.argmax(z[rows] @ teacher + 0.5 * width**0.5 * noise, axis=1)
    return z, y


def untrained(z, classes):
    """Return features and a head of zeros, as `common.head_model` takes them."""
    return {"z": z, "K": np.zeros((z.shape[1], classes), np.float32), "b": np.zeros(classes, np.float32)}


def converged(z, y, classes, gated, limit, accelerated):
    """Return seconds and loss along the path of `converge`."""
    with mock.patch.object(_backend, "has_accelerator", return_value=accelerated):
        result = keras_dal.converge(
            head_model(untrained(z, classes), gated),
            z,
            y,
            gated=gated,
            ridge=None if gated else 1e-8,
            time_limit=limit,
            max_bytes=2**35,
            batch_size=8192,
            verbose=0,
        )
    return [(point.seconds, point.loss) for point in result.path] + [(result.seconds, result.scaled_loss)]


def pytorch(z, y, classes, gated, limit):
    """Return seconds and loss along the path of PyTorch's L-BFGS, its gradient summed over blocks of samples."""
    structure = keras_dal.find_structure(head_model(untrained(z, classes), gated))
    path, started = [], time.perf_counter()

    def check(loss):
        path.append((time.perf_counter() - started, loss))
        if path[-1][0] > limit or loss < TARGETS[-1]:
            raise StopIteration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_lbfgs(structure.head(), structure.theta(), z, y, check, device, BLOCK)
    return path


def heads(options):
    """Yield the rows of every head."""
    small, sizes = [(300, 16, 4)], HEADS + [LARGE] * options.large
    for samples, width, classes in small if options.small else sizes:
        z, y = features(samples, width, classes)
        for gated in (False, True)[: 1 if classes > 100 else 2]:  # gates for a thousand classes would not fit
            problem = z, y, classes, gated, options.limit
            paths = {
                "converge, accelerator, compiling": converged(*problem, True),
                "converge, accelerator": converged(*problem, True),
                "converge, host": converged(*problem, False),
                "PyTorch L-BFGS": pytorch(*problem),
            }
            least = 0.0 if gated else min(loss for path in paths.values() for _, loss in path)
            rows = {name: {f"{target:g}": first(path, least + target) for target in TARGETS} | end(path)
                    for name, path in paths.items()}  # fmt: skip
            yield {"samples": samples, "features": width, "classes": classes, "gated": gated, "least": least} | rows


def first(path, target):
    """Return the seconds to a loss, or None."""
    return next((seconds for seconds, loss in path if loss <= target), None)


def end(path):
    return {"seconds": path[-1][0], "loss": min(loss for _, loss in path)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="images in an .npz file")
    parser.add_argument("--small", action="store_true", help="try everything on tiny problems, and write nothing")
    parser.add_argument("--networks", nargs="+", choices=("resnet", "resnet18"), default=["resnet", "resnet18"])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak-tflops", type=float)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each solver")
    parser.add_argument("--large", action="store_true", help="a head of 1,000,000 x 2,048 with 1,000 classes, too")
    options = parser.parse_args()
    if options.small:
        options.networks, options.epochs, options.limit = ["resnet"], 4, 5.0
    elif options.data is None:
        parser.error("--data FILE.npz names the images; --small makes some up")
    report = {
        "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
        "machine": describe() | {"devices": devices()},
        "trainings": [],
        "heads": [],
    }
    for name, rows in (("trainings", trainings(images(options.data), options)), ("heads", heads(options))):
        for row in rows:
            report[name].append(row)
            print(json.dumps(row, indent=1), flush=True)
            if not options.small:
                RESULT.write_text(json.dumps(report, indent=1) + "\n")  # so that a cut leaves what was measured


if __name__ == "__main__":
    main()
