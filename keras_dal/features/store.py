"""Rows that may be larger than memory: kept in memory up to a limit, and on the disk beyond it."""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np

from keras_dal._backend.arrays import slices

_FORMAT = 1  # of files that are kept
_CHUNK = 2**24  # bytes that are read at a time
_SPOOLED = 2**28  # bytes of rows in memory, at most, that are read once or twice more
_PREFIX = "keras_dal-"  # of files that are being written
_ABANDONED = 24 * 3600  # seconds without a write after which the partial file is one of a process that was killed


class SpooledRows:
    """Rows that are written once and read again, in memory up to a limit and in a temporary file beyond it.

    Args:
        max_bytes: the limit; 256 MiB is one in any case, as files are nearly as fast.
    """

    def __init__(self, max_bytes):
        most = max(1, int(min(max_bytes, _SPOOLED)))  # for Python's 0 is none
        self._file = tempfile.SpooledTemporaryFile(max_size=most)  # noqa: SIM115 (closed by __exit__)
        self._batches = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def append(self, *arrays):
        for array in arrays:
            self._file.write(np.ascontiguousarray(array).tobytes())
        self._batches.append([(array.dtype, array.shape) for array in arrays])

    def __iter__(self):
        """Yield the arrays of each `append`."""
        self._file.seek(0)
        for arrays in self._batches:
            yield [self._read(dtype, shape) for dtype, shape in arrays]

    def _read(self, dtype, shape):
        return np.frombuffer(self._file.read(dtype.itemsize * math.prod(shape)), dtype).reshape(shape)


class RowWriter:
    """Collects float32 rows in memory and moves to a file when they grow beyond a limit or are to be kept.

    Args:
        directory: where the file is made; None for the system's temporary directory.
        max_bytes: size from which rows are in a file.
        keep: whether they are in a file in any case.
    """

    def __init__(self, directory, max_bytes, keep):
        self.directory, self.max_bytes, self._keep = directory, 0 if keep else max_bytes, keep
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
                _remove_abandoned(pathlib.Path(self.directory))
            name: dict[str, Any] = {"dir": self.directory, "prefix": _PREFIX, "suffix": ".partial"}
            if self._keep:
                self._file = tempfile.NamedTemporaryFile(**name, delete=False)  # noqa: SIM115 (it outlives this call)
            else:
                self._file = tempfile.TemporaryFile(**name)  # noqa: SIM115 (without a name: gone with the process)
        try:
            for block in self._blocks:
                self._file.write(block.data)
                self._digest.update(block.data)
            self._file.flush()
        except OSError as error:
            raise self._no_room(error) from error
        self._blocks = []

    def _no_room(self, error):
        return OSError(
            error.errno,
            "The features do not fit on the disk: make room, set TMPDIR to a folder with more, or give cache= or "
            f"max_bytes= where there are such arguments. Received: {self.rows:,} rows of {self.width}, "
            f"{error.strerror}",
        )

    def finish(self, path):
        """Return the rows; under `path` they stay for the next run."""
        if self._file is None:
            return np.concatenate(self._blocks)
        if not self._keep:
            with self._file:  # the mapping keeps the bytes until it is dropped
                return np.memmap(self._file, np.float32, "r", shape=(self.rows, self.width))
        partial = self._file.name
        os.fsync(self._file.fileno())
        self._file.close()
        rows = np.memmap(partial, np.float32, "r", shape=(self.rows, self.width))
        description = {"format": _FORMAT, "rows": self.rows, "width": self.width, "checksum": self._digest.hexdigest()}
        try:  # the description first: what has none is refused with a warning
            _write_atomically(path.with_suffix(".json"), json.dumps(description))
        except OSError as error:
            raise self._no_room(error) from error
        os.replace(partial, path)
        return rows

    def discard(self):
        self._blocks = []
        if self._file is not None:
            self._file.close()
            if self._keep:
                pathlib.Path(self._file.name).unlink(missing_ok=True)


def rows_of_file(path):
    """Return the memory-mapped rows of a file that `RowWriter.finish` left.

    Raises:
        ValueError: the file is not what was written; the message says why.
    """
    try:
        description = json.loads(path.with_suffix(".json").read_text())
        known = description.get("format", 0)
        shape, expected = (description["rows"], description["width"]), description["checksum"]
        size = 4 * shape[0] * shape[1]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"its description cannot be read ({type(error).__name__})") from error
    if known != _FORMAT:
        raise ValueError(f"its format is {known}, not {_FORMAT}")
    if path.stat().st_size != size:
        raise ValueError("its size is not what was written")
    if checksum(path) != expected:
        raise ValueError("its checksum is not what was written")
    return np.memmap(path, np.float32, "r", shape=shape)


def rows_where(kept, rows):
    """Return the rows `(n, m)` that are kept, memory-mapped as the rows are.

    Args:
        kept: booleans `(n,)`.
        rows: float32, an array or what `RowWriter.finish` returns.
    """
    if not isinstance(rows, np.memmap):
        return rows[kept]
    writer, step = RowWriter(None, 0, keep=False), max(1, _CHUNK // (4 * rows.shape[1]))
    try:
        for block in slices(len(rows), step):
            writer.append(rows[block][kept[block]])
        return writer.finish(None)
    except BaseException:
        writer.discard()
        raise


def checksum(path):
    """Return a hash of the content of a file."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def abandoned(directory, pattern, seconds):
    """Yield files and folders to which nothing was written for so many seconds, contents of folders included.

    Args:
        directory: a `pathlib.Path`.
        pattern: of their names, as for `glob`.
        seconds: since the last write.
    """
    for partial in directory.glob(pattern):
        with contextlib.suppress(OSError):  # another process was faster
            parts = [partial, *(partial.iterdir() if partial.is_dir() else ())]
            if time.time() - max(part.stat().st_mtime for part in parts) > seconds:
                yield partial


def _remove_abandoned(directory):
    for partial in abandoned(directory, f"{_PREFIX}*.partial", _ABANDONED):
        with contextlib.suppress(OSError):  # as above, or one that has it open
            partial.unlink()


def _write_atomically(path, text):
    name: dict[str, Any] = {"dir": path.parent, "prefix": _PREFIX, "suffix": ".partial"}
    file = tempfile.NamedTemporaryFile("w", **name, delete=False)  # noqa: SIM115 (of a name no other process has)
    try:
        with file:
            file.write(text)
        os.replace(file.name, path)
    except BaseException:
        pathlib.Path(file.name).unlink(missing_ok=True)
        raise
