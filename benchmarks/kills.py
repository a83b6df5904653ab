"""Kill a training at random moments, let it resume, and compare the weights it ends with.

python benchmarks/kills.py [--kills 20]

The training has the two lines and `BackupAndRestore`. Its phases (exploring, averaging, reading) are slowed down so
that each takes about a third of the time, and are all hit.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from machine import describe

ROOT = pathlib.Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "kills.json"
EXPLORED, SECONDS = 6, 2.0  # epochs before the switch; seconds for each of the three phases


def train(folder):
    """Train in `folder`, from where a run before this one came, and write the weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    import fits
    import keras
    import numpy as np

    import keras_dal

    class Slow(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.phase = "reading" if epoch == EXPLORED else "averaging" if epoch >= EXPLORED - 2 else "exploring"
            self.epochs = {"reading": 1, "averaging": 2, "exploring": EXPLORED - 2}[self.phase]
            print(self.phase, flush=True)

        def on_train_batch_end(self, batch, logs=None):
            time.sleep(SECONDS / 6 / self.epochs)  # six batches an epoch

    wrapped = keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=EXPLORED, average=0.3)
    model = fits.compiled(wrapped, fits.small_model(dropout=0))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    backup = keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False, double_checkpoint=True)
    fits.fit(model, 2 * EXPLORED, [backup, monitor, Slow()], shuffle=False)
    np.savez(folder / "weights.npz", *model.get_weights())


def run(folder, killed_after=None):
    """Train in a process of its own; return the phase in which it was killed, or None."""
    command = [sys.executable, __file__, "--train", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        phase = process.stdout.readline().strip()  # the first epoch begins
        if killed_after is not None:
            deadline = time.monotonic() + killed_after
            os.set_blocking(process.stdout.fileno(), False)
            while time.monotonic() < deadline and process.poll() is None:
                phase = process.stdout.readline().strip() or phase
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            return phase
        _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(said)
    return None


def main():
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    generator, rows = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as place:
        expected_in = pathlib.Path(place) / "expected"
        expected_in.mkdir()
        run(expected_in)
        expected = np.load(expected_in / "weights.npz")
        for number in range(options.kills):
            folder = pathlib.Path(place) / str(number)
            folder.mkdir()
            after = generator.uniform(0, 3 * SECONDS)
            phase = run(folder, after)
            run(folder)
            found = np.load(folder / "weights.npz")
            difference = max(float(np.abs(found[name] - expected[name]).max()) for name in expected.files)
            rows.append({"after_seconds": round(after, 2), "phase": phase, "largest_difference": difference})
            print(rows[-1], flush=True)
    RESULT.write_text(
        json.dumps(
            {
                "command": f"python benchmarks/kills.py --kills {options.kills} --seed {options.seed}",
                "kills": len(rows),
                "while": dict(collections.Counter(row["phase"] for row in rows)),
                "largest_difference": max(row["largest_difference"] for row in rows),
                "rows": rows,
                "machine": describe(),
            },
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
