"""Residual networks for small images, ending with a linear head named `logits`."""

import keras
from keras import layers


def resnet(depth=20, num_classes=10, input_shape=(32, 32, 3), synchronized=False):
    """Return the CIFAR ResNet of He et al. (2016) with `depth = 6 n + 2` layers.

    Args:
        depth: 8, 20, 32, 44, 56, 110, ...
        num_classes: width of the logits.
        input_shape: shape of one image, in whatever range.
        synchronized: whether batch statistics are those of all replicas together.
    """
    if depth % 6 != 2 or depth < 8:
        raise ValueError(f"A CIFAR ResNet has 6 n + 2 layers: 8, 20, 32, 44, 56, 110. Received: depth={depth}")
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
