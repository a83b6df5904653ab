"""Features of data, computed once: in memory up to a limit, in a memory-mapped file beyond it, reused where valid."""

import dataclasses
import functools
import os
import pathlib
from typing import Any

import numpy as np
from keras import tree

from keras_dal._backend.arrays import MAX_BYTES
from keras_dal.features.batches import BATCH_SIZE, batches, feature_batches, in_one_array
from keras_dal.features.columns import num_independent
from keras_dal.features.fingerprint import fingerprint, name_of
from keras_dal.features.inputs import are_arrays
from keras_dal.features.precision import blocks_of, eps_of, eps_of_features
from keras_dal.features.progress_bar import complete, progress_bar
from keras_dal.features.samples import checked_weight, joined, positive
from keras_dal.features.store import RowWriter, rows_of_file, rows_where
from keras_dal.features.tracing import as_numpy, computed_dtype, feature_array
from keras_dal.output.warning import warn

_AGREEMENT = 1e-4  # of recomputed rows with kept ones: float32 in batches of another size
_EPS = eps_of("float32")
_COMPARED = 256  # rows that are computed again: a change of one in fifty shows, but for one time in a hundred


@dataclasses.dataclass(frozen=True, eq=False)
class CachedFeatures:
    """Features `(n, m)` in float32, with the labels and the float64 sample weights `(n,)` that came with them.

    `rows` are the positions of the samples among those that were given, `(n,)`; `exact` says whether the model computes
    these very numbers, None where that is not known.
    """

    features: np.ndarray
    labels: Any
    weights: np.ndarray
    rows: np.ndarray
    exact: bool | None = None

    def __len__(self):
        return len(self.features)

    def num_independent(self, structure):
        """Return how many of the m columns are independent, counted once, for the `Structure` that they come from."""
        if "count" not in self._kept:
            eps = eps_of_features(structure, blocks_of(self.features))
            self._kept["count"] = num_independent(self.features, eps)
        return self._kept["count"]

    @functools.cached_property
    def _kept(self):
        return {}

    @property
    def weighted(self):
        """The samples of positive weight, with weights that keep the mean over all of them."""
        return self if (self.weights > 0).all() else self._positive

    @functools.cached_property  # not of `self` above: features would outlive their last user by a cycle
    def _positive(self):
        kept, weights = positive(self.weights)
        labels = None if self.labels is None else self.labels[kept]
        return CachedFeatures(rows_where(kept, self.features), labels, weights, self.rows[kept], self.exact)

    def are_exact(self, structure):
        """Return whether features are as the model computes them, which float64 that may have been cast is not."""
        dtype = computed_dtype(structure.layer.compute_dtype)
        return eps_of(dtype) >= _EPS if self.exact is None else self.exact


class FeatureRows:
    """Collects the `CachedFeatures` of data, batch by batch.

    Args:
        max_bytes: size from which features are memory-mapped.
        directory: where the file for that is made; None for the system's temporary directory.
        keep: whether features are in a file in any case, which `finish` leaves for the next run.
    """

    def __init__(self, max_bytes, directory=None, keep=False):
        self._writer, self._labels, self._weights, self._exact = RowWriter(directory, max_bytes, keep), [], [], True

    def __len__(self):
        return self._writer.rows

    def add(self, features, labels, weights):
        """Add a batch: features `(k, m)`, labels `(k, ...)` or None, and float64 weights `(k,)`.

        Raises:
            ValueError: features that float32 does not hold.
        """
        self._writer.append(narrow := _in_float32(features))
        self._exact = self._exact and (features.dtype == narrow.dtype or np.array_equal(narrow, features))
        self._labels.append(labels)
        self._weights.append(weights)

    def finish(self, path=None):
        """Return what was added; under `path`, features stay for the next run."""
        features = self._writer.finish(path)
        labels, weights = joined(self._labels), joined(self._weights)
        return CachedFeatures(features, labels, weights, np.arange(len(features)), self._exact)

    def discard(self):
        """Forget what was added, on the disk, too."""
        self._writer.discard()
        self._labels, self._weights = [], []


def gathered(structure, name, x, y=None, sample_weight=None, *, verbose, **options):
    """Return the `cached_features` of what has this name, with a progress bar unless in silence."""
    bar = progress_bar(name, x) if verbose else None
    found = cached_features(structure, x, y, sample_weight, on_batch=bar and bar.update, name=name, **options)
    if bar:
        complete(bar, len(found))
    return found


def _folder(directory):
    """Return a directory as a path, None where there is none or an empty name; a ValueError says that it cannot be."""
    if directory is None or directory == "":  # as of a variable that a script has not set
        return None
    if not isinstance(directory, (str, os.PathLike)) or (
        pathlib.Path(directory).exists() and not os.path.isdir(directory)
    ):
        raise ValueError(f"cache must be a directory, which need not exist yet. Received: cache={directory!r}")
    return pathlib.Path(directory)


