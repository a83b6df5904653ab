"""What activations make of logits, up to rounding: how it is told that outputs follow from a linear layer."""

import numpy as np
from scipy import special

from keras_dal.features.tracing import computed_dtype

ACTIVATIONS = ("linear", "softmax", "sigmoid")
_ROUNDED = {  # what rounding may do to probabilities: near zero, and as a share of them
    "float64": (1e-9, 1e-9),
    "float32": (3e-7, 1e-5),
    "float16": (4e-3, 4e-3),
    "bfloat16": (3e-2, 3e-2),
}


def are_made(activation, logits, outputs, slack, rounding):
    """Return which outputs `(k, C)` an activation makes of logits that are off by `slack`, up to `rounding` of its own.

    Between probabilities near 0 or 1 little room is left, however large the logits are: a limit of these shows.
    """
    absolute, share = rounding
    with np.errstate(invalid="ignore"):
        if activation == "linear":
            return np.abs(logits - outputs) <= slack
        odds, slack = (logits, slack) if activation == "sigmoid" else (_log_odds(logits), 2 * slack)  # of both sides
        least, most = special.expit(odds - slack), special.expit(odds + slack)
        return (least * (1 - share) - absolute <= outputs) & (outputs <= most * (1 + share) + absolute)


def _log_odds(logits):
    """Return the logits `(k, C)` of each class against all others together, as softmax has them."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = special.log_softmax(logits, axis=1)
        odds = logs - np.log1p(-np.exp(logs))  # but for the largest, which leaves the others too little to be seen
        largest, others = np.argmax(logits, axis=1)[:, None], logits.copy()
        np.put_along_axis(others, largest, -np.inf, axis=1)
        beside = np.take_along_axis(logits, largest, axis=1) - special.logsumexp(others, axis=1, keepdims=True)
    np.put_along_axis(odds, largest, beside, axis=1)
    return odds


def rounding_of(form, outputs):
    """Return what rounding may do to probabilities that arrive in a dtype, or in a finer one than their layer has."""
    dtypes = str(outputs.dtype), computed_dtype(form.output_layer.compute_dtype)
    return np.max([_ROUNDED.get(dtype, (0.0, 0.0)) for dtype in dtypes], axis=0)
