"""`converge` on an accelerator, on the host beside it, and PyTorch's L-BFGS on the same card.

    KERAS_BACKEND=jax python benchmarks/gpu_heads.py 50000x64x10 50000x64x10,gated 50000x512x10 50000x512x10,gated
    KERAS_BACKEND=jax python benchmarks/gpu_heads.py 1000000x2048x1000 --solver --limit 100 --skip again host
    KERAS_BACKEND=jax python benchmarks/gpu_heads.py 300x16x4 300x16x4,gated --small     # writes nothing

Features are made up, samples x features x classes, and labels those of a linear teacher with noise. Seconds are those
to a training loss 1e-2 and 1e-4 above the least that any of the ways reached, 0 for a gated head, without the passes
for the features. A first run compiles, and is told apart from a second one of the same shapes; both are on the
accelerator also where the package would not take it. With `--solver` the solver runs alone, without the evaluation in
float64 that `converge` ends with. `product` is the second derivative of the loss times a vector, two products with the
features: its TFLOP/s beside the card's own square products in whole float32, and how long the features alone take to
be read twice. Adds a line for each head to benchmarks/results/gpu_heads.jsonl.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from unittest import mock

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX and torch share the card
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from basics import head_model  # noqa: E402
from card import Compiling, bandwidth, described, peaks  # noqa: E402
from machine import describe  # noqa: E402
from torch_lbfgs import torch_lbfgs  # noqa: E402

import keras_dal  # noqa: E402
from keras_dal import _backend  # noqa: E402
from keras_dal._backend import arrays  # noqa: E402
from keras_dal.features.cache import CachedFeatures  # noqa: E402
from keras_dal.finishing.head_data import HeadData  # noqa: E402
from keras_dal.finishing.history import Path as SolverPath  # noqa: E402
from keras_dal.finishing.newton import NewtonTask  # noqa: E402
from keras_dal.finishing.stopping import Stopped, TimeLimit  # noqa: E402
from keras_dal.heads.array_backend import Accelerator  # noqa: E402
from keras_dal.heads.cached_jacobian import CachedJacobian  # noqa: E402
from keras_dal.losses import SoftmaxCrossEntropy  # noqa: E402

RESULT = Path(__file__).parent / "results" / "gpu_heads.jsonl"
TARGETS = (1e-2, 1e-4)
WAYS = ("first", "again", "host", "pytorch")
ROOM = 2**36  # bytes, of what a solver keeps
BLOCK = 2**16  # samples whose maps PyTorch has at a time


def features(samples, width, classes):
    """Return float32 features and labels that a linear teacher gives to most of them."""
    keys = jax.random.split(jax.random.key(0), 3)
    teacher = jax.random.normal(keys[0], (width, classes))

    @jax.jit
    def block(index):
        kept, noise = (jax.random.fold_in(key, index) for key in keys[1:])
        z = jax.nn.relu(jax.random.normal(kept, (size, width)))
        logits = z @ teacher + 0.5 * width**0.5 * jax.random.normal(noise, (size, classes))
        return z, logits.argmax(axis=1)

    size = min(samples, 50_000)
    blocks = [tuple(map(np.asarray, block(index))) for index in range(-(-samples // size))]
    z, y = np.concatenate([z for z, _ in blocks]), np.concatenate([y for _, y in blocks])
    return z[:samples], y[:samples].astype(np.int64)


def untrained(z, classes, gated):
    """Return a model of features with a head of zeros."""
    return head_model({"z": z, "K": np.zeros((z.shape[1], classes), np.float32), "b": np.zeros(classes)}, gated)


@contextlib.contextmanager
def on(accelerator):
    """While this is open, solvers run on the accelerator, whatever they have to do, or on the host."""
    with (
        mock.patch.object(_backend, "has_accelerator", return_value=accelerator),
        mock.patch.object(_backend, "COMPILES_SHAPES", False),
        mock.patch.object(_backend, "WORTH_AN_ACCELERATOR", 0),
    ):
        yield


def solved(z, y, classes, limit):
    """Return seconds and loss along the path of what `converge` runs for a plain head."""
    everything, path = np.arange(len(z)), SolverPath([TimeLimit(limit)])
    train = CachedFeatures(z, y, np.ones(len(z)), everything, True)
    structure = keras_dal.find_structure(untrained(z, classes, False))
    with contextlib.suppress(Stopped):
        data = HeadData.of(structure, SoftmaxCrossEntropy(), train, ROOM)
        NewtonTask(data, path).minimize([1e-8], 1e-4)
    return [(point.seconds, point.loss) for point in path.points]


def converged(z, y, classes, gated, limit, accelerated):
    """Return seconds and loss along the path of `converge`."""
    with on(accelerated):
        result = keras_dal.converge(
            untrained(z, classes, gated),
            z,
            y,
            gated=gated,
            ridge=None if gated else 1e-8,
            time_limit=limit,
            max_bytes=ROOM,
            batch_size=8192,
            verbose=0,
        )
    print(result.stopped_by, len(result.path), flush=True)
    return [(point.seconds, point.loss) for point in result.path] + [(result.seconds, result.scaled_loss)]


def pytorch(z, y, classes, gated, limit, least):
    """Return seconds and loss along the path of PyTorch's L-BFGS, its gradient summed over blocks of samples."""
    structure = keras_dal.find_structure(untrained(z, classes, gated))
    path, started = [], time.perf_counter()

    def check(loss):
        path.append((time.perf_counter() - started, loss))
        if path[-1][0] > limit or loss < least + 0.5 * TARGETS[-1]:
            raise StopIteration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_lbfgs(structure.head(), structure.theta(), z, y, check, device, BLOCK)
    return path


