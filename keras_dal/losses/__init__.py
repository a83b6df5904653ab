"""The losses the theory covers: convex in the logits, one file each."""

from keras_dal.losses.base import REGISTERED, Loss, common_scale, register
from keras_dal.losses.keras_losses import loss_of, resolve_loss
from keras_dal.losses.sigmoid import SigmoidCrossEntropy
from keras_dal.losses.softmax import SoftmaxCrossEntropy
from keras_dal.losses.squared_error import SquaredError

__all__ = [
    "REGISTERED",
    "Loss",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "common_scale",
    "loss_of",
    "register",
    "resolve_loss",
]