def cached_features(
    structure,
    x,
    y=None,
    sample_weight=None,
    batch_size=BATCH_SIZE,
    directory=None,
    max_bytes=MAX_BYTES,
    on_batch=None,
    labelled=False,
    name="x",
):
    """Return the features of data, from a valid file in `directory` or from one pass over the data.

    A file is named after the data, the configuration of the model and every weight outside the head; where samples have
    no weight, and their outputs were not compared with features, also after which. It has a checksum, and is written
    under another name first: an interrupted run leaves no file that could be mistaken for a whole one.
    One that is truncated, altered or does not agree with some rows that are computed again is refused with a warning
    and replaced.

    Args:
        structure: a `Structure`.
        x: inputs as `feature_batches` takes them; only arrays can be recognized the next time.
        y: labels `(n, ...)`, or None.
        sample_weight: weights `(n,)`, or None.
        batch_size: samples to evaluate at once.
        directory: where to keep features for the next run; None keeps nothing.
        max_bytes: size from which features are memory-mapped.
        on_batch: called with the number of samples so far after each batch.
        labelled: whether there must be labels.
        name: what the data are, for messages.

    Returns:
        A `CachedFeatures`.

    Raises:
        ValueError: as `feature_batches`, or features that float32 does not hold.
        OSError: the features do not fit on the disk; nothing is left behind.
    """
    path, directory = None, _folder(directory)
    if directory is not None and not are_arrays(x):
        warn(
            "Features of a dataset are not kept: only arrays can be recognized. Received: "
            f"{name} of type {type(x).__name__}"
        )
    elif directory is not None:
        path, *others = _paths(directory, structure, x, sample_weight)
        found = (_valid_file(each, structure, x, max_bytes, batch_size) for each in (path, *others))
        features = next((rows for rows in found if rows is not None), None)
        if features is not None:
            parts = zip(*(batch[1:] for batch in batches(x, y, sample_weight, batch_size, labelled)), strict=True)
            labels, weights = map(joined, parts)
            return CachedFeatures(features, labels, checked_weight(weights, len(features)), np.arange(len(features)))
    rows = FeatureRows(max_bytes, directory, keep=path is not None)
    try:
        for batch in feature_batches(structure, x, y, sample_weight, batch_size, labelled, name):
            rows.add(*batch)
            if on_batch:
                on_batch(len(rows))
        return rows.finish(path)
    except BaseException:
        rows.discard()
        raise


def _paths(directory, structure, x, sample_weight):
    """Yield where features are kept, and where else they may be found: where every output was compared with its own."""
    name = fingerprint(structure, x)
    weights = None if sample_weight is None else as_numpy(in_one_array("sample weights", sample_weight))
    if weights is not None and not np.all(weights > 0):
        yield directory / f"{name}-{name_of(weights > 0)}.features"
    yield directory / f"{name}.features"


def _in_float32(block):
    """Return features as they are kept; raises a ValueError where infinity or zeros would be left of them."""
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(block, np.float32)
    if not np.isfinite(narrow).all() or (block.any() and not narrow.any()):
        raise ValueError(
            "Features are kept in float32, which does not hold these: normalize the inputs of the last layer. "
            f"Received: features up to {np.max(np.abs(block)):.3g}"
        )
    return narrow


def _valid_file(path, structure, x, max_bytes, batch_size):
    """Return the rows of a kept file, or None where there is none or it is refused."""
    if not path.exists():
        return None
    try:
        rows = rows_of_file(path)
        if not _agrees(rows, structure, x, batch_size):
            raise ValueError("the model computes other features")
    except ValueError as error:
        warn(f"The features are computed again: {error}. Received: {path}")
        return None
    return rows if rows.nbytes > max_bytes else np.array(rows)


def _agrees(rows, structure, x, batch_size):
    """Whether some kept rows, from the first to the last, are what the model computes now, in batches of this size."""
    some = np.unique(np.linspace(0, len(rows) - 1, _COMPARED).astype(int))
    few, kept = tree.map_structure(lambda part: as_numpy(part)[some], x), rows[some]
    parts = [structure.feature_function(inputs)[0] for inputs, _, _ in batches(few, batch_size=batch_size)]
    now = np.concatenate([np.asarray(feature_array(part), np.float32) for part in parts])
    if now.shape != kept.shape:
        return False
    size = np.maximum(rows.max(axis=0), -rows.min(axis=0))  # by column: a separation may rest on one in tiny units
    return bool(np.all(np.abs(now - kept) <= _AGREEMENT * size))
