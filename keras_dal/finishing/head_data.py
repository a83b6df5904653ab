"""A head and the samples it is solved on: what outlasts the solver, for results and certificates."""

import dataclasses
import functools
from typing import Any

import numpy as np

from keras_dal._backend import arrays
from keras_dal.analysis.certify import certify_head, of_model
from keras_dal.features.cache import CachedFeatures
from keras_dal.features.precision import blocks_of, eps_of_features
from keras_dal.features.samples import check_fits
from keras_dal.finishing.evaluation import FittedHead, Logits, quality
from keras_dal.losses.lazy_targets import LazyTargets
from keras_dal.losses.squared_error import moments
from keras_dal.models.regularizers import l2_factors


@dataclasses.dataclass(frozen=True, eq=False)
class HeadData:
    """A head, the samples it is to fit, and those it is judged by.

    Attributes:
        structure: the `Structure` of the model.
        loss: a `losses.Loss`.
        head: the `heads.Head` of the structure, with the gates that go with the features.
        theta: its parameters before any change, `(P,)`.
        is_centred: whether that is with the bias that leaves the errors of a quadratic loss no mean.
        train: `CachedFeatures` of the samples, all of positive weight.
        targets: of the loss, `(n, C)`, or `LazyTargets`.
        max_bytes: up to which logits are kept, and a certificate is made of features and of logits.
        validation, validation_targets: `CachedFeatures` and the targets of the loss, of the same kind, or None.
    """

    structure: Any
    loss: Any
    head: Any
    theta: np.ndarray
    train: CachedFeatures
    targets: Any
    max_bytes: int
    validation: CachedFeatures | None = None
    validation_targets: Any = None
    is_centred: bool = False

    @classmethod
    def of(cls, structure, loss, train, max_bytes, validation=None, lazy=False):
        """Return the data of a head whose gates stand still from now on.

        Args:
            structure, loss, train, max_bytes, validation: the attributes of these names.
            lazy: whether the targets are made anew for each block of samples.
        """
        num_outputs = structure.num_outputs

        def targets_of(labels):
            return LazyTargets(loss, labels, num_outputs) if lazy else loss.targets(labels, num_outputs)

        targets = targets_of(train.labels)
        held_out = None if validation is None else targets_of(validation.labels)
        _settle_gates(structure, train.features)  # when labels are known to be some
        return cls(
            structure, loss, structure.head(), structure.theta(), train, targets, max_bytes, validation, held_out
        )

    def of_other_head(self, structure):
        """Return the same for the head of a copy of the model, on the same features."""
        _settle_gates(structure, self.train.features)
        return dataclasses.replace(self, structure=structure, head=structure.head(), theta=structure.theta())

    def centred(self):
        """Return the same with errors of mean zero, where the loss is quadratic and there is a bias to change.

        Labels far from what the outputs are would otherwise weigh by their square in the change of the head.
        """
        if not (self.loss.quadratic and self.head.use_bias):
            return self
        theta, outputs = self.theta.copy(), self.head.num_outputs
        curvature = self.mean_weight * self.loss.curvature(outputs)
        theta[-outputs:] -= self.fitted(theta).mean_slope() / curvature
        return dataclasses.replace(self, theta=theta, is_centred=True)

    @functools.cached_property
    def factors(self):
        """L2 factors that the model adds to its loss, as they are when first asked for; None for another penalty."""
        return l2_factors(self.structure.linear_parameters)

    @functools.cached_property
    def floor(self):
        """Least training loss of any model: the mean entropy of soft labels, 0 for hard ones."""
        weights = self.train.weights
        floors = (self.loss.floor(self.targets[rows], weights[rows]) * len(weights[rows]) for rows in self._blocks())
        return sum(floors) / len(self.train)

    @functools.cached_property
    def loss_of_nothing(self):
        """Training loss of outputs that are the same for all samples: logits of zero, or numbers of no mean error."""
        if self.loss.quadratic:
            return self.loss.unit(self.targets, self.train.weights)
        return self.fitted(self.theta).mean_loss(0.0)

    @functools.cached_property
    def has_hard_labels(self):
        """Whether samples have right sides on which the loss goes to 0: labels that are hard, of classes."""
        return all(self.loss.are_hard(self.targets[rows]) for rows in self._blocks())

    def _blocks(self):
        return arrays.slices(len(self.train))

    @functools.cached_property
    def are_exact(self):
        """Whether features are as the model computes them."""
        return self.train.are_exact(self.structure)

    @property
    def mean_weight(self):
        """Mean of the sample weights, the unit of weights of the change."""
        return float(np.mean(self.train.weights))

    @property
    def deviation(self):
        """Root mean square distance of the targets of a sample from their mean."""
        return float(np.sum(moments(self.targets, self.train.weights)[0]) ** 0.5)

    def gap_above_floor(self, gap, value):
        """Return a gap that is no larger than what an objective of some value has above its floor.

        Args:
            gap: an upper bound of how far the objective is above its minimum.
            value: of the objective: the loss, which is never below its floor, and terms that are not negative.
        """
        return min(gap, max(value - self.floor, 0.0))

    def fitted(self, theta):
        """Return the head with these parameters on the training samples."""
        train = self.train
        return FittedHead(self.head, self.loss, train.features, self.targets, theta, train.weights, self.max_bytes)

    def qualities(self, theta, scale):
        """Return the `Quality` on the validation data before, with these parameters and with them times a factor."""
        if self.validation is None:
            return None, None, None
        samples = self.head, self.validation.features
        before, after = (Logits(*samples, each, self.max_bytes) for each in (self.theta, theta))
        factors = (before, 1.0), (after, 1.0), (after, scale)
        return tuple(quality(logits, self.validation_targets, self.loss, factor) for logits, factor in factors)

    def certificate(self, theta):
        """Return the `Certificate` of the head with these parameters.

        Raises:
            MemoryError: features or logits in float64 are larger than `max_bytes`.
        """
        check_fits(len(self.train), (self.train.features.shape[1], self.head.num_outputs), self.max_bytes)
        train, eps = self.train, eps_of_features(self.structure, blocks_of(self.train.features))
        samples = train.features, self.targets[:], theta, train.weights
        options = {"penalty": self.factors, "max_bytes": self.max_bytes, "eps": eps}
        found = certify_head(self.head, self.loss, *samples, **options)
        return of_model(found, self.structure, self.factors, theta)


def _settle_gates(structure, features):
    """Freeze gates that still move, and adapt those of a branch that computes nothing yet to the features."""
    for layer in structure.gated_layers:
        if structure.place == "beside" and layer.is_zero:
            layer.adapt(features)
        layer.freeze_gates()  # learned gates would move with the kernel that is solved for
