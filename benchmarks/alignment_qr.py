"""Time the alignment algebra against NumPy's QR factorization of the same matrix, in one run.

    python benchmarks/alignment_qr.py [--samples 50000] [--features 512] [--outputs 10] [--repeats 5]

The algebra is all that follows the features: the streamed factorization of [Z, 1 | Y] from batches, the decomposition
that decides the rank, and the residual of every sample. The goal is the time of three passes of
`np.linalg.qr(mode="r")` over [Z, 1].
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np
from machine import describe

from keras_dal.solvers.least_squares import StreamedQR

RESULT = pathlib.Path(__file__).parent / "results" / "alignment_qr.json"
BATCH = 256
GOAL = 3.0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--outputs", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--trial", action="store_true", help="print the result and write no file")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    features = np.maximum(generator.standard_normal((arguments.samples, arguments.features), np.float32), 0)
    labels = np.eye(arguments.outputs)[generator.integers(0, arguments.outputs, arguments.samples)]
    columns = np.column_stack([features, np.ones(arguments.samples)]).astype(np.float64)
    times = {"numpy_qr": [], "alignment": []}
    for _ in range(arguments.repeats):  # in turns, so that a busy machine is unfair to neither
        times["numpy_qr"].append(seconds(lambda: np.linalg.qr(columns, mode="r")))
        times["alignment"].append(seconds(lambda: residual_shares(features, labels)))
    best = {name: min(values) for name, values in times.items()}
    result = {
        "command": " ".join(["python benchmarks/alignment_qr.py", *sys.argv[1:]]),
        "sizes": {name: getattr(arguments, name) for name in ("samples", "features", "outputs")},
        "seconds": times,
        "fastest": best,
        "ratio_of_fastest": best["alignment"] / best["numpy_qr"],
        "goal": GOAL,
        "machine": describe(),
    }
    print(json.dumps(result, indent=1))
    if not arguments.trial:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def residual_shares(features, labels):
    """Return the share of every sample in what a head cannot fit."""
    qr = StreamedQR(features.shape[1], labels.shape[1], use_bias=True)
    for start in range(0, len(features), BATCH):
        qr.update(features[start : start + BATCH], labels[start : start + BATCH])
    projection = qr.project(np.finfo(np.float32).eps)
    shares = [
        np.sum((y - z @ projection.coefficients[:-1] - projection.coefficients[-1]) ** 2, axis=1)
        for z, y in (
            (features[i : i + BATCH].astype(np.float64), labels[i : i + BATCH]) for i in range(0, len(features), BATCH)
        )
    ]
    return projection.squares.share(np.concatenate(shares))


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
