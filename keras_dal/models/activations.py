"""What activations make of logits, up to rounding: how it is told that outputs follow from a linear layer."""

import numpy as np
from scipy import special

OF_PROBABILITIES = ("softmax", "sigmoid")
ACTIVATIONS = ("linear", *OF_PROBABILITIES)


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
