"""Runs an example on made-up images with a network of one convolution; tests start it as a process of its own.

Options before `--`: `--signal NAME STEP` has the process send itself a signal after a step, counted over all epochs.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def small_network(name, depth, num_classes, images, synchronized=False):
    """Stands in for `models.build`."""
    from keras import Sequential, layers

    return Sequential(
        [
            layers.Input(images.shape[1:]),
            layers.Rescaling(1 / 255),
            layers.Conv2D(4, 3, strides=4),
            layers.BatchNormalization(momentum=0.9, synchronized=synchronized),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(num_classes, name="logits"),
        ]
    )


def send_signal(callback, name, after):
    """Make the callback's class send a signal to this process after so many steps."""
    steps, original = [], callback.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        steps.append(batch)
        if len(steps) == after:
            os.kill(os.getpid(), getattr(signal, name))
        original(self, batch, logs)

    callback.on_train_batch_end = on_train_batch_end


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--signal", nargs=2)
    own, sys.argv[1:] = parser.parse_args(sys.argv[1 : sys.argv.index("--")]), sys.argv[sys.argv.index("--") + 1 :]
    sys.path.append(str(EXAMPLES))
    import checkpoint
    import data
    import models
    import tensorflow_datasets as tfds
    import trainer

    models.build = small_network
    data._check_sources = lambda builder, manual_dir: None  # the images are made up: nothing is downloaded
    if own.signal:
        send_signal(checkpoint._StopAtStep, own.signal[0], int(own.signal[1]))
    with tfds.testing.mock_data(num_examples=104):
        trainer.main(data.ImageSet("cifar10", flip=True), epochs=4, learning_rate=0.05, explore=3, certify=False)


if __name__ == "__main__":
    main()
