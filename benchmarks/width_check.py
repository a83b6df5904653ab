"""Do heads of five widths reach what `width_curve` predicts? Solved for with `converge`, with gates of their own.

    python benchmarks/width_check.py cifar10_5000.npz [--widths 0 2 5 10 20]

The file is one that `converge_features.py` wrote. The share of a solved head is its squared error on one-hot labels,
relative to that of the best constant; its cross-entropy is compared with the upper bound of the infimum. The gates are
drawn with other seeds than those of the prediction. Writes benchmarks/results/width_check.json.
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
from keras import layers
from machine import describe

from keras_dal import GatedBranch, converge, width_curve

RESULTS = pathlib.Path(__file__).parent / "results"
OTHER_SEED = 1_000  # far from those of the prediction's draws
GENTLE = 1e-8  # weight of the change: nearly none


def head(z, classes, width, loss):
    """Return a compiled head of this width, its gates adapted to features."""
    dense = layers.Dense(classes)
    gated = GatedBranch(dense, width, seed=OTHER_SEED + width) if width else dense
    model = keras.Sequential([layers.Input(z.shape[1:]), gated])
    if width:
        gated.adapt(z)
    model.compile(loss=loss)
    return model


def cross_entropy():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def reached(z, y, width, seconds):
    """Return the residual share and the cross-entropy of heads that are solved for."""
    one_hot = np.eye(y.max() + 1)[y]
    constant = float(np.mean((one_hot - one_hot.mean(axis=0)) ** 2))
    options = {"gated": False, "time_limit": seconds, "verbose": 0}
    start = time.perf_counter()
    fit = converge(head(z, one_hot.shape[1], width, "mse"), z, one_hot, tol=1e-12, ridge=GENTLE, **options)
    right = converge(head(z, one_hot.shape[1], width, cross_entropy()), z, y, tol=1e-3, **options)
    return {
        "share": fit.loss / constant,
        "loss": min(right.loss, right.scaled_loss),
        "seconds": time.perf_counter() - start,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features")
    parser.add_argument("--widths", type=int, nargs="+", default=[0, 2, 5, 10, 20])
    parser.add_argument("--seconds", type=float, default=120.0, help="for each solved head, at most")
    arguments = parser.parse_args()
    data = np.load(arguments.features)
    z, y = data["z"].astype("float32"), data["y"].astype("int64").ravel()
    start = time.perf_counter()
    curve = width_curve(head(z, int(y.max()) + 1, 0, cross_entropy()), z, y, widths=arguments.widths, verbose=0)
    seconds = time.perf_counter() - start
    rows = []
    for index, width in enumerate(curve.widths):
        predicted = {
            "share": curve.residual_share[index],
            "spread": curve.residual_share_spread[index],
            "infimum": curve.infimum[index],
        }
        rows.append({"width": width, "predicted": predicted, "reached": reached(z, y, width, arguments.seconds)})
        print(rows[-1], flush=True)
    results = {
        "command": f"python benchmarks/width_check.py {pathlib.Path(arguments.features).name}",
        "machine": describe(),
        "samples": len(z),
        "features": z.shape[1],
        "settled": curve.settled,
        "samples_fitted": curve.samples_fitted,
        "seconds": seconds,
        "rows": rows,
    }
    (RESULTS / "width_check.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
