"""Which gated head is best on real features: the study behind the defaults of `add_gated_head`.

A small ResNet is trained on CIFAR-10 without, beside and before gated units. Then, for every kind of head, on features
that stay as they are: rank and condition number of J_S on the first images, and accuracy after a minimum-change
separation (all training images on their right side by a margin, logits on augmented copies kept near those of the
trained model). Writes benchmarks/results/gated_study.json and docs/gated_study.md.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow_datasets as tfds
from keras import layers
from machine import describe
from scipy import optimize

from keras_dal import heads
from keras_dal.add_head import add_gated_head
from keras_dal.features import feature_batches
from keras_dal.gated import GatedBranch
from keras_dal.jacobian import DenseJacobian
from keras_dal.structure import find_structure

RESULTS = Path(__file__).parent / "results" / "gated_study.json"
TABLE = Path(__file__).parents[1] / "docs" / "gated_study.md"
RANK_SAMPLES = 100
DELTA, ANCHOR_WEIGHT = 0.1, 0.1
SHARPNESS, OVERSAMPLE, NOISE = 10.0, 1.25, 1e-3  # where a configuration does not say otherwise


def configurations():
    """Yield one change at a time from random gates beside the head."""
    for sharpness in (1.0, 3.0, 10.0, 100.0):
        yield {"place": "beside", "gates": "random", "sharpness": sharpness}
    for oversample in (0.5, 1.0, 1.5, 2.0):
        yield {"place": "beside", "gates": "random", "oversample": oversample}
    yield {"place": "before", "gates": "random"}
    yield {"place": "beside", "gates": "learned"}
    for noise in (0.0, 1e-3, 1e-2):
        yield {"place": "before", "gates": "learned", "noise": noise}


def resnet():
    """Return a ResNet-8 for 32 x 32 images with 64 features and plain logits."""
    inputs = keras.Input((32, 32, 3))
    x = layers.Activation("relu")(_normalized(layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)))
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        shortcut = x if stride == 1 else layers.Conv2D(width, 1, strides=stride, use_bias=False)(x)
        x = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x)
        x = layers.Activation("relu")(_normalized(x))
        x = _normalized(layers.Conv2D(width, 3, padding="same", use_bias=False)(x))
        x = layers.Activation("relu")(layers.Add()([x, shortcut]))
    return keras.Model(inputs, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x)))


def _normalized(x):
    return layers.BatchNormalization(momentum=0.9)(x)


def augmented(x, rng):
    """Return flipped and shifted copies of images."""
    padded = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
    rows, columns = rng.integers(0, 9, (2, len(x)))
    copies = [image[r : r + 32, c : c + 32] for image, r, c in zip(padded, rows, columns, strict=True)]
    return np.stack([image[:, ::-1] if rng.random() < 0.5 else image for image in copies])


def trained(model, x, y, epochs, seed):
    """Train a model with augmentation and a cosine schedule, and return it."""
    rng, batch = np.random.default_rng(seed), 128
    schedule = keras.optimizers.schedules.CosineDecay(0.1, epochs * -(-len(x) // batch))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True), loss)
    for _ in range(epochs):
        model.fit(augmented(x, rng), y, batch_size=batch, verbose=0)
    return model


class Case:
    """Features, theta and head of one trained model, and the logits to stay near to."""

    def __init__(self, model, images):
        self.structure = find_structure(model)
        self.features = {name: _features(self.structure, x) for name, x in images.items()}
        self.theta, self.head = self.structure.theta(), self.structure.head()
        self.anchors = self.head.logits(self.features["anchor"], self.theta)


def _features(structure, x):
    return np.concatenate([batch[0] for batch in feature_batches(structure, x)])


def gated_head(case, configuration, n, seed):
    """Return the head of a configuration on a case's features, and the theta at which it starts."""
    options = {"sharpness": SHARPNESS, "oversample": OVERSAMPLE, "noise": NOISE} | configuration
    if options["gates"] == "learned":
        for layer in case.structure.gated_layers:
            layer.freeze_gates(noise=options["noise"], seed=seed)
        return case.structure.head(), case.theta
    m, outputs = case.features["train"].shape[1], case.head.num_outputs
    units = int(np.ceil(options["oversample"] * n * (outputs - 1) / (m + 1)))
    branch = GatedBranch(layers.Dense(outputs), units, sharpness=options["sharpness"], seed=seed)
    branch.build((None, m))
    branch.adapt(case.features["train"])
    head, _ = branch.linear_head()
    if options["place"] == "beside":
        return head, np.concatenate([np.zeros(head.parts[0].num_parameters), case.theta])
    gated = _with_bias(head.parts[0])
    return gated, np.zeros(gated.num_parameters)


def _with_bias(head):
    fixed = (head.mean, head.scale, head.gate_kernel, head.gate_bias, head.sharpness, head.output_kernel)
    return heads.GatedHead(*fixed, use_bias=True)


def conditioning(head, features, oversample):
    """Return rank and condition number on the first images, with units in proportion."""
    z = features[:RANK_SAMPLES].astype(np.float64)
    labels = RANK_SAMPLES * (head.num_outputs - 1)
    units = int(np.ceil(oversample * labels / (z.shape[1] + 1)))
    jacobian = DenseJacobian(_first_units(head, units), z, np.ones(len(z)), centered=True)
    return {"rank": jacobian.rank, "of": labels, "condition": float(jacobian.values[0] / jacobian.values[-1])}


def _first_units(head, units):
    if isinstance(head, heads.SumHead):
        return heads.SumHead([_first_units(part, units) for part in head.parts])
    if isinstance(head, heads.DenseHead):
        return head
    gates = (head.gate_kernel[:, :units], head.gate_bias[:units])
    return heads.GatedHead(head.mean, head.scale, *gates, head.sharpness, head.output_kernel[:units], head.use_bias)


