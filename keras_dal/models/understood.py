"""What a function looks at first of the model it is given: its structure and its loss."""

from keras_dal import _keras
from keras_dal._backend.warning import say
from keras_dal.losses import loss_of
from keras_dal.models.find_structure import find_structure


def understood(model, inputs, loss, parameters="head", verbose=0):
    """Return the `Structure` of a model and its `losses.Loss`.

    Args:
        model: a Keras model.
        inputs: a few, or None.
        loss: as for `model.compile`; None for the compiled one.
        parameters: as in `find_structure`.
        verbose: whether to say that inputs are not prepared, where the model's evaluation may do so.

    Raises:
        ValueError: no linear head, or an unsupported loss.
    """
    if verbose and _keras.has_own_test_step(model):
        say("x goes to the model as it is: where the model's test_step prepares inputs, pass them prepared")
    structure = find_structure(model, inputs, parameters)
    return structure, loss_of(model, structure.activation, loss, structure.num_outputs)
