"""The step of plain gradient descent after the switch for which convergence is proved."""

from keras_dal import _keras
from keras_dal.analysis.descent_bound import smoothness
from keras_dal.models.regularizers import l2_factors


def step_size(structure, loss, report, certificate, needed):
    """Return 1/beta, exact where features are those of inference mode; smaller for a loss with a weight above 1.

    Args:
        structure: the `Structure` of the model that is trained.
        loss: a `losses.Loss` of bounded curvature.
        report: the last `AlignmentReport`, None before the first: a fit resumed right at the switch only measures then.
        certificate: the `Certificate` at the switch, where there is one; it counts more.
        needed: whether one of them must be known by now; else nothing moves, by a step of 0, until there is one.

    Raises:
        ValueError: none is, and one is needed.
    """
    weight = max(1.0, _keras.loss_weight(structure.model))
    if certificate is not None:
        return certificate.step / weight
    if report is None and needed:
        raise ValueError("The step for which convergence is proved needs a measurement. Received: none so far")
    if report is None:
        return 0.0
    penalty = l2_factors(structure.linear_parameters)
    return 1.0 / (smoothness(loss, report.num_outputs, report.sigma_max, report.num_samples, penalty) * weight)
