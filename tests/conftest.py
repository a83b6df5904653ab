"""Settings for every test: quiet, seeded and time enough, so that results do not depend on the machine or on others."""

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import keras
import pytest

import keras_dal

keras.utils.set_random_seed(0)  # what modules draw as they are collected
gc.disable()  # a heap of traced functions is large, and looking through it takes a fifth of the time


def pytest_runtest_logfinish():
    """Free what a test made; what is left is not searched."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    keras.utils.set_random_seed(0)  # before fixtures of any scope: no test hangs on those that a process ran before


@pytest.fixture(autouse=True, scope="session")
def _iterators_end_at_once():
    """Tune no iterator of tf.data: one that is let go of may wait for its tuner as long again as it lived."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    iterate, options = tf.data.Dataset.__iter__, tf.data.Options()
    options.autotune.enabled = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf.data.Dataset, "__iter__", lambda dataset: iterate(dataset.with_options(options)))
        yield


@pytest.fixture(autouse=True)
def _no_verdict_depends_on_the_clock(monkeypatch):
    monkeypatch.setattr("keras_dal.solvers.duality.SECONDS", 120.0)
    for function in (keras_dal.alignment, keras_dal.certify, keras_dal.width_curve):
        monkeypatch.setitem(function.__kwdefaults__, "time_limit", 120.0)
