"""What a certificate does not speak about, in sentences."""

import keras
import numpy as np

from keras_dal import _keras

ALWAYS = (
    "features other than these: whatever comes before the head must stay frozen, in inference mode",
    "minibatches, momentum, Adam and other steps: the bound is for full-batch gradient descent with step 1 / beta",
    "arithmetic below float64: the numbers are those of the head in float64 on the features as the model gave them",
)
RANK = "the rank is a decision about rounding: singular values up to the tolerance count as zero"
CURVATURE = "the rate: no bound of the second derivative is known, or theta_S is not finite: no step is known to work"
TO_FLOAT32 = "rounded to float32"  # of features
OF_ROUNDED = "float32 features, to which those of the model were rounded,"  # of what a verdict is then
ROUNDED = "features finer than float32: these were rounded to it, and all numbers are of the rounded ones"
NO_SCALE = "no multiple of these labels is optimal"
NO_SCALE_OF_MIXED = f"{NO_SCALE}, as of mixed ones"
MIXED = f"alignment: {NO_SCALE_OF_MIXED}, so their share proves nothing about the loss"
FIRST_ORDER = "rounding of the lower bound beyond first order: this loss bounds no optimal logits of these labels"
_NOISE = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
)


def _is_noisy(layer):
    if isinstance(layer, _NOISE):  # of a rate that is no number nobody knows when it is 0
        return getattr(layer, "rate", getattr(layer, "stddev", None)) != 0
    rates = (getattr(layer, name, 0) for name in ("dropout", "recurrent_dropout"))  # of recurrent and attention layers
    return any(isinstance(rate, (int, float, np.number)) and float(rate) > 0 for rate in rates)


def _augments(layer):
    name = type(layer).__name__
    return name.startswith("Random") or name in ("RandAugment", "AugMix", "MixUp", "CutMix")


def clips_probabilities(structure):
    """Whether Keras' loss sees probabilities: only its TensorFlow backend finds the logits of an output not cast."""
    outputs = getattr(structure.model, "outputs", None) or ()
    cast = any(output.dtype != keras.config.floatx() for output in outputs)
    return structure.gives_probabilities and (cast or keras.config.backend() != "tensorflow")


def clipped():
    """Return what Keras' loss does to probabilities."""
    return f"probabilities at {np.format_float_scientific(keras.config.epsilon(), trim='-', exp_digits=1)}"


def of_labels(loss, targets, scale, bounded):
    """Yield what follows from the labels and the certificate does not speak about.

    Args:
        loss: a `losses.Loss`.
        targets: of it, `(n, C)`.
        scale: their `common_scale`.
        bounded: whether the lower bound of the infimum is above that of any model.
    """
    if scale is None:
        yield MIXED
    if (
        bounded
        and not loss.quadratic
        and not (loss.has_entropy and loss.are_hard(targets))
        and not np.all(loss.growth(targets))
    ):
        yield FIRST_ORDER


def of_training(structure, penalty):
    """Yield what this model does in training and the certificate does not speak about."""
    layers = list(_keras.sublayers(structure.model))
    noisy = [layer.name for layer in layers if _is_noisy(layer)]
    if noisy:
        yield f"dropout or noise left on while theta_S is trained: {', '.join(noisy)}"
    augmenting = [layer.name for layer in layers if _augments(layer)]
    if augmenting:
        yield f"randomly augmented inputs, in the model ({', '.join(augmenting)}) or before it"
    moving = [layer.name for layer in structure.gated_layers if not layer.gates_frozen]
    if moving:
        yield f"gates that still move with their kernel ({', '.join(moving)}): they count as frozen as they are now"
    regularized = [layer.name for layer in layers if layer.activity_regularizer is not None]
    if regularized:
        yield f"activity regularizers ({', '.join(regularized)}), which are not part of the objective"
    if structure.adds_losses:
        yield f"losses that layers add ({', '.join(structure.adds_losses)}), which are not part of the objective"
    if _keras.has_own_compute_loss(structure.model):
        yield "a compute_loss of the model's own: the objective is the compiled loss"
    if _keras.has_own_train_step(structure.model):
        yield "a train_step of the model's own, and whatever it adds to the compiled loss or does to its inputs"
    if _keras.loss_weight(structure.model) != 1:
        yield "the compiled loss_weights: loss and rate are those of the loss without them"
    if clips_probabilities(structure):
        yield (
            f"Keras' clipping of {clipped()}, beyond which its loss is flat: all numbers are of the logits, as with a "
            "linear last layer and from_logits=True"
        )
    bound = [v.path for v in structure.linear_parameters if v.constraint is not None]
    if bound:
        yield f"constraints on theta_S ({', '.join(bound)}): verdict, infimum and rate are of a head without them"
    fixed = [v.path for v in structure.linear_parameters if not v.trainable]
    if fixed:
        yield f"parameters of theta_S that are not trained ({', '.join(fixed)}): all numbers are as if they were"
    if penalty is None:
        yield "the rate: a penalty or constraint on theta_S is not an L2 regularizer"
    optimizers = _keras.optimizers(getattr(structure.model, "optimizer", None))
    if any(getattr(each, "weight_decay", None) for each in optimizers):
        yield "the optimizer's weight decay, which is not part of the objective"
