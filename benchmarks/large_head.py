"""Memory and time of the second phase where the logits do not fit into memory, by the number of samples.

    python benchmarks/large_head.py --samples 20000 40000 80000

Features of 512 numbers that say something about 1,000 classes; `keras_dal.finishing.solve.solve_head` on them, with
logits for a block of samples at a time, to a gap of 1e-4. Each size runs in a process of its own. Writes
benchmarks/results/large_head.json.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "large_head.json"
FEATURES, CLASSES = 512, 1_000


def solved(n):
    """Return what it took for n samples."""
    import keras
    import numpy as np
    from machine import GIB, PeakMemory

    from keras_dal.features.cache import CachedFeatures
    from keras_dal.finishing.solve import solve_head
    from keras_dal.losses import loss_of
    from keras_dal.models.find_structure import find_structure

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES)])
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    generator = np.random.default_rng(0)
    with PeakMemory() as memory:
        labels = generator.integers(0, CLASSES, n)
        centres = generator.standard_normal((CLASSES, FEATURES), np.float32)
        features = generator.standard_normal((n, FEATURES), np.float32)
        for start in range(0, n, 10_000):
            features[start : start + 10_000] += 0.2 * centres[labels[start : start + 10_000]]
        np.maximum(features, 0, out=features)
        train = CachedFeatures(features, labels, np.ones(n), np.arange(n))
        start = time.perf_counter()
        result = solve_head(find_structure(model), loss_of(model, "linear"), train, max_bytes=2**20)
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "peak memory beyond the interpreter, GiB": (memory.peak - memory.before) / GIB,
        "of which features, GiB": features.nbytes / GIB,
        "logits would be, GiB": 4 * n * CLASSES / GIB,
        "steps": len(result.path) - 1,
        "gap": float(result.point.gap),
        "ended by": str(result.stopped_by),
        "training accuracy": result.accuracy,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[20_000, 40_000, 80_000])
    parser.add_argument("--one", action="store_true", help="print what one size took, in this process")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(solved(arguments.samples[0])))
        return
    from machine import describe

    rows = {}
    for n in arguments.samples:
        command = [sys.executable, __file__, "--one", "--samples", str(n)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rows[f"{n:,} samples"] = json.loads(output.splitlines()[-1])
        print(n, rows[f"{n:,} samples"], flush=True)
    result = {
        "command": " ".join(["python benchmarks/large_head.py", *sys.argv[1:]]),
        "machine": describe(),
        "setting": {"features": FEATURES, "classes": CLASSES},
        **rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
