"""The two lines, and `converge`, on real images that need no download."""

import gzip
import time
from pathlib import Path

import keras
import numpy as np
from models import resnet
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dal
from keras_dal import plots

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts it
EPOCHS, EARLY = 20, 3
AVERAGE = 0.3  # of the exploration, in place of 0.07: no worse where nothing augments images (docs/two_lines.md)
BATCH = 64


def images():
    """Return `(name, train, test)`: Fashion-MNIST where it is installed, else few digits, each `(x, y)` in [0, 1]."""
    if FASHION.is_dir():
        return "3,000 images of Fashion-MNIST", [part[:3000] for part in fashion("train")], fashion("t10k")
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(x, y, train_size=300, random_state=0, stratify=y)
    return "300 of scikit-learn's digits", (x_train, y_train), (x_test, y_test)


def fashion(part):
    """Return pixels `(n, 28, 28, 1)` and labels of one part of Fashion-MNIST."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((FASHION / f"{part}-{kind}.gz").read_bytes()), np.uint8, offset=offset)
        for kind, offset in (("images-idx3-ubyte", 16), ("labels-idx1-ubyte", 8))
    )
    return (pixels.reshape(-1, 28, 28, 1) / 255.0).astype("float32"), labels.astype("int32")


def compiled(optimizer, input_shape, seed=0):
    """Return the same network, from the same start for each optimizer."""
    keras.utils.set_random_seed(seed)
    model = resnet(depth=8, num_classes=10, input_shape=input_shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    return model


def train(name, optimizer, callbacks, train_data, test_data, epochs=EPOCHS):
    """Train the network, and return it with its history and the seconds it took."""
    model = compiled(optimizer, train_data[0].shape[1:])
    print(f"\n{name}: {epochs} epochs", flush=True)
    seen = tuple(part[:1000] for part in test_data)
    start = time.perf_counter()
    history = model.fit(
        *train_data, batch_size=BATCH, epochs=epochs, validation_data=seen, callbacks=callbacks, verbose=2
    )
    return model, history.history, time.perf_counter() - start


def sgd(num_samples, epochs=EPOCHS):
    steps = epochs * int(np.ceil(num_samples / BATCH))
    return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, steps), momentum=0.9)


def main():
    name, train_data, test_data = images()
    print(f"ResNet-8 on {name}, with the same optimizer alone and with the two lines")
    histories, rows = {}, []
    monitor = keras_dal.AlignmentMonitor()
    for run, optimizer, callbacks in (
        ("base", sgd(len(train_data[0])), []),
        ("wrapped", keras_dal.Wrap(sgd(len(train_data[0])), average=AVERAGE), [monitor]),
    ):
        model, histories[run], seconds = train(run, optimizer, callbacks, train_data, test_data)
        accuracies = [100 * model.evaluate(*data, verbose=0)[1] for data in (train_data, test_data)]
        epochs = len(histories[run]["loss"])
        rows.append(f"{run:<10}{accuracies[0]:>12.2f}{accuracies[1]:>12.2f}{epochs:>12}{seconds:>12.1f}")
    print(f"\nWhat is proved about the last layer:\n{monitor.result.certificate}")
    print(f"\n{'':<10}{'train %':>12}{'test %':>12}{'epochs':>12}{'seconds':>12}")
    print("\n".join(rows))
    print("One run of each says little about tenths of a point: over seeds, docs/results.md has quickstart seeds.")
    folder = Path("runs")
    folder.mkdir(exist_ok=True)
    path = plots.curves(histories, folder / "quickstart.png", title=f"ResNet-8, {name}")
    print(f"\nLoss, accuracy and alignment over the two phases: {path}")

    early, *_ = train("stopped early", sgd(len(train_data[0]), EARLY), [], train_data, test_data, EARLY)
    print("\nIts last layer, finished:")
    result = keras_dal.converge(early, *train_data, validation_data=tuple(test_data))
    print(f"\n{result}\n\nThe way there: {plots.solution(result, folder / 'quickstart_converge.png')}")


if __name__ == "__main__":
    main()
