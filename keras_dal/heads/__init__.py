"""Heads as functions of cached features: linear in the flat parameter vector."""

from keras_dal.heads.base import Head
from keras_dal.heads.dense import DenseHead
from keras_dal.heads.gated import GatedHead
from keras_dal.heads.mixture import MixtureHead
from keras_dal.heads.sum import SumHead

__all__ = ["DenseHead", "GatedHead", "Head", "MixtureHead", "SumHead"]
