"""The two lines, and `converge`, on real images that need no download: scikit-learn's digits."""

import time
from pathlib import Path

import keras
import numpy as np
from models import resnet
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_dal
from keras_dal import plots

EPOCHS = 30
EARLY = 3
BATCH = 64


def digits():
    """Return `(x_train, y_train), (x_test, y_test)`: 8 x 8 gray images in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return (x_train, y_train), (x_test, y_test)


def train(name, optimizer, callbacks, train_data, test_data, epochs=EPOCHS):
    """Train the same network from the same start, and return it with its history and the seconds it took."""
    keras.utils.set_random_seed(0)
    model = resnet(depth=8, num_classes=10, input_shape=(8, 8, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    print(f"\n{name}: {epochs} epochs", flush=True)
    start = time.perf_counter()
    history = model.fit(
        *train_data, batch_size=BATCH, epochs=epochs, validation_data=test_data, callbacks=callbacks, verbose=2
    )
    return model, history.history, time.perf_counter() - start


def sgd(num_samples, epochs=EPOCHS):
    steps = epochs * int(np.ceil(num_samples / BATCH))
    return keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, steps), momentum=0.9)


def main():
    train_data, test_data = digits()
    optimizers = {"base": sgd(len(train_data[0])), "wrapped": keras_dal.Wrap(sgd(len(train_data[0])))}
    histories, rows = {}, []
    for name, optimizer in optimizers.items():
        callbacks = [keras_dal.AlignmentMonitor()] if name == "wrapped" else []
        model, histories[name], seconds = train(name, optimizer, callbacks, train_data, test_data)
        accuracies = [100 * model.evaluate(*data, verbose=0)[1] for data in (train_data, test_data)]
        rows.append(f"{name:<10}{accuracies[0]:>12.2f}{accuracies[1]:>12.2f}{seconds:>12.1f}")
    print("\nIs the last layer enough for these labels?")
    certificate = keras_dal.certify(model, *train_data)
    verdict = {"aligned": "Yes", "separable": "Yes, for the cross-entropy"}.get(certificate.verdict, "No")
    print(f"{verdict}: {certificate.verdict}.\n{certificate}")
    print(f"\n{'':<10}{'train %':>12}{'test %':>12}{'seconds':>12}")
    print("\n".join(rows))
    folder = Path("runs")
    folder.mkdir(exist_ok=True)
    path = plots.curves(histories, folder / "quickstart.png", title="scikit-learn's digits, ResNet-8")
    print(f"\nLoss, accuracy and alignment over the two phases: {path}")

    early, *_ = train("stopped early", sgd(len(train_data[0]), EARLY), [], train_data, test_data, EARLY)
    print("\nIts last layer, finished:")
    result = keras_dal.converge(early, *train_data, validation_data=test_data)
    print(f"\n{result}\n\nThe way there: {plots.solution(result, folder / 'quickstart_converge.png')}")


if __name__ == "__main__":
    main()
