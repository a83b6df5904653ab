"""Which ranking finds wrong labels: loss, margin, cleanlab, or what the head's least squares leaves of a sample?

    pip install cleanlab
    python benchmarks/suspects.py cifar10 --data-dir ~/tensorflow_datasets

trains a small residual network on 5,000 images of whose labels some are wrong, drawn at random or pushed to the class
that looks most alike, and ranks all images in each way. cleanlab gets probabilities from five-fold cross-validated
logistic regression on the same features. Adds lines to benchmarks/results/suspects.jsonl, which
`python benchmarks/width_page.py` writes up.
"""

import json
from pathlib import Path

import keras
import machine
import numpy as np
from cleanlab.rank import get_label_quality_scores
from scipy import special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from structures import Shape, cross_entropy, features_of, parser_of
from two_lines import bind, load

import keras_dal

RESULT = Path(__file__).parent / "results" / "suspects.jsonl"
SHARES, KINDS = (0.05, 0.1, 0.2), ("uniform", "nearest")
FILTERS, EPOCHS, IMAGES, BATCH = 8, 10, 5_000, 128


def alike(x, y, classes):
    """Return for each class the one whose mean image is nearest."""
    means = np.stack([x[y == label].mean(axis=0).ravel() for label in range(classes)])
    far = ((means[:, None] - means[None]) ** 2).sum(axis=2)
    np.fill_diagonal(far, np.inf)
    return far.argmin(axis=1)


def exchanged(x, y, classes, share, kind, generator):
    """Return labels of which some are wrong, and which."""
    wrong = np.zeros(len(y), bool)
    wrong[generator.permutation(len(y))[: round(share * len(y))]] = True
    other = (y + generator.integers(1, classes, len(y))) % classes if kind == "uniform" else alike(x, y, classes)[y]
    return np.where(wrong, other, y), wrong


def scores(model, x, y):
    """Return the scores of each way, the larger the more suspect."""
    logits = model.predict(x, batch_size=500, verbose=0).astype(np.float64)
    own = logits[np.arange(len(y)), y]
    others = np.where(np.arange(logits.shape[1]) == y[:, None], -np.inf, logits).max(axis=1)
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    probabilities = cross_val_predict(regression, features_of(model, x), y, cv=5, method="predict_proba")
    return {
        "loss": special.logsumexp(logits, axis=1) - own,
        "margin": others - own,
        "cleanlab": -get_label_quality_scores(y, probabilities, method="normalized_margin"),
        "share of the residual": keras_dal.alignment(model, x, y, decide_separability=False).residual_share_per_sample,
        "loss, with the head solved": _after_finish(model, x, y),
    }


def _after_finish(model, x, y):
    keras_dal.finish(model, x, y, verbose=0)
    logits = model.predict(x, batch_size=500, verbose=0).astype(np.float64)
    return special.logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]


def main():
    parser = parser_of(__doc__, RESULT)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    bind(options.core)
    train, _, classes = load(options.dataset, IMAGES, options.data_dir)
    x = train.x.astype("float32")
    for kind in KINDS:
        for share in SHARES:
            y, wrong = exchanged(x, train.y, classes, share, kind, np.random.default_rng(options.seed))
            keras.utils.set_random_seed(options.seed)
            model = Shape(FILTERS).build(x, classes)
            rate = keras.optimizers.schedules.CosineDecay(0.1, EPOCHS * (len(x) // BATCH))
            model.compile(keras.optimizers.SGD(rate, momentum=0.9), cross_entropy())
            model.fit(x, y, BATCH, EPOCHS, verbose=0)
            found = {}
            for way, suspicion in scores(model, x, y).items():
                first = np.argsort(-suspicion)[: wrong.sum()]
                found[way] = {"auroc": roc_auc_score(wrong, suspicion), "precision": float(wrong[first].mean())}
            row = {"dataset": options.dataset, "kind": kind, "share": share, "seed": options.seed, "ways": found}
            with options.result.open("a") as file:
                file.write(json.dumps({**row, "machine": machine.describe()}) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
