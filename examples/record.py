"""What a run leaves behind: its settings, every epoch, figures, a table, and a page that explains them."""

import csv
import io
import json
import os
import platform
import shlex
import sys
import time
from datetime import date
from importlib import metadata
from pathlib import Path

import keras
import numpy as np
from checkpoint import replace_file
from host import processor

_SETTINGS = "settings.json"
_MAY_DIFFER = (
    "data_dir",
    "manual_dir",
    "run_dir",
    "resume",
    "strategy",
    "logical_cpus",
    "certify",
    "converge",
    "batch_size",
)
_FOLDERS = ("--data-dir", "--manual-dir", "--run-dir")
_PAGE = """# {title}

```
{table}
```

Made by

    {command}

{machine}. Written by `{script}`; `--resume` goes on from the last complete epoch.

| file | what it is |
|---|---|
| `results.json` | everything below as numbers: command, machine, options, table, curves |
| `table.txt` | the table that was printed |
| `curves.png` | loss, accuracy and alignment, the switch as a dashed line |
| `NAME-SEED/history.csv`, `.json` | one row per epoch, also while training goes on |
| `NAME-SEED/tensorboard/` | the same for TensorBoard |
| `NAME-SEED/checkpoint.npz` | weights, optimizer and history after the last complete epoch |
| `NAME-SEED/model.keras` | the trained model; it takes raw pixel values |
| `NAME-SEED/report.txt`, `spectrum.png` | alignment of the clean training images, and on which singular values |
| `NAME-SEED/certificate.json`, `.txt`, `.png` | what is proved about training the head from here on |
| `converged-SEED/path.txt`, `.png` | the way of `converge`, and what it came to |

`NAME` is `wrapped` for the two-phase optimizer, `base` for the optimizer alone, and `converged` for the wrapped network
after `keras_dal.converge` on the clean training images, whose seconds are counted with those of the training.
"""


class Record(keras.callbacks.Callback):
    """Keeps one row per epoch, with its seconds and images per second, and says how long the rest will take.

    Args:
        folder: where the rows go as CSV and JSON, or None to keep them only.
        images_per_epoch: number of images.
    """

    def __init__(self, folder, images_per_epoch):
        super().__init__()
        self.folder, self.images_per_epoch = folder, images_per_epoch
        self.history = {}

    def on_epoch_begin(self, epoch, logs=None):
        self._start, self._trained = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        now = time.perf_counter()
        row = {
            "epoch": epoch + 1,
            **{key: float(value) for key, value in (logs or {}).items()},
            "seconds": now - self._start,
            "images_per_second": self.images_per_epoch / ((self._trained or now) - self._start),
        }
        for key, value in row.items():
            self.history.setdefault(key, []).append(value)
        if self.folder is not None:
            self._write()
            left = 0 if self.model.stop_training else self.params["epochs"] - epoch - 1
            pace = f"; at this pace {_duration(left * row['seconds'])} to go" if left else ""
            print(f"  {row['images_per_second']:.0f} images/s{pace}", flush=True)

    def _write(self):
        replace_file(self.folder / "history.json", lambda file: file.write(json.dumps(self.history).encode()))
        text = io.StringIO()
        rows = csv.writer(text)
        rows.writerow(self.history)
        rows.writerows(zip(*self.history.values(), strict=True))
        replace_file(self.folder / "history.csv", lambda file: file.write(text.getvalue().encode()))


def _duration(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"


def open_folder(settings):
    """Return the run's folder, new or resumed, with its options on disk; ends the program where they do not fit."""
    folder, options = check_folder(settings), _options(settings)
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / _SETTINGS, lambda file: file.write(json.dumps(options, indent=2).encode()))
    return folder


def check_folder(settings):
    """Return the run's folder, which there need not be; ends the program where it is taken, or options do not fit."""
    folder, options = Path(settings.run_dir), _options(settings)
    path = folder / _SETTINGS
    if path.exists():
        if not settings.resume:
            raise SystemExit(f"{folder} has a run already. Pass --resume to go on, or another --run-dir.")
        before = json.loads(path.read_text())
        changed = [key for key in options if key not in _MAY_DIFFER and options[key] != before.get(key)]
        if changed:
            differences = ", ".join(f"{key}={options[key]!r}, before {before.get(key)!r}" for key in changed)
            raise SystemExit(f"A resumed run must have the options it began with. Received: {differences}")
    return folder


def _options(settings):
    return {key: value for key, value in vars(settings).items() if key != "resume"}


def summarize(rows):
    """Return the final table: one line per run, and the mean over seeds."""
    columns = [
        ("train %", "train_accuracy", 100, ".2f"),
        ("test %", "test_accuracy", 100, ".2f"),
        ("train loss", "train_loss", 1, ".4f"),
        ("alignment", "alignment", 1, ".4f"),
        ("seconds", "seconds", 1, ".1f"),
        ("explore img/s", "explore_images_per_second", 1, ".0f"),
        ("exploit img/s", "exploit_images_per_second", 1, ".0f"),
    ]
    lines = [f"{'run':<16}" + "".join(f"{title:>15}" for title, *_ in columns)]
    groups = [(f"{row['name']}, seed {row['seed']}", [row]) for row in rows]
    for name in dict.fromkeys(row["name"] for row in rows):
        group = [row for row in rows if row["name"] == name]
        groups += [(f"{name}, mean", group)] if len(group) > 1 else []
    for title, group in groups:
        cells = []
        for _, key, factor, style in columns:
            values = [row[key] for row in group if row.get(key) is not None]
            cells.append(f"{factor * np.mean(values):>15{style}}" if values else f"{'':>15}")
        lines.append(f"{title:<16}" + "".join(cells))
    return "\n".join(lines)


def write_results(folder, title, rows, curves, devices):
    """Write `results.json`, the table and the page of a run; return the table."""
    table = summarize(rows)
    command = _command()
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "devices": devices,
        "backend": keras.backend.backend(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("keras", "tensorflow", "numpy")},
        "date": date.today().isoformat(),
    }
    result = {"title": title, "command": command, "machine": machine, "rows": rows, "curves": curves}
    replace_file(folder / "results.json", lambda file: file.write(json.dumps(result, indent=1).encode()))
    (folder / "table.txt").write_text(table + "\n")
    described = f"{machine['processor']}, {machine['cores']} cores, {devices}, Keras {keras.__version__} on "
    page = _PAGE.format(
        title=title, table=table, command=command, machine=described + machine["backend"], script=Path(sys.argv[0]).name
    )
    (folder / "README.md").write_text(page)
    return table


def _command():
    """Return the command line, without the names of this machine's folders."""
    words, is_folder = ["python", f"examples/{Path(sys.argv[0]).name}"], False
    for word in sys.argv[1:]:
        option, joined, _ = word.partition("=")
        names_one = len(option) > 2 and any(folder.startswith(option) for folder in _FOLDERS)  # argparse: a beginning
        words.append(f"{option}=DIR" if names_one and joined else "DIR" if is_folder else word)
        is_folder = names_one and not joined
    return shlex.join(words)
