"""Kill a training at random moments of each phase, let it resume, and compare the weights it ends with.

KERAS_BACKEND=jax python benchmarks/kills.py [--kills 5]

The training has the two lines and `BackupAndRestore`. Its phases (exploring, averaging, reading, solving) are slowed
down, and each is hit as often. Results of the backends stand beside each other in benchmarks/results/kills.json.
"""

import argparse
import json
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
EXPLORED, SECONDS = 6, 2.0  # epochs before the switch; seconds for each of the phases
PHASES = ("exploring", "averaging", "reading", "solving")


def train(folder):
    """Train in `folder`, from where a run before this one came, and write the weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    import fits
    import keras
    import numpy as np

    import keras_dal
    from keras_dal.training import convex_phase

    solve = convex_phase.solve_head

    def slow_solve(*arguments):
        print("solving", flush=True)
        time.sleep(SECONDS / 2)
        result = solve(*arguments)
        time.sleep(SECONDS / 2)
        return result

    convex_phase.solve_head = slow_solve

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


def run(folder, killed_in=None, after=0.0):
    """Train in a process of its own, killed some seconds after a phase began; return in which phase that was."""
    command = [sys.executable, __file__, "--train", str(folder)]
    with (
        (folder / "errors").open("w") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        phase = next((said for said in map(str.strip, process.stdout) if said == killed_in), None)
        if killed_in is not None:
            time.sleep(after)
            process.send_signal(signal.SIGKILL)
        phase = [phase, *process.stdout.read().split()][-1]
    if killed_in is None and process.returncode:
        raise RuntimeError((folder / "errors").read_text())
    return phase


def main():
    import keras
    import numpy as np

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, help="in each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return
    generator, rows, backend = random.Random(options.seed), [], keras.backend.backend()
    with tempfile.TemporaryDirectory() as place:
        expected_in = pathlib.Path(place) / "expected"
        expected_in.mkdir()
        run(expected_in)
        expected = np.load(expected_in / "weights.npz")
        for number, chosen in enumerate(PHASES * options.kills):
            folder = pathlib.Path(place) / str(number)
            folder.mkdir()
            after = generator.uniform(0, SECONDS)
            phase = run(folder, chosen, after)
            run(folder)
            found = np.load(folder / "weights.npz")
            difference = max(float(np.abs(found[name] - expected[name]).max()) for name in expected.files)
            rows.append({"phase": phase, "seconds_after": round(after, 2), "largest_difference": difference})
            print(rows[-1], flush=True)
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[backend] = {
        "command": f"KERAS_BACKEND={backend} python benchmarks/kills.py --kills {options.kills} --seed {options.seed}",
        "kills": len(rows),
        **{f"while_{phase}": sum(row["phase"] == phase for row in rows) for phase in PHASES},
        "largest_difference": max(row["largest_difference"] for row in rows),
        "rows": rows,
        "machine": describe(),
    }
    RESULT.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
