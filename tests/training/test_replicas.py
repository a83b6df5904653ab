"""What replicas of one process read, in a process of its own: devices are made before TensorFlow starts."""

import subprocess
import sys
import textwrap
import types

import cases
import pytest

from keras_dal import _backend

PROGRAM = """
import os

import tensorflow as tf

two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)

import keras
import numpy as np

import keras_dal

x, y = np.random.default_rng(0).normal(size=(20, 6)).astype("float32"), np.arange(20) % 3
for policy, dtype in (("float32", "int32"), ("float32", "uint8"), ("mixed_bfloat16", "int16")):
    keras.config.set_dtype_policy(policy)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8), keras.layers.BatchNormalization()])
        model.add(keras.layers.Dense(3, dtype="float32"))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.05), explore=1), loss)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.fit(x, y.astype(dtype), batch_size=8, epochs=3, verbose=0, callbacks=[monitor])
    monitors = [keras_dal.AlignmentMonitor(verbose=False)]
    shown = model.fit(x, y.astype(dtype), batch_size=20, shuffle=False, verbose=0, callbacks=monitors).history["loss"]
    one_replica = float(loss(y[:10], model(x[:10])))
    print(policy, dtype, monitor.result.stopped_by, np.allclose(shown, one_replica, rtol=0.02), flush=True)
os._exit(0)  # iterators of tf.data would wait at the end for as long again as they lived
"""


@cases.needs_tensorflow(reason="a strategy of TensorFlow shares batches among devices")
def test_labels_and_features_of_any_dtype_are_read_by_one_strategy_after_another():
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert run.stdout.splitlines() == [
        "float32 int32 the certified gap True",
        "float32 uint8 the certified gap True",
        "mixed_bfloat16 int16 the certified gap True",
    ], run.stderr
    assert "WARNING:tensorflow" not in run.stderr


@cases.needs_tensorflow(reason="clusters are TensorFlow's")
@pytest.mark.parametrize(
    ("chiefs", "task", "speaks"),
    [(0, ("worker", 0), True), (0, ("worker", 1), False), (1, ("worker", 0), False), (1, ("chief", 0), True)],
)
def test_one_process_of_a_cluster_speaks(chiefs, task, speaks):
    tf = pytest.importorskip("tensorflow")
    jobs = {"worker": ["a:1", "b:1"], **({"chief": ["c:1"]} if chiefs else {})}
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(tf.train.ClusterSpec(jobs), "", *task)
    model = types.SimpleNamespace(distribute_strategy=types.SimpleNamespace(cluster_resolver=resolver))
    assert _backend.is_chief(model) is speaks
