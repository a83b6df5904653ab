"""Does what is measured early say how far a structure gets, and do wider heads reach what `width_curve` predicts?

    python benchmarks/structures.py cifar10 --data-dir ~/tensorflow_datasets --seeds 0

trains small residual networks of many shapes on 5,000 images as they are, and looks at each after a fifth of the epochs
and at the end: training loss, the head's alignment, the least loss its head can reach, test accuracy. Beside the head
of one of them it then puts gates: predicted by `width_curve`, and reached by SciPy with other gates (least squares, and
so many steps of L-BFGS in orthonormal coordinates); and it counts the gradient steps that the convex phase would take,
for which `Result.gradient_steps` is a bound. `--early` trains the same networks for that fifth only, and notes what the
alignment does from epoch to epoch and what a step takes. Adds lines to
benchmarks/results/structures.jsonl, which `python benchmarks/width_page.py` writes up in docs/width.md.
"""

import argparse
import json
import math
import time
from pathlib import Path

import keras
import machine
import numpy as np
from keras import layers
from scipy import linalg, optimize, special
from two_lines import bind, load

import keras_dal

RESULT = Path(__file__).parent / "results" / "structures.jsonl"
IMAGES, EPOCHS, EARLY, BATCH = 5_000, 10, 2, 128
WIDTHS = (0, 2, 5, 10, 20)  # gates beside the head
OTHER_SEED = 1_000  # of gates, far from those of the prediction's draws
STEPS = 300  # of L-BFGS, for the least cross-entropy of a head


