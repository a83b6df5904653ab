"""What a benchmark ran on, for its JSON, and the memory that it took."""

import os
import platform
import re
import subprocess
import sys
import threading
from datetime import date
from importlib import metadata
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from host import processor

GIB = 2**30


def describe():
    """Return processor, cores, memory, versions, commit and date as a dict."""
    import keras_dal  # not above: scripts bind cores and choose a backend before

    packages = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "scikit-learn", "threadpoolctl")
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {"keras_dal": keras_dal.__version__, **{name: _version(name) for name in packages}},
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def commit():
    """Return the short name of the commit that is checked out, None outside of git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class PeakMemory:
    """The most anonymous memory of this process within a block, in bytes."""

    def __enter__(self):
        self.before = self.peak = self._now()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now():
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])
