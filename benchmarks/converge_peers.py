"""Compare `converge` with other ways to solve a head, on the same cached features, in one run.

    python benchmarks/converge_peers.py --features features.npz [--limit 120] [--trial]

The file holds z (n, m), y, za (k, n, m) of k augmented copies, zt, yt, and the trained head's kernel K and bias b. It
may hold the images x too; the network that makes features of them then lies beside it. Every peer gets the same gates.
All but scikit-learn's start where the head is, and are stopped at `--limit` seconds; scikit-learn's cannot be: they
start from zero and run to their default tolerance, and the one loss that their clock notes is that at the end. Reported
are the seconds to a training loss of 1e-2 and 1e-4 above the least that the head allows (which is 0 for a gated one),
and the test accuracy at the end. What is timed contains everything after the features: gates, preconditioner and
products; what takes less than a second is the median of five runs. Memory is the most that the process itself held
meanwhile. The peers are unpreconditioned L-BFGS of SciPy and of PyTorch, Keras' Adam on the cached features and through
the whole network, and scikit-learn's LogisticRegression, for a gated head on the columns of its Jacobian where they
fit.
"""

import argparse
import contextlib
import json
import pathlib
import shlex
import time

import keras
import numpy as np
from basics import accuracy, head_model
from machine import GIB, PeakMemory, describe
from page import hardware
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from torch_lbfgs import torch_lbfgs

from keras_dal import find_structure
from keras_dal.finishing.converge import converge
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.losses import SoftmaxCrossEntropy

SCRIPT = "benchmarks/converge_peers.py"
RESULTS = pathlib.Path(__file__).parent / "results"
DOCS = pathlib.Path(__file__).parents[1] / "docs"
TARGETS = (1e-2, 1e-4)
RUNS = 5  # of what takes less than a second
HEADS = ["plain", "gated"]
SOFTMAX = SoftmaxCrossEntropy()


class Clock:
    """Notes when the training loss first comes within each target of the least one; stops a solver at the limit."""

    def __init__(self, limit, least=0.0):
        self.limit, self.least, self.started, self.reached = limit, least, time.perf_counter(), {}

    def note(self, loss, seconds=None):
        """Note a loss, reached now or after the given seconds."""
        seconds = time.perf_counter() - self.started if seconds is None else seconds
        for target in TARGETS:
            if loss <= self.least + target:
                self.reached.setdefault(target, seconds)

    def check(self, loss):
        """Note a loss and end the solver when nothing is left to reach, or no time."""
        self.note(loss)
        if len(self.reached) == len(TARGETS) or time.perf_counter() - self.started > self.limit:
            raise StopIteration

    def report(self, model, data):
        seconds = time.perf_counter() - self.started
        row = {f"seconds_to_{target:g}": self.reached.get(target) for target in TARGETS}
        return row | {"seconds": seconds, "test": accuracy(model, data["zt"], data["yt"])}


def ours(data, gated, limit, anchors=None, **options):
    model, clock = head_model(data, gated), Clock(limit, data["least"][gated])
    options = {"gated": gated, "anchors": anchors, "time_limit": limit, "batch_size": 2048, "verbose": 0} | options
    result = converge(model, data["z"], data["y"], **options)
    for point in result.path:
        clock.note(point.loss, point.seconds)
    clock.note(result.scaled_loss, result.seconds)
    return clock.report(result.model, data)


def ours_on_augmented_anchors(data, gated, limit):
    return ours(data, gated, limit, np.concatenate(data["za"])[: 2 * len(data["z"])])


def ours_minimizing_the_loss(data, gated, limit):
    return ours(data, gated, limit, ridge=1e-8)


def least_loss(data):
    """Return the least loss that the plain head allows, as Newton's method finds it."""
    found = LogisticRegression(C=1e8, solver="newton-cholesky", max_iter=1000, tol=1e-10).fit(data["z"], data["y"])
    targets = np.eye(len(found.classes_))[data["y"]]
    return float(np.mean(SOFTMAX.values(found.decision_function(data["z"]), targets)))


def scipy_lbfgs(data, gated, limit):
    model = head_model(data, gated)
    structure, clock = find_structure(model), Clock(limit, data["least"][gated])
    minimize(structure, data, clock)
    return clock.report(model, data)


