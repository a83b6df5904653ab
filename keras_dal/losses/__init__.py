"""The losses the theory covers: convex in the logits."""

from keras_dal.losses.base import Loss
from keras_dal.losses.keras_losses import loss_of, resolve_loss
from keras_dal.losses.sigmoid import SigmoidCrossEntropy
from keras_dal.losses.softmax import SoftmaxCrossEntropy
from keras_dal.losses.squared_error import SquaredError

__all__ = ["Loss", "SigmoidCrossEntropy", "SoftmaxCrossEntropy", "SquaredError", "loss_of", "resolve_loss"]
