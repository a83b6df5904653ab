"""What `width_curve` takes at 10,000 images, beside one epoch of the training of the same ResNet-20 on 50,000.

    python benchmarks/width_price.py --data-dir ~/tensorflow_datasets

The network is trained for that epoch first, so that the features are not those of chance. The seconds of the curve are
the median of three, from images and from cached features; the epoch is the first after the one that compiles, of fewer
images, timed as it goes and counted up to 50,000. Writes benchmarks/results/width_price.json.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import keras  # noqa: E402
import machine  # noqa: E402
import models  # noqa: E402
import numpy as np  # noqa: E402
from two_lines import load  # noqa: E402

import keras_dal  # noqa: E402

RESULT = Path(__file__).parent / "results" / "width_price.json"
IMAGES, ALL, TIMED, ROUNDS = 10_000, 50_000, 20_000, 3


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder of prepared sets of tensorflow-datasets")
    options = parser.parse_args()
    train, _, _ = load("cifar10", TIMED, options.data_dir)
    x, y = train.x.astype("float32") / 255, train.y
    keras.utils.set_random_seed(0)
    model = models.resnet(20)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[:IMAGES], y[:IMAGES], batch_size=128, verbose=0)  # compiles
    epoch = seconds(lambda: model.fit(x, y, batch_size=128, verbose=0)) * ALL / TIMED
    few = x[:IMAGES], y[:IMAGES]
    whole = [seconds(lambda: keras_dal.width_curve(model, *few, verbose=0)) for _ in range(ROUNDS)]
    features = keras_dal.find_structure(model).feature_function
    z = np.concatenate([np.asarray(features(x[i : i + 500])[0]) for i in range(0, IMAGES, 500)])
    head = keras.Sequential([keras.Input(z.shape[1:]), keras.layers.Dense(10)])
    head.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    cached = [seconds(lambda: keras_dal.width_curve(head, z, few[1], verbose=0)) for _ in range(ROUNDS)]
    result = {
        "command": " ".join(["python benchmarks/width_price.py", *sys.argv[1:]]).replace(str(options.data_dir), "DIR"),
        "machine": machine.describe(),
        "setting": {"images": IMAGES, "images of an epoch": ALL, "images that were timed": TIMED, "rounds": ROUNDS},
        "an epoch of ResNet-20, seconds": epoch,
        "width_curve, seconds, median": float(np.median(whole)),
        "width_curve, share of the epoch": float(np.median(whole)) / epoch,
        "width_curve on cached features, seconds, median": float(np.median(cached)),
        "width_curve on cached features, share of the epoch": float(np.median(cached)) / epoch,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
