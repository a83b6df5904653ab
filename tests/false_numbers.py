"""Which numbers of a certificate are not so in exact arithmetic, for the problems of `verdict_problems`."""

from fractions import Fraction
from unittest import mock

import numpy as np
from exact_head import ExactHead, fractions, solved
from scipy import optimize

from keras_dal.analysis.certify import certify_head
from keras_dal.analysis.descent_bound import Objective
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.solvers.gap import ProximalLoss
from keras_dal.solvers.whitening import Whitening

_STEPS, _SCALES = 5, (0.0, 1.0, 8.0)
_SHARE = 1e-9  # by which a share may differ beyond what the certificate says of it
_ENTROPY = Fraction(1, 10**12)  # relative, by which that of soft labels may be rounded


def of_certificate(problem):
    """Return the names of the numbers of a problem's certificate, at theta zero, that contradict the exact ones."""
    certificate, witness = _certified(problem)
    softmax = problem.loss.activation == "softmax"
    exact = ExactHead(problem.features, problem.targets, problem.weights, problem.use_bias, softmax)
    named = [*_of_witness(certificate, exact, witness), *_of_columns(certificate, exact)]
    if problem.loss.are_hard(problem.targets):
        named += [("residual share", _is_wrong_share(certificate, exact))]
    return [name for name, is_wrong in named if is_wrong]


def _certified(problem):
    """Return the `Certificate`, and the parameters that reach the upper bound of the infimum."""
    found, search = [], Objective.infimum

    def recorded(*arguments):
        found.append(search(*arguments))
        return found[-1]

    head = problem.head
    with mock.patch.object(Objective, "infimum", recorded):
        start = np.zeros(head.num_parameters)
        certificate = certify_head(head, problem.loss, problem.features, problem.targets, start, problem.weights)
    return certificate, found[0].theta


def _of_witness(certificate, exact, witness):
    """Yield what is said of the witness, which float64 holds up to a rounding, and of all theta."""
    logits, off = exact.logits(witness), exact.rounding(witness)
    slack = 2 * off * Fraction(certificate.mean_weight)
    low, high = map(Fraction, certificate.infimum)
    if certificate.margin is None or certificate.margin <= 0:
        loss = Fraction(exact.loss(logits))
        yield "upper bound of the infimum", high < loss - slack
        yield "lower bound of the infimum", low > loss + slack + _ENTROPY * Fraction(certificate.floor)
    else:
        bounds = [(scale, Fraction(certificate.loss_at_scale(scale))) for scale in map(Fraction, _SCALES)]
        yield "loss at a scale", any(bound < Fraction(exact.loss(s * logits)) - s * slack for s, bound in bounds)
    if certificate.margin is not None and np.isfinite(certificate.margin):
        yield "margin", Fraction(certificate.margin) > min(exact.margins(logits)) + 2 * off


def _of_columns(certificate, exact):
    """Yield what is said of rank, curvature and gradient descent."""
    yield "rank", certificate.rank > exact.rank * (exact.num_outputs - exact.softmax)
    columns = exact.columns.astype(float) * np.sqrt(exact.weights.astype(float))[:, None]
    largest = np.linalg.svd(columns / (abs(columns).max() or 1.0))[2][0]
    directions = [*np.eye(columns.shape[1]), largest]
    yield "curvature", Fraction(certificate.beta) < max(map(exact.curvature_along, directions))
    losses = exact.losses_of_descent(certificate.step, _STEPS) if certificate.beta else []
    yield "bound of descent", any(Fraction(certificate.bound(t)) < loss for t, loss in enumerate(losses))


def _is_wrong_share(certificate, exact):
    """Whether fewer directions than there are leave less than all of them, or as many leave more."""
    more = certificate.residual_share - float(exact.residual_share)
    error = certificate.share_error + _SHARE
    as_many = certificate.rank == exact.rank * (exact.num_outputs - exact.softmax)
    return more < -error or (as_many and more > error)


class ExactProximalLoss:
    """`loss + ridge (mean squared change of the logits + ||phi||^2)` of an `ExactHead`, from theta zero."""

    def __init__(self, exact, root, ridge):
        self.exact, self.ridge = exact, fractions(ridge)[()]
        self.inverse = solved(fractions(root.T), fractions(np.eye(len(root))))

    def __call__(self, theta):
        logits = self.exact.logits(theta)
        phi = self.inverse.dot(fractions(theta).reshape(len(self.inverse), -1))
        change = (logits**2).sum() / len(logits) + (phi**2).sum()
        return Fraction(self.exact.loss(logits)) + self.ridge * change


def in_float32(features):
    """Return features as a model takes them: float32, in units whose squares it holds."""
    units = np.frexp(abs(features.astype(np.float64)).max(axis=0))[1]
    return np.ldexp(features.astype(np.float64), np.clip(units, -40, 40) - units).astype(np.float32)


def beyond_gap(problem, seed):
    """Return by how much a point lies further above the minimum than its gap says; not positive where that is true.

    Above the minimum is at least above what BFGS with gradients in float64 makes of the point.
    """
    generator, ridge = np.random.default_rng(seed), 0.01
    features, head = in_float32(problem.features), problem.head
    whitening = Whitening(CachedJacobian.of_head(head, features))
    weights = problem.weights / problem.weights.mean()
    start, anchors = np.zeros(head.num_parameters), np.arange(len(features))
    proximal = ProximalLoss(head, problem.loss, features, problem.targets, weights, start, anchors, ridge, whitening)
    exact = ExactHead(features, problem.targets, weights, problem.use_bias, problem.loss.activation == "softmax")
    objective = ExactProximalLoss(exact, whitening.root, ridge)

    def at(phi):
        theta = whitening.exact_theta(phi)
        bound = proximal.bound(theta)
        return bound.decrease, bound.gradient

    phi = generator.standard_normal(len(start)) / 4.0 ** generator.integers(0, 12)
    least = optimize.minimize(lambda each: (-at(each)[0], at(each)[1]), phi, jac=True, method="BFGS")
    theta, best = (whitening.exact_theta(each) for each in (least.x + phi, least.x))
    return objective(theta) - objective(best) - Fraction(proximal.bound(theta).gap)
