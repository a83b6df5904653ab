"""The proven step, by the sums of a training as by a certificate."""

import keras
import numpy as np
import pytest

import keras_dal
from keras_dal.losses import SquaredError
from keras_dal.models.find_structure import find_structure
from keras_dal.training.step_size import step_size


@pytest.mark.parametrize("weight", [0.5, 3.0])
def test_it_is_that_of_the_loss_with_its_weight_and_the_penalty(weight):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5))])
    model.compile("sgd", "mse", loss_weights=weight)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((30, 3)).astype("float32"), generator.standard_normal((30, 2))
    certificate, report = (of(model, x, y, verbose=0) for of in (keras_dal.certify, keras_dal.alignment))
    structure, wanted = find_structure(model), pytest.approx(certificate.step / max(1.0, weight), rel=1e-6)
    assert step_size(structure, SquaredError(), report, None, True) == wanted
    assert step_size(structure, SquaredError(), report, certificate, True) == wanted
