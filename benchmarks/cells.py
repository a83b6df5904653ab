"""Fit with the two lines in every pair of circumstances, and note what does not hold.

KERAS_BACKEND=jax python benchmarks/cells.py

What a cell is, and what must hold in each, is in tests/cells.py. Results of the backends stand beside each other in
benchmarks/results/cells.json.
"""

import collections
import json
import pathlib
import sys
import tempfile
import time
import traceback

from machine import describe

ROOT = pathlib.Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "cells.json"
sys.path.insert(0, str(ROOT / "tests"))

import cells  # noqa: E402
import keras  # noqa: E402


def main():
    skipped, failed, start = collections.Counter(), [], time.perf_counter()
    drawn = cells.pairwise()
    for number, cell in enumerate(drawn):
        if reason := cells.reason_to_skip(cell):
            skipped[reason] += 1
            continue
        try:
            with tempfile.TemporaryDirectory() as folder:
                cells.check(cell, pathlib.Path(folder))
        except Exception as error:
            failed.append({"cell": cell._asdict(), "error": f"{type(error).__name__}: {error}"})
            traceback.print_exc()
        print(f"{number + 1} of {len(drawn)}: {', '.join(cell)}", flush=True)
        keras.utils.clear_session()
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[keras.backend.backend()] = {
        "command": f"KERAS_BACKEND={keras.backend.backend()} python benchmarks/cells.py",
        "cells": len(drawn) - sum(skipped.values()),
        "skipped": dict(skipped),
        "failures": len(failed),
        "failed": failed,
        "seconds": round(time.perf_counter() - start),
        "machine": describe(),
    }
    RESULT.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
