"""What several benchmarks do alike: a head as a model, its accuracy, images of a file and changed at random."""

import keras
import numpy as np

from keras_dal import add_gated_head


def head_model(data, gated):
    """Return a trained head as a model on features, with a gated branch beside it where wanted.

    Args:
        data: features `z` `(n, m)`, kernel `K` `(m, c)` and bias `b` `(c,)`, by name.
        gated: whether there are gates.
    """
    model = keras.Sequential([keras.Input(data["z"].shape[1:]), keras.layers.Dense(data["K"].shape[1])])
    model.layers[0].set_weights([data["K"], data["b"]])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return add_gated_head(model, data["z"], seed=0, verbose=False) if gated else model


def images_of(path):
    """Return training images and labels, and those of the test, of an .npz file."""
    with np.load(path) as file:
        x, y, xt, yt = (file[name] for name in ("x_train", "y_train", "x_test", "y_test"))
    return [x, y.ravel().astype("int32"), xt, yt.ravel().astype("int32")]


def accuracy(model, features, labels):
    """Return the share of samples whose largest logit is that of their label."""
    logits = model.predict(features, batch_size=1000, verbose=0)
    return float(np.mean(logits.argmax(axis=1) == labels))


def augmented(images, generator, mirror=True, padding="constant"):
    """Return images `(n, h, w, c)`, shifted by up to four pixels and, where that makes sense, mirrored at random.

    Args:
        images: the images.
        generator: a NumPy one.
        mirror: whether mirror images show the same.
        padding: mode of `numpy.pad`, for what a shift brings in.
    """
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode=padding)
    shifts = generator.integers(0, 9, (len(images), 2))
    mirrored = (generator.random(len(images)) < 0.5) & mirror
    cropped = (image[a : a + height, b : b + width] for image, (a, b) in zip(padded, shifts, strict=True))
    return np.stack([image[:, ::-1] if flip else image for image, flip in zip(cropped, mirrored, strict=True)])
