"""Over how much of the exploration to average where images are not augmented: every choice, of the same training.

    OMP_NUM_THREADS=1 python benchmarks/unaugmented.py cifar10,2000,30,64 --data-dir ~/tensorflow_datasets --seeds 0 1

A setting is a set, its training images, epochs and images in a batch; fashion_mnist,3000,20,64 is near that of `make
quickstart`, which divides pixels by 255 where they are standardized here. A ResNet-8 is trained once with its optimizer
alone. After 0.71 of the epochs, and for each share of these over which weights are averaged, the mean becomes the
model, its batch statistics are renewed and its head is solved. The two lines renew statistics in the batches of
training; here these are of 128 images, whatever the setting has. Adds a line for each setting and seed to
benchmarks/results/unaugmented.jsonl: test accuracies.
"""

import argparse
import json
import types
from pathlib import Path

import machine
from small_trainings import compiled, optimizer_of, resnet8
from switch import EpochMeans, finished
from two_lines import accuracy, load

from keras_dal.training.schedule import EARLIEST

RESULT = Path(__file__).parent / "results" / "unaugmented.jsonl"
AVERAGES = (0.07, 0.15, 0.2, 0.3, 0.4)


def run(setting, seed, data_dir):
    """Return the row of one training."""
    dataset, *numbers = setting.split(",")
    images, epochs, batch = map(int, numbers)
    train, test, num_classes = load(dataset, images, data_dir)
    optimizer = optimizer_of("sgd", epochs, -(-len(train) // batch))
    model, means = compiled(resnet8(train.x, num_classes, seed), "sgd", optimizer, seed), EpochMeans()
    history = model.fit(
        train.x.astype("float32"), train.y, batch_size=batch, epochs=epochs, callbacks=[means], verbose=0
    ).history
    explored, alone = round(EARLIEST * epochs), accuracy(model, test)
    training = types.SimpleNamespace(train=train, test=test)
    return {
        "dataset": dataset,
        "images": len(train),
        "epochs": epochs,
        "batch": batch,
        "seed": seed,
        "explored": explored,
        "loss": [round(value, 5) for value in history["loss"]],
        "alone": alone,
        "test_accuracy": {
            average: finished(training, model, means, explored, max(1, round(average * explored)))
            for average in AVERAGES
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", help="set,images,epochs,batch")
    parser.add_argument("--data-dir", help="folder of prepared sets of tensorflow-datasets")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    options = parser.parse_args()
    for seed in options.seeds:
        for setting in options.settings:
            row = run(setting, seed, options.data_dir)
            print({name: value for name, value in row.items() if name != "loss"}, flush=True)
            with RESULT.open("a") as file:
                file.write(json.dumps(row | {"machine": machine.describe()}) + "\n")


if __name__ == "__main__":
    main()
