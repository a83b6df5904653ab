"""When to switch and over how much to average, for many seeds on an accelerator: each epoch is one program.

    KERAS_BACKEND=jax python benchmarks/averages.py cifar10,5000,sgd cifar10,5000,adamw --data DIR --seeds 0 1 2 3 4

trains a ResNet-8 with its optimizer alone as benchmarks/two_lines.py does, with no `fit`: JAX runs the steps of an
epoch in one loop, in about five seconds for 60 epochs of 5,000 images, and keeps the mean of the weights over each.
For each choice of switch and window the mean of the last epochs becomes the model, its batch statistics are renewed by
the batches of the next epoch, features are those of the images as they are, and the package solves the head. Seeds
differ in weights and in the order of images; shifts and mirror images are drawn alike. DIR has one .npz file for each
set, with images x_train and x_test as uint8 and labels y_train and y_test. Adds a line for each seed to
benchmarks/results/averages.jsonl: test accuracies, beside that of the optimizer alone.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import jax  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from basics import head_model, images_of  # noqa: E402
from card import described  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from machine import describe  # noqa: E402
from settings import BATCH, SETS  # noqa: E402
from small_trainings import compiled, optimizer_of, resnet8  # noqa: E402

import keras_dal  # noqa: E402
from keras_dal.features.cache import CachedFeatures  # noqa: E402
from keras_dal.finishing import solve  # noqa: E402
from keras_dal.losses import SoftmaxCrossEntropy  # noqa: E402

RESULT = Path(__file__).parent / "results" / "averages.jsonl"
EVEN, RISING = "even", "rising"  # how the steps of a window count: all alike, or the more the later
CHOICES = (  # explore, average, how its steps count
    *((0.71, average, EVEN) for average in (0, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4)),
    *((0.71, average, RISING) for average in (0.15, 0.2, 0.3)),
    *((0.75, average, EVEN) for average in (0.15, 0.2, 0.3)),
    *((0.8, average, EVEN) for average in (0.1, 0.15, 0.2, 0.3)),
    *((1.0, average, EVEN) for average in (0, 0.1, 0.15)),
)
DEFAULT = (0.71, 0.07, EVEN)
CHANGES = (0.001, 0.003, 0.03, 0.1)  # weights of the change of the head, beside 0.01, at the default


class Programs:
    """Steps of a model and its optimizer, an epoch in one program.

    Args:
        model: of `resnet8`, compiled.
        x: training images on the device.
        y: what the loss takes for them.
    """

    def __init__(self, model, x, y):
        self.model, self.optimizer, self.x, self.y = model, model.optimizer, x, y
        self.optimizer.build(model.trainable_variables)
        self.network = network_of(model)
        self._moving = [v.path.endswith(("moving_mean", "moving_variance")) for v in model.non_trainable_variables]
        self.momentum = next(layer.momentum for layer in model._flatten_layers() if hasattr(layer, "momentum"))
        self._epoch, self._statistics, self._outputs = map(jax.jit, (self.of_epoch, self.of_batches, self.of_images))

    def start(self):
        """Return the values of trainable, other and the optimizer's variables."""
        kinds = self.model.trainable_variables, self.model.non_trainable_variables, self.optimizer.variables
        return tuple([variable.value for variable in kind] for kind in kinds)

    def epoch(self, state, order):
        """Return the state after the steps of an epoch, and the mean of its trainable variables over them."""
        return self._epoch(state, order, self.x, self.y)

    def settled(self, trainable, others, order):
        """Return the other variables, with statistics that are the means over the batches of an epoch."""
        return self._statistics(trainable, others, order, self.x)

    def outputs(self, trainable, others, images):
        """Return features and logits of images as they are, in NumPy."""
        return [np.asarray(part) for part in self._outputs(trainable, others, images)]

    def of_epoch(self, state, order, x, y):
        def loss(trainable, others, rows):
            inputs = x[rows].astype("float32")
            logits, others, penalties = self.model.stateless_call(
                trainable, others, inputs, training=True, return_losses=True
            )
            return self.model.loss(y[rows], logits) + sum(penalties), others

        def step(carry, rows):
            (trainable, others, own), total = carry
            (_, others), slopes = jax.value_and_grad(loss, has_aux=True)(trainable, others, rows)
            trainable, own = self.optimizer.stateless_apply(own, slopes, trainable)
            return ((trainable, others, own), jax.tree.map(jnp.add, total, trainable)), None

        (state, total), _ = jax.lax.scan(step, (state, jax.tree.map(jnp.zeros_like, state[0])), order)
        return state, jax.tree.map(lambda leaf: leaf / len(order), total)

    def of_batches(self, trainable, others, order, x):
        def emptied(values):
            return [jnp.zeros_like(v) if moves else v for v, moves in zip(values, self._moving, strict=True)]

        def step(carry, rows):
            total, others = carry
            _, found = self.model.stateless_call(trainable, emptied(others), x[rows].astype("float32"), training=True)
            summed = [t + f if moves else t for t, f, moves in zip(total, found, self._moving, strict=True)]
            return (summed, found), None  # a batch adds 1 - momentum of its own statistics to what is empty

        (total, _), _ = jax.lax.scan(step, (emptied(others), others), order)
        share = len(order) * (1 - self.momentum)
        return [t / share if moves else v for t, v, moves in zip(total, others, self._moving, strict=True)]

    def of_images(self, trainable, others, images):
        value_of = {
            id(variable): value
            for variables, values in zip(
                (self.model.trainable_variables, self.model.non_trainable_variables), (trainable, others), strict=True
            )
            for variable, value in zip(variables, values, strict=True)
        }
        kinds = self.network.trainable_variables, self.network.non_trainable_variables
        values = [[value_of[id(variable)] for variable in kind] for kind in kinds]
        block = 500 if len(images) % 500 == 0 else len(images)
        parts = jax.lax.map(
            lambda rows: self.network.stateless_call(*values, rows.astype("float32"), training=False)[0],
            images.reshape(-1, block, *images.shape[1:]),
        )
        return [part.reshape(len(images), -1) for part in parts]


