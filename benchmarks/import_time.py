"""How long `import keras_dal` takes when Keras is there already: processor seconds, the least of several processes.

python benchmarks/import_time.py

The goal is 0.1 s. Below it the modules with most time of their own, by the clock, as `-X importtime` gives it.
"""

import argparse
import subprocess
import sys

GOAL = 0.1  # seconds
_TIMED = "import keras, numpy, time; start = time.process_time(); import keras_dal; print(time.process_time() - start)"


def run(*options):
    return subprocess.run([sys.executable, *options], capture_output=True, text=True, check=True)


def modules():
    """Return the seconds of each of our modules by itself."""
    lines = run("-X", "importtime", "-c", "import keras, numpy, keras_dal").stderr.splitlines()
    rows = [line.removeprefix("import time:").split("|") for line in lines if line.startswith("import time:")]
    return {name.strip(): int(own) / 1e6 for own, _, name in rows if name.strip().startswith("keras_dal")}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    seconds = min(float(run("-c", _TIMED).stdout) for _ in range(repeats))
    print(f"keras_dal beyond Keras: {seconds:.3f} s, goal {GOAL} s")
    for name, own in sorted(modules().items(), key=lambda item: -item[1])[:10]:
        print(f"{own:8.4f} s  {name}")


if __name__ == "__main__":
    main()