def minimize(structure, data, clock):
    """Minimize the cross-entropy of a head by L-BFGS until the clock stops it."""
    jacobian = CachedJacobian.of_head(structure.head(), data["z"])  # the same products, so that only the method differs
    targets = SOFTMAX.targets(data["y"], structure.num_outputs)
    last = structure.theta()

    def objective(theta):
        logits = jacobian.logits(theta).astype(np.float64)
        loss = np.mean(SOFTMAX.values(logits, targets))
        return loss, jacobian.adjoint(SOFTMAX.gradient(logits, targets) / len(targets))

    def callback(intermediate_result):
        nonlocal last
        last = intermediate_result.x
        clock.check(intermediate_result.fun)

    options = {"maxiter": 100_000, "maxfun": 100_000, "ftol": 0, "gtol": 1e-12, "maxcor": 20}
    optimize.minimize(objective, last, jac=True, method="L-BFGS-B", callback=callback, options=options)
    structure.assign(last)


def pytorch_lbfgs(data, gated, limit):
    model = head_model(data, gated)
    structure, clock = find_structure(model), Clock(limit, data["least"][gated])
    structure.assign(torch_lbfgs(structure.head(), structure.theta(), data["z"], data["y"], clock.check))
    return clock.report(model, data)


def keras_adam(data, gated, limit):
    model, clock = head_model(data, gated), Clock(limit, data["least"][gated])
    fit_by_adam(model, data["z"], data["y"], clock)
    return clock.report(model, data)


def keras_adam_through_the_network(data, gated, limit):
    """Train the head under the frozen trunk, as one does who has no features."""
    head, clock = head_model(data, gated), Clock(limit, data["least"][gated])
    trunk = keras.saving.load_model(data["trunk"])
    trunk.trainable = False
    fit_by_adam(keras.Sequential([trunk, head]), data["x"], data["y"], clock)
    return clock.report(head, data)


def fit_by_adam(model, x, y, clock):
    """Train a model until the clock stops it."""
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with contextlib.suppress(StopIteration):
        while True:
            clock.check(model.fit(x, y, batch_size=256, verbose=0).history["loss"][0])


def scikit_learn(solver):
    def solve(data, gated, limit):
        model = head_model(data, gated)
        structure, clock = find_structure(model), Clock(limit, data["least"][gated])
        columns = structure.head().kronecker_factor(
            data["z"]
        )  # the outputs share them, so this is a regression on columns
        penalty = np.inf if solver == "lbfgs" else 1e6
        found = LogisticRegression(C=penalty, solver=solver, max_iter=1000, fit_intercept=False)
        found.fit(columns, data["y"])
        structure.assign(found.coef_.T.ravel())
        clock.note(np.mean(SOFTMAX.values(found.decision_function(columns), np.eye(len(found.classes_))[data["y"]])))
        return clock.report(model, data)

    return solve


METHODS = {
    "converge": ours,
    "converge, augmented anchors": ours_on_augmented_anchors,
    "converge, loss itself": ours_minimizing_the_loss,
    "SciPy L-BFGS": scipy_lbfgs,
    "PyTorch L-BFGS": pytorch_lbfgs,
    "Keras Adam": keras_adam,
    "Keras Adam, whole network": keras_adam_through_the_network,
    "scikit-learn lbfgs": scikit_learn("lbfgs"),
    "scikit-learn newton-cholesky": scikit_learn("newton-cholesky"),
}


