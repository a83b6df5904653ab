"""Features of a model, batch by batch, in inference mode."""

import numbers

import keras
import numpy as np
from keras import tree

from keras_dal import _backend
from keras_dal._backend import arrays
from keras_dal.features.inputs import SHOWN, are_arrays, is_list_of_batches
from keras_dal.features.samples import check_count, check_labels, checked_weight
from keras_dal.features.tracing import are_finite, as_numpy, feature_array, to_numpy

BATCH_SIZE = 256  # samples in one evaluation of arrays, by default


def feature_batches(structure, x, y=None, sample_weight=None, batch_size=BATCH_SIZE, labelled=False, name="x"):
    """Yield the features of data, one batch at a time, in the order of the data.

    Args:
        structure: a `Structure`; its `layer` is the one whose inputs are the features.
        x: inputs as Keras takes them: arrays, or a `tf.data.Dataset`, `PyDataset`, `DataLoader` or other iterable of
            batches `x`, `(x, y)` or `(x, y, sample_weight)`, which then come from there.
        y: labels of shape `(n, ...)`, or None.
        sample_weight: weights of shape `(n,)`, not negative; ones by default, and for batches that bring none.
        batch_size: number of samples to evaluate at once, where x are arrays.
        labelled: whether there must be labels.
        name: what the data are, for messages.

    Yields:
        Tuples of features `(k, m)`, labels or None, and float64 weights `(k,)`, as NumPy arrays.

    Raises:
        ValueError: no data or no labels, arrays of different lengths, features that are not finite or from which the
            model's outputs do not follow, or weights that are negative.
    """
    check, empty = BatchCheck(structure), True
    hides = _may_be_hidden(structure.model.variables)
    for x_batch, y_batch, weight in batches(x, y, sample_weight, batch_size, labelled, name):
        features, outputs = structure.feature_function(x_batch, fused=not (hides or _may_be_hidden(x_batch)))
        features = feature_array(features)
        if not len(features):
            continue
        empty = False
        if y_batch is not None and np.shape(y_batch)[:1] != (len(features),):
            raise ValueError(
                "Inputs and labels must have the same number of samples. "
                f"Received: {len(features)} inputs with labels of shape {np.shape(y_batch)}"
            )
        yield features, y_batch, check(features, feature_array(outputs), weight)
    if empty:
        raise ValueError(f"There are no samples. Pass at least one. Received: x={_description(x)}")


def _may_be_hidden(values):
    """Return whether some of these are not finite, and features that are computed with them may not show it."""
    return _backend.COMPILED_HIDES_NAN and not are_finite(values)


class BatchCheck:
    """What every batch of one pass must hold, in which the weights of the model do not move.

    Args:
        structure: a `Structure`.
    """

    def __init__(self, structure):
        self._layer, self._check_outputs = structure.layer, structure.output_check()

    def __call__(self, features, outputs, weight):
        """Check a batch and return its weights.

        Args:
            features: `(k, m)`.
            outputs: of the model for these, `(k, C)`.
            weight: shape `(k,)`, or None.

        Returns:
            A float64 array `(k,)`, ones for None.

        Raises:
            ValueError: features that are not finite or from which the outputs do not follow, or negative weights.
        """
        check_finite(features, self._layer)
        weight = checked_weight(weight, len(features))
        self._check_outputs(features, outputs, weight)
        return weight


def check_finite(features, layer):
    """Raise a ValueError for features `(k, m)` of a layer that are not finite."""
    if not np.isfinite(features).all():
        raise ValueError(
            "The features must be finite: look for NaN or infinity in the inputs and, as after a training that "
            f"has diverged, in the model's weights. Received: {np.sum(~np.isfinite(features))} such values in the "
            f"inputs of layer {layer.name!r} for a batch of {len(features)} samples"
        )


