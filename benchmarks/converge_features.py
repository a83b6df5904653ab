"""Train a small CIFAR ResNet and write its features for `converge_peers.py`, and beside them what computes them.

    python benchmarks/converge_features.py --data-dir DIR --output cifar10_10000.npz [--name cifar10] [--samples 10000]
    python benchmarks/converge_features.py --name digits --samples 1000 --unlabelled 300 --epochs 40 --output digits.npz

About five minutes on two cores for 10,000 images and 20 epochs. The digits are those of scikit-learn, enlarged.
"""

import argparse
import pathlib

import keras
import numpy as np
import tensorflow_datasets as tfds
from basics import augmented
from keras import layers
from sklearn.datasets import load_digits

MEAN, DEVIATION = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.247, 0.243, 0.261])
BATCH = 128


def load(name, data_dir):
    """Return images `(n, 32, 32, 3)` from 0 to 255 and labels, for training and for the test."""
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        images = np.kron(images.reshape(-1, 8, 8, 1) * (255 / 16), np.ones((1, 4, 4, 3)))
        return (images[:1300], labels[:1300]), (images[1300:], labels[1300:])
    splits = tfds.load(name, data_dir=data_dir, split=["train", "test"], batch_size=-1)
    return [(split["image"], split["label"]) for split in map(tfds.as_numpy, splits)]


def resnet8(classes):
    def convolution(x, filters, stride=1, size=3):
        options = {"padding": "same", "use_bias": False, "kernel_regularizer": keras.regularizers.L2(1e-4)}
        return layers.BatchNormalization()(layers.Conv2D(filters, size, strides=stride, **options)(x))

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(convolution(inputs, 16))
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        shortcut = x if stride == 1 else convolution(x, filters, stride, 1)
        x = convolution(layers.ReLU()(convolution(x, filters, stride)), filters)
        x = layers.ReLU()(layers.add([x, shortcut]))
    features = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(classes, name="head")(features))
    return model, keras.Model(inputs, features)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir")
    parser.add_argument("--name", default="cifar10", choices=["cifar10", "cifar100", "digits"])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--unlabelled", type=int, default=5_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--copies", type=int, default=4, help="augmented copies of the features")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    keras.utils.set_random_seed(arguments.seed)
    generator = np.random.default_rng(arguments.seed)
    (images, labels), (test_images, yt) = load(arguments.name, arguments.data_dir)
    order = generator.permutation(len(images))
    kept, rest = np.split(order[: arguments.samples + arguments.unlabelled], [arguments.samples])
    x, xu, xt = (
        ((part / np.float32(255) - MEAN) / DEVIATION).astype(np.float32)
        for part in (images[kept], images[rest], test_images)
    )
    y, mirror = labels[kept], arguments.name != "digits"
    model, trunk = resnet8(int(y.max()) + 1)
    steps = arguments.epochs * -(-len(x) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.1, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate, momentum=0.9, nesterov=True), loss, metrics=["accuracy"])
    for _ in range(arguments.epochs):
        model.fit(augmented(x, generator, mirror), y, batch_size=BATCH, verbose=2)
    copies = [trunk.predict(augmented(x, generator, mirror), verbose=0) for _ in range(arguments.copies)]
    z, zt = (trunk.predict(images, verbose=0) for images in (x, xt))
    zu = trunk.predict(xu, verbose=0) if len(xu) else z[:0]
    kernel, bias = model.get_layer("head").get_weights()
    np.savez(
        arguments.output, z=z, y=y, za=np.reshape(copies, (-1, *z.shape)), zu=zu, zt=zt, yt=yt, K=kernel, b=bias, x=x
    )
    trunk.save(pathlib.Path(arguments.output).with_suffix(".keras"))


if __name__ == "__main__":
    main()
