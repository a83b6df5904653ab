"""What a benchmark ran on, for its JSON."""

import os
import platform
from datetime import date
from importlib import metadata
from pathlib import Path


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