def separated(head, theta, case, y, iterations):
    """Return theta after minimum-change separation, and the number of L-BFGS steps until all were separated."""
    train, anchor, rows = case.features["train"], case.features["anchor"], np.arange(len(y))
    steps = []

    def objective(theta):
        theta = theta.astype(np.float32)
        f = head.logits(train, theta)
        short = np.maximum(0, DELTA - (f[rows, y][:, None] - f))
        short[rows, y] = 0
        cotangent = 2 * short / len(y)
        cotangent[rows, y] = -cotangent.sum(axis=1)
        change = head.logits(anchor, theta) - case.anchors
        value = np.sum(short**2) / len(y) + ANCHOR_WEIGHT * np.sum(change**2) / len(anchor)
        back = head.adjoint(anchor, (2 * ANCHOR_WEIGHT / len(anchor) * change).astype(np.float32))
        return float(value), (head.adjoint(train, cotangent.astype(np.float32)) + back).astype(np.float64)

    def stop(theta):
        steps.append(theta)
        if accuracy(head, train, theta, y) == 1.0:
            raise StopIteration

    options = {"maxiter": iterations, "maxcor": 20}
    optimize.minimize(objective, theta, jac=True, method="L-BFGS-B", callback=stop, options=options)
    return steps[-1], len(steps)


def accuracy(head, features, theta, y):
    return float(np.mean(np.argmax(head.logits(features, theta), axis=1) == y))


def study(arguments):
    """Return the rows of the table."""
    (x, y), (x_test, y_test) = _images(arguments)
    rng = np.random.default_rng(arguments.seed)
    images = {"train": x, "test": x_test, "anchor": np.concatenate([augmented(x, rng), augmented(x, rng)])}
    cases, rows = {}, []
    for key in (("plain",), ("beside", "learned"), ("before", "learned")):
        keras.utils.set_random_seed(arguments.seed)
        model = resnet()
        if len(key) == 2:
            options = {"place": key[0], "gates": key[1], "sharpness": SHARPNESS, "oversample": OVERSAMPLE}
            model = add_gated_head(model, x, loss=_softmax(), seed=arguments.seed, **options)
        cases[key] = Case(trained(model, x, y, arguments.epochs, arguments.seed), images)
    for configuration in configurations():
        learned = configuration["gates"] == "learned"
        case = cases[(configuration["place"], "learned") if learned else ("plain",)]
        before = accuracy(case.head, case.features["test"], case.theta, y_test)
        _thaw(case)
        head, start = gated_head(case, configuration, len(x), arguments.seed)
        theta, steps = separated(head, start, case, y, arguments.iterations)
        rows.append(
            {"sharpness": SHARPNESS, "oversample": OVERSAMPLE, "noise": NOISE if learned else None}
            | configuration
            | conditioning(head, case.features["train"], configuration.get("oversample", OVERSAMPLE))
            | {
                "units": (head.parts[0] if configuration["place"] == "beside" else head).output_kernel.shape[0],
                "explored_train": accuracy(case.head, case.features["train"], case.theta, y),
                "explored_test": before,
                "train": accuracy(head, case.features["train"], theta, y),
                "test": accuracy(head, case.features["test"], theta, y_test),
                "steps": steps,
            }
        )
        print(rows[-1], flush=True)
    return rows


def _thaw(case):
    """Lets learned gates be frozen again, from where they were and with another noise."""
    for layer in case.structure.gated_layers:
        layer.frozen.assign(1.0 if layer.gates == "random" else 0.0)


def _softmax():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def _images(arguments):
    splits = [f"train[:{arguments.samples}]", "test"]
    parts = tfds.load("cifar10", split=splits, data_dir=arguments.data_dir, batch_size=-1, as_supervised=True)
    return [(np.asarray(x, np.float32) / 127.5 - 1.0, np.asarray(y)) for x, y in tfds.as_numpy(parts)]


def table(results):
    """Return the Markdown page of the results."""
    setting = results["setting"]
    lines = [
        "# Which gated head: a study on real features",
        "",
        "Measured here, by `python benchmarks/gated_study.py`, on "
        f"{setting['samples']:,} CIFAR-10 images, a ResNet-8 trained for {setting['epochs']} epochs, seed "
        f"{setting['seed']}; {results['machine']['processor']}, {results['machine']['cores']} cores.",
        f"Rank and condition number are those of J_S on the first {RANK_SAMPLES} images, with units in proportion. "
        "Accuracy is in percent: of the trained model, and after minimum-change separation on cached features "
        f"(margin {DELTA}, anchor weight {ANCHOR_WEIGHT}, at most {setting['iterations']} L-BFGS steps). "
        "A row at that limit was still separating: it compares speed, not where the head ends.",
        "",
        "| place | gates | sharpness | oversample | noise | units | rank | condition | explored: train, test "
        "| separated: train, test | steps |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        noise = "" if row["noise"] is None else f"{row['noise']:g}"
        lines.append(
            f"| {row['place']} | {row['gates']} | {row['sharpness']:g} | {row['oversample']:g} | {noise} "
            f"| {row['units']:,} | {row['rank']:,} of {row['of']:,} | {row['condition']:.1e} "
            f"| {100 * row['explored_train']:.1f}, {100 * row['explored_test']:.1f} "
            f"| {100 * row['train']:.2f}, {100 * row['test']:.1f} | {row['steps']} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--iterations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table-only", action="store_true", help="write the page again from the committed results")
    arguments = parser.parse_args()
    if not arguments.table_only:
        names = ("samples", "epochs", "iterations", "seed")
        setting = {name: getattr(arguments, name) for name in names}
        results = {"machine": describe(), "setting": setting, "rows": study(arguments)}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
