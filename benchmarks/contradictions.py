"""What nearly equal samples with different labels do to `converge`, where they are left and where they are moved.

    python benchmarks/contradictions.py cifar100_0.npz

The file is one that `converge_features.py` wrote. Twins of some samples are added, their features changed by a relative
distance and their labels by one; or some labels are changed and no twins added. Takes about five minutes on two cores.
"""

import argparse
import json
import pathlib
import time
import warnings
from unittest import mock

import numpy as np
from basics import accuracy, head_model
from machine import describe
from page import hardware

from keras_dal.finishing.converge import converge

SCRIPT = "benchmarks/contradictions.py"
RESULTS = pathlib.Path(__file__).parent / "results"
DOCS = pathlib.Path(__file__).parents[1] / "docs"
CASES = [("twins", 5, distance) for distance in (0.0, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1)]
CASES += [("twins", 200, 1e-2), ("changed labels", 500, None)]
LIMIT = 60.0


def contradicting(data, kind, count, distance):
    """Return features and labels with contradictions among them."""
    z, y, generator = data["z"], data["y"], np.random.default_rng(0)
    classes = data["K"].shape[1]
    if kind == "changed labels":
        rows, y = generator.permutation(len(y))[:count], y.copy()
        y[rows] = (y[rows] + 1) % classes
        return z, y
    noise = distance * generator.normal(size=z[:count].shape)
    twins = (z[:count] * (1 + noise)).astype(np.float32)
    return np.concatenate([z, twins]), np.concatenate([y, (y[:count] + 1) % classes])


def solve(data, z, y):
    """Return what `converge` does to the trained head on these samples."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the table says how many are left
        result = converge(head_model(data, False), z, y, gated=True, time_limit=LIMIT, verbose=0)
    return {
        "left": len(result.left),
        "train": result.accuracy,
        "test": accuracy(result.model, data["zt"], data["yt"]),
        "seconds": time.perf_counter() - started,
    }


def table(results):
    """Return the Markdown page of the results."""
    lines = [
        "# Samples that contradict nearly equal ones",
        "",
        f"Measured here, by `{results['command']}`; {hardware(results['machine'])}. "
        f"{results['samples']:,} training images. Accuracies in percent, {100 * results['test']:.2f} on test images "
        "before. Twins are copies of samples with other labels, whose features differ by the relative distance. On the "
        f"right what happens where all are to be moved, within {LIMIT:g} s.",
        "",
        f"| added | distance | left | training | test | none left, within {LIMIT:g} s: training | test | seconds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in results["rows"]:
        ours, moved = row["left"], row["moved"]
        distance = "" if row["distance"] is None else f"{row['distance']:g}"
        cells = [
            f"{row['count']} {row['kind']}",
            distance,
            str(ours["left"]),
            *(f"{100 * value:.2f}" for value in (ours["train"], ours["test"], moved["train"], moved["test"])),
            f"{ours['seconds']:.1f} and {moved['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features")
    arguments = parser.parse_args()
    data = dict(np.load(arguments.features))
    data |= {"y": data["y"].astype("int64").ravel(), "yt": data["yt"].ravel()}
    rows = []
    for kind, count, distance in CASES:
        z, y = contradicting(data, kind, count, distance)
        ours = solve(data, z, y)
        with mock.patch("keras_dal.finishing.contradictions._GENEROUS", np.inf):
            moved = solve(data, z, y)
        rows.append({"kind": kind, "count": count, "distance": distance, "left": ours, "moved": moved})
        print(rows[-1], flush=True)
    results = {
        "command": f"python {SCRIPT} {pathlib.Path(arguments.features).name}",
        "machine": describe(),
        "samples": len(data["z"]),
        "test": accuracy(head_model(data, False), data["zt"], data["yt"]),
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "contradictions.json").write_text(json.dumps(results, indent=1) + "\n")
    (DOCS / "contradictions.md").write_text(table(results))


if __name__ == "__main__":
    main()
