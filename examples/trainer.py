"""What the examples share: load a data set, train a network on it in two phases, and leave a run folder behind."""

import sys
import time
from pathlib import Path

import data
import keras
import models
import numpy as np
import options
import record
import strategies
import tensorflow as tf
from checkpoint import Checkpoint, Preempted, preemptible
from record import Record

import keras_dal
from keras_dal import plots


def main(image_set, **defaults):
    """Run an example: one training per seed, and one more with the optimizer alone if `--compare` asks for it.

    Args:
        image_set: the `data.ImageSet`.
        defaults: options by name where they differ from those of CIFAR-10.
    """
    settings = options.parse(image_set.name, **defaults)
    devices = strategies.choose(settings.strategy, settings.logical_cpus)
    if settings.deterministic:
        tf.config.experimental.enable_op_determinism()
    if settings.mixed_precision:
        keras.mixed_precision.set_dtype_policy("mixed_float16")
    if devices.is_chief:
        record.check_folder(settings)  # before images are read, which may take long
    train, test, num_classes = data.load(image_set.name, settings.data_dir, settings.manual_dir, settings.subset)
    folder = record.open_folder(settings) if devices.is_chief else Path(settings.run_dir)
    job = Job(settings, devices, image_set, train, test, num_classes, folder)
    try:
        with preemptible() as stop:
            runs = [(name, seed) for seed in settings.seed for name in ("wrapped", "base")[: 1 + settings.compare]]
            rows = [row for name, seed in runs for row in job.run(name, seed, stop)]
    except Preempted:
        print("\nStopped by SIGTERM. Go on from the last complete epoch by the same command, with --resume", flush=True)
        raise SystemExit(128 + 15) from None
    if devices.is_chief:
        job.finish(rows)


