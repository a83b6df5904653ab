"""Which gated head is best on real features: the study behind the defaults of `add_gated_head`.

    python benchmarks/gated_study.py [--data-dir DIR]       # about ten minutes on two cores

A small ResNet is trained on CIFAR-10 without gated units and with them before the head. Then, for every kind of head,
on features that stay as they are: rank and condition number of J_S on the first images, and test accuracy after
`converge` has put every training image on its right side. Random gates are drawn, and noise is, with several seeds.
Writes benchmarks/results/gated_study.json and docs/gated_study.md.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
import tensorflow_datasets as tfds
from basics import accuracy, augmented
from keras import layers
from machine import describe
from page import hardware

from keras_dal import add_gated_head, converge, find_structure, heads
from keras_dal.features.batches import feature_batches
from keras_dal.solvers.jacobian import jacobian

RESULTS = Path(__file__).parent / "results" / "gated_study.json"
TABLE = Path(__file__).parents[1] / "docs" / "gated_study.md"
RANK_SAMPLES = 100
SHARPNESS, OVERSAMPLE, NOISE = 10.0, 4.0, 1e-3  # where a configuration does not say otherwise


def configurations():
    """Yield one change at a time from random gates beside the head, then gated units before it."""
    for sharpness in (1.0, 3.0, 10.0, 30.0, 100.0):
        yield {"place": "beside", "gates": "random", "sharpness": sharpness}
    for oversample in (1.25, 2.0, 8.0):
        yield {"place": "beside", "gates": "random", "oversample": oversample}
    yield {"place": "before", "gates": "random"}
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


def trained(model, x, y, epochs, seed):
    """Train a model with augmentation and a cosine schedule, and return it."""
    rng, batch = np.random.default_rng(seed), 128
    schedule = keras.optimizers.schedules.CosineDecay(0.1, epochs * -(-len(x) // batch))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True), loss)
    for _ in range(epochs):
        model.fit(augmented(x, rng, padding="reflect"), y, batch_size=batch, verbose=0)
    return model


class Case:
    """A trained model, cut at its features: what the head sees, and the head as a model of its own."""

    def __init__(self, model, images):
        structure = find_structure(model)
        self.features = {name: _features(structure, x) for name, x in images.items()}
        width = self.features["train"].shape[1:]
        self.head = keras.Sequential([keras.Input(width), model.layers[-1]])
        self.head.compile("sgd", _softmax())
        self.weights = self.head.get_weights()

    def copy(self, options, y, seed):
        """Return the head as it was trained, with the gates of a configuration."""
        self.head.set_weights(self.weights)
        if options["gates"] == "learned":
            for layer in find_structure(self.head).gated_layers:
                layer.frozen.assign(0.0)
                layer.freeze_gates(noise=options["noise"], seed=seed)
            return self.head
        z, chosen = self.features["train"], {name: options[name] for name in ("place", "sharpness", "oversample")}
        head = add_gated_head(self.head, z, seed=seed, verbose=False, **chosen)
        if options["place"] == "before":  # it starts anew, so it first learns what the old head says
            head.compile("sgd", keras.losses.MeanSquaredError())
            converge(head, z, self.head.predict(z, verbose=0), tol=1e-4, verbose=0)
            head.compile("sgd", _softmax())
        return head


def _features(structure, x):
    return np.concatenate([batch[0] for batch in feature_batches(structure, x)])


def conditioning(head, features, oversample):
    """Return rank and condition number on the first images, with gates or units in proportion."""
    z = features[:RANK_SAMPLES].astype(np.float64)
    labels = RANK_SAMPLES * (head.num_outputs - 1)
    counted = RANK_SAMPLES if isinstance(head, heads.SumHead) else labels
    first = _first_units(head, int(np.ceil(oversample * counted / (z.shape[1] + 1))))
    found = jacobian(first, z, shift_invariant=True, max_jacobian_bytes=2**31)
    return {"rank": found.rank, "of": labels, "condition": float(found.values[0] / found.values[-1])}


def _first_units(head, units):
    if isinstance(head, heads.SumHead):
        return heads.SumHead([_first_units(part, units) for part in head.parts])
    if isinstance(head, heads.DenseHead):
        return head
    if head.mixture is head:
        return head.first(units)
    gates = (head.mean, head.scale, head.gate_kernel[:, :units], head.gate_bias[:units], head.sharpness)
    return heads.GatedHead(*gates, head.output_kernel[:units], head.use_bias)


def study(arguments):
    """Return the rows of the table."""
    (x, y), (x_test, y_test) = _images(arguments)
    cases, rows = {}, []
    for key in (("plain",), ("before", "learned")):
        keras.utils.set_random_seed(arguments.seed)
        model = resnet()
        if len(key) == 2:
            options = {"place": key[0], "gates": key[1], "sharpness": SHARPNESS, "oversample": OVERSAMPLE}
            model = add_gated_head(model, x, loss=_softmax(), seed=arguments.seed, **options)
        trained(model, x, y, arguments.epochs, arguments.seed)
        cases[key] = Case(model, {"train": x, "test": x_test})
    for configuration in configurations():
        options = {"sharpness": SHARPNESS, "oversample": OVERSAMPLE, "noise": NOISE} | configuration
        learned = options["gates"] == "learned"
        case = cases[(options["place"], "learned") if learned else ("plain",)]
        seeds = range(arguments.gate_seeds if not learned or options["noise"] else 1)
        ends = [separated(case, options, y, y_test, seed) for seed in seeds]
        rows.append(
            options
            | {"noise": options["noise"] if learned else None}
            | ends[0]
            | {name: [end[name] for end in ends] for name in ("before", "train", "test", "moved")}
        )
        print(rows[-1], flush=True)
    return rows


def separated(case, options, y, y_test, seed):
    """Return conditioning and accuracy of one head before and after every training image is on its right side."""
    model, (z, z_test) = case.copy(options, y, seed), (case.features[name] for name in ("train", "test"))
    head = find_structure(model).head()
    before = accuracy(model, z_test, y_test)
    result = converge(model, z, y, gated=False, verbose=0)
    return conditioning(head, z, options["oversample"]) | {
        "units": getattr(head, "parts", [head])[0].gate_kernel.shape[1],
        "before": before,
        "train": result.point.accuracy,
        "test": accuracy(result.model, z_test, y_test),
        "moved": result.point.moved,
    }


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
        f"Measured here, by `{results['command']}`, on {setting['samples']:,} CIFAR-10 images "
        f"([prepared copies](results.md)), a ResNet-8 trained for {setting['epochs']} epochs, seed {setting['seed']}; "
        f"{hardware(results['machine'])}.",
        f"Rank and condition number are those of J_S on the first {RANK_SAMPLES} images, with gates or units in "
        "proportion. Accuracy is in percent, on all 10,000 test images: of the trained model, and of its head after "
        f"`converge`, as mean and standard deviation over {setting['gate_seeds']} draws of gates or noise. Moved is "
        "the root mean square change of a training image's logits.",
        "",
        "| place | gates | sharpness | oversample | noise | gates or units | rank | condition | test before "
        "| converged: train | test | moved |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        noise = "" if row["noise"] is None else f"{row['noise']:g}"
        before, train, test = (100 * np.array(row[name]) for name in ("before", "train", "test"))
        lines.append(
            f"| {row['place']} | {row['gates']} | {row['sharpness']:g} | {row['oversample']:g} | {noise} "
            f"| {row['units']:,} | {row['rank']:,} of {row['of']:,} | {row['condition']:.1e} | {before.mean():.2f} "
            f"| {train.mean():.2f} | {test.mean():.2f} ± {test.std():.2f} | {np.mean(row['moved']):.2f} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--gate-seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table-only", action="store_true", help="write the page again from the committed results")
    arguments = parser.parse_args()
    if not arguments.table_only:
        names = ("samples", "epochs", "gate_seeds", "seed")
        setting = {name: getattr(arguments, name) for name in names}
        options = (f" --{name.replace('_', '-')} {value}" for name, value in setting.items())
        command = "python benchmarks/gated_study.py" + "".join(options)
        results = {"command": command, "machine": describe(), "setting": setting, "rows": study(arguments)}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
