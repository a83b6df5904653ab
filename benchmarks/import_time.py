"""How long `import keras_dal` takes when Keras is there already: processor seconds, the least of several processes.

python benchmarks/import_time.py

The goal is 0.1 s. Beside it the modules with most time of their own, by the clock, as `-X importtime` gives it. Writes
benchmarks/results/import_time.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import describe

RESULT = Path(__file__).parent / "results" / "import_time.json"
GOAL = 0.1  # seconds
_COMPILED = Path(tempfile.gettempdir()) / "keras_dal-import-time"
_TIMED = "import keras, numpy, time; start = time.process_time(); import keras_dal; print(time.process_time() - start)"


def run(*options):
    """Run Python as users do, who have compiled modules after the first import."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-X", f"pycache_prefix={_COMPILED}", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment)


def modules():
    """Return the seconds of each of our modules by itself."""
    lines = run("-X", "importtime", "-c", "import keras, numpy, keras_dal").stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    return {name.strip(): int(own) / 1e6 for own, _, name in rows if name.strip().startswith("keras_dal")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    run("-c", _TIMED)
    seconds = min(float(run("-c", _TIMED).stdout) for _ in range(repeats))
    slowest = sorted(modules().items(), key=lambda item: -item[1])[:10]
    result = {
        "command": f"python benchmarks/import_time.py --repeats {repeats}",
        "machine": describe(),
        "processor seconds beyond Keras": seconds,
        "goal": GOAL,
        "modules, seconds": slowest,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
