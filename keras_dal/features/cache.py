"""Features of data, computed once: in memory up to a limit, in a memory-mapped file beyond it, reused where valid."""

import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
import warnings
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_dal.features.batches import are_arrays, batches, checked_weight, feature_batches

_CHUNK = 2**24  # bytes read at a time for a checksum
_AGREEMENT = 1e-4  # of recomputed rows with kept ones: float32 in batches of another size
_COMPARED = 32  # rows that are computed again


@dataclasses.dataclass(frozen=True, eq=False)
class CachedFeatures:
    """Features `(n, m)` in float32, with the labels and the float64 sample weights `(n,)` that came with them."""

    features: np.ndarray
    labels: Any
    weights: np.ndarray

    def __len__(self):
        return len(self.features)

    def weighted(self):
        """Return the samples of positive weight, with weights that keep the mean over all of them."""
        kept = self.weights > 0
        if kept.all():
            return self
        if not kept.any():
            raise ValueError(f"Sample weights must not all be zero. Received: sample_weight={self.weights}")
        labels = None if self.labels is None else self.labels[kept]
        return CachedFeatures(self.features[kept], labels, self.weights[kept] * kept.mean())


def cached_features(
    structure, x, y=None, sample_weight=None, batch_size=256, directory=None, max_bytes=2**32, on_batch=None
):
    """Return the features of data, from a valid file in `directory` or from one pass over the data.

    A file is named after the data, the configuration of the model and every weight outside the head, has a checksum,
    and is written under another name first: an interrupted run leaves no file that could be mistaken for a whole one.
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

    Returns:
        A `CachedFeatures`.

    Raises:
        ValueError: as `feature_batches`.
        OSError: the features do not fit on the disk; nothing is left behind.
    """
    path = None
    if directory is not None and not are_arrays(x):
        warnings.warn(
            f"Features of a dataset are not kept: only arrays can be recognized. Received: {type(x).__name__}",
            stacklevel=3,
        )
    elif directory is not None:
        path = pathlib.Path(directory) / f"{_fingerprint(structure, x)}.features"
        features = _valid_file(path, structure, x, max_bytes)
        if features is not None:
            rest = [part[1:] for part in batches(x, y, sample_weight, batch_size)]
            weights = [checked_weight(weight, 0 if weight is None else len(weight)) for _, weight in rest]
            return _joined(features, [label for label, _ in rest], weights)
    writer = RowWriter(directory, max_bytes, keep=path is not None)
    labels, weights = [], []
    try:
        for block, label, weight in feature_batches(structure, x, y, sample_weight, batch_size):
            writer.append(np.ascontiguousarray(block, np.float32))
            labels.append(label)
            weights.append(weight)
            if on_batch:
                on_batch(writer.rows)
        return _joined(writer.finish(path), labels, weights)
    except BaseException:
        writer.discard()
        raise


class RowWriter:
    """Collects rows in memory and moves to a file when they grow beyond a limit or are to be kept."""

    def __init__(self, directory, max_bytes, keep):
        self.directory, self.max_bytes = directory, 0 if keep else max_bytes
        self.rows, self.width, self._blocks, self._file = 0, 0, [], None
        self._digest = hashlib.blake2b(digest_size=16)

    def append(self, block):
        self.rows, self.width = self.rows + len(block), block.shape[1]
        self._blocks.append(block)
        if self._file or 4 * self.rows * self.width > self.max_bytes:
            self._flush()

    def _flush(self):
        if self._file is None:
            if self.directory:
                os.makedirs(self.directory, exist_ok=True)
            name = {"dir": self.directory, "suffix": ".partial"}
            self._file = tempfile.NamedTemporaryFile(**name, delete=False)  # noqa: SIM115 (it outlives this call)
        try:
            for block in self._blocks:
                self._file.write(block.data)
                self._digest.update(block.data)
            self._file.flush()
        except OSError as error:
            raise OSError(
                error.errno,
                "The features do not fit on the disk; pass a cache directory with more room, or raise max_bytes to "
                f"keep them in memory. Received: {self.rows:,} rows of {self.width}, {error.strerror}",
            ) from error
        self._blocks = []

    def finish(self, path):
        """Return the rows; under `path` they stay for the next run."""
        if self._file is None:
            return np.concatenate(self._blocks)
        partial = self._file.name
        os.fsync(self._file.fileno())
        self._file.close()
        rows = np.memmap(partial, np.float32, "r", shape=(self.rows, self.width))
        if path is None:
            os.unlink(partial)  # the mapping keeps the bytes until it is dropped
            return rows
        description = {"rows": self.rows, "width": self.width, "checksum": self._digest.hexdigest()}
        os.replace(partial, path)
        _write_atomically(path.with_suffix(".json"), json.dumps(description))
        return rows

    def discard(self):
        if self._file is not None:
            self._file.close()
            pathlib.Path(self._file.name).unlink(missing_ok=True)


def _valid_file(path, structure, x, max_bytes):
    """Return the rows of a kept file, or None where there is none or it is refused."""
    if not path.exists():
        return None
    reason = None
    try:
        description = json.loads(path.with_suffix(".json").read_text())
        shape = (description["rows"], description["width"])
        if path.stat().st_size != 4 * shape[0] * shape[1]:
            reason = "its size is not what was written"
        elif _checksum(path) != description["checksum"]:
            reason = "its checksum is not what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"its description cannot be read ({type(error).__name__})"
    if reason is None:
        rows = np.memmap(path, np.float32, "r", shape=shape)
        if _agrees(rows, structure, x):
            return rows if rows.nbytes > max_bytes else np.array(rows)
        reason = "the model computes other features"
    warnings.warn(f"The features are computed again: {reason}. Received: {path}", stacklevel=3)
    return None


def _agrees(rows, structure, x):
    """Whether some kept rows, from the first to the last, are what the model computes now."""
    some = np.unique(np.linspace(0, len(rows) - 1, _COMPARED).astype(int))
    now = np.asarray(structure.features(tree.map_structure(lambda part: part[some], x)), np.float32)
    kept = rows[some]
    return now.shape == kept.shape and np.max(np.abs(now - kept)) <= _AGREEMENT * np.max(np.abs(now))


def _fingerprint(structure, x):
    """Return a name for the features, from all they depend on: configuration, weights outside the head, and data."""
    digest = hashlib.blake2b(_configuration(structure.model).encode(), digest_size=16)
    layers = (structure.layer, structure.output_layer)
    others = {id(variable) for layer in layers for variable in layer.variables}
    # what random layers draw from is new in every process, and says nothing about inference
    others |= {id(v) for v in structure.model.variables if v.path.endswith("seed_generator_state")}
    weights = [keras.ops.convert_to_numpy(v) for v in structure.model.variables if id(v) not in others]
    for array in (*weights, *tree.flatten(x)):
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _configuration(model):
    """Return how the model is made, without how it was compiled; the name of its class where it cannot tell."""
    try:
        description = json.loads(model.to_json())
    except (NotImplementedError, TypeError, ValueError):
        return type(model).__qualname__
    return json.dumps({key: value for key, value in description.items() if key != "compile_config"}, sort_keys=True)


def _checksum(path):
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write_atomically(path, text):
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _joined(features, labels, weights):
    labels = None if labels[0] is None else np.concatenate(labels)
    weights = np.ones(len(features)) if weights[0] is None else np.concatenate(weights)
    return CachedFeatures(features, labels, weights)
