"""What the two lines lose, or gain, in the setting of `make quickstart`, over several seeds.

    OMP_NUM_THREADS=1 python benchmarks/quickstart_seeds.py [--seeds 6]

Needs Debian's `dataset-fashion-mnist`. Accuracies are of all 10,000 test images; times are not compared.
"""

import argparse
import json
import sys
from pathlib import Path

import keras
import machine
import numpy as np

import keras_dal

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "quickstart_seeds.json"
sys.path.insert(0, str(ROOT / "examples"))

import quickstart  # noqa: E402
from models import resnet  # noqa: E402


def accuracy(seed, wrapped, data, test):
    """Return the test accuracy in per cent, and the number of epochs, of one training."""
    keras.utils.set_random_seed(seed)
    model = resnet(depth=8, num_classes=10, input_shape=data[0].shape[1:])
    optimizer, callbacks = quickstart.sgd(len(data[0])), []
    if wrapped:
        optimizer = keras_dal.Wrap(optimizer, average=quickstart.AVERAGE)
        callbacks.append(keras_dal.AlignmentMonitor(verbose=False))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    options = {"batch_size": quickstart.BATCH, "epochs": quickstart.EPOCHS, "verbose": 0}
    history = model.fit(*data, callbacks=callbacks, **options)
    return 100 * model.evaluate(*test, batch_size=500, verbose=0)[1], len(history.epoch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=6)
    seeds = parser.parse_args().seeds
    _, data, _ = quickstart.images()
    test, rows = quickstart.fashion("t10k"), []
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
