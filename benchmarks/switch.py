"""When should exploration end, and over how many epochs be averaged? Every choice, of one and the same training.

    python benchmarks/switch.py cifar10 --images 5000 --data-dir ~/tensorflow_datasets --seeds 0

trains a ResNet-8 once with its optimizer alone, and keeps the mean of the weights over each epoch. For each share of
the epochs and each number of averaged ones the mean becomes the model, its batch statistics are renewed and its head is
solved, as the two lines do it; the last weights, where none are averaged, keep the statistics that training left them.
Adds lines to benchmarks/results/switch.jsonl; `python benchmarks/two_lines_page.py`
writes them up. Takes the options of benchmarks/two_lines.py, which says what is trained.
"""

import json
from pathlib import Path

import keras
import machine
import numpy as np
from settings import BATCH
from two_lines import Training, accuracy, bind, parsed

import keras_dal
from keras_dal.training.statistics import BatchStatistics

RESULT = Path(__file__).parent / "results" / "switch.jsonl"
SHARES, WINDOWS = (0.5, 0.6, 0.7, 0.71, 0.75, 0.8, 0.85, 1.0), (0, 3, 6, 9)


class EpochMeans(keras.callbacks.Callback):
    """Keeps the weights at the end of each epoch, and their mean over its steps."""

    def __init__(self):
        super().__init__()
        self.ends, self.means = [], []

    def on_epoch_begin(self, epoch, logs=None):
        self._sum, self._count = 0.0, 0

    def on_train_batch_end(self, batch, logs=None):
        self._sum, self._count = self._sum + self._weights(), self._count + 1

    def on_epoch_end(self, epoch, logs=None):
        self.ends.append([value.copy() for value in self.model.get_weights()])
        self.means.append((self._sum / self._count).astype("float32"))

    def _weights(self):
        return np.concatenate([np.asarray(v).ravel() for v in self.model.trainable_variables]).astype("float64")


def finished(training, model, means, epoch, window):
    """Return the test accuracy with the head solved, for the mean of the last `window` epochs; 0 for the last weights.

    Args:
        training: a `two_lines.Training`.
        model: its model; the weights at the end of the epoch are in it.
        means: an `EpochMeans`.
        epoch: how many epochs were explored.
        window: how many of them are averaged.
    """
    model.set_weights(means.ends[epoch - 1])
    x = training.train.x.astype("float32")
    if window:
        flat = np.mean(means.means[epoch - window : epoch], axis=0)
        pieces = np.split(flat, np.cumsum([int(np.prod(v.shape)) for v in model.trainable_variables])[:-1])
        for variable, piece in zip(model.trainable_variables, pieces, strict=True):
            variable.assign(piece.reshape(variable.shape))
        statistics = BatchStatistics(model)
        for start in range(0, len(x), BATCH):
            statistics.add((x[start : start + BATCH],))
        statistics.settle()
    keras_dal.finish(model, x, training.train.y, verbose=0)
    return accuracy(model, training.test)


def main():
    options = parsed()
    bind(options.core, options.threads)
    for seed in options.seeds:
        training, means = Training(options, seed), EpochMeans()
        model = training.model(training.optimizer(training.epochs))
        training.fit(model, training.epochs, [means])
        alone = accuracy(model, training.test)
        for share in SHARES:
            epoch = round(share * training.epochs)
            rows = {window: finished(training, model, means, epoch, window) for window in WINDOWS}
            row = {
                **{name: getattr(options, name) for name in ("dataset", "images", "recipe")},
                "epochs": training.epochs,
                "seed": seed,
                "explored": epoch,
                "alone": alone,
                "test_accuracy": rows,
                "machine": machine.describe(),
            }
            with RESULT.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(epoch, alone, rows, flush=True)


if __name__ == "__main__":
    main()
