"""The two lines against the same optimizer alone, and against what people do today, on real images.

    python benchmarks/two_lines.py cifar10 --images 5000 --data-dir ~/tensorflow_datasets --seeds 0 1 2

trains a ResNet-8 once for each seed and each way, and adds a line for each run to benchmarks/results/two_lines.jsonl.
Time is that of `fit`, until the last callback has ended: compilation, validation, monitor and solver included.
What TensorFlow takes to let go of an iterator is not in it: once in a while that is 16 seconds, of a run that uses up
its data. `--core` binds the process to one core, so that two of them can run beside each other.
"""

import argparse
import gzip
import json
import os
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

from settings import BATCH, RECIPES, SETS  # noqa: E402

RESULT = Path(__file__).parent / "results" / "two_lines.jsonl"
FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
WAYS = ("base", "wrapped", "compressed", "plateau", "swap_ema", "freeze", "gated")
VALIDATED = 1000


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=SETS)
    parser.add_argument("--images", type=int, help="training images, the first of the set; all by default")
    parser.add_argument("--data-dir", help="folder of prepared sets of tensorflow-datasets")
    parser.add_argument("--recipe", choices=RECIPES, default="sgd")
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=["base", "wrapped", "compressed"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--explore", type=float, help="of the wrapped runs; its default where none is given")
    parser.add_argument("--average", type=float, help="the same")
    parser.add_argument("--augment", choices=("model", "dataset"), default="model", help="where images are changed")
    parser.add_argument("--threads", type=int, default=0, help="0 for all")
    parser.add_argument("--core", type=int, help="the one core to run on")
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


options = parsed() if __name__ == "__main__" else None
if options and options.core is not None:
    os.sched_setaffinity(0, {options.core})

import data  # noqa: E402
import keras  # noqa: E402
import machine  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from small_trainings import compiled, optimizer_of, resnet8  # noqa: E402

import keras_dal  # noqa: E402
from keras_dal.training.schedule import EARLIEST  # noqa: E402


def load(name, images, data_dir):
    """Return training images, test images and the number of classes."""
    if name != "fashion_mnist":
        return data.load(name, data_dir, subset=images)

    def read(part):
        pixels, labels = (
            np.frombuffer(gzip.decompress((FASHION / f"{part}-{kind}.gz").read_bytes()), np.uint8, offset=offset)
            for kind, offset in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
        )
        return data.Images(pixels.reshape(-1, 28, 28, 1), labels.astype("int32"))

    train = read("train")
    return data.Images(train.x[:images], train.y[:images]), read("t10k"), 10


def accuracy(model, images):
    logits = model.predict(images.x.astype("float32"), batch_size=500, verbose=0)
    return round(float(np.mean(logits.argmax(axis=1) == images.y)), 5)


class Training:
    """One data set, one recipe and one seed, trained in different ways from the same start.

    Args:
        options: of the command line.
        seed: integer.
    """

    def __init__(self, options, seed):
        self.options, self.seed = options, seed
        self.padding, self.mirror, epochs = SETS[options.dataset]
        self.train, self.test, self.num_classes = load(options.dataset, options.images, options.data_dir)
        changed = (self.padding, self.mirror) if options.augment == "dataset" else (0, False)
        self.image_set = data.ImageSet(options.dataset, *changed)
        self.epochs, self.steps = options.epochs or epochs, len(self.train) // BATCH
        self.explored = round((options.explore or EARLIEST) * self.epochs)  # what a wrapped run before says otherwise

    def optimizer(self, epochs, **kind):
        """Return the recipe's optimizer for so many epochs."""
        return optimizer_of(self.options.recipe, epochs, self.steps, **kind)

    def model(self, optimizer, gated=False):
        changed = (self.padding, self.mirror) if self.options.augment == "model" else (0, False)
        network = resnet8(self.train.x, self.num_classes, self.seed, changed)
        return compiled(network, self.options.recipe, optimizer, self.seed, len(self.train) if gated else None)

    def batches(self, epochs):
        batches = data.training_batches(self.train, self.image_set, BATCH, self.seed, 0, epochs)
        return self._labelled(batches)

    def _labelled(self, batches):
        if self.options.recipe != "smoothing":
            return batches
        return batches.map(lambda x, y: (x, tf.one_hot(y, self.num_classes)))

    def fit(self, model, epochs, callbacks=()):
        """Train and return the seconds it took, on the clock and of the processor."""
        few, clocks = data.Images(self.test.x[:VALIDATED], self.test.y[:VALIDATED]), Clocks()
        clock, processor = time.perf_counter(), time.process_time()
        history = model.fit(
            self.batches(epochs),
            steps_per_epoch=self.steps,
            epochs=epochs,
            validation_data=self._labelled(data.test_batches(few, 500)),
            callbacks=[*callbacks, clocks],
            verbose=0,
            shuffle=False,
        ).history
        before = self.curve[-1][0] if self.curve else 0.0
        seconds = [round(before + end - processor, 2) for end in clocks.ends]
        self.curve += zip(seconds, history["val_accuracy"], strict=True)
        return {
            "seconds": round(clocks.clock - clock, 2),
            "processor_seconds": round(clocks.processor - processor, 2),
            "epochs_trained": len(history["loss"]),
        }

    def run(self, way):
        """Train in one way and return its row, with processor seconds and validation accuracy after each epoch."""
        self.curve = []
        return {"way": way, **getattr(self, way)(), "curve": self.curve}

    def _row(self, model, measured):
        return {"test_accuracy": accuracy(model, self.test), **measured}

    def base(self):
        model = self.model(self.optimizer(self.epochs))
        return self._row(model, self.fit(model, self.epochs))

    def wrapped(self, gated=False):
        parts = Parts()
        given = {"explore": self.options.explore, "average": self.options.average}
        chosen = {name: value for name, value in given.items() if value is not None}
        model = self.model(keras_dal.Wrap(self.optimizer(self.epochs), **chosen), gated)
        monitor = keras_dal.AlignmentMonitor()
        measured = self.fit(model, self.epochs, [monitor, parts])
        result, self.explored = monitor.result, parts.switch
        row = self._row(model, measured) | {
            "switch": parts.switch,
            "alignment": parts.alignment,
            "seconds_to_switch": round(parts.seconds, 2),
            "seconds_of_solver": round(result.seconds, 3),
            "training_accuracy": result.accuracy,
            "scaled_loss": result.scaled_loss,
            "gap": float(result.point.gap) if np.isfinite(result.point.gap) else None,
        }
        if not gated:  # the same network, its head solved on images without augmentation
            started = time.perf_counter()
            y = np.eye(self.num_classes)[self.train.y] if self.options.recipe == "smoothing" else self.train.y
            keras_dal.finish(model, self.train.x.astype("float32"), y, verbose=0)
            row["clean_seconds"] = round(time.perf_counter() - started, 2)
            row["clean_test_accuracy"] = accuracy(model, self.test)
        return row

    def gated(self):
        return self.wrapped(gated=True)

    def compressed(self):
        """The schedule in as many epochs as the wrapped run trains, and one for its last pass."""
        epochs = self.explored + 1
        model = self.model(self.optimizer(epochs))
        return self._row(model, self.fit(model, epochs))

    def plateau(self):
        model = self.model(keras.optimizers.SGD(0.1, momentum=0.9))
        reduce = keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.2, patience=5)
        stop = keras.callbacks.EarlyStopping("val_loss", patience=10, restore_best_weights=True)
        return self._row(model, self.fit(model, self.epochs, [reduce, stop]))

    def swap_ema(self):
        """Keras' moving averages over as many epochs as the wrapped run trains, with the whole schedule."""
        epochs = self.explored
        model = self.model(self.optimizer(self.epochs, use_ema=True, ema_momentum=0.99))
        return self._row(model, self.fit(model, epochs, [keras.callbacks.SwapEMAWeights()]))

    def freeze(self):
        """Everything until the switch, then the last layer alone, by SGD with momentum 0.9 at the rate 0.01."""
        epochs = self.explored
        model = self.model(self.optimizer(self.epochs))
        first = self.fit(model, epochs)
        for layer in model._flatten_layers(include_self=False):
            if not isinstance(layer, keras.Model):
                layer.trainable = layer.name == "logits"
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), model.loss, metrics=["accuracy"])
        second = self.fit(model, self.epochs - epochs)
        return self._row(model, {name: round(first[name] + second[name], 2) for name in first})