def product(z, y, classes, gated):
    """Return what one product with the second derivative takes."""
    structure = keras_dal.find_structure(untrained(z, classes, gated))
    jacobian = CachedJacobian.of_head(structure.head(), z, ROOM, Accelerator())
    loss, xp = SoftmaxCrossEntropy(), arrays.TENSORS
    theta = xp.single(np.random.default_rng(0).standard_normal(jacobian.num_parameters) * 1e-3)
    targets = xp.single(np.eye(classes, dtype=np.float32)[y])
    curve = loss.hessian(jacobian.logits(theta), targets)
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        jax.block_until_ready(jacobian.normal(theta, curve))
        seconds.append(time.perf_counter() - started)
    operations = 2 * sum(2.0 * len(z) * part.working[0] * part.working[1] for part in jacobian.parts)
    read = sum(2 * 4.0 * a.size for pair in jacobian._prepared for a in pair if a is not None)
    return {"seconds": float(np.median(seconds[1:])), "operations": operations, "bytes_of_inputs": read}


def first(path, target):
    """Return the seconds to a loss, or None."""
    return next((seconds for seconds, loss in path if loss <= target), None)


def least_of(paths, gated):
    """Return the least loss that a way has reached by steps, minus infinity where none has taken one."""
    if gated:
        return 0.0
    return min((loss for path in paths.values() if len(path) > 1 for _, loss in path), default=-np.inf)


def measured(size, gated, options, compiling):
    """Return the row of one head."""
    samples, width, classes = size
    z, y = features(*size)
    paths, compiled = {}, {}
    for way in WAYS:
        if way in options.skip:
            continue
        before, started = compiling.now(), time.perf_counter()
        if way == "pytorch":
            paths[way] = pytorch(z, y, classes, gated, options.limit, least_of(paths, gated))
        else:
            accelerated = way != "host"
            if options.solver:
                with on(accelerated):
                    paths[way] = solved(z, y, classes, options.limit)
            else:
                paths[way] = converged(z, y, classes, gated, options.limit, accelerated)
        compiled[way] = compiling.since(before)
        taken = time.perf_counter() - started
        print(f"{way}: {taken:.1f} s, {compiled[way]} compiling, path ends {paths[way][-3:]}", flush=True)
    least = least_of(paths, gated)
    row = {"samples": samples, "features": width, "classes": classes, "gated": gated}
    row["least"] = least if np.isfinite(least) else None
    for way, path in paths.items():
        row[way] = {f"{target:g}": first(path, least + target) for target in TARGETS}
        row[way] |= {"seconds": path[-1][0], "loss": min(loss for _, loss in path)}
        row[way] |= {"compiling_seconds": compiled[way][0], "programs": compiled[way][1]}
    return row | {"product": product(z, y, classes, gated)}


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("heads", nargs="+", help="samples x features x classes, with ',gated' for a gated head")
    parser.add_argument("--limit", type=float, default=30.0, help="seconds for each solver")
    parser.add_argument("--solver", action="store_true", help="of plain heads: the solver alone")
    parser.add_argument("--skip", nargs="+", choices=WAYS, default=[])
    parser.add_argument("--small", action="store_true", help="measure no peaks, and write nothing")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    if set(WAYS[:3]) <= set(options.skip):
        parser.error("one way of converge is needed, to say what the least loss is")
    return options


def main():
    options = parsed()
    compiling = Compiling()
    machine = describe() | {"card": described()}
    if not options.small:
        machine |= {"peaks": peaks(), "bandwidth": bandwidth()}
    for head in options.heads:
        size, *gated = head.split(",")
        row = measured(tuple(map(int, size.split("x"))), gated == ["gated"], options, compiling)
        print(json.dumps(row), flush=True)
        if not options.small:
            with options.result.open("a") as file:
                file.write(json.dumps(row | {"machine": machine}) + "\n")


if __name__ == "__main__":
    main()
