"""What an iteration of `converge` costs: against plain matrix products, against samples and gates, and in memory.

    python benchmarks/converge_scaling.py               # about three minutes on two cores, 5 GiB of disk

An iteration is one product with the Hessian, as conjugate gradients make it; an interpolation moves the logits of
samples exactly. Their time is compared with that of the same matrix products alone (NumPy's sgemm on whole matrices).
Memory is what the process itself holds (anonymous pages, read from /proc every few milliseconds) while a plain head is
solved on 1,000,000 x 512 features that lie on disk, because `max_bytes` is less than they are. Writes
benchmarks/results/converge_scaling.json and docs/converge_scaling.png.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from machine import GIB, PeakMemory, describe
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from keras_dal import converge
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.losses.sides import RightClass
from keras_dal.models.gated_layers import GatedBranch
from keras_dal.solvers.min_norm_interpolation import Interpolation
from keras_dal.solvers.objectives import Separation
from keras_dal.solvers.whitening import Whitening

RESULT = Path(__file__).parent / "results" / "converge_scaling.json"
PICTURE = Path(__file__).parents[1] / "docs" / "converge_scaling.png"
FEATURES, OUTPUTS = 64, 10
SAMPLES = [1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000]
GATES = [25, 50, 100, 200, 400, 800, 1600]
MOVED = [500, 1_000, 2_000, 4_000, 8_000, 16_000]


def features(samples):
    generator = np.random.default_rng(0)
    return np.maximum(generator.normal(size=(samples, FEATURES)), 0).astype(np.float32)


def branch(z, gates):
    """Return a gated head beside a plain one, adapted to features."""
    layer = GatedBranch(keras.layers.Dense(OUTPUTS), gates, seed=0)
    layer.build((None, z.shape[1]))
    layer.adapt(z[:10_000])
    return layer.linear_head()[0]


def iteration(z, gates):
    """Return a function that multiplies a direction by the Hessian, and the shapes of its matrix products."""
    head, labels = branch(z, gates), np.random.default_rng(1).integers(0, OUTPUTS, len(z))
    jacobian = CachedJacobian.of_head(head, z)
    whitening = Whitening(CachedJacobian.of_head(head, z[:10_000]))
    start = np.zeros((len(z), OUTPUTS), np.float32)
    curve = Separation(RightClass(np.eye(OUTPUTS)[labels]), 1.0).hessian(start, np.arange(len(z)))
    direction = np.random.default_rng(2).normal(size=head.num_parameters)

    def product():
        return whitening.transposed(jacobian.normal(whitening.theta(direction), curve))

    n, m, maps = len(z), FEATURES + 1, gates * OUTPUTS
    more, fewer = max(gates, m), min(gates, m) * OUTPUTS
    inner, outer = [(n, more, fewer), (more, n, fewer)], [(m, m, maps), (m * OUTPUTS, gates, gates)] * 2
    return product, inner + outer + [(n, m, OUTPUTS), (m, n, OUTPUTS)]


def interpolation(z, gates):
    """Return a function that moves the logits of all samples, and the shapes of its matrix products.

    Half of a Gram matrix is computed, and a Cholesky factorization takes a third of n^3 operations.
    """
    mixture = CachedJacobian.of_head(branch(z, gates).parts[0], z)
    anchors = mixture.restricted(np.arange(min(len(z), 10_000)))
    moves = np.random.default_rng(1).normal(size=(len(z), OUTPUTS))

    def moved():
        solver = Interpolation(mixture, anchors)
        solver.extend(np.arange(len(z)))
        return solver.change(moves)[0]

    n, m = len(z), FEATURES + 1
    gram = [(n, m, n // 2), (n, gates, n // 2), (n, m, m), (n, gates, gates)]
    moments = [(m, len(anchors), m), (gates, len(anchors), gates)]
    more, fewer = max(gates, m), min(gates, m) * OUTPUTS
    return moved, [*gram, *moments, (n, n, n // 6), (n, n, 2 * OUTPUTS), (more, n, fewer)]


def plain_products(shapes):
    """Return a function that makes matrix products of these shapes and nothing else, and their operations."""
    ones = [
        (np.ones((a, b), np.float32), np.ones((b, c), np.float32), np.empty((a, c), np.float32)) for a, b, c in shapes
    ]
    operations = sum(2 * a * b * c for a, b, c in shapes)
    return lambda: [np.matmul(left, right, out=out) for left, right, out in ones], operations


def seconds(function, repeats=7):
    """Return the median time of a function that has run twice before."""
    function(), function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def arithmetic(kind, samples, gates):
    """Return the speed of an iteration or an interpolation and of its matrix products alone."""
    ours, shapes = kind(features(samples), gates)
    plain, operations = plain_products(shapes)
    ours, theirs = seconds(ours), seconds(plain)
    return {
        "samples": samples,
        "gates": gates,
        "seconds": ours,
        "GFLOP/s": operations / ours / 1e9,
        "sgemm GFLOP/s": operations / theirs / 1e9,
        "ratio": theirs / ours,
    }


def memory(samples, width, max_bytes):
    """Return the peak of memory while a plain head is solved on features that lie on disk."""
    generator = np.random.default_rng(0)
    teacher = generator.normal(size=(width, OUTPUTS)).astype(np.float32)
    labels = np.empty(samples, np.int64)
    with tempfile.TemporaryDirectory() as folder:
        x = np.lib.format.open_memmap(f"{folder}/x.npy", "w+", np.float32, (samples, width))
        for start in range(0, samples, 50_000):
            block = generator.normal(size=(len(x[start : start + 50_000]), width)).astype(np.float32)
            x[start : start + 50_000] = block
            noise = generator.normal(size=(len(block), OUTPUTS)) * width**0.5
            labels[start : start + 50_000] = np.argmax(block @ teacher + noise, axis=1)
        model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(OUTPUTS)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        with PeakMemory() as used:
            started = time.perf_counter()
            result = converge(
                model, x, labels, gated=False, ridge=1e-3, max_bytes=max_bytes, batch_size=8192, cache=folder, verbose=0
            )
            elapsed = time.perf_counter() - started
    return {
        "samples": samples,
        "features": width,
        "features on disk, GiB": 4 * samples * width / GIB,
        "max_bytes, GiB": max_bytes / GIB,
        "before, GiB": used.before / GIB,
        "peak, GiB": used.peak / GIB,
        "seconds": elapsed,
        "solver seconds": result.seconds,
        "loss": result.loss,
        "gap": result.point.gap,
    }


def draw(results):
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    labels = {"samples": "samples n", "gates": "gates K", "moved": "moved samples"}
    for axis, (name, label) in zip(figure.subplots(1, 3), labels.items(), strict=True):
        sizes, times = np.array(results[name]["sizes"]), np.array(results[name]["seconds"])
        power = 3 if name == "moved" else 1
        axis.loglog(sizes, times, "o-", label="measured")
        axis.loglog(sizes, times[-1] * (sizes / sizes[-1]) ** power, "--", color="0.6", label=f"power {power}")
        axis.set(xlabel=label, ylabel="seconds per " + ("interpolation" if name == "moved" else "iteration"))
        axis.set_title(f"time by {'moved samples' if name == 'moved' else name}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.legend(frameon=False)
    figure.savefig(PICTURE, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    results = {
        "command": "python benchmarks/converge_scaling.py",
        "machine": describe(),
        "memory": memory(1_000_000, 512, GIB),
        "iteration": arithmetic(iteration, 10_000, 616),
        "interpolation": arithmetic(interpolation, 10_000, 616),
        "samples": {
            "gates": 32,
            "sizes": SAMPLES,
            "seconds": [seconds(iteration(features(n), 32)[0]) for n in SAMPLES],
        },
        "gates": {
            "samples": 10_000,
            "sizes": GATES,
            "seconds": [seconds(iteration(features(10_000), gates)[0]) for gates in GATES],
        },
        "moved": {
            "sizes": MOVED,
            "seconds": [seconds(interpolation(features(n), 4 * n // 65)[0], repeats=1) for n in MOVED],
        },
    }
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    draw(results)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
