"""What a gated head costs: parameters, and the time of a training step against the plain head, in one run.

Exploring, all of the model is trained; exploiting, only the head on cached features. Steps of the two models alternate,
so that what else the machine does meets both. Writes benchmarks/results/gated_price.json and docs/gated_price.md.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import keras
import numpy as np
from gated_study import resnet
from machine import describe
from page import hardware

from keras_dal.models.add_head import add_gated_head
from keras_dal.models.find_structure import find_structure

RESULTS = Path(__file__).parent / "results" / "gated_price.json"
TABLE = Path(__file__).parents[1] / "docs" / "gated_price.md"
BATCH = 128


def stepper(model, x, y):
    """Return a function that makes one training step."""
    model.compile(keras.optimizers.SGD(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.train_on_batch(x, y)
    return lambda: model.train_on_batch(x, y)


def head_only(model):
    """Return the head of a model as a model of its features."""
    layer = find_structure(model).layer
    return keras.Sequential([keras.Input((64,)), type(layer).from_config(layer.get_config())])


def ratio(plain, gated, repeats):
    """Return the median milliseconds of both steps and the median of their ratios."""
    times = []
    for _ in range(repeats):
        marks = [time.perf_counter()]
        for step in (plain, gated):
            step()
            marks.append(time.perf_counter())
        times.append((1000 * (marks[1] - marks[0]), 1000 * (marks[2] - marks[1])))
    return {
        "plain_ms": round(statistics.median(first for first, _ in times), 2),
        "gated_ms": round(statistics.median(second for _, second in times), 2),
        "ratio": round(statistics.median(second / first for first, second in times), 3),
    }


def price(samples, repeats):
    """Return one row: sizes and times of the gated head for a number of training samples."""
    keras.utils.set_random_seed(0)
    model = resnet()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    gated = add_gated_head(model, num_samples=samples, loss=loss, seed=0)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(BATCH, 32, 32, 3)).astype("float32"), rng.integers(0, 10, BATCH)
    z = rng.normal(size=(BATCH, 64)).astype("float32")
    heads = head_only(model), head_only(gated)
    return {
        "samples": samples,
        "gates": find_structure(gated).layer.num_gates,
        "plain_parameters": model.count_params(),
        "gated_trainable": sum(int(np.prod(v.shape)) for v in gated.trainable_variables),
        "gated_parameters": gated.count_params(),
        "whole": ratio(stepper(model, x, y), stepper(gated, x, y), repeats),
        "head": ratio(stepper(heads[0], z, y), stepper(heads[1], z, y), repeats),
    }


def table(results):
    """Return the Markdown page of the results."""
    lines = [
        "# What a gated head costs",
        "",
        f"Measured here, by `{results['command']}`: a ResNet-8 with 64 features and 10 classes, batches of "
        f"{BATCH}, medians of {results['repeats']} alternating steps; "
        f"{hardware(results['machine'])}. The fixed parameters are those of the gates.",
        "",
        "| samples | gates | parameters, plain | trainable, gated | all, gated | step of the whole model, ms | ratio "
        "| step of the head, ms | ratio |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        sizes = "samples", "gates", "plain_parameters", "gated_trainable", "gated_parameters"
        times = [
            f"{row[kind]['plain_ms']} → {row[kind]['gated_ms']} | {row[kind]['ratio']}" for kind in ("whole", "head")
        ]
        lines.append("| " + " | ".join([f"{row[size]:,}" for size in sizes] + times) + " |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--table-only", action="store_true", help="write the page again from the committed results")
    arguments = parser.parse_args()
    if not arguments.table_only:
        rows = [price(samples, arguments.repeats) for samples in arguments.samples]
        RESULTS.parent.mkdir(exist_ok=True)
        sizes = " ".join(map(str, arguments.samples))
        command = f"python benchmarks/gated_price.py --samples {sizes} --repeats {arguments.repeats}"
        results = {"command": command, "machine": describe(), "repeats": arguments.repeats, "rows": rows}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text(table(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
