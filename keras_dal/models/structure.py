"""What a model is to this package: features, and a head whose logits are linear in its parameters."""

import dataclasses
from typing import Any, Literal

import numpy as np

from keras_dal import _backend, _keras
from keras_dal.features import tracing
from keras_dal.features.programs import feature_function
from keras_dal.features.tracing import evaluate, to_numpy
from keras_dal.features.variables import assign_all, checksum
from keras_dal.heads import Head
from keras_dal.heads.parameters import join, split
from keras_dal.models import linearity
from keras_dal.models.activations import OF_PROBABILITIES
from keras_dal.models.gated_layers import Gated
from keras_dal.models.linear_layers import has_bias, is_plain, linear_head


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Structure:
    """What `find_structure` found: `logits = head(features)`, linear in `linear_parameters`.

    Attributes:
        model: the model itself.
        layer: the layer of whose inputs the features are made: they are these, averaged over positions before pooling.
        output_layer: the layer whose output are the logits; `layer` itself unless that is a gated layer before it.
        activation: what the model applies to the logits, `"linear"`, `"softmax"` or `"sigmoid"`.
        linear_parameters: theta_S, the Keras variables in the order of `head().shapes`.
        gated_layers: the layers whose gates freeze at the switch; empty for a plain head.
        num_features: m, the width of the features.
        num_outputs: C, the width of the logits.
        feature_function: the features of one batch of inputs and the outputs, as tensors; compiled at the first call,
            and kept with a model of Keras' own layers as long as these compute the same.
        adds_losses: names of the layers that add a loss to the compiled one when they are called.
    """

    model: Any
    layer: Any
    output_layer: Any
    activation: str
    linear_parameters: tuple[Any, ...]
    gated_layers: tuple[Any, ...]
    num_features: int
    num_outputs: int
    feature_function: Any
    adds_losses: tuple[str, ...] = ()

    def __reduce__(self):
        """Keep where the layers are in the model, which Keras copies whole; compiled functions are made anew."""
        layers = [id(layer) for layer in _keras.sublayers(self.model)]
        places = [layers.index(id(each)) for each in (self.layer, self.output_layer)]
        sizes = self.num_features, self.num_outputs
        return _of_places, (self.model, *places, self.activation, *sizes, self.adds_losses)

    def __repr__(self):
        shapes = [tuple(variable.shape) for variable in self.linear_parameters]
        return (
            f"<Structure of {self.model.name!r}: {self.num_features} features into layer {self.layer.name!r}, "
            f"{self.num_outputs} logits, activation {self.activation!r}, linear parameters {shapes}>"
        )

    @property
    def place(self) -> Literal["beside", "before"] | None:
        """Where gates stand with respect to the last layer, as in `add_gated_head`; None without gates."""
        if not self.gated_layers:
            return None
        return "beside" if self.layer is self.output_layer else "before"

    @property
    def is_plain(self) -> bool:
        """Whether the logits are the features times a kernel, with a bias at most."""
        return self.place is None and is_plain(self.layer)

    @property
    def has_dense_part(self) -> bool:
        """Whether the features times a kernel are all of the logits, or what gates stand beside."""
        return self.is_plain or self.place == "beside"

    @property
    def gives_probabilities(self) -> bool:
        """Whether the outputs are probabilities, which Keras' losses may clip."""
        return self.activation in OF_PROBABILITIES

    @property
    def use_bias(self) -> bool:
        """Whether the logits have a bias among the linear parameters."""
        return has_bias(self.output_layer)

    def head(self) -> Head:
        """Return the head as a function of features in NumPy, with its gates as they are now."""
        return linear_head(self.layer, self.output_layer)[0]

    def theta(self) -> np.ndarray:
        """Return theta_S, flat and float64."""
        return join([to_numpy(variable) for variable in self.linear_parameters])

    def assign(self, theta: np.ndarray) -> None:
        """Writes a flat theta_S into the model.

        Args:
            theta: shape `(head().num_parameters,)`.
        """
        assign_all(self.linear_parameters, self.split(theta))

    def rounded(self, theta: np.ndarray) -> np.ndarray:
        """Return a flat theta_S as the model's variables would hold it, float64; what its layers lose is infinite."""
        parts = zip(self.split(theta), self.linear_parameters, strict=True)
        with np.errstate(over="ignore"):  # infinite then, which whoever writes it refuses
            held = join([part.astype(np.dtype(tracing.held_dtype(variable.dtype))) for part, variable in parts])
            for layer in (self.layer, self.output_layer):  # which may compute in less than their variables hold
                computed = held.astype(np.dtype(tracing.held_dtype(layer.compute_dtype)))
                held = np.where(np.isfinite(computed), held, np.inf)
        return held

    def split(self, theta: np.ndarray) -> list[np.ndarray]:
        """Return a flat theta_S in parts.

        Args:
            theta: shape `(head().num_parameters,)`.

        Returns:
            A list of views of it that have the shapes of `linear_parameters`.
        """
        return split(np.asarray(theta), self.linear_parameters)

    @property
    def nonlinear_parameters(self) -> list[Any]:
        """The trainable variables that are not among `linear_parameters`, which the second phase leaves as they are."""
        linear = {id(variable) for variable in self.linear_parameters}
        return [variable for variable in self.model.trainable_variables if id(variable) not in linear]

    def checksum(self) -> int:
        """Return a number that changes with what the features depend on: all float state but theta_S."""
        linear = {id(variable) for variable in self.linear_parameters}
        others = [variable for variable in self.model.weights if id(variable) not in linear]
        return checksum([*others, *(buffer for _, buffer in _backend.buffers(_keras.sublayers(self.model)))])

    def output_check(self) -> Any:
        """Return a check that the model makes of features what its head, as it is now, and its activation make of them.

        Returns:
            A function of features `(k, m)`, the model's outputs for them `(k, C)` and sample weights `(k,)`, of which
            samples without weight are left out. It raises a ValueError where outputs do not follow, as where a mask
            lets some of them vanish.
        """
        return linearity.OutputCheck(self)

    def features(self, x: Any) -> np.ndarray:
        """Return the features of one batch of inputs as the model computes them, in inference mode.

        Args:
            x: inputs of the model, `(k, ...)`.

        Returns:
            An array `(k, m)`.
        """
        return evaluate(self.model, self.layer, x)[0]

    def logits(self, x: Any) -> np.ndarray:
        """Return the logits of one batch of inputs, in inference mode.

        What comes before the last layer is evaluated by the model, in its own precision; the last layer in float64.

        Args:
            x: inputs of the model, `(k, ...)`.

        Returns:
            A float64 array `(k, C)`.
        """
        head, variables = linear_head(self.output_layer, self.output_layer)
        features = np.asarray(evaluate(self.model, self.output_layer, x)[0], np.float64)
        return head.logits(features, join([to_numpy(v) for v in variables]))


def structure_of(model, layer, output_layer, activation, num_features, num_outputs, adds_losses=()):
    """Return the structure of a model between two of its layers."""
    return Structure(
        model=model,
        layer=layer,
        output_layer=output_layer,
        activation=activation,
        linear_parameters=tuple(linear_head(layer, output_layer)[1]),
        gated_layers=tuple(gate for gate in (layer, *_keras.sublayers(layer)) if isinstance(gate, Gated)),
        num_features=num_features,
        num_outputs=num_outputs,
        feature_function=feature_function(model, layer),
        adds_losses=adds_losses,
    )


def _of_places(model, place, output_place, *others):
    """Return the structure of a model between the layers at two places."""
    layers = _keras.sublayers(model)
    return structure_of(model, layers[place], layers[output_place], *others)
