"""What is to stand still while only the linear parameters are trained, whether it did, and what there was before."""

from keras_dal.features.variables import Kept, assign_all, values_of
from keras_dal.output.warning import warn
from keras_dal.training.state import state_of


class FrozenState:
    """The state of a model, batch statistics above all, at the moment of the switch.

    A `train_step` of the user's own that calls layers one by one may still move it.

    Args:
        model: the model.
    """

    def __init__(self, model):
        self._state = Kept((variable.path, variable) for variable in model.non_trainable_variables)

    def check(self):
        """Warn, once, of variables that are no longer what they were."""
        moved = self._state.moved()
        if not moved:
            return
        self._state = Kept(())
        warn(
            "State of the model moved after the switch, where it was to stand still: batch statistics, if a "
            "train_step of your own calls layers with training=True. Where outputs depend on it, the problem is "
            "not convex and no proof holds: call the model itself there, or use finish='solve'. Received: "
            f"{', '.join(moved)}"
        )


class Snapshot:
    """The weights and the state of a model, and the phase of its `Wrap`, to go back to; what was averaged is kept.

    Args:
        model: the model.
        wrap: its `Wrap`, or None.
    """

    def __init__(self, model, wrap):
        variables = [*model.trainable_variables, *model.non_trainable_variables]
        self._explores = wrap is not None and wrap.phase == "explore"
        if self._explores:
            variables += state_of(wrap).averages.of_inner()
        self._wrap, self._variables, self._values = wrap, variables, values_of(variables)

    def restore(self):
        assign_all(self._variables, self._values)
        if self._explores:
            state_of(self._wrap).progress.explore_again()