def measure(method, data, gated, limit):
    """Return the row of a method, its medians over several runs where one takes less than a second."""
    with PeakMemory() as used:
        rows = [method(data, gated, limit)]
        while rows[-1]["seconds"] < 1 and len(rows) < RUNS:
            rows.append(method(data, gated, limit))
    never = float("inf")
    columns = {key: sorted(never if row[key] is None else row[key] for row in rows) for key in rows[0]}
    middle = {key: values[len(rows) // 2] for key, values in columns.items()}
    row = {key: None if value == never else value for key, value in middle.items()}
    return row | {"runs": len(rows), "peak_gib": used.peak / GIB}


def is_possible(name, data, gated):
    """Whether a method has what it needs, and ends: scikit-learn's cannot be stopped at the limit."""
    if name.endswith("whole network"):
        return "x" in data
    if name.endswith("anchors"):
        return len(data["za"]) > 0
    if not (gated and name.startswith("scikit-learn")):
        return True
    parameters = find_structure(head_model(data, gated)).head().num_parameters
    return name.endswith("lbfgs") and len(data["z"]) * parameters <= 2**32  # a Hessian would have parameters^2 entries


def times(row):
    """Return the seconds to each target as text."""
    seconds = (row[f"seconds_to_{target:g}"] for target in TARGETS)
    return ["-" if each is None else f"{each:.3g}" for each in seconds]


def table(results):
    """Return the Markdown page of the results."""
    start = results["start"]
    repeated = any(row.get("runs", 1) > 1 for row in results["rows"].values())
    exception = (
        " scikit-learn starts from zero and runs to its default tolerance, whatever the limit; its loss is noted at "
        "its end only, and a dash means that it was not so near the least one then."
    ) * any("scikit-learn" in name for name in results["rows"])
    medians = f"What takes less than a second is the median of {RUNS} runs. " if repeated else ""
    heads = {name.split(":")[0] for name in results["rows"]}
    only = f", {heads.pop()} head" if len(heads) == 1 else ""
    lines = [
        f"# Solving a head: {results['name']}, {results['samples']:,} samples{only}",
        "",
        f"Measured here, by `{results['command']}`, in one run; {hardware(results['machine'])}. "
        "Seconds to a training loss above the least one, with everything after the features; `converge` reaches it at "
        f"`Result.scale` where it separates. {medians}The least loss is {start['least']:.4g} for the "
        f"plain head, 0 for the gated. A dash: not within {results['limit']:g} s, after which a last step may end."
        f"{exception} Test accuracy at the end; "
        f"it was {100 * start['test']:.2f} before. Memory: the most that the process held meanwhile, without mapped "
        "files.",
        "",
        "| head | method | seconds to 1e-2 | to 1e-4 | test accuracy, % | peak, GiB |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, row in results["rows"].items():
        head, method = name.split(": ")
        cells = [head, method, *times(row), f"{100 * row['test']:.2f}", f"{row['peak_gib']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def chosen(arguments, **every):
    """Return the options that leave something out, as they were given."""
    given = {name: getattr(arguments, name) for name, values in every.items() if getattr(arguments, name) != values}
    return "".join(f" --{name} " + " ".join(map(shlex.quote, values)) for name, values in given.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", required=True)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--limit", type=float, default=60.0)
    parser.add_argument("--heads", nargs="+", default=HEADS, choices=HEADS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--trial", action="store_true", help="print the table and write no file")
    arguments = parser.parse_args()
    data = dict(np.load(arguments.features))
    n = arguments.samples or len(data["z"])
    data |= {"z": data["z"][:n], "y": data["y"][:n].astype("int64").ravel(), "za": data["za"][:, :n]}
    data["yt"], data["trunk"] = data["yt"].ravel(), pathlib.Path(arguments.features).with_suffix(".keras")
    if "x" in data:
        data["x"] = data["x"][:n]
    data["least"] = {False: least_loss(data), True: 0.0}
    start = {"test": accuracy(head_model(data, False), data["zt"], data["yt"]), "least": data["least"][False]}
    rows = {}
    for head in arguments.heads:
        for name in arguments.methods:
            if not is_possible(name, data, head == "gated"):
                continue
            row = rows[f"{head}: {name}"] = measure(METHODS[name], data, head == "gated", arguments.limit)
            first, second = times(row)
            print(
                f"{head:6} {name:30} {first:>8} {second:>8}  test {row['test']:.4f} of {start['test']:.4f}", flush=True
            )
    if arguments.trial:
        return
    name = pathlib.Path(arguments.features).stem
    report = {
        "name": name,
        "samples": n,
        "limit": arguments.limit,
        "command": f"python {SCRIPT} --features {name}.npz --samples {n} --limit {arguments.limit:g}"
        + chosen(arguments, heads=HEADS, methods=list(METHODS)),
        "machine": describe(),
        "start": start,
        "rows": rows,
    }
    stem = "_".join(["converge_peers", name, str(n), *(arguments.heads if arguments.heads != HEADS else [])])
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (DOCS / f"{stem}.md").write_text(table(report))


if __name__ == "__main__":
    main()
