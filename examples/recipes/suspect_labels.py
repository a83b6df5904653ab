"""Suspect labels: which of the training labels are wrong, ranked in several ways.

python examples/recipes/suspect_labels.py

A tenth of the labels is exchanged for others, the network is trained on them, and each way ranks all images. It counts
how far wrong labels come before right ones: the area under the ROC curve, and the precision among as many images
as there are wrong labels.
"""

import numpy as np
from common import copy_of, show, some, trained
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score

import keras_dal

WRONG = 0.1  # share of the labels


def exchanged(y, seed):
    """Return labels of which some are another class, and which those are."""
    generator = np.random.default_rng(seed)
    wrong = np.zeros(len(y), bool)
    wrong[generator.permutation(len(y))[: round(WRONG * len(y))]] = True
    return np.where(wrong, (y + generator.integers(1, 10, len(y))) % 10, y), wrong


def quality(scores, wrong):
    first = np.argsort(-scores)[: wrong.sum()]
    return {"AUROC, %": 100 * roc_auc_score(wrong, scores), "precision, %": 100 * wrong[first].mean()}


def losses_and_margins(logits, y):
    own = np.take_along_axis(logits, y[:, None], 1)[:, 0]
    others = np.where(np.arange(logits.shape[1]) == y[:, None], -np.inf, logits)
    return -np.take_along_axis(log_softmax(logits, 1), y[:, None], 1)[:, 0], own - others.max(1)


def run(seed=0, num_train=3000, epochs=10):
    """Return the quality of each ranking."""
    _, (x, y), _ = some(num_train, seed)
    y, wrong = exchanged(y, seed)
    model = trained(x, y, 10, epochs, seed)
    loss, margin = losses_and_margins(model.predict(x, verbose=0), y)
    rows = {"loss": quality(loss, wrong), "margin": quality(-margin, wrong)}
    shares = keras_dal.alignment(model, x, y, decide_separability=False).residual_share_per_sample
    rows["share of the residual"] = quality(shares, wrong)
    solved = copy_of(model)
    keras_dal.finish(solved, x, y, verbose=0)
    loss, margin = losses_and_margins(solved.predict(x, verbose=0), y)
    rows["loss, with the head solved"] = quality(loss, wrong)
    rows["margin, with the head solved"] = quality(-margin, wrong)
    return rows


if __name__ == "__main__":
    show(f"{WRONG:.0%} of the labels are wrong", run())