class Clocks(keras.callbacks.Callback):
    """Notes the time at the end of training, and of the processor after each epoch; listed last."""

    def on_train_begin(self, logs=None):
        self.ends = []

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append(time.process_time())

    def on_train_end(self, logs=None):
        self.clock, self.processor = time.perf_counter(), time.process_time()


class Parts(keras.callbacks.Callback):
    """Notes when the switch came, and the alignment before it."""

    def on_train_begin(self, logs=None):
        self._started, self.switch, self.seconds, self.alignment = time.perf_counter(), None, 0.0, None

    def on_epoch_end(self, epoch, logs=None):
        if not logs["phase"]:
            self.switch, self.seconds = epoch + 1, time.perf_counter() - self._started
            self.alignment = round(float(logs["alignment"]), 4)


def bind(core, threads=0):
    """Let TensorFlow have this one core, or so many threads; before its first operation."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    if threads or core is not None:
        tf.config.threading.set_intra_op_parallelism_threads(threads if core is None else 1)
        tf.config.threading.set_inter_op_parallelism_threads(threads if core is None else 1)


def main():
    bind(options.core, options.threads)
    setting = {
        name: getattr(options, name)
        for name in ("dataset", "images", "recipe", "augment", "core", "threads", "explore", "average")
    }
    for seed in options.seeds:
        training = Training(options, seed)
        for way in options.ways:
            row = {
                **setting,
                "epochs": training.epochs,
                "seed": seed,
                **training.run(way),
                "machine": machine.describe(),
            }
            with options.result.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print({name: value for name, value in row.items() if name not in ("machine", "curve")}, flush=True)


if __name__ == "__main__":
    main()
