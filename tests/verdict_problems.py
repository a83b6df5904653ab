"""Problems whose separability or alignment is known exactly, in awkward units: what no verdict may contradict.

A small problem of whole numbers is decided by linear programming, whose optimum there is 0 or far above any tolerance.
Soft labels are probabilities whose ratios are powers of two: a head reaches them if it reaches the exponents, whole
numbers again, which elimination decides.
Then columns are multiplied by powers of two, moved where a bias undoes it, mixed with each other by powers of two,
repeated and padded, all exactly in floating point: none of it changes what a linear head can separate.
"""

import dataclasses
import itertools
from fractions import Fraction

import numpy as np
from exact_head import fractions, independent, left_of
from scipy import optimize

from keras_dal import heads, losses
from keras_dal.analysis.alignment import projected
from keras_dal.analysis.certify import certify_head
from keras_dal.analysis.separability import Search
from keras_dal.solvers import duality
from keras_dal.solvers.least_squares import StreamedQR

_SLACK = Fraction(1, 10**12)  # relative, of bounds that are rounded themselves


@dataclasses.dataclass(frozen=True)
class Problem:
    """Features `(n, m)` in their dtype, labels as the loss takes them, weights, and whether they are separable."""

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    num_outputs: int
    use_bias: bool
    loss: losses.Loss
    separable: bool

    @property
    def targets(self):
        return self.loss.targets(self.labels, self.num_outputs)

    @property
    def head(self):
        return heads.DenseHead(self.features.shape[1], self.num_outputs, self.use_bias)

    @property
    def eps(self):
        return float(np.finfo(self.features.dtype).eps)

    def projection(self):
        """Return the `Projection` of the labels, from two batches."""
        n, m = self.features.shape
        qr = StreamedQR(m, self.num_outputs, self.use_bias)
        for rows in (slice(0, n // 2), slice(n // 2, n)):
            seen = self.loss.seen(self.loss.label_matrix(self.targets))
            qr.update(self.features[rows], seen[rows], self.weights[rows])
        return qr.project(self.eps)

    def verdicts(self):
        """Return what `Search` and `certify_head` say."""
        fit, start = projected(self.loss, self.projection(), self.eps), np.zeros(self.head.num_parameters)
        rows = [(self.features, self.targets, self.weights)]
        finding = Search(self.head, self.loss, rows, fit, duality.SECONDS).finding()
        certificate = certify_head(self.head, self.loss, self.features, self.targets, start, self.weights)
        return finding, certificate

    def false_statements(self):
        """Return the statements that contradict the truth, and how many of the two verdicts are undecided."""
        finding, certificate = self.verdicts()
        wrong = []
        for name in (finding.verdict, certificate.verdict):
            if name == "not separable" and self.separable:
                wrong.append("separable labels called not separable")
            if name in ("separable", "aligned") and not self.separable:
                wrong.append(f"labels that are not separable called {name}")
        low, high = certificate.infimum
        if self.separable and low > 0:
            wrong.append("a positive lower bound of an infimum that is 0")
        if not self.separable and high <= 0:
            wrong.append("an upper bound 0 of an infimum that is positive")
        if low > high:
            wrong.append("bounds in the wrong order")
        return wrong, (finding.verdict == "undecided") + (certificate.verdict == "undecided")


@dataclasses.dataclass(frozen=True)
class SoftProblem(Problem):
    """The same with probabilities for labels; `separable` says whether a head reaches them exactly."""

    def false_statements(self):
        finding, certificate = self.verdicts()
        wrong = []
        for name in (finding.verdict, certificate.verdict):
            if name == "not aligned" and self.separable:
                wrong.append("labels that a head reaches called not aligned")
            if name == "aligned" and not self.separable:
                wrong.append("labels that no head reaches called aligned")
            if name in ("separable", "not separable"):
                wrong.append(f"soft labels called {name}")
        floor = self.loss.floor(self.targets, self.weights)
        (low, high), rounded = certificate.infimum, 1e-9 * (floor + np.mean(self.weights))
        if not floor - rounded <= low <= high + rounded:
            wrong.append("bounds below the least loss of any model, or in the wrong order")
        if self.separable and low > floor + rounded:
            wrong.append("a lower bound above the infimum of labels that a head reaches")
        if not self.separable and high <= floor:
            wrong.append("an upper bound that labels out of reach cannot have")
        return wrong, (finding.verdict == "undecided") + (certificate.verdict == "undecided")


@dataclasses.dataclass(frozen=True)
class Regression(Problem):
    """The same with numbers for labels, and the squared error; `separable` says whether a head reaches them exactly."""

    def false_statements(self):
        (finding, certificate), wrong = self.verdicts(), []
        for name in (finding.verdict, certificate.verdict):
            if name == ("not aligned" if self.separable else "aligned"):
                wrong.append(f"labels that {'a' if self.separable else 'no'} head reaches called {name}")
        columns = np.hstack([self.features.astype(float), np.ones((len(self.features), int(self.use_bias)))])
        weights, labels = fractions(self.weights), fractions(self.labels)
        left = left_of(fractions(columns), weights, labels)
        infimum = (weights[:, None] * left**2).sum() / labels.size
        low, high = map(Fraction, certificate.infimum)
        if not low * (1 - _SLACK) <= infimum <= high * (1 + _SLACK):
            wrong.append("bounds that the least squares are not between")
        undecided = [name == "undecided" for name in (finding.verdict, certificate.verdict)]
        return wrong, sum(undecided)


def draw_regression(seed):
    """Return the problem with numbers for labels of a seed: some of them heavy, large or both."""
    generator = np.random.default_rng(seed)
    n, m, num_outputs = int(generator.integers(1, 15)), int(generator.integers(1, 5)), int(generator.integers(1, 3))
    whole, use_bias = generator.integers(-3, 4, (n, m)), bool(generator.random() < 0.8)
    columns = np.column_stack([whole, np.ones(n, int)]) if use_bias else whole
    labels = columns @ generator.integers(-2, 3, (columns.shape[1], num_outputs))
    kind = generator.choice(["linear", "one off", "some off", "random"], p=[0.4, 0.2, 0.2, 0.2])
    off = {"linear": 0.0, "one off": 1.0 / n, "some off": 0.5, "random": 1.0}[kind]
    labels = labels + generator.integers(-2, 3, labels.shape) * (generator.random((n, 1)) < off)
    labels = labels * np.where(generator.random((n, 1)) < 0.5, 2 ** int(generator.choice([0, 0, 0, 20])), 1)
    reached = exact_rank(np.hstack([columns, labels])) == exact_rank(columns)
    weights = {
        "equal": np.ones(n),
        "spread": 10.0 ** generator.uniform(-12, 12, n),
        "heavy": np.where(generator.random(n) < 0.5, 10.0 ** generator.integers(0, 14), 1.0),
    }[str(generator.choice(["equal", "spread", "heavy"], p=[0.5, 0.25, 0.25]))]
    features = awkward(generator, whole.astype(np.float64), use_bias)
    labels = labels * 2.0 ** generator.integers(-30, 31, num_outputs)
    return Regression(features, labels, weights, num_outputs, use_bias, losses.SquaredError(), reached)


def draw_soft(seed):
    """Return the problem with soft labels of a seed."""
    generator = np.random.default_rng(seed)
    n, m, num_outputs = int(generator.integers(1, 15)), int(generator.integers(1, 5)), int(generator.integers(2, 5))
    whole, use_bias = generator.integers(-3, 4, (n, m)), bool(generator.random() < 0.8)
    columns = np.column_stack([whole, np.ones(n, int)]) if use_bias else whole
    softmax = generator.random() < 0.7
    exponents = columns @ generator.integers(-1, 2, (columns.shape[1], num_outputs))
    if generator.random() < 0.5:
        exponents = generator.integers(-3, 4, exponents.shape)
    powers = 2.0**exponents
    labels = powers / powers.sum(axis=1, keepdims=True) if softmax else powers / (1 + powers)
    seen = exponents - exponents[:, -1:] if softmax else exponents
    reached = exact_rank(np.hstack([columns, seen])) == exact_rank(columns)
    features = awkward(generator, whole.astype(np.float64), use_bias)
    weights = 10.0 ** generator.uniform(-12, 12, n) if generator.random() < 0.3 else np.ones(n)
    loss = losses.SoftmaxCrossEntropy() if softmax else losses.SigmoidCrossEntropy()
    return SoftProblem(features, labels, weights, num_outputs, use_bias, loss, reached)


def exact_rank(whole):
    """Return the rank of a matrix of whole numbers, by elimination without rounding."""
    return len(independent(fractions(whole)))


def draw(seed):
    """Return the problem of a seed."""
    generator = np.random.default_rng(seed)
    n, m, num_outputs = int(generator.integers(1, 15)), int(generator.integers(1, 5)), int(generator.integers(2, 5))
    whole = generator.integers(-3, 4, (n, m))
    kind = generator.choice(["random", "linear", "one class", "absent class"], p=[0.4, 0.4, 0.05, 0.15])
    softmax = generator.random() < 0.7
    scores = np.column_stack([whole, np.ones(n, int)]) @ generator.integers(-3, 4, (m + 1, num_outputs))
    if softmax:
        labels = np.argmax(scores, axis=1) if kind == "linear" else generator.integers(0, num_outputs, n)
        if kind == "absent class":
            labels = np.minimum(labels, num_outputs - 2)
    else:
        num_outputs = int(generator.integers(1, 3))
        labels = (scores if kind == "linear" else generator.integers(-1, 2, scores.shape))[:, :num_outputs] > 0
        labels = labels.astype(float)
    if kind == "one class":
        labels = 0 * labels
    use_bias = bool(generator.random() < 0.8)
    separable = is_separable(np.column_stack([whole, np.ones(n, int)]) if use_bias else whole, labels, num_outputs)
    features = awkward(generator, whole.astype(np.float64), use_bias)
    weights = 10.0 ** generator.uniform(-12, 12, n) if generator.random() < 0.3 else np.ones(n)
    loss = losses.SoftmaxCrossEntropy() if softmax else losses.SigmoidCrossEntropy()
    return Problem(features, labels, weights, num_outputs, use_bias, loss, separable)


def is_separable(columns, labels, num_outputs):
    """Decide by linear programming whether a linear head has positive margins on all rows of whole numbers."""
    if labels.ndim == 2:
        signs = (2 * labels - 1).T
        return all(_has_positive(columns * sign[:, None]) for sign in signs)
    units = np.eye(num_outputs)
    pairs = itertools.product(range(len(labels)), range(num_outputs))
    gaps = [np.kron(columns[i], units[labels[i]] - units[j]) for i, j in pairs if j != labels[i]]
    return _has_positive(np.array(gaps))


def _has_positive(rows):
    """Return whether some theta has positive products with all rows."""
    k = rows.shape[1]
    rows = np.column_stack([-rows, np.ones(len(rows))])
    bounds = [(-1, 1)] * k + [(None, 1)]
    program = optimize.linprog(np.append(np.zeros(k), -1.0), A_ub=rows, b_ub=np.zeros(len(rows)), bounds=bounds)
    assert program.status == 0
    assert not 1e-8 < -program.fun < 1e-5  # whole numbers this small leave no doubt
    return -program.fun > 1e-6


def awkward(generator, columns, use_bias):
    """Return columns with the same span, up to the bias, in units and mixtures that are hard for floating point."""
    for kind in generator.choice(["mixed", "scaled", "offset", "padded"], generator.integers(0, 4)):
        n, m = columns.shape
        if kind == "padded":
            constant = np.full((n, 1), 0.3 * use_bias)
            columns = np.hstack([columns, np.zeros((n, 1)), constant, columns[:, :1]])
        elif kind == "mixed" and m > 1:  # nearly dependent: the second column becomes the first but for its last places
            part = columns[:, 1] * 2.0 ** -int(generator.integers(8, 45))
            columns = np.column_stack([columns[:, :1], _exact_sum(part, columns[:, 0], columns[:, 1]), columns[:, 2:]])
        elif kind == "offset" and use_bias:
            offset = np.round(generator.choice([10.0, 1e6, 1e12]) * generator.standard_normal(m))
            columns = _exact_sum(columns, np.broadcast_to(offset, columns.shape), columns)
        elif kind == "scaled":
            columns = np.ldexp(columns, generator.integers(-100, 101, m))
    with np.errstate(over="ignore", under="ignore"):
        narrow = columns.astype(generator.choice(["float64", "float32", "float16"]), copy=False)
    return narrow if np.array_equal(narrow.astype(np.float64), columns) else columns


def _exact_sum(first, second, otherwise):
    """Return a sum of floats where it is one exactly."""
    pairs = zip(first.flat, second.flat, (first + second).flat, strict=True)
    return first + second if all(Fraction(a) + Fraction(b) == Fraction(c) for a, b, c in pairs) else otherwise
