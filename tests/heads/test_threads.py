"""BLAS has one thread where more would only wait for each other, and as many as before afterwards."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from keras_dal._backend import threads


def count():
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


@pytest.mark.parametrize(("operations", "expected"), [(1e6, 1), (1e10, 2)])
def test_small_products_have_one_thread(operations, expected):
    np.ones((2, 2)) @ np.ones((2, 2))  # BLAS is there
    with threadpool_limits(2, user_api="blas"):
        with threads.threads_for(operations):
            assert count() == expected
        assert count() == 2


def test_without_threadpoolctl_nothing_changes(monkeypatch):
    monkeypatch.setattr(threads, "_controller", lambda: None)
    before = count()
    with threads.threads_for(1):
        assert count() == before
