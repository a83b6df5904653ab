"""Settings for every test: quiet and few threads, and time enough, so that results do not depend on the machine."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import pytest

gc.set_threshold(100_000, 50, 100)  # a heap of traced functions is large: looking through it took a tenth of the time


@pytest.fixture(autouse=True)
def _no_verdict_depends_on_the_clock(monkeypatch):
    monkeypatch.setattr("keras_dal.solvers.duality.SECONDS", 120.0)
