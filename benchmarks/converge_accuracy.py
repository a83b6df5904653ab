"""What finishing a head costs in test accuracy, on features of several trained networks.

    python benchmarks/converge_features.py --data-dir DIR --output cifar10_0.npz --seed 0      # and so on
    python benchmarks/converge_accuracy.py cifar10_0.npz cifar10_1.npz cifar10_2.npz --name cifar10

Every method starts at the trained head. L-BFGS minimizes the cross-entropy for `--limit` seconds or down to 1e-4, on
the training images alone or together with four augmented copies of each. `converge` has its default settings. Writes
benchmarks/results/converge_accuracy_NAME.json and docs/converge_accuracy_NAME.md.
"""

import argparse
import json
import pathlib
from unittest import mock

import numpy as np
from basics import accuracy, head_model
from converge_peers import SOFTMAX, Clock, chosen, minimize
from machine import describe
from page import hardware

from keras_dal import converge, find_structure

RESULTS = pathlib.Path(__file__).parent / "results"
SCRIPT = "benchmarks/converge_accuracy.py"
DOCS = pathlib.Path(__file__).parents[1] / "docs"


def finished(anchors=None, gated="auto", **options):
    def run(data, limit):
        kept = None if anchors is None else anchors(data)
        model = head_model(data, gated=False)
        return converge(model, data["z"], data["y"], anchors=kept, gated=gated, verbose=0, **options).model

    return run


class _AsTheyAre:
    """No whitening: interpolation then makes the change of least norm in the parameters themselves."""

    def __init__(self, jacobian, samples):
        pass

    def rows(self, inputs, gates):
        return inputs, gates

    def theta(self, phi):
        return phi.astype(np.float32)


def not_whitened(data, limit):
    with mock.patch("keras_dal.solvers.min_norm_interpolation.Whitening", _AsTheyAre):
        return finished()(data, limit)


def nothing_held(data, limit):
    with mock.patch("keras_dal.finishing.separating._HELD", 0):
        return finished()(data, limit)


def lbfgs(gated, copies=False):
    def run(data, limit):
        train = data
        if copies:
            z = np.concatenate([data["z"], *data["za"]])
            train = data | {"z": z, "y": np.tile(data["y"], 1 + len(data["za"]))}
        model = head_model(data, gated)
        minimize(find_structure(model), train, Clock(limit))
        return model

    return run


def augmented(data):
    return np.concatenate(data["za"])[:: len(data["za"])]


METHODS = {
    "converge": finished(),
    "converge, no anchor held": nothing_held,
    "converge, change not whitened": not_whitened,
    "converge, unlabelled images as anchors": finished(lambda data: data["zu"]),
    "converge, augmented images as anchors": finished(augmented),
    "plain head, ridge 1e-2": finished(gated=False, ridge=1e-2),
    "plain head, L-BFGS": lbfgs(gated=False),
    "gated head, L-BFGS": lbfgs(gated=True),
    "gated head, L-BFGS on augmented copies": lbfgs(gated=True, copies=True),
}


def training(model, data):
    """Return training accuracy and loss, in float64."""
    structure = find_structure(model)
    logits = structure.head().logits(data["z"].astype(np.float64), structure.theta())
    targets = SOFTMAX.targets(data["y"], logits.shape[1])
    margins = SOFTMAX.margins(logits, targets)
    return float(np.mean(margins > 0)), float(np.mean(SOFTMAX.values(logits, targets)))


def measure(path, limit, methods):
    """Return test accuracy before, and for each method training accuracy, loss and test accuracy."""
    data = dict(np.load(path))
    data |= {"y": data["y"].astype("int64").ravel(), "yt": data["yt"].ravel()}
    rows = {}
    for name in methods:
        model = METHODS[name](data, limit)
        train, loss = training(model, data)
        rows[name] = {"train": train, "loss": loss, "test": accuracy(model, data["zt"], data["yt"])}
        print(f"{path}  {name:40} train {train:.4f} loss {loss:.2g} test {rows[name]['test']:.4f}", flush=True)
    before = head_model(data, gated=False)
    return {
        "samples": len(data["z"]),
        "train": training(before, data)[0],
        "test": accuracy(before, data["zt"], data["yt"]),
        "rows": rows,
    }


def table(results):
    """Return the Markdown page of the results."""
    networks = results["networks"]
    before, train_before = (np.array([network[key] for network in networks]) for key in ("test", "train"))
    lines = [
        f"# Test accuracy after finishing a head: {results['name']}",
        "",
        f"Measured here, by `{results['command']}`: features of {networks[0]['samples']:,} training images "
        f"([prepared copies](results.md)) from {len(networks)} networks of different seeds; "
        f"{hardware(results['machine'])}. Accuracies in percent, before: {100 * train_before.mean():.2f} on the "
        f"training images, {100 * before.mean():.2f} on the test images. The change is the mean over networks and "
        "their range.",
        "",
        "| method | train | training loss | test | change |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in networks[0]["rows"]:
        rows = [network["rows"][name] for network in networks]
        test, train = (100 * np.array([row[key] for row in rows]) for key in ("test", "train"))
        change = test - 100 * before
        lines.append(
            f"| {name} | {train.mean():.2f} | {np.mean([row['loss'] for row in rows]):.2g} | {test.mean():.2f} "
            f"| {change.mean():+.2f} ({change.min():+.2f} to {change.max():+.2f}) |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", nargs="+")
    parser.add_argument("--name", required=True)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    arguments = parser.parse_args()
    names = " ".join(pathlib.Path(path).name for path in arguments.features)
    results = {
        "name": arguments.name,
        "command": f"python {SCRIPT} {names} --name {arguments.name} --limit {arguments.limit:g}"
        + chosen(arguments, methods=list(METHODS)),
        "machine": describe(),
        "networks": [measure(path, arguments.limit, arguments.methods) for path in arguments.features],
    }
    stem = f"converge_accuracy_{arguments.name}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / f"{stem}.md").write_text(table(results))


if __name__ == "__main__":
    main()