def batches(x, y=None, sample_weight=None, batch_size=BATCH_SIZE, labelled=False, name="x"):
    """Yield `(x, y, sample_weight)` for each batch of arrays or of an iterable, None for what is missing.

    With `labelled`, labels must not be missing, and a ValueError says so before any batch is evaluated. `name` is what
    the data are, for messages.
    """
    if not are_arrays(x):
        first = next(iter(tree.flatten(x)), None) if isinstance(x, (list, tuple)) else None
        if isinstance(first, (numbers.Number, str)):
            raise ValueError(
                f"{name} must be arrays: numpy.asarray makes one of a list. Received: a list of {type(first).__name__}"
            )
        if y is not None or sample_weight is not None:
            raise ValueError(
                "A dataset brings its own labels and weights: leave y and sample_weight out. "
                f"Received: x of type {type(x).__name__} together with y or sample_weight"
            )
        for batch in _iterate(x, name):
            inputs, labels, weight = keras.utils.unpack_x_y_sample_weight(batch)
            if labelled:
                check_labels(labels, x)
            yield inputs, *(part if part is None else to_numpy(part) for part in _in_one(labels, weight))
        return
    if labelled:
        check_labels(y, x)
    y, sample_weight = _in_one(y, sample_weight)
    parts = [part for part in (x, y, sample_weight) if part is not None]
    sizes = {np.shape(array)[:1] for array in tree.flatten(parts)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError(
            "Inputs, labels and weights must have the same number of samples. Received: shapes "
            f"{[np.shape(array) for array in tree.flatten(parts)][:SHOWN]}"
        )
    check_count("batch_size", batch_size)
    y, sample_weight = (None if part is None else as_numpy(part) for part in (y, sample_weight))
    for rows in arrays.slices(sizes.pop()[0], batch_size):
        yield (
            tree.map_structure(lambda array: array[rows], x),  # noqa: B023 (used before rows changes)
            None if y is None else y[rows],
            None if sample_weight is None else sample_weight[rows],
        )


def in_one_array(name, part):
    """Return the only array in labels or weights that Keras takes in a list or by the name of an output, or None.

    Args:
        name: what they are.
        part: an array, a structure of one, or None.

    Raises:
        ValueError: several arrays, or a list of numbers.
    """
    found = tree.flatten(part)
    if isinstance(part, (list, tuple)) and found and not any(np.ndim(number) for number in found):
        raise ValueError(
            f"The {name} must be an array: numpy.asarray makes one of a list. Received: a list of {len(found)} numbers"
        )
    if len(found) > 1 and any(np.ndim(array) for array in found):
        raise ValueError(
            f"The {name} must be one array, as the model has one output. Received: {len(found)} arrays of shapes "
            f"{[np.shape(array) for array in found]}"
        )
    return found[0] if len(found) == 1 and np.ndim(found[0]) else part


def _in_one(labels, weight):
    return in_one_array("labels", labels), in_one_array("sample weights", weight)


def as_arguments(data):
    """Return data that came in one argument as those of a function of `(x, y, sample_weight)`.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, which may be a list, as Keras takes it, or a dataset, which may be a
            list of such tuples; None for none.

    Returns:
        A tuple of two or three parts, `(dataset,)`, or None.
    """
    if data is None or isinstance(data, tuple):
        return data
    in_a_list = isinstance(data, list) and len(data) in (2, 3) and not is_list_of_batches(data)
    return tuple(data) if in_a_list else (data,)


def _iterate(x, name="x"):
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise ValueError(f"The dataset must be finite. Received: {type(x).__name__} with num_batches=None")
        return (x[index] for index in range(x.num_batches))
    if callable(getattr(x, "cardinality", None)) and int(x.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError("The dataset must be finite: leave out repeat() or add take(). Received: an infinite dataset")
    if not hasattr(x, "__iter__"):
        raise ValueError(
            f"{name} must be arrays, a tf.data.Dataset, a PyDataset or another iterable of batches. "
            f"Received: {name}={x!r}"
        )
    return iter(x)


def _description(x):
    return f"shapes {[np.shape(part) for part in tree.flatten(x)]}" if are_arrays(x) else repr(type(x).__name__)


def first_inputs(x, name="x"):
    """Return inputs that a look at the data does not use up, or None; `name` is what the data are, for messages."""
    if are_arrays(x):
        return x
    return None if iter(_iterate(x, name)) is x else next(batches(x, name=name), (None,))[0]
