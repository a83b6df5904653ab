"""What the recipes share: images, a small ResNet trained on them, and a table."""

import sys
import time
from pathlib import Path

import keras
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))

from models import resnet
from quickstart import BATCH, FASHION, fashion, images, sgd

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def some(num_train, seed, num_test=5000):
    """Return `(name, train, test)`, each `(x, y)` in [0, 1]: of Fashion-MNIST if it is installed, or few digits."""
    if not FASHION.is_dir():
        return images()
    x, y = fashion("train")
    chosen = np.random.default_rng(seed).permutation(len(x))[:num_train]
    return "Fashion-MNIST", (x[chosen], y[chosen]), [part[:num_test] for part in fashion("t10k")]


def trained(x, y, num_classes, epochs, seed):
    """Return a ResNet-8 trained on these images, as its own optimizer leaves it."""
    keras.utils.set_random_seed(seed)
    model = resnet(depth=8, num_classes=num_classes, input_shape=x.shape[1:])
    model.compile(sgd(len(x), epochs), LOSS, metrics=["accuracy"])
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return model


def copy_of(model):
    """Return another model with the same weights, compiled alike."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    copy.compile("sgd", LOSS, metrics=["accuracy"])
    return copy


def freeze_and_fit(model, x, y, epochs, **options):
    """Train the last layer alone by SGD with momentum 0.9 at the rate 0.01; return the seconds."""
    for layer in model.layers:
        layer.trainable = layer is model.layers[-1]
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), LOSS)
    start = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0, **options)
    return time.perf_counter() - start


def fine_tune(model, x, y, epochs):
    """Train all layers at a tenth of the usual rate; return the seconds."""
    model.trainable = True
    rate = keras.optimizers.schedules.CosineDecay(0.01, epochs * -(-len(x) // BATCH))
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), LOSS)
    start = time.perf_counter()
    model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    return time.perf_counter() - start


def predicted(model, x):
    return model.predict(x, batch_size=500, verbose=0).argmax(axis=1)


def show(title, rows):
    """Print rows `{way: {column: value}}` as a table."""
    columns = list(next(iter(rows.values())))
    print(f"\n{title}\n{'':<36}" + "".join(f"{column:>22}" for column in columns))
    for way, values in rows.items():
        print(f"{way:<36}" + "".join(f"{values[column]:>22.2f}" for column in columns))
