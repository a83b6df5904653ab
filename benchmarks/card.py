"""What an accelerator is, and how fast its matrix products are: for Keras on JAX."""

import time

import keras


class Compiling:
    """Counts the programs that JAX compiles, and the seconds it takes.

    Attributes:
        seconds: since it was made.
        programs: the same.
    """

    def __init__(self):
        import jax

        self.seconds, self.programs = 0.0, 0
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += seconds
            self.programs += 1

    def now(self):
        """Return both, seconds first."""
        return self.seconds, self.programs

    def since(self, before):
        """Return what was added to what `now` had returned before."""
        return tuple(now - then for now, then in zip(self.now(), before, strict=True))


def described():
    """Return the name of the accelerator, or of the processor where there is none."""
    import jax

    return jax.devices()[0].device_kind


def peaks(size=8192, repeats=10):
    """Return the TFLOP/s of square matrix products by the dtype policy whose products they are.

    "float32" is what JAX makes of it by default, TensorFloat-32 where there is one; "float32, whole" is not rounded.
    """
    import jax
    import jax.numpy as jnp

    found = {}
    for name, dtype, precision in (
        ("mixed_bfloat16", "bfloat16", None),
        ("float32", "float32", None),
        ("float32, whole", "float32", "highest"),
    ):
        left, right = (jax.random.normal(jax.random.key(each), (size, size), dtype) for each in (0, 1))
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        product(left, right).block_until_ready()
        started = time.perf_counter()
        for _ in range(repeats):
            last = product(left, right)
        last.block_until_ready()
        found[name] = 2 * size**3 * repeats / (time.perf_counter() - started) / 1e12
    return found


def bandwidth(size=2**30):
    """Return how many bytes a second a copy of an array reads and writes."""
    import jax

    copied = jax.jit(lambda array: array + 1)
    array = jax.numpy.zeros(size // 4, "float32")
    copied(array).block_until_ready()
    started = time.perf_counter()
    for _ in range(10):
        last = copied(array)
    last.block_until_ready()
    return 2 * size * 10 / (time.perf_counter() - started)


assert keras.backend.backend() == "jax", keras.backend.backend()
