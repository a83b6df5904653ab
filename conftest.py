"""Runs the blocks of the README and of the pages in docs/, one page after the other in a folder of its own."""

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

# Keras is imported where it is needed: tests/conftest.py, which is read later, sets up what it reads at its import.


def digits(side=8):
    """Return few digits of scikit-learn, `(n, side, side, 1 or 3)`, and labels, for training and for the test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images[:300].reshape(-1, 8, 8, 1) / 16.0).astype("float32")
    if side != 8:
        images = images.repeat(side // 8, axis=1).repeat(side // 8, axis=2).repeat(3, axis=3)
    return images[:200], labels[:200], images[200:], labels[200:300]


def network():
    """Return a small compiled classifier of these images."""
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(10, name="logits"),
        ]
    )
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def begin(namespace):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    import keras

    import keras_dal

    namespace.update(digits=digits, network=network, keras=keras, keras_dal=keras_dal)
    namespace["_before"] = os.getcwd()
    namespace["_folder"] = tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def end(namespace):
    import keras

    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()
    keras.config.set_dtype_policy("float32")


def on_jax(example):
    """Run a block in a process of its own, with the data and the network that the others have."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("JAX is in the backends extra")
    root = str(Path(__file__).parent)
    begin = f"import sys; sys.path[:0] = [{root!r}]; import conftest; x, y, *_ = conftest.digits(); "
    block = f"{begin}model = conftest.network(); loss = model.loss\n{example.parsed}"
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    ran = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", block], env=environment, capture_output=True
    )
    return None if ran.returncode == 0 else ran.stderr.decode()


def in_shell(example):
    """Run the lines of a block that call `keras-dal`, on the files that they name; the others train for hours."""
    import numpy as np

    from keras_dal.__main__ import main

    for line in example.parsed.splitlines():
        if not line.startswith("keras-dal "):
            continue
        if not Path("model.keras").exists():
            x, y, xv, yv = digits()
            np.savez("train.npz", x=x, y=y)
            np.savez("test.npz", x=xv, y=yv)
            network().save("model.keras")
        status = main(shlex.split(line)[1:])
        assert status in (0, 1), f"{line} ended with {status}"


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser(language="py", evaluator=on_jax),  # what needs JAX
        CodeBlockParser(language="bash", evaluator=in_shell),
    ],
    patterns=["README.md", "docs/*.md"],
    setup=begin,
    teardown=end,
).pytest()