def weighted_mean(leaves, weights):
    return sum(leaf * float(weight) for leaf, weight in zip(leaves, weights, strict=True)) / float(sum(weights))


def network_of(model):
    """Return a model of features and logits, of what `resnet8` puts behind layers that change images."""
    whole = model.layers[-1]
    normalization, network = whole.layers[-2:]
    parts = keras.Model(network.inputs, [network.get_layer("features").output, network.outputs[0]])
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, parts(normalization(inputs)))


class Study:
    """One data set and recipe, trained alone from many seeds."""

    def __init__(self, setting, folder, epochs):
        dataset, count, self.recipe = setting.split(",")
        x, y, xt, self.yt = images_of(folder / f"{dataset}.npz")
        self.x, self.y = x[: int(count)], y[: int(count)]
        self.num_classes, (padding, mirror, usual) = int(self.y.max()) + 1, SETS[dataset]
        self.augmentation, self.epochs, self.steps = (padding, mirror), epochs or usual, len(self.x) // BATCH
        one_hot = np.eye(self.num_classes, dtype="float32")[self.y]
        self.labels = one_hot if self.recipe == "smoothing" else self.y
        self.setting = {"dataset": dataset, "images": len(self.x), "recipe": self.recipe, "epochs": self.epochs}
        self.test, model = jnp.asarray(xt), self._model(0)
        self.programs = Programs(model, jnp.asarray(self.x), jnp.asarray(self.labels))
        features = {"z": np.zeros((1, model.layers[-1].layers[-1].get_layer("logits").kernel.shape[0]), "float32")}
        features |= {"K": np.zeros((features["z"].shape[1], self.num_classes)), "b": np.zeros(self.num_classes)}
        self.head = head_model(features, gated=False)
        self.structure = keras_dal.find_structure(self.head)
        smoothing = 0.1 if self.recipe == "smoothing" else 0.0
        self.loss = SoftmaxCrossEntropy(label_smoothing=smoothing)

    def _model(self, seed):
        model = resnet8(self.x, self.num_classes, seed, self.augmentation)
        return compiled(model, self.recipe, optimizer_of(self.recipe, self.epochs, self.steps), seed)

    def order(self, seed, epoch):
        """Return the rows of the batches of an epoch."""
        rows = np.random.default_rng([seed, epoch]).permutation(len(self.x))[: self.steps * BATCH]
        return rows.reshape(self.steps, BATCH)

    def run(self, seed):
        """Return the row of one seed."""
        started, programs = time.perf_counter(), self.programs
        programs.model.set_weights(self._model(seed).get_weights())
        state, ends, means = programs.start(), [], []
        for epoch in range(self.epochs):
            state, mean = programs.epoch(state, self.order(seed, epoch))
            ends.append(state[:2])
            means.append(mean)
        row = {"seed": seed, "alone": self.accuracy(programs.outputs(*ends[-1], self.test)[1])}
        row["training_seconds"] = round(time.perf_counter() - started, 2)
        row["two_lines"] = [
            {"explore": explore, "average": average, "steps": steps}
            | self.switched(ends, means, (explore, average, steps), seed)
            for explore, average, steps in CHOICES
        ]
        return self.setting | row | {"seconds": round(time.perf_counter() - started, 2)}

    def switched(self, ends, means, choice, seed):
        """Return what a switch after this share of the epochs, and a mean over this share of them, reaches."""
        explore, average, steps = choice
        switch = round(explore * self.epochs)
        trainable, others = ends[switch - 1]
        if average:
            last = means[switch - max(1, round(average * switch)) : switch]
            weights = 2 * np.arange(len(last)) + 1 if steps == RISING else np.ones(len(last))
            trainable = jax.tree.map(lambda *leaves: weighted_mean(leaves, weights), *last)
        others = self.programs.settled(trainable, others, self.order(seed, switch))
        z, _ = self.programs.outputs(trainable, others, self.programs.x)
        features, logits = self.programs.outputs(trainable, others, self.test)
        found = {"averaged": self.accuracy(logits), "solved": self.solved(z, trainable, features)}
        if choice == DEFAULT:
            for change in CHANGES:
                found[f"solved, {change:g}"] = self.solved(z, trainable, features, change)
        return found

    def solved(self, z, trainable, features, change=0.01):
        """Return the test accuracy with the head solved, for this weight of its change."""
        kernel, bias = (np.asarray(value) for value in trainable[-2:])
        self.head.set_weights([kernel, bias])
        train = CachedFeatures(z, self.labels, np.ones(len(z)), np.arange(len(z)), True)
        with mock.patch.object(solve, "weight_of_change", return_value=change):
            solve.solve_head(self.structure, self.loss, train)
        kernel, bias = self.head.get_weights()
        return self.accuracy(features @ kernel + bias)

    def accuracy(self, logits):
        return float(np.mean(logits.argmax(axis=1) == self.yt))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help="set,images,recipe")
    parser.add_argument("--data", type=Path, required=True, help="folder of .npz files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, help="those of the set by default")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    machine = describe() | {"card": described()}
    for setting in options.settings:
        study = Study(setting, options.data, options.epochs)
        for seed in options.seeds:
            row = study.run(seed)
            print(json.dumps(row), flush=True)
            with options.result.open("a") as file:
                file.write(json.dumps(row | {"machine": machine}) + "\n")


if __name__ == "__main__":
    main()
