"""Image data sets of tensorflow-datasets. What image i looks like in epoch e depends on the seed, e and i alone.

So a resumed run sees what it would have seen, and so does every worker of a distributed one.
"""

import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


class ImageSet(NamedTuple):
    """A data set of the catalogue, and how its images may be changed without changing what they show.

    Attributes:
        name: name in the catalogue.
        padding: pixels by which an image is shifted at most.
        flip: whether the mirror image shows the same: not so for digits.
    """

    name: str
    padding: int = 4
    flip: bool = False

    def augment(self, image, seed):
        """Return a randomly shifted, perhaps mirrored, image `(h, w, c)`; `seed` holds two integers."""
        size, pad = tf.shape(image), [self.padding, self.padding]
        image = tf.image.stateless_random_crop(tf.pad(image, [pad, pad, [0, 0]]), size, seed)
        return tf.image.stateless_random_flip_left_right(image, seed) if self.flip else image


class Images(NamedTuple):
    """Images `(n, h, w, c)` in 0 ... 255 and labels `(n,)`, in memory."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self):
        return len(self.y)

    @property
    def shape(self):
        return self.x.shape[1:]


def load(name, data_dir=None, manual_dir=None, subset=None):
    """Return `(train, test, num_classes)`, from disk if it is there, downloaded otherwise.

    Args:
        name: name in the catalogue of tensorflow-datasets.
        data_dir: folder of prepared sets, `~/tensorflow_datasets` by default.
        manual_dir: folder with the archives, fetched by hand.
        subset: number of training images, the first in the set's own order; None for all.
    """
    builder = tfds.builder(name, data_dir=data_dir)
    if not builder.is_prepared():
        _check_sources(builder, manual_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    num_classes = builder.info.features["label"].num_classes
    return _read(builder, "train", subset), _read(builder, "test", None), num_classes


def _read(builder, split, size):
    examples = builder.as_dataset(split=split, as_supervised=True, shuffle_files=False)
    batches = (examples if size is None else examples.take(size)).batch(1024)
    images, labels = zip(*tfds.as_numpy(batches), strict=True)
    return Images(np.concatenate(images), np.concatenate(labels).astype("int32"))


def _check_sources(builder, manual_dir):
    """Ends the program with one message, rather than with ten minutes of retries, if an archive cannot be had."""
    if manual_dir and not Path(manual_dir).is_dir():
        raise SystemExit(
            "--manual-dir is not a folder. Make one, put the archives of the set into it and pass its path. "
            f"Received: {manual_dir}"
        )
    there = {path.name for path in Path(manual_dir).iterdir()} if manual_dir else set()
    missing = {url: info for url, info in builder.url_infos.items() if info.filename not in there}
    try:
        for url in missing:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
    except urllib.error.HTTPError:
        return  # the network is there: the download itself says what is wrong
    except OSError as error:
        files = "\n".join(f"  {info.filename:<32} {info.size!s:>12}   {url}" for url, info in missing.items())
        raise SystemExit(
            f"{builder.name} is not on this machine and cannot be downloaded ({error}). Either\n"
            "- put these files, fetched elsewhere, into one folder and pass it as --manual-dir:\n"
            f"{files}\n"
            f"- or prepare the set with tensorflow-datasets elsewhere, and copy its folder {builder.name} into "
            f"{Path(builder.data_dir).parents[1]},\n  or into any folder that is then passed as --data-dir."
        ) from error


def training_batches(images, image_set, batch_size, seed, first_epoch, last_epoch):
    """Return a dataset of the batches of all epochs from one to another, each in its own order.

    Every epoch has `len(images) // batch_size` of them; the rest is left out, other images each time.

    Args:
        images: `Images`.
        image_set: the `ImageSet` that says how to augment.
        batch_size: images per step, over all devices.
        seed: integer.
        first_epoch: number of the first epoch, counted from 0.
        last_epoch: number of the epoch before which it ends.
    """
    used = len(images) // batch_size * batch_size
    with tf.device("CPU"):
        x, y = tf.constant(images.x), tf.constant(images.y)

    def epoch(number):
        shuffle_seed = tf.stack([seed, number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(images)), shuffle_seed)[:used]

        def example(index):
            return image_set.augment(x[index], tf.random.experimental.stateless_fold_in(shuffle_seed, index)), y[index]

        return tf.data.Dataset.from_tensor_slices(order).map(example, num_parallel_calls=tf.data.AUTOTUNE)

    numbers = tf.data.Dataset.range(first_epoch, last_epoch, output_type="int32")
    batches = numbers.flat_map(epoch).batch(batch_size, drop_remainder=True)
    return _sharded_by_image(batches.prefetch(tf.data.AUTOTUNE))


def test_batches(images, batch_size):
    """Return a dataset of all images in their own order."""
    return _sharded_by_image(tf.data.Dataset.from_tensor_slices(tuple(images)).batch(batch_size))


def _sharded_by_image(dataset):
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return dataset.with_options(options)
