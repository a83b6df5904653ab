"""What a gated head costs in test accuracy at the end of the two lines, and how much of that is the draw of its gates.

    python benchmarks/gate_seeds.py cifar10 --images 5000 --data-dir ~/tensorflow_datasets --seeds 0 1 2 --gates 8

trains a ResNet-8 for each seed as benchmarks/two_lines.py does. While exploring, a gated head computes nothing: what it
would end with is found from the same weights, with the head as it was before it was solved, for many draws of gates.
Writes benchmarks/results/gate_seeds.json.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import machine  # noqa: E402
import numpy as np  # noqa: E402
from settings import SETS  # noqa: E402
from two_lines import Training, accuracy, bind  # noqa: E402

import keras_dal  # noqa: E402

RESULT = Path(__file__).parent / "results" / "gate_seeds.json"


def measured(training, gates):
    """Return the test accuracy before the head is solved, with it solved, and with each gated head."""
    model, monitor = training.model(keras_dal.Wrap(training.optimizer(training.epochs))), keras_dal.AlignmentMonitor()
    training.curve = []
    training.fit(model, training.epochs, [monitor])
    x, y = training.train.x.astype("float32"), training.train.y
    row = {"seed": training.seed, "plain": accuracy(model, training.test)}
    monitor.result.choose(0)
    row |= {"before": accuracy(model, training.test), "gated": [], "training": []}
    for seed in range(gates):
        model.compile("sgd", model.loss, metrics=["accuracy"])
        gated = keras_dal.add_gated_head(model, x, seed=seed, verbose=False)
        row["training"].append(keras_dal.finish(gated, x, y, verbose=0).accuracy)
        row["gated"].append(accuracy(gated, training.test))
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=SETS)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--gates", type=int, default=8)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--core", type=int, help="the one core to run on")
    options = parser.parse_args(namespace=argparse.Namespace(recipe="sgd", augment="model", explore=None))
    bind(options.core)
    rows = []
    for seed in options.seeds:
        rows.append(measured(Training(options, seed), options.gates))
        print(rows[-1], flush=True)
    apart = np.array([np.subtract(row["gated"], row["plain"]) for row in rows])
    command = f"python benchmarks/gate_seeds.py {options.dataset} --images {options.images} --data-dir DIR"
    command += f" --epochs {options.epochs}" if options.epochs else ""
    result = {
        "command": f"{command} --seeds {' '.join(map(str, options.seeds))} --gates {options.gates}",
        "machine": machine.describe(),
        "points apart, mean": round(100 * float(apart.mean()), 3),
        "points apart, by seed": np.round(100 * apart.mean(axis=1), 3).tolist(),
        "points apart, deviation over gates": round(100 * float(apart.std(axis=1).mean()), 3),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
