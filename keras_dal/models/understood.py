"""What a function looks at first: the structure and the loss of the model it is given, and the labels of arrays."""

import numpy as np

from keras_dal import _keras
from keras_dal._backend import arrays
from keras_dal.features.batches import batches, in_one_array
from keras_dal.features.inputs import are_arrays, num_samples
from keras_dal.features.samples import checked_weight
from keras_dal.features.tracing import as_numpy
from keras_dal.losses import loss_of
from keras_dal.models.find_structure import find_structure
from keras_dal.output.warning import say


def understood(model, inputs, loss, data, parameters="head", verbose=0):
    """Return the `Structure` of a model and its `losses.Loss`.

    Args:
        model: a Keras model.
        inputs: a few, or None.
        loss: as for `model.compile`; None for the compiled one.
        data: x, labels and sample weights, as the function was given them.
        parameters: as in `find_structure`.
        verbose: whether to say that inputs are not prepared, where the model's evaluation may do so.

    Raises:
        ValueError: no linear head, an unsupported loss, or arrays that are not as many samples, with labels that the
            loss takes.
    """
    if verbose and _keras.has_own_test_step(model):
        say("x goes to the model as it is: where the model's test_step prepares inputs, pass them prepared")
    structure = find_structure(model, inputs, parameters)
    loss = loss_of(model, structure.activation, loss, structure.num_outputs)
    check_targets(loss, data, structure.num_outputs)
    return structure, loss


def check_targets(loss, data, num_outputs):
    """Raise a ValueError for labels in arrays that the loss cannot take, but for samples of weight 0.

    Args:
        loss: a `losses.Loss`.
        data: x, labels and, if wanted, sample weights; of a dataset only its batches tell.
        num_outputs: C.
    """
    if not are_arrays(data[0]):
        return
    next(batches(*data, labelled=True), None)  # of one length
    x, y, weights = (*data, None)[:3]
    labels, weights = as_numpy(in_one_array("labels", y)), in_one_array("sample weights", weights)
    weights = checked_weight(None if weights is None else as_numpy(weights), num_samples(x))
    counted = np.flatnonzero(weights > 0)
    for block in arrays.slices(len(counted)):
        loss.targets(labels[counted[block]], num_outputs)
