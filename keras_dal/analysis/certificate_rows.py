"""How a `Certificate` reads, row by row."""

from keras_dal.analysis.reports import NEXT, loss_named, rank_among
from keras_dal.analysis.verdict import ALIGNED, Verdict, below_one
from keras_dal.output.tables import at_least, at_most, known_decimals, one_number

_STEPS = (100, 10_000, 1_000_000)  # of gradient descent, after which a bound is printed if it says anything


def rows_of(certificate):
    """Yield what a `Certificate` says, a name and a text for each row."""
    error, left = certificate.share_error, f"{certificate.residual_share:.2e}"
    shown = below_one(certificate.alignment, certificate.verdict)
    share = at_least(shown, known_decimals(error, 8), "f")
    if certificate.verdict == Verdict.ALIGNED:
        share = f"{certificate.alignment:.8g}"
    if error > max(ALIGNED, 0.005 * certificate.residual_share):
        left += f" +- {error:.0e} by rounding"
    if not certificate.exact:
        share = f"at least {at_least(shown, 8)}"
        left = f"at most {at_most(certificate.residual_share, 3, 'e')}"
    method = certificate.method
    rank = f"not decided by {method}"
    if certificate.rank is not None:
        rank = f"{rank_among(certificate.rank, certificate.full_rank)}; {method}"
    yield "loss now", f"{certificate.loss:.6g} ({loss_named(certificate.loss_name, certificate.weighted)})"
    if certificate.penalty:
        yield "penalty now", f"{certificate.penalty:.6g} (on theta_S, part of the objective)"
    low, high = certificate.infimum
    between = f"between {at_least(low, 6)} and {at_most(high, 6)}"
    yield "infimum of the loss", one_number(low, high, 6) or between
    if certificate.floor:
        yield "least loss of any model", f"{certificate.floor:.6g}"
    sizes = certificate.num_samples, certificate.num_features, certificate.num_outputs
    yield "samples; features; outputs", "; ".join(f"{size:,}" for size in sizes)
    yield "parameters in theta_S", f"{certificate.num_parameters:,}"
    yield "rank of J_S", rank
    yield "alignment", f"{share} (residual share {left})"
    if certificate.margin is not None and certificate.margin > 0:
        yield "smallest margin", f"at least {at_least(certificate.margin, 4)} at the witness"
    yield "norm of the witness", f"{certificate.witness_norm:.4g}"
    if certificate.beta:
        yield "smoothness beta, step", f"{at_most(certificate.beta, 4)}, {at_least(certificate.step, 4)}"
        yield "objective at most", _after_steps(certificate)
    if certificate.verdict in (Verdict.NOT_SEPARABLE, Verdict.NOT_ALIGNED):
        yield "next", NEXT[certificate.verdict]
    for sentence in certificate.not_covered:
        yield "not covered", sentence


def _after_steps(certificate):
    """Return the bounds of the objective that lie below what it is now."""
    now, *bounds = (at_most(certificate.bound(t), 4) for t in (0, *_STEPS))
    said = [f"{bound} after {t:,}" for t, bound in zip(_STEPS, bounds, strict=True) if bound != now]
    if not said:
        return f"{now}, as now: no decrease that shows is proved within {_STEPS[-1]:,} steps of plain gradient descent"
    return f"{', '.join(said)} steps of plain gradient descent"
