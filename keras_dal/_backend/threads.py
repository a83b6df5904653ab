"""How many threads BLAS takes on the host: one where products are small.

Its threads wait for each other in every product, and OpenBLAS' go on spinning for a while after it, in the way of what
comes next. Needs threadpoolctl, an extra, without which BLAS has as many threads as it likes.
"""

import contextlib
import functools
from typing import Any

_WORTH_THREADS = 3e8  # operations of a product


@functools.cache
def _controller() -> Any:
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()


def threads_for(operations):
    """Return a context in which BLAS has one thread, unless products of so many operations gain from more."""
    controller = _controller()
    if controller is None or operations >= _WORTH_THREADS:
        return contextlib.nullcontext()
    return controller.limit(limits=1, user_api="blas")
