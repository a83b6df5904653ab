"""What the two lines lose, or gain, in the setting of `make quickstart`, over several seeds.

    OMP_NUM_THREADS=1 python benchmarks/quickstart_seeds.py [--seeds 6]

Needs Debian's `dataset-fashion-mnist`. Accuracies are of all 10,000 test images; times are not compared.
"""

import argparse
import json
import sys
from pathlib import Path

import machine
import numpy as np

import keras_dal

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "quickstart_seeds.json"
sys.path.insert(0, str(ROOT / "examples"))

import quickstart  # noqa: E402


def accuracy(seed, wrapped, data, test):
    """Return the test accuracy in per cent, and the number of epochs, of one training."""
    optimizer, callbacks = quickstart.sgd(len(data[0])), []
    if wrapped:
        optimizer = keras_dal.Wrap(optimizer, average=quickstart.AVERAGE)
        callbacks.append(keras_dal.AlignmentMonitor(verbose=False))
    model = quickstart.compiled(optimizer, data[0].shape[1:], seed)
    options = {"batch_size": quickstart.BATCH, "epochs": quickstart.EPOCHS, "verbose": 0}
    history = model.fit(*data, callbacks=callbacks, **options)
    return 100 * model.evaluate(*test, batch_size=500, verbose=0)[1], len(history.epoch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = parser.parse_args().seeds
    (_, data, test), rows = quickstart.images(), []
    for seed in range(seeds):
        base, wrapped = (accuracy(seed, each, data, test) for each in (False, True))
        rows.append({"seed": seed, "base": base[0], "wrapped": wrapped[0], "epochs": [base[1], wrapped[1]]})
        print(rows[-1], flush=True)
    gained = np.array([row["wrapped"] - row["base"] for row in rows])
    result = {
        "command": f"OMP_NUM_THREADS=1 python benchmarks/quickstart_seeds.py --seeds {seeds}",
        "machine": machine.describe(),
        "setting": {"samples": len(data[0]), "epochs": quickstart.EPOCHS},
        "test accuracy alone, mean, %": float(np.mean([row["base"] for row in rows])),
        "test accuracy with the two lines, mean, %": float(np.mean([row["wrapped"] for row in rows])),
        "gained, mean, points": float(gained.mean()),
        "gained, standard error, points": float(gained.std(ddof=1) / np.sqrt(len(gained))),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
