"""How long `import keras_dal` takes when Keras is there already: the fastest of several processes, as noise only adds.

python benchmarks/import_time.py

The goal is 0.1 s. Prints the time, and the modules that take longest by themselves.
"""

import argparse
import subprocess
import sys

GOAL = 0.1  # seconds


def measured():
    """Return the microseconds of each module that is imported after Keras, its own and those of all it imports."""
    command = [sys.executable, "-X", "importtime", "-c", "import keras, numpy, keras_dal"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    rows = [(name.rstrip()[1:], own, total) for own, total, name in rows if own.strip().isdigit()]
    first = max(index for index, (name, *_) in enumerate(rows) if name in ("keras", "numpy"))
    return {name.strip(): (int(own), int(total)) for name, own, total in rows[first + 1 :]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    runs = [measured() for _ in range(parser.parse_args().repeats)]
    seconds = min(run["keras_dal"][1] for run in runs) / 1e6
    print(f"keras_dal beyond Keras: {seconds:.3f} s, goal {GOAL} s")
    for name, (own, _) in sorted(runs[-1].items(), key=lambda item: -item[1][0])[:10]:
        print(f"{own / 1e6:8.4f} s  {name}")


if __name__ == "__main__":
    main()
