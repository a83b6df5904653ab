"""Fit with the two lines in every combination of circumstances, and note what does not hold.

KERAS_BACKEND=jax python benchmarks/cells.py

What a cell is, and what must hold in each, is in tests/cells.py. It takes hours: each optimizer is written as it is
done, and `--optimizers` chooses some. Results of the backends stand beside each other in benchmarks/results/cells.json.
"""

import argparse
import collections
import gc
import json
import pathlib
import sys
import tempfile
import time
import traceback

from machine import commit, describe

ROOT = pathlib.Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "cells.json"
sys.path.insert(0, str(ROOT / "tests"))

import cells  # noqa: E402
import keras  # noqa: E402


def tried(optimizer):
    """Return how many cells of an optimizer were tried, why others were not, and what failed."""
    count, skipped, failed, start = 0, collections.Counter(), [], time.perf_counter()
    for cell in cells.whole(optimizer):
        for saved in cells.FACTORS["saved"]:
            reason = cells.reason_to_skip(cell._replace(saved=saved))
            skipped.update([reason] if reason else [])
            count += not reason
        if cells.reason_to_skip(cell):
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                cells.check(cell, pathlib.Path(folder))
        except Exception as error:
            failed.append({"cell": cell._asdict(), "error": f"{type(error).__name__}: {error}"})
            traceback.print_exc()
        keras.utils.clear_session()
        gc.freeze()  # graphs that TensorFlow never lets go: looking through them took a third of the time
    seconds = round(time.perf_counter() - start)
    return {"cells": count, "skipped": dict(skipped), "failed": failed, "seconds": seconds, "commit": commit()}


def noted(results, optimizer, found):
    """Return the results of a backend with those of an optimizer, and their sums."""
    each = results.get("optimizers", {}) | {optimizer: found}
    skipped = sum((collections.Counter(one["skipped"]) for one in each.values()), collections.Counter())
    return {
        "command": f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/cells.py",
        "cells": sum(one["cells"] for one in each.values()),
        "skipped": dict(skipped),
        "failures": sum(len(one["failed"]) for one in each.values()),
        "seconds": sum(one["seconds"] for one in each.values()),
        "optimizers_tried": len(each),
        "optimizers": each,
        "machine": describe(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", choices=cells.OPTIMIZERS, default=cells.OPTIMIZERS)
    for optimizer in parser.parse_args().optimizers:
        found = tried(optimizer)
        results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        results[keras.backend.backend()] = noted(results.get(keras.backend.backend(), {}), optimizer, found)
        RESULT.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(
            f"{optimizer}: {found['cells']} cells in {found['seconds']} s, failed: {len(found['failed'])}", flush=True
        )


if __name__ == "__main__":
    main()
