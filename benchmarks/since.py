"""What the public functions take, and find, beside an earlier commit of the package.

    OMP_NUM_THREADS=1 python benchmarks/since.py COMMIT

Both work on the same digits of scikit-learn, in turn, each time in a process of its own: on 64 random features of
1,500 images, with labels of which a third is drawn at random.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "since.json"
SAMPLES, FEATURES, ROUNDS = 1500, 64, 5


def problem():
    """Return a model that is a frozen random layer and a head, images and labels."""
    import keras
    from sklearn.datasets import load_digits

    keras.utils.set_random_seed(0)
    x, y = load_digits(return_X_y=True)
    x, y, generator = x[:SAMPLES].astype("float32") / 16, y[:SAMPLES].copy(), np.random.default_rng(0)
    wrong = generator.choice(SAMPLES, SAMPLES // 3, replace=False)
    y[wrong] = generator.integers(0, 10, len(wrong))
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(FEATURES, activation="relu"), keras.layers.Dense(10)]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model, x, y


def timed():
    """Return seconds and findings of each function, of the package that is imported."""
    import keras_dal

    runs = {
        "alignment": lambda *samples: keras_dal.alignment(*samples).alignment,
        "certify": lambda *samples: keras_dal.certify(*samples).loss,
        "converge, plain": lambda *samples: keras_dal.converge(*samples, gated=False, verbose=0).loss,
        "converge, gated": lambda *samples: keras_dal.converge(*samples, verbose=0).accuracy,
    }
    found = {}
    for name, run in runs.items():
        samples, start = problem(), time.perf_counter()
        value = float(run(*samples))
        found[name] = {"seconds": time.perf_counter() - start, "found": value}
    return found


def child(folder):
    """Return what a process finds with the package in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-W", "ignore", __file__, "--child"]
    ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", nargs="?", help="to compare with")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(timed()))
        return
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "-C", ROOT, "archive", options.commit], capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        rounds = [(child(folder), child(ROOT)) for _ in range(ROUNDS)]
    rows = {}
    for name in rounds[0][0]:
        before, now = ([each[which][name]["seconds"] for each in rounds] for which in (0, 1))
        rows[name] = {
            "seconds before, median": float(np.median(before)),
            "seconds now, median": float(np.median(now)),
            "ratio in turn, median": float(np.median(np.divide(now, before))),
            "ratios": np.divide(now, before).round(3).tolist(),
            "found before": rounds[0][0][name]["found"],
            "found now": rounds[0][1][name]["found"],
        }
        print(name, rows[name], flush=True)
    import machine

    command = f"OMP_NUM_THREADS=1 python benchmarks/since.py {options.commit}"
    RESULT.write_text(json.dumps({"command": command, "machine": machine.describe(), **rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