def parser_of(description, result):
    """Return a parser of the options that studies of small images share, and the set as first argument."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=("cifar10", "cifar100", "fashion_mnist"))
    parser.add_argument("--data-dir", help="folder of prepared sets of tensorflow-datasets")
    parser.add_argument("--core", type=int, help="the one core to run on")
    parser.add_argument("--result", type=Path, default=result)
    return parser


class Shape:
    """A residual network: how wide, how deep, and what it has of the usual parts."""

    def __init__(self, filters, blocks=1, skip=True, norm=True, pooling="average"):
        self.filters, self.blocks, self.skip, self.norm, self.pooling = filters, blocks, skip, norm, pooling
        self.rate = 0.1 if norm else 0.01

    def build(self, x, num_classes):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2)) + 1e-3
        inputs = keras.Input(x.shape[1:])
        z = layers.Normalization(mean=mean.tolist(), variance=variance.tolist())(inputs)
        z = self._convolved(z, self.filters, 1)
        for stage in range(3):
            for block in range(self.blocks):
                z = self._block(z, self.filters * 2**stage, 2 if stage and not block else 1)
        z = layers.Flatten()(z) if self.pooling == "none" else layers.GlobalAveragePooling2D()(z)
        return keras.Model(inputs, layers.Dense(num_classes)(z))

    def _block(self, x, filters, stride):
        z = self._convolved(self._convolved(x, filters, stride), filters, 1, activation=not self.skip)
        if not self.skip:
            return z
        if stride != 1 or x.shape[-1] != filters:
            x = self._convolved(x, filters, stride, size=1, activation=False)
        return layers.ReLU()(layers.Add()([z, x]))

    def _convolved(self, x, filters, stride, size=3, activation=True):
        x = layers.Conv2D(filters, size, stride, "same", use_bias=not self.norm, kernel_initializer="he_normal")(x)
        x = layers.BatchNormalization(momentum=0.9)(x) if self.norm else x
        return layers.ReLU()(x) if activation else x


class KernelRegime:
    """One wide hidden layer, parametrized so that its kernel moves the less the wider it is (Jacot et al., 2018)."""

    rate = 0.3

    def __init__(self, width):
        self.width = width

    def build(self, x, num_classes):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2)) + 1e-3
        inputs, draw = keras.Input(x.shape[1:]), keras.initializers.RandomNormal(stddev=1.0)
        z = layers.Flatten()(layers.Normalization(mean=mean.tolist(), variance=variance.tolist())(inputs))
        z = layers.Dense(self.width, "relu", kernel_initializer=draw)(layers.Rescaling(z.shape[1] ** -0.5)(z))
        return keras.Model(inputs, layers.Dense(num_classes, kernel_initializer=draw)(self._scaled(z)))

    def _scaled(self, z):
        return layers.Rescaling(self.width**-0.5)(z)


SHAPES = {
    "4 filters": Shape(4),
    "8 filters": Shape(8),
    "16 filters": Shape(16),
    "32 filters": Shape(32),
    "64 filters": Shape(64),
    "4 filters, 14 layers": Shape(4, blocks=2),
    "8 filters, 14 layers": Shape(8, blocks=2),
    "4 filters, no skips": Shape(4, skip=False),
    "8 filters, no skips": Shape(8, skip=False),
    "16 filters, no skips": Shape(16, skip=False),
    "4 filters, no pooling": Shape(4, pooling="none"),
    "8 filters, no pooling": Shape(8, pooling="none"),
    "8 filters, no normalization": Shape(8, norm=False),
    "8 filters, no skips, no normalization": Shape(8, skip=False, norm=False),
    "1,024 units, kernel regime": KernelRegime(1024),
}
HEADS_OF = "16 filters"
COSTLY = ("64 filters",)  # trained where named


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Snapshots(keras.callbacks.Callback):
    """Looks at the model after a fifth of the epochs; what that takes is not in the seconds."""

    def __init__(self, x, y):
        super().__init__()
        self._data, self.early, self.seconds = (x, y), None, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds += time.perf_counter() - self._started
        if epoch + 1 == EARLY:
            self.early = looked_at(self.model, *self._data)

    def row(self, model, history, x, y, test):
        return {
            "kind": "structure",
            "parameters": model.count_params(),
            "features": model.layers[-1].input.shape[-1],
            "seconds": round(self.seconds, 1),
            "early": {"shown_loss": history["loss"][EARLY - 1], **self.early},
            "end": looked_at(model, x, y),
            "test_accuracy": model.evaluate(test.x.astype("float32"), test.y, batch_size=500, verbose=0)[1],
            "kernel_change": history["kernel_change"],
        }


class Prices(keras.callbacks.Callback):
    """Notes the residual share after every epoch, and the processor seconds of the steps of the last."""

    def __init__(self, x, y):
        super().__init__()
        self._data, self.shares, self.seconds = (x, y), [], 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self._started = time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds = time.process_time() - self._started
        curve = keras_dal.width_curve(self.model, *self._data, widths=[0], draws=1, verbose=0)
        self.shares.append(curve.residual_share[0])

    def row(self, model, history, x, y, test):
        return {
            "kind": "early",
            "residual_shares": self.shares,
            "step_processor_seconds": self.seconds / math.ceil(len(x) / BATCH),
            "outputs_mib": BATCH * 4 * sum(math.prod(layer.output.shape[1:]) for layer in model.layers) / 2**20,
        }


def looked_at(model, x, y):
    """Return what can be measured of a model on its training images, without training it."""
    curve = keras_dal.width_curve(model, x, y, widths=[0], draws=1, verbose=0)
    loss, accuracy = model.evaluate(x, y, batch_size=500, verbose=0)
    low, high = curve.infimum[0]
    return {
        "training_loss": loss,
        "training_accuracy": accuracy,
        "residual_share": curve.residual_share[0],
        "infimum": [low, high],
        "rank": curve.rank[0],
    }


def features_of(model, x):
    return np.asarray(keras.Model(model.inputs, model.layers[-1].input).predict(x, batch_size=500, verbose=0))


def head(z, weights, width, loss, seed):
    """Return a compiled head that computes what these weights do, with so many gates beside it, adapted to features."""
    dense = layers.Dense(len(weights[-1]))
    gated = keras_dal.GatedBranch(dense, width, seed=seed) if width else dense
    model = keras.Sequential([layers.Input(z.shape[1:]), gated])
    (gated.dense if width else dense).set_weights(weights)  # a branch has a layer of its own, made like this one
    if width:
        gated.adapt(z)
    model.compile(loss=loss)
    return model


def columns(model, z):
    """Return the columns `(n, d)` of one output of a head, in float64: of its dense layer, and of its gates."""
    own, ones = model.layers[-1], np.ones((len(z), 1))
    plain = np.hstack([z.astype(np.float64), ones])
    if not isinstance(own, keras_dal.GatedBranch):
        return plain
    mixture, z64 = own.linear_head()[0].mixture, z.astype(np.float64)
    mixed = mixture.gates(z64)[:, :, None] * np.hstack([mixture.standardize(z64), ones])[:, None, :]
    return np.hstack([plain, mixed.reshape(len(z), -1)])


def minimized(matrix, y, classes):
    """Return coefficients `(d, c)` after so many steps of L-BFGS for the cross-entropy, in orthonormal coordinates."""
    norms = linalg.norm(matrix, axis=0)
    norms[norms == 0] = 1.0
    left, values, right = linalg.svd(matrix / norms, full_matrices=False)
    kept = values > len(matrix) * np.finfo(np.float32).eps * values[0]
    basis, one_hot = left[:, kept] * len(matrix) ** 0.5, np.eye(classes)[y]

    def objective(flat):
        logits = basis @ flat.reshape(-1, classes)
        slope = (special.softmax(logits, axis=1) - one_hot) / len(y)
        value = np.mean(special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y])
        return value, (basis.T @ slope).ravel()

    start = np.zeros(basis.shape[1] * classes)
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    inner = right[kept].T @ (found.x.reshape(-1, classes) * len(matrix) ** 0.5 / values[kept, None])
    return inner / norms[:, None], float(found.fun)


def heads(model, x, y, test, classes, seed):
    """Yield what `width_curve` predicts for wider heads, and what SciPy reaches with gates of their own."""
    z, seen = features_of(model, x), features_of(model, test.x.astype("float32"))
    weights, one_hot = model.layers[-1].get_weights(), np.eye(classes)[y]
    start = time.perf_counter()
    plain = head(z, weights, 0, cross_entropy(), seed)
    curve = keras_dal.width_curve(plain, z, y, widths=WIDTHS, seed=seed, verbose=0)
    seconds = time.perf_counter() - start
    constant = np.sum((one_hot - one_hot.mean(axis=0)) ** 2)
    for index, width in enumerate(curve.widths):
        wide = head(z, weights, width, cross_entropy(), OTHER_SEED + seed + width)
        matrix = columns(wide, z)
        left = one_hot - matrix @ linalg.lstsq(matrix, one_hot)[0]
        coefficients, loss = minimized(matrix, y, classes)
        right = [
            np.mean((columns(wide, part) @ coefficients).argmax(axis=1) == of) for part, of in ((z, y), (seen, test.y))
        ]
        yield {
            "kind": "head",
            "gates": width,
            "features": z.shape[1],
            "settled": curve.settled,
            "seconds_of_curve": round(seconds, 2),
            "predicted_share": curve.residual_share[index],
            "predicted_spread": curve.residual_share_spread[index],
            "predicted_infimum": list(curve.infimum[index]),
            "share": float(np.sum(left**2) / constant),
            "loss": loss,
            "training_accuracy": float(right[0]),
            "test_accuracy": float(right[1]),
        }


def convex_steps(model, x, y):
    """Return the gradient steps that are proved to be enough for the head, and those that were."""
    z = np.column_stack([features_of(model, x), np.ones(len(x))]).astype(np.float64)
    start = np.vstack(model.layers[-1].get_weights()).astype(np.float64)
    result = keras_dal.finish(model, x, y, verbose=0)
    solved = np.vstack(model.layers[-1].get_weights()).astype(np.float64)
    second, ridge = z.T @ z / len(z), result.point.ridge
    lower = np.linalg.cholesky(second + 1e-2 * np.diag(np.diag(second)))
    inverse, right = np.linalg.inv(lower), np.eye(start.shape[1])[y]
    values = np.linalg.eigvalsh(inverse @ second @ inverse.T)
    largest, smallest = 0.5 * values[-1] + 2 * ridge * (values[-1] + 1), 2 * ridge * (values[0] + 1)

    def objective(phi):
        logits, moved = z @ (start + inverse.T @ phi), z @ (inverse.T @ phi)
        below = logits - logits.max(axis=1, keepdims=True)
        loss = np.mean(np.log(np.exp(below).sum(axis=1)) - below[np.arange(len(y)), y])
        slope = (np.exp(below) / np.exp(below).sum(axis=1, keepdims=True) - right + 2 * ridge * moved) / len(z)
        value = loss + ridge * (np.sum(moved**2) / len(z) + np.sum(phi**2))
        return value, inverse @ (z.T @ slope) + 2 * ridge * phi

    least = objective(lower.T @ (solved - start))[0] - result.point.gap
    phi = ahead = np.zeros_like(start)
    momentum = (1 - np.sqrt(smallest / largest)) / (1 + np.sqrt(smallest / largest))
    taken = 0
    while objective(phi)[0] - least > 1e-4:
        before, phi = phi, ahead - objective(ahead)[1] / largest
        ahead, taken = phi + momentum * (phi - before), taken + 1
    return {
        "kind": "steps",
        "proved_gradient_steps": result.gradient_steps,
        "gradient_steps": taken,
        "newton_steps": len(result.path) - 1,
        "gap": result.point.gap,
    }


def rows(options, seed):
    """Yield a row for each structure, and where it is trained to its end one for each head of one of them."""
    train, test, classes = load(options.dataset, IMAGES, options.data_dir)
    x, y = train.x.astype("float32"), train.y
    steps = EPOCHS * (len(x) // BATCH)
    watch, epochs = (Prices, EARLY) if options.early else (Snapshots, EPOCHS)
    for name in options.structures or [name for name in SHAPES if name not in COSTLY]:
        keras.utils.set_random_seed(seed)
        model = SHAPES[name].build(x, classes)
        rate = keras.optimizers.schedules.CosineDecay(SHAPES[name].rate, steps)
        model.compile(keras.optimizers.SGD(rate, momentum=0.9), cross_entropy(), metrics=["accuracy"])
        watching = watch(x, y)
        monitor = keras_dal.AlignmentMonitor(verbose=False)
        try:
            history = model.fit(x, y, BATCH, epochs, verbose=0, callbacks=[monitor, watching]).history
        except ValueError as error:  # of features that are not finite, or all zero
            yield {"kind": "diverged", "structure": name, "error": str(error)}
            continue
        yield {"structure": name, **watching.row(model, history, x, y, test)}
        if name == HEADS_OF and not options.early:
            yield from heads(model, x, y, test, classes, seed)
            yield convex_steps(model, x, y)


def main():
    parser = parser_of(__doc__, RESULT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--structures", nargs="+", help="names of some of them; all by default")
    parser.add_argument("--early", action="store_true", help="train for a fifth of the epochs only")
    options = parser.parse_args()
    bind(options.core)
    for seed in options.seeds:
        for row in rows(options, seed):
            row = {"dataset": options.dataset, "images": IMAGES, "epochs": EPOCHS, "seed": seed, **row}
            with options.result.open("a") as file:
                file.write(json.dumps({**row, "machine": machine.describe()}) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
