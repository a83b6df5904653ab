"""The guarantee on real images: a certificate for a gated head, gradient descent below its bound, and the end of it.

A ResNet-8 explores on 10,000 CIFAR-10 images. A gated branch is added and certified. Then, on cached features: plain
gradient descent with the certificate's step, whose loss is compared with the certified bound at every step, and
`converge`, which runs the same convex problem on to the training loss that is wanted. Writes
benchmarks/results/certified_cifar.json, docs/certified_cifar.png and docs/certified_cifar_path.png.

    python benchmarks/certified_cifar.py --data-dir ~/tensorflow_datasets
"""

import argparse
import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "examples")]

import data  # noqa: E402
import machine  # noqa: E402
from models import resnet  # noqa: E402

import keras_dal  # noqa: E402
from keras_dal import plots  # noqa: E402
from keras_dal.features.batches import feature_batches  # noqa: E402
from keras_dal.heads.cached_jacobian import CachedJacobian  # noqa: E402
from keras_dal.losses import SoftmaxCrossEntropy  # noqa: E402

RESULT = Path(__file__).parent / "results" / "certified_cifar.json"
PICTURE = Path(__file__).parents[1] / "docs" / "certified_cifar.png"
COMMAND = "python benchmarks/certified_cifar.py --data-dir DIR"
BATCH = 128


def explore(train, test, epochs):
    """Return a network trained by SGD with momentum and a cosine schedule."""
    keras.utils.set_random_seed(0)
    model = resnet(8, num_classes=10)
    steps = len(train) // BATCH
    rate = keras.optimizers.schedules.CosineDecay(0.1, epochs * steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss=loss, metrics=["accuracy"])
    images = data.ImageSet("cifar10", padding=4, flip=True)
    batches = data.training_batches(train, images, BATCH, 0, 0, epochs)
    model.fit(batches, steps_per_epoch=steps, epochs=epochs, validation_data=data.test_batches(test, BATCH), verbose=2)
    return model


def descend(model, certificate, train, test, steps):
    """Return losses and test accuracies after 0 ... steps of gradient descent on the head, on cached features."""
    structure = keras_dal.find_structure(model)
    loss, theta = SoftmaxCrossEntropy(), structure.theta()
    seen, unseen = (CachedJacobian.of_head(structure.head(), features(structure, images)) for images in (train, test))
    targets = loss.targets(train.y, 10)
    losses, accuracies = [], []
    for _ in range(steps + 1):
        logits = seen.logits(theta).astype(np.float64)
        losses.append(float(np.mean(loss.values(logits, targets))))
        accuracies.append(float(np.mean(np.argmax(unseen.logits(theta), axis=1) == test.y)))
        theta = theta - certificate.step * seen.adjoint(loss.gradient(logits, targets) / len(train))
    return losses, accuracies


def features(structure, images):
    batches = feature_batches(structure, images.x)
    return np.concatenate([batch for batch, _, _ in batches]).astype(np.float32)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir")
    parser.add_argument("--subset", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tol", type=float, default=1e-4)
    options = parser.parse_args()
    train, test, _ = data.load("cifar10", options.data_dir, None, options.subset)

    seconds = {}

    def timed(name, function, *arguments, **keywords):
        start = time.perf_counter()
        value = function(*arguments, **keywords)
        seconds[name] = time.perf_counter() - start
        return value

    model = timed("explore", explore, train, test, options.epochs)
    before = [model.evaluate(*images, verbose=0)[1] for images in (train, test)]
    gated = timed("add the branch", keras_dal.add_gated_head, model, train.x, seed=0)
    certificate = timed("certify", keras_dal.certify, gated, *train)
    print(certificate)
    losses, accuracies = timed("descend", descend, gated, certificate, train, test, options.steps)
    plots.bound(certificate, PICTURE, losses=losses, accuracies=accuracies)
    bounds = [certificate.bound(t) for t in range(options.steps + 1)]
    result = timed("converge", keras_dal.converge, gated, *train, tol=options.tol, validation_data=tuple(test))
    print(result)
    plots.solution(result, PICTURE.with_name("certified_cifar_path.png"))
    result.model.compile(loss=model.loss, metrics=["accuracy"])
    after = [result.model.evaluate(*images, verbose=0)[1] for images in (train, test)]
    RESULT.parent.mkdir(exist_ok=True)
    summary = {
        "command": f"{COMMAND} --epochs {options.epochs} --steps {options.steps}",
        "machine": machine.describe(),
        "settings": {key: value for key, value in vars(options).items() if key != "data_dir"},
        "seconds": seconds,
        "certificate": json.loads(certificate.to_json()),
        "train and test accuracy before": before,
        "gradient descent": {"loss": losses, "bound": bounds, "test accuracy": accuracies},
        "steps until the bound is at the wanted loss": certificate.steps_for(options.tol),
        # from the first step on: before it the bound is the loss itself, here in float32
        "steps above the bound": sum(loss > bound for loss, bound in zip(losses[1:], bounds[1:], strict=True)),
        "converge": {
            "scaled loss": result.scaled_loss,
            "scale": result.scale,
            "smallest margin": result.margin,
            "train and test accuracy": after,
            "calibration": {key: getattr(result, key)._asdict() for key in ("before", "after", "scaled")},
        },
    }
    RESULT.write_text(json.dumps(summary, indent=1) + "\n")
    print(
        json.dumps({key: summary[key] for key in ("seconds", "train and test accuracy before", "converge")}, indent=1)
    )


if __name__ == "__main__":
    main()
