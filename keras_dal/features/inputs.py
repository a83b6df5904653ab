"""What a model takes: the inputs it declares, and a few of them, given or random."""

import keras
import numpy as np
from keras import tree

from keras_dal import _keras

SHOWN = 8  # shapes in an error
_SAMPLES = 16  # rows a check looks at: more would only repeat what random parameters already show
_SPARSE = "SparseTensor", "IndexedSlices", "BCOO"  # classes of tensors
_OPEN = 64  # size of a dimension that a model leaves open


def is_list_of_batches(x):
    """Return whether this is a dataset that is a list of `(x, y)`."""
    return isinstance(x, list) and bool(x) and all(isinstance(part, tuple) for part in x)


def are_arrays(x):
    """Return whether these are inputs, not a dataset of them; of several some may be None."""
    if x is None or is_list_of_batches(x):
        return False
    return all(hasattr(part, "shape") for part in tree.flatten(x) if part is not None)


def num_samples(x):
    """Return how many samples there are in inputs, an array or a structure of arrays."""
    shape = next((np.shape(part) for part in tree.flatten(x)), ())
    if not shape:
        raise ValueError(f"Inputs must be arrays with an axis of samples. Received: x of type {type(x).__name__}")
    return shape[0]


def spread(x, count):
    """Return a few samples, from the first to the last."""
    step = max(1, -(-num_samples(x) // count))
    return tree.map_structure(lambda part: part[::step][:count], x)


def sample_inputs(model, x):
    """Return a few inputs: some of the user's, from the first to the last, or random ones of the declared shape."""
    if x is not None:
        parts = tree.flatten(x)
        if not are_arrays(x):
            raise ValueError(
                "x must be arrays, and a dataset is not read here: pass the inputs of some of its batches. "
                f"Received: x of type {type(x).__name__}"
            )
        _check_dense(parts)
        if not all(np.shape(part)[:1] and np.shape(part)[0] for part in parts):
            raise ValueError(f"Pass at least one sample input. Received: x of shape {tree.map_structure(np.shape, x)}")
        _check_declared(model, x)
        return spread(x, _SAMPLES)
    inputs = input_specs(model)
    if inputs is None:
        raise ValueError(
            "The shape of the model's inputs is not known: pass a few sample inputs as x. "
            f"Received: model {model.name!r} ({type(model).__name__})"
        )
    generator = np.random.default_rng(0)

    def random(part):
        shape = (_SAMPLES, *(_OPEN if size is None else size for size in part.shape[1:]))
        if "int" in str(part.dtype) or "bool" in str(part.dtype):
            return generator.integers(0, 2, shape).astype(part.dtype)  # valid as token, mask or category
        if part.dtype == "string":
            return generator.integers(0, 10, shape).astype(str)
        return generator.standard_normal(shape).astype("float32")

    return tree.map_structure(random, inputs)


def enlarged(x):
    """Return inputs of the size of raw pixel values, from random ones of size one; integers stay as they are."""
    return tree.map_structure(lambda part: 100 * part if part.dtype == np.float32 else part, x)


def is_dense(part):
    """Return whether a part of inputs is there, and not as a sparse matrix."""
    return part is not None and not hasattr(part, "tocsr") and type(part).__name__ not in _SPARSE


def _check_dense(parts):
    """Raise a ValueError for inputs of a kind that is not read in rows."""
    if all(map(is_dense, parts)):
        return
    if any(part is None for part in parts):
        raise ValueError(
            "All inputs must be arrays, and one that is optional is not left out: pass what it stands for, or a model "
            f"without it. Received: x with {sum(part is None for part in parts)} of {len(parts)} inputs None"
        )
    raise ValueError(
        "Inputs must be dense, and a sparse matrix is not read: pass x.toarray(), or a dataset of dense batches. "
        f"Received: x of type {', '.join(sorted({type(p).__name__ for p in parts if not is_dense(p)}))}"
    )


def check_alike(name, model, x, other):
    """Raise a ValueError for inputs that cannot be beside others, both arrays or structures of them.

    They need as many parts and axes, and the same sizes but for those that the model leaves open.

    Args:
        name: what the inputs are called.
        model: the Keras model.
        x: the others, which it takes, `(n, ...)`.
        other: the inputs, `(k, ...)`.
    """
    parts, given = tree.flatten(x), [np.shape(part)[1:] for part in tree.flatten(other)]
    if len(parts) == len(given) and not _is_same_structure(x, other):
        return  # parts by name for parts in order, say, which Keras matches
    specs = _declared(model, x) or [None] * len(parts)
    expected = [_sizes(part, spec) for part, spec in zip(parts, specs, strict=True)]
    if len(expected) != len(given) or not all(map(_are_alike, expected, given)):
        raise ValueError(
            f"The {name} must have shapes (n, ...) with {expected}, as x has, and None for any size. Received: {given}"
        )


def _is_same_structure(x, other):
    try:
        tree.assert_same_structure(x, other)
    except (ValueError, TypeError):
        return False
    return True


def _sizes(part, spec):
    """Return the sizes of a sample's part of inputs, None for those that the model leaves open."""
    sizes = np.shape(part)[1:]
    if spec is None:
        return (None,) * len(sizes)
    fixed = spec.shape[1:]
    return tuple(None if fixed[axis : axis + 1] == (None,) else size for axis, size in enumerate(sizes))


def _are_alike(expected, given):
    if len(expected) != len(given):
        return False
    return all(size in (None, found) for size, found in zip(expected, given, strict=True))


def _declared(model, x):
    """Return what a model declares for the parts of inputs, nothing for one that was built from inputs."""
    if not getattr(model, "inputs", None):
        return []
    specs = input_specs(model)
    if any(spec.shape[0] is not None for spec in tree.flatten(specs)):
        return []  # a Sequential that has the shape of its first inputs, and takes others
    try:
        tree.assert_same_structure(specs, x)
    except ValueError:
        return []  # a dictionary for a list, say: Keras knows which part goes where, or says what is wrong
    return tree.flatten(specs)


def _check_declared(model, x):
    """Raise a ValueError for inputs that do not fit what a model declares."""
    for spec, part in zip(_declared(model, x), tree.flatten(x), strict=False):
        if not _fits(tuple(spec.shape), tuple(part.shape)):
            raise ValueError(
                f"The model takes inputs of shape {spec.shape}, with None for any size. Received: x of shape "
                f"{tuple(part.shape)}"
            )
        if _is_text(part) and spec.dtype != "string":
            raise ValueError(f"The model takes inputs of dtype {spec.dtype}. Received: x of dtype {part.dtype}, text")


def _is_text(part):
    """Return whether an array is of strings, be they Python's."""
    kind = getattr(getattr(part, "dtype", None), "kind", "")
    return kind in ("U", "S", "T") or (kind == "O" and isinstance(next(iter(np.ravel(part)), None), str))


def _fits(declared, given):
    """Return whether inputs have a shape as declared, up to a last axis of size one, which Keras adds or drops."""
    if len(given) == len(declared) + 1 and given[-1] == 1:
        given = given[:-1]
    elif len(given) == len(declared) - 1 and declared[-1] == 1:
        given = (*given, 1)
    sizes = zip(declared[1:], given[1:], strict=False)
    return len(declared) == len(given) and all(size in (None, found) for size, found in sizes)


def input_specs(model):
    """Return what the model declares, or was built with, as a structure of KerasTensors, or None."""
    inputs = getattr(model, "inputs", None)
    if inputs:
        return inputs[0] if isinstance(model, keras.Sequential) else tree.map_structure(lambda part: part, model.input)
    for layer in (model, *_keras.parts(model)[: isinstance(model, keras.Sequential)]):
        shape = (layer.get_build_config() or {}).get("input_shape") if layer.built else None
        if shape:
            return tree.map_shape_structure(keras.KerasTensor, shape)
    return None
