"""Tangent operators against dense Jacobians by automatic differentiation, in float64 where layers compute in it."""

import cases
import keras
import numpy as np
import pytest
from keras import layers
from scipy.sparse.linalg import lsqr

from keras_dal.features.tracing import to_numpy
from keras_dal.models.find_structure import find_structure
from keras_dal.models.tangent import tangent_operator

N = 6
DIFFERENTIABLE = [case for case in cases.CASES if case.activation != "softmax" or "softmax" in case.name]


def logits_jacobian(case, model, x, variables, operator):
    """Return the dense Jacobian of the logits, up to what probabilities do not show, and the operator's."""
    dense = cases.dense_jacobian(case, model, x, variables)
    formed = (operator @ np.eye(operator.shape[1])).reshape(dense.shape)
    if case.activation == "softmax":
        dense, formed = (part - part.mean(axis=1, keepdims=True) for part in (dense, formed))
    return dense, formed


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)
def test_head_is_analytic(case):
    model, x = case.build(), case.inputs(N)
    operator = tangent_operator(model, x, batch_size=4)
    assert operator.shape[0] == N * case.num_outputs
    dense, formed = logits_jacobian(case, model, x, find_structure(model).linear_parameters, operator)
    np.testing.assert_allclose(formed, dense, atol=cases.within(1e-10))
    np.testing.assert_allclose(
        operator.T @ np.eye(operator.shape[0]), (operator @ np.eye(operator.shape[1])).T, atol=1e-12
    )


KINDS = {"nested", "softmax layer", "sigmoid inside", "gated before", "gated branch"}


@pytest.mark.parametrize("case", [case for case in DIFFERENTIABLE if case.name in KINDS], ids=lambda case: case.name)
def test_whole_network_by_differentiation(case):
    model, x = case.build(), case.inputs(N)
    operator = tangent_operator(model, x, "all", batch_size=4)
    dense, formed = logits_jacobian(case, model, x, model.trainable_variables, operator)
    np.testing.assert_allclose(formed, dense, atol=cases.within(1e-10))
    u, v = (np.random.default_rng(0).standard_normal(size) for size in operator.shape)
    assert u @ (operator @ v) == pytest.approx((operator.T @ u) @ v, rel=cases.within(1e-10))


@pytest.mark.parametrize("parameters", ["trunk", ["trunk", "tanh"], "kernel$"])
def test_any_parameters(parameters):
    case = cases.CASES[0]
    model, x = case.build(), case.inputs(N)
    operator = tangent_operator(model, x, parameters)
    dense, formed = logits_jacobian(case, model, x, operator.variables, operator)
    np.testing.assert_allclose(formed, dense, atol=cases.within(1e-10))
    number = {"trunk": 2, "kernel$": 3}.get(parameters, 4) if isinstance(parameters, str) else 4
    assert len(operator.variables) == number


def test_serves_lsqr():
    case = cases.CASES[0]
    model, x = case.build(), case.inputs(N)
    operator = tangent_operator(model, x)
    targets = np.random.default_rng(0).standard_normal(operator.shape[0])
    dense = operator @ np.eye(operator.shape[1])
    expected = targets - dense @ np.linalg.lstsq(dense, targets, rcond=None)[0]
    residual = targets - operator @ lsqr(operator, targets, atol=1e-12, btol=1e-12)[0]
    np.testing.assert_allclose(residual, expected, atol=1e-8)


def test_float16_networks_have_float64_products():
    case = cases.CASES[0]
    x = case.inputs(N)
    exact, rounded = (case.build(dtype) for dtype in (cases.DTYPE, "mixed_float16"))
    for source, target in zip(exact.variables, rounded.variables, strict=True):
        target.assign(to_numpy(source))
    a, b = (tangent_operator(model, x, "all") for model in (exact, rounded))
    assert b.dtype == np.float64
    direction = np.random.default_rng(0).standard_normal(a.shape[1])
    assert np.linalg.norm(a @ direction - b @ direction) < 1e-2 * np.linalg.norm(a @ direction)


@pytest.mark.parametrize("parameters", ["head", "all"])
def test_refuses_what_does_not_fit(parameters):
    case = cases.CASES[0]
    with pytest.raises(MemoryError, match=r"Take fewer samples, or raise max_bytes=.*Received: 6 samples"):
        tangent_operator(case.build(), case.inputs(N), parameters, max_bytes=1000)
    operator = tangent_operator(case.build(), case.inputs(N), parameters)
    assert 1000 < operator.num_bytes < 10**5
    assert 0 < operator.seconds_per_product < 10


@pytest.mark.parametrize(("parameters", "pattern"), [("missing", "No layer"), ("norm", "At least one"), ([], "Choose")])
def test_bad_parameters(parameters, pattern):
    model = cases.sequential(layers.BatchNormalization(center=False, scale=False, name="norm"), layers.Dense(3))
    with pytest.raises(ValueError, match=f"{pattern}.*Received: "):
        tangent_operator(model, cases.CASES[0].inputs(N), parameters)


def test_products_are_finite_differences_on_every_backend():
    keras.utils.set_random_seed(0)
    hidden = [layers.Dense(6, activation="tanh"), layers.BatchNormalization(), layers.Dropout(0.5)]
    model = keras.Sequential([keras.Input((5,)), *hidden, layers.Dense(3, activation="softmax")])
    x = np.random.default_rng(0).standard_normal((7, 5)).astype("float32")
    structure, operator = find_structure(model), tangent_operator(model, x, "all", batch_size=4)
    variables, direction = operator.variables, np.random.default_rng(1).standard_normal(operator.shape[1])
    parts = np.split(direction, np.cumsum([np.prod(v.shape, dtype=int) for v in variables])[:-1])
    start, logits = [to_numpy(v).copy() for v in variables], []
    for step in (1e-2, -1e-2):
        for variable, value, part in zip(variables, start, parts, strict=True):
            variable.assign(value + step * part.reshape(value.shape))
        logits.append(structure.logits(x))
    for variable, value in zip(variables, start, strict=True):
        variable.assign(value)
    product = operator @ direction
    np.testing.assert_allclose(product, (logits[0] - logits[1]).ravel() / 2e-2, rtol=1e-2, atol=1e-2)
    u = np.random.default_rng(2).standard_normal(operator.shape[0])
    size = np.linalg.norm(product) * np.linalg.norm(u)
    assert u @ product == pytest.approx((operator.T @ u) @ direction, abs=1e-5 * size)
    head = tangent_operator(model, x)
    last = np.zeros(operator.shape[1])
    last[-head.shape[1] :] = direction[-head.shape[1] :]
    of_all = operator @ last
    np.testing.assert_allclose(head @ last[-head.shape[1] :], of_all, atol=1e-5 * np.linalg.norm(of_all))


def test_model_is_left_as_it_was():
    case = cases.CASES[0]
    model, x = case.build(), case.inputs(N)
    before = [to_numpy(variable).copy() for variable in model.variables]
    operator = tangent_operator(model, x, "all")
    operator @ np.ones(operator.shape[1])
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, to_numpy(variable))
    assert model.layers[-1].activation is keras.activations.linear
    assert "call" not in vars(model.layers[-1])