class Job:
    """Everything the trainings of one command share."""

    def __init__(self, settings, devices, image_set, train, test, num_classes, folder):
        self.settings, self.devices, self.image_set, self.folder = settings, devices, image_set, folder
        self.train, self.test, self.num_classes = train, test, num_classes
        self.batch_size = min(settings.batch_size * devices.replicas, len(train))
        self.steps = len(train) // self.batch_size

    def optimizer(self, name):
        """Return SGD with momentum, its rate in proportion to the images per step; wrapped unless it is the base."""
        rate = self.settings.learning_rate * self.batch_size / 128
        steps = self.settings.epochs * self.steps
        if self.settings.schedule == "cosine":
            schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
        else:
            boundaries, rates = [steps // 2, steps * 3 // 4], [rate, rate / 10, rate / 100]
            schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
        sgd = keras.optimizers.SGD(schedule, momentum=0.9)
        return keras_dal.Wrap(sgd, explore=self.settings.explore) if name == "wrapped" else sgd

    def model(self, name, seed):
        keras.utils.set_random_seed(seed)
        settings = self.settings
        with self.devices.scope():
            several = self.devices.replicas > 1 and keras.backend.backend() == "tensorflow"  # JAX sees one large batch
            synchronized = several and settings.model != "resnet50v2"
            model = models.build(settings.model, settings.depth, self.num_classes, self.train.x, synchronized)
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(optimizer=self.optimizer(name), loss=loss, metrics=["accuracy"])
        strategies.prepare(model, self.devices, (self.train.x[:2], self.train.y[:2]))
        return model

    def evaluated(self, images):
        """Return batches of all images; on several JAX devices, of as many as can be shared out evenly."""
        if keras.backend.backend() == "jax":
            used = len(images) // self.devices.replicas * self.devices.replicas
            images = data.Images(images.x[:used], images.y[:used])
        return data.test_batches(images, self.batch_size)

    def run(self, name, seed, stop):
        """Train one network, from the start or from its checkpoint, and yield the rows of the table it makes."""
        folder = self.folder / f"{name}-{seed}"
        if self.devices.is_chief:
            folder.mkdir(parents=True, exist_ok=True)
            print(f"\n{name}, seed {seed}: {self.settings.epochs} epochs of {self.steps} steps", flush=True)
        model = self.model(name, seed)
        history = Record(folder if self.devices.is_chief else None, self.steps * self.batch_size)
        saved = Checkpoint(folder / "checkpoint.npz", history.history, write=self.devices.is_chief)
        first_epoch = saved.restore(model) if self.settings.resume else 0
        callbacks = [keras_dal.AlignmentMonitor()] if name == "wrapped" else []
        if self.devices.is_chief:
            callbacks.append(keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False))
        has_ended = 1 in history.history.get("phase", ())  # of the two lines, before its last epoch
        if first_epoch < self.settings.epochs and not has_ended:
            model.fit(
                data.training_batches(
                    self.train, self.image_set, self.batch_size, seed, first_epoch, self.settings.epochs
                ),
                steps_per_epoch=self.steps,
                initial_epoch=first_epoch,
                epochs=self.settings.epochs,
                validation_data=self.evaluated(self.test),
                callbacks=[*callbacks, history, saved, stop],
                shuffle=False,
                verbose=(1 if sys.stdout.isatty() else 2) if self.devices.is_chief else 0,
            )
        row = self.row(name, seed, model, history.history)
        yield row
        if name == "wrapped" and self.settings.converge and self.devices.replicas == 1:
            yield self.converged(seed, model, row["seconds"])

    def row(self, name, seed, model, history):
        """Measure a trained model on clean images and return what the table and the figures show."""
        measured, report = self.measured(model)
        if self.devices.is_chief:
            self.write(self.folder / f"{name}-{seed}", model, report)
        rates, phases = (
            np.array(history["images_per_second"]),
            np.array(history.get("phase", [0] * len(history["loss"]))),
        )
        return {
            "name": name,
            "seed": seed,
            **measured,
            "test_accuracy": history["val_accuracy"][-1],
            "seconds": sum(history["seconds"]),
            "explore_images_per_second": _median(rates[phases == 0]),
            "exploit_images_per_second": _median(rates[phases == 1]),
            "history": history,
        }

    def measured(self, model):
        """Return what the table shows of a model on the clean training images, and its alignment there."""
        loss, accuracy = model.evaluate(self.evaluated(self.train), verbose=0)
        report = keras_dal.alignment(model, *self.train, decide_separability=False)
        return {"train_accuracy": accuracy, "train_loss": loss, "alignment": report.alignment}, report

    def converged(self, seed, model, seconds):
        """Finish a trained model, which took so many seconds, on clean images, and return what the table shows."""
        start = time.perf_counter()
        result = keras_dal.converge(model, *self.train, validation_data=tuple(self.test))
        seconds += time.perf_counter() - start
        folder = self.folder / f"converged-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        result.model.save(folder / "model.keras")
        (folder / "path.txt").write_text(f"{result}\n")
        plots.solution(result, folder / "path.png")
        measured, _ = self.measured(result.model)
        test_accuracy = result.model.evaluate(self.evaluated(self.test), verbose=0)[1]
        return {"name": "converged", "seed": seed, **measured, "test_accuracy": test_accuracy, "seconds": seconds}

    def write(self, folder, model, report):
        model.save(folder / "model.keras")
        (folder / "report.txt").write_text(f"{report}\n")
        plots.spectrum(report, folder / "spectrum.png")
        if self.settings.certify:
            print("Certifying the head on all training images ...", flush=True)
            certificate = keras_dal.certify(model, *self.train)
            (folder / "certificate.json").write_text(certificate.to_json() + "\n")
            (folder / "certificate.txt").write_text(f"{certificate}\n")
            plots.bound(certificate, folder / "certificate.png")
            print(certificate)

    def finish(self, rows):
        settings = self.settings
        curves = {f"{row['name']}, seed {row['seed']}": row.pop("history") for row in rows if "history" in row}
        images = f"{len(self.train):,} training and {len(self.test):,} test images of {settings.dataset}"
        network = f"ResNet-{settings.depth}" if settings.model == "resnet" else settings.model
        title = f"{network} on {images}, {settings.epochs} epochs"
        plots.curves(curves, self.folder / "curves.png", title=title)
        devices = f"{self.devices.replicas} device(s) by strategy {settings.strategy!r}"
        print(
            f"\n{record.write_results(self.folder, title, rows, curves, devices)}\n\nAll of it: {self.folder}/README.md"
        )


def _median(values):
    return float(np.median(values)) if len(values) else None
