"""Residual networks for small images, ending with a linear head named `logits`."""

import keras
from keras import layers

NAMES = ("resnet", "resnet18", "resnet50v2")


def build(name, depth, num_classes, images, synchronized=False):
    """Return a network for raw pixel values, which it standardizes with the statistics of these images.

    Args:
        name: one of `NAMES`.
        depth: of the CIFAR ResNet; the others have their own.
        num_classes: width of the logits.
        images: training images `(n, h, w, c)`.
        synchronized: whether batch statistics are those of all replicas together.
    """
    shape = images.shape[1:]
    if name == "resnet":
        network = resnet(depth, num_classes, shape, synchronized)
    else:
        network = {"resnet18": resnet18, "resnet50v2": resnet50v2}[name](num_classes, shape, synchronized)
    sample = images[:10_000].astype("float64")
    mean, variance = sample.mean((0, 1, 2)), sample.var((0, 1, 2)) + 1e-3
    inputs = keras.Input(shape)
    standardize = layers.Normalization(mean=mean.tolist(), variance=variance.tolist(), dtype="float32")
    return keras.Model(inputs, network(standardize(inputs)), name=network.name)


def checked_depth(depth):
    """Return the depth of a CIFAR ResNet; raises a ValueError where there is none of it."""
    if depth % 6 != 2 or depth < 8:
        raise ValueError(f"A CIFAR ResNet has 6 n + 2 layers: 8, 20, 32, 44, 56, 110. Received: depth={depth}")
    return depth


def resnet(depth=20, num_classes=10, input_shape=(32, 32, 3), synchronized=False):
    """Return the CIFAR ResNet of He et al. (2016) with `depth = 6 n + 2` layers.

    Args:
        depth: 8, 20, 32, 44, 56, 110, ...
        num_classes: width of the logits.
        input_shape: shape of one image, in whatever range.
        synchronized: whether batch statistics are those of all replicas together.
    """
    checked_depth(depth)
    inputs = keras.Input(input_shape)
    x = _convolved(inputs, 16, 1, synchronized)
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(depth // 6):
            x = _block(x, filters, 2 if stage and not block else 1, synchronized)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(num_classes, dtype="float32", name="logits")(x), name=f"resnet{depth}")


def resnet18(num_classes=10, input_shape=(32, 32, 3), synchronized=False):
    """Return ResNet-18 with a first layer for 32 x 32 images: 3 x 3, no stride, no pooling."""
    inputs = keras.Input(input_shape)
    x = _convolved(inputs, 64, 1, synchronized)
    for stage, filters in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = _block(x, filters, 2 if stage and not block else 1, synchronized)
    x = layers.GlobalAveragePooling2D(name="features")(x)
    return keras.Model(inputs, layers.Dense(num_classes, dtype="float32", name="logits")(x), name="resnet18")


def resnet50v2(num_classes=10, input_shape=(32, 32, 3), synchronized=False):
    """Return `keras.applications.ResNet50V2`, untrained, with a linear head; images must be 32 pixels or larger."""
    if synchronized:
        raise ValueError("ResNet50V2 has no synchronized batch statistics. Received: synchronized=True")
    backbone = keras.applications.ResNet50V2(False, weights=None, input_shape=input_shape, pooling="avg")
    logits = layers.Dense(num_classes, dtype="float32", name="logits")(backbone.output)
    return keras.Model(backbone.input, logits, name="resnet50v2")


def _convolved(x, filters, stride, synchronized, size=3, activation=True):
    decay = keras.regularizers.L2(1e-4)
    x = layers.Conv2D(filters, size, stride, padding="same", use_bias=False, kernel_initializer="he_normal",
                      kernel_regularizer=decay)(x)  # fmt: skip
    x = layers.BatchNormalization(momentum=0.9, epsilon=1e-5, synchronized=synchronized)(x)
    return layers.ReLU()(x) if activation else x


def _block(x, filters, stride, synchronized):
    shortcut = x
    if stride != 1 or x.shape[-1] != filters:
        shortcut = _convolved(x, filters, stride, synchronized, size=1, activation=False)
    y = _convolved(x, filters, stride, synchronized)
    y = _convolved(y, filters, 1, synchronized, activation=False)
    return layers.ReLU()(layers.Add()([y, shortcut]))
