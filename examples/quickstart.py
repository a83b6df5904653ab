"""The two lines on real images that need no download: scikit-learn's digits, base optimizer against wrapped."""

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
BATCH = 64


def digits():
    """Return `(x_train, y_train), (x_test, y_test)`: 8 x 8 gray images in [0, 1]."""
    images, labels = load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    x_train, x_test, y_train, y_test = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    return (x_train, y_train), (x_test, y_test)


def train(name, optimizer, callbacks, train_data, test_data):
    """Train the same network from the same start, and return it with its history and the seconds it took."""
    keras.utils.set_random_seed(0)
    model = resnet(depth=8, num_classes=10, input_shape=(8, 8, 1))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"])
    print(f"\n{name}: {EPOCHS} epochs", flush=True)
    start = time.perf_counter()
    history = model.fit(
        *train_data, batch_size=BATCH, epochs=EPOCHS, validation_data=test_data, callbacks=callbacks, verbose=2
    )
    return model, history.history, time.perf_counter() - start


def sgd(num_samples):
    steps = EPOCHS * int(np.ceil(num_samples / BATCH))
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
    print(keras_dal.certify(model, *train_data))
    print(f"\n{'':<10}{'train %':>12}{'test %':>12}{'seconds':>12}")
    print("\n".join(rows))
    path = Path("runs/quickstart.png")
    path.parent.mkdir(exist_ok=True)
    plots.curves(histories, path, title="scikit-learn's digits, ResNet-8")
    print(f"\nLoss, accuracy and alignment over the two phases: {path}")


if __name__ == "__main__":
    main()
