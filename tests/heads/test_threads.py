"""BLAS has one thread where more would only wait for each other, and as many as before afterwards."""

import sys

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from keras_dal._backend import threads


def count():
    return max((library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"), default=0)


@pytest.fixture
def two_threads():
    with threadpool_limits(2, user_api="blas"):
        if count() != 2:
            pytest.skip("this BLAS does not take two threads")
        yield


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("operations", "expected"), [(1e6, 1), (1e10, 2)])
def test_small_products_have_one_thread(operations, expected):
    with threads.threads_for(operations):
        assert count() == expected
    assert count() == 2


@pytest.mark.usefixtures("two_threads")
def test_without_threadpoolctl_nothing_changes(monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    threads._controller.cache_clear()
    with threads.threads_for(1):
        assert count() == 2
    threads._controller.cache_clear()
