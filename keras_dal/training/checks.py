"""What the monitor refuses: as training begins, or where `fit` builds the model at its first step."""

import keras

from keras_dal import _keras
from keras_dal.features.batches import batches
from keras_dal.features.inputs import are_arrays, input_specs
from keras_dal.models.regularizers import l2_factors
from keras_dal.models.solvable import check_solvable, check_trained, warn_of_what_is_not_solved
from keras_dal.training.moments import sums_fit
from keras_dal.training.state import state_of


def check_same_model(wrap, model, needed=None):
    """Raise a ValueError if the optimizer was built for another model.

    Args:
        wrap: a `Wrap`.
        model: a model.
        needed: the variables that it must have been built for, by default all that the model trains.
    """
    if not wrap.built or not model.built:
        return
    trained = model.trainable_variables
    new = [v.path for v in trained if not state_of(wrap).was_built_for(v)]
    missing = new if needed is None else [v.path for v in needed if v.trainable and not state_of(wrap).was_built_for(v)]
    if missing and len(new) < len(trained):
        raise ValueError(
            "The optimizer was built before these variables became trainable: compile with a new Wrap of a new "
            f"optimizer, and after layers are made trainable. Received: {', '.join(missing)}"
        )
    if missing:
        raise ValueError(
            "An optimizer belongs to the model it was first used with: make a new Wrap with a new optimizer. "
            f"Received: model {model.name!r}"
        )


def check_data(data):
    """Raise a ValueError where there are no data, or they can be read only once."""
    if isinstance(data, (tuple, list)) and not data:
        raise ValueError(f"The data of the monitor must be (x, y) or a dataset. Received: data={data!r}")
    if data is not None and hasattr(data, "__next__"):
        raise ValueError(
            "The data of the monitor are read after every epoch, and an iterator can be read once: pass arrays (x, y) "
            f"or a dataset. Received: data of type {type(data).__name__}"
        )


def check_rows(rows):
    """Raise a ValueError for arrays that are not as many samples with labels.

    Args:
        rows: the data as arguments, or None; of a dataset only its batches tell.
    """
    if rows is not None and (len(rows) > 1 or are_arrays(rows[0])):
        next(batches(*rows, labelled=True), None)


def check_inputs(model):
    """Raise a ValueError where neither Keras nor the first step will say what the inputs of a model look like."""
    if model.built and input_specs(model) is None:
        raise ValueError(
            "Keras does not know the shapes of the model's inputs, because the model says itself that it is built: "
            f"leave out self.built = True, or pass AlignmentMonitor(data=(x, y)). Received: model {model.name!r}"
        )


def check_loss_scale(optimizer):
    """Raise a ValueError where gradients would be divided by a loss scale that the loss was not multiplied by."""
    scales = [each for each in _keras.optimizers(optimizer) if isinstance(each, keras.optimizers.LossScaleOptimizer)]
    if len(scales) > 1:
        raise ValueError(
            "Under a float16 policy compile adds a loss scale itself, and Keras heeds the outer of two only: wrap the "
            f"optimizer that is inside the loss scale. Received: {len(scales)} LossScaleOptimizers, one in the other"
        )


def check_epochs(params):
    """Raise a ValueError where nobody has said how many epochs there will be."""
    if (params or {}).get("epochs") is None:
        raise ValueError(
            "The monitor must know how many epochs there are; in a loop of your own, keras.callbacks.CallbackList(..., "
            f"epochs=..., steps=...) says so. Received: params={params}"
        )


def check_alone(wrap, fit):
    """Raise a ValueError if another monitor of the same fit drives the optimizer."""
    if state_of(wrap).driver.fit is not fit:
        raise ValueError(
            "Two monitors would both drive the optimizer: leave one AlignmentMonitor in the callbacks. Received: "
            "another one after this"
        )


def check_traced_anew(wrap, model):
    """Raise a ValueError where a step is traced once for both phases."""
    if wrap.finish == "descend" and hasattr(model.train_step, "get_concrete_function"):
        raise ValueError(
            "A train_step that is a tf.function keeps what it traced before the switch, and would train everything: "
            "leave the decorator out, as Keras compiles the step itself, or use finish='solve'. Received: model "
            f"{model.name!r}"
        )


def check_second_phase(wrap, structure, loss, data):
    """Raise a ValueError for a head or a loss whose second phase would not do what is promised."""
    if wrap is not None and wrap.explore is not None and wrap.phase == "explore":
        trained = {id(variable) for variable in structure.model.trainable_variables}
        check_trained([v for v in structure.linear_parameters if id(v) not in trained])
        check_traced_anew(wrap, structure.model)
    if wrap is not None and wrap.finish == "solve":
        check_solvable(structure)
        warn_of_what_is_not_solved(structure)
    if wrap is None or not state_of(wrap).rates.are_proven:
        return
    if loss.curvature(structure.num_outputs) is None:
        raise ValueError(
            "A step size that provably works needs a loss of bounded curvature: set exploit_learning_rate. "
            f"Received: exploit_learning_rate='auto' and the {loss.name}"
        )
    if l2_factors(structure.linear_parameters) is None:
        raise ValueError(
            "A step size that provably works needs a penalty of known curvature: give the head no regularizer but "
            "L2 and no constraint, or set exploit_learning_rate. Received: exploit_learning_rate='auto' and "
            f"{[(v.path, v.regularizer, v.constraint) for v in structure.linear_parameters]}"
        )
    if data is None and not sums_fit(structure):
        raise ValueError(
            "The step size for so many features is not computed in the training step: pass AlignmentMonitor(data="
            f"(x, y)), or set exploit_learning_rate. Received: {structure.num_features:,} features and data=None"
        )
    if not structure.is_plain and data is None:
        raise ValueError(
            "The step size for a gated head is computed from its features: pass AlignmentMonitor(data=(x, y)). "
            "Received: exploit_learning_rate='auto' and data=None"
        )
