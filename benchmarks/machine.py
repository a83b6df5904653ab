"""What a benchmark ran on, for its JSON, and the memory that it took."""

import os
import platform
import re
import threading
from datetime import date
from importlib import metadata
from pathlib import Path

GIB = 2**30


def describe():
    """Return processor, cores, memory, versions and date as a dict."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
    packages = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "scikit-learn")
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "date": date.today().isoformat(),
    }


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
