"""On which devices a network is trained: one, all of a machine, or those of several machines."""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

NAMES = ("default", "one-device", "mirrored", "multi-worker")


class Devices(NamedTuple):
    """Where training happens.

    Attributes:
        scope: returns the context in which the model is made and compiled.
        replicas: number of devices that share a step.
        is_chief: whether this process is the one that writes and speaks.
        workers: number of processes.
    """

    scope: Callable
    replicas: int = 1
    is_chief: bool = True
    workers: int = 1


def choose(name, logical_cpus=None):
    """Return the `Devices` of a strategy; call it before anything else uses TensorFlow.

    Args:
        name: `"default"`, `"one-device"`, `"mirrored"` (all GPUs of this machine, or else its logical CPUs), or
            `"multi-worker"` (all processes that the environment variable TF_CONFIG lists).
        logical_cpus: split the CPU into as many devices, to try distribution without GPUs.
    """
    backend = keras.backend.backend()
    if backend != "tensorflow":
        tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads the images then
        return _other_backend(backend, name)
    if logical_cpus is not None:
        split = [tf.config.LogicalDeviceConfiguration()] * logical_cpus
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], split)
    if name == "multi-worker":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
        return Devices(strategy.scope, strategy.num_replicas_in_sync, *_cluster(strategy.cluster_resolver))
    devices = [device.name for device in tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")]
    if name == "mirrored":
        return Devices(tf.distribute.MirroredStrategy(devices).scope, len(devices))
    if name == "one-device":
        return Devices(tf.distribute.OneDeviceStrategy(devices[0]).scope)
    return Devices(contextlib.nullcontext)


def _cluster(resolver):
    """Return whether this process is the chief, the first worker where there is no job of that name, and the number."""
    tasks = resolver.cluster_spec().as_dict()
    processes = len(tasks.get("chief", [])) + len(tasks.get("worker", [])) or 1
    return resolver.task_type == "chief" if "chief" in tasks else not resolver.task_id, processes


def _other_backend(backend, name):
    if backend == "jax" and name == "mirrored":
        distribution = keras.distribution.DataParallel()
        keras.distribution.set_distribution(distribution)
        return Devices(contextlib.nullcontext, distribution.device_mesh.devices.size)
    if name != "default":
        raise SystemExit(
            "Use --strategy default, or mirrored on JAX; the others are TensorFlow's. "
            f"Received: --strategy {name} on the {backend} backend"
        )
    return Devices(contextlib.nullcontext)


def prepare(model, devices, sample):
    """Build all that training needs, so that it can be restored, and mend `fit` for several workers.

    Args:
        model: a compiled model.
        devices: its `Devices`.
        sample: one batch `(x, y)` of arrays.
    """
    with devices.scope():
        if devices.workers > 1:
            _mend_multi_worker(model, sample)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)


def _mend_multi_worker(model, sample):
    """Let Keras 3.15 `fit` on several workers, which it does not without this (keras issue 20585).

    Keras averages the first batch over workers to build the model, and one number per worker as if it were a batch.
    """
    from keras.src.backend.tensorflow import trainer

    model._symbolic_build(data_batch=(*sample, None))
    model._maybe_symbolic_build = lambda **_: None
    trainer._collective_all_reduce_multi_worker = lambda strategy: False
