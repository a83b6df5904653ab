"""Heads against their formulas, written out sample by sample, and against Keras layers."""

import itertools

import cases
import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_dal.features.tracing import to_numpy
from keras_dal.heads import DenseHead, GatedHead, MixtureHead, SumHead
from keras_dal.heads.cached_jacobian import CachedJacobian
from keras_dal.heads.parameters import join, split

M, C, H = 4, 3, 5


def make(kind, generator):
    return cases.HEADS[kind](generator, M, H, C)


def by_hand(head, z, theta):
    """Return the logits of one sample, one number after another."""
    if isinstance(head, SumHead):
        ends = np.cumsum([0] + [part.num_parameters for part in head.parts])
        thetas = [theta[a:b] for a, b in itertools.pairwise(ends)]
        return sum(by_hand(part, z, each) for part, each in zip(head.parts, thetas, strict=True))
    if isinstance(head, DenseHead):
        bias = theta[M * C :] if head.use_bias else np.zeros(C)
        return np.array([sum(z[i] * theta[i * C + j] for i in range(M)) + bias[j] for j in range(C)])
    u, count = [(z[i] - head.mean[i]) / head.scale[i] for i in range(M)], head.gate_kernel.shape[1]
    bias = theta[(M + 1) * count :] if head.use_bias else np.zeros(C)
    logits = bias.copy()
    for h in range(count):
        gate = cases.gate(head.sharpness * (sum(u[i] * head.gate_kernel[i, h] for i in range(M)) + head.gate_bias[h]))
        if isinstance(head, MixtureHead):
            for j in range(C):
                inner = sum(u[i] * theta[(i * count + h) * C + j] for i in range(M)) + theta[(M * count + h) * C + j]
                logits[j] += gate * inner
            continue
        unit = (sum(u[i] * theta[i * count + h] for i in range(M)) + theta[M * count + h]) * gate
        logits += unit * head.output_kernel[h]
    return logits


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(cases.HEADS)), st.integers(0, 2**31))
def test_logits_adjoint_and_sizes(kind, seed):
    generator = np.random.default_rng(seed)
    head = make(kind, generator)
    z, theta = generator.standard_normal((6, M)), generator.standard_normal(head.num_parameters)
    logits = head.logits(z, theta)
    np.testing.assert_allclose(logits, [by_hand(head, row, theta) for row in z], rtol=1e-9, atol=1e-9)
    cotangent = generator.standard_normal(logits.shape)
    assert np.sum(logits * cotangent) == pytest.approx(head.adjoint(z, cotangent) @ theta, rel=1e-9, abs=1e-9)
    np.testing.assert_allclose(head.logits(z, 2.5 * theta), 2.5 * logits, rtol=1e-9, atol=1e-9)
    assert head.num_parameters == sum(int(np.prod(shape)) for shape in head.shapes)


def test_a_mixture_of_many_samples_is_computed_in_blocks(monkeypatch):
    head, generator = make("mixture", np.random.default_rng(0)), np.random.default_rng(1)
    z, theta, cotangent = (generator.standard_normal(shape) for shape in ((7, M), head.num_parameters, (7, C)))
    whole = head.logits(z, theta), head.adjoint(z, cotangent)
    monkeypatch.setattr("keras_dal.heads.base._ENTRIES", 2 * M * C + 1)
    np.testing.assert_allclose(head.logits(z, theta), whole[0], rtol=1e-12)
    np.testing.assert_allclose(head.adjoint(z, cotangent), whole[1], rtol=1e-12)


@pytest.mark.parametrize("kind", cases.HEADS)
def test_columns_are_the_factor_that_all_outputs_share(kind):
    head = make(kind, np.random.default_rng(0))
    z = np.random.default_rng(1).standard_normal((6, M))
    jacobian = cases.head_jacobian(head, z).reshape(6 * C, -1)
    columns = head.kronecker_factor(z)
    assert (columns is None) == any(isinstance(part, GatedHead) for part in getattr(head, "parts", [head]))
    if columns is not None:
        np.testing.assert_allclose(np.kron(columns, np.eye(C)), jacobian, atol=1e-12)


@pytest.mark.parametrize("kind", cases.HEADS)
def test_split_and_join_are_inverse(kind):
    head = make(kind, np.random.default_rng(0))
    theta = np.arange(head.num_parameters, dtype=np.float64)
    parts = split(theta, [np.empty(shape) for shape in head.shapes])
    assert tuple(part.shape for part in parts) == head.shapes
    np.testing.assert_array_equal(join(parts), theta)


@pytest.mark.parametrize("kind", cases.HEADS)
def test_features_in_float32_are_multiplied_in_float64(kind):
    generator = np.random.default_rng(0)
    head, z = make(kind, generator), generator.standard_normal((6, M)).astype("float32")
    theta = generator.standard_normal(head.num_parameters)
    logits = head.logits(z, theta)
    assert logits.dtype == head.adjoint(z, logits).dtype == np.float64
    np.testing.assert_array_equal(logits, head.logits(z.astype(np.float64), theta))


@pytest.mark.parametrize("kind", cases.HEADS)
def test_magnitudes_are_those_of_all_products(kind):
    """Of a dense Jacobian by hand, whose entries have one product each but for the sum over units before outputs."""
    generator = np.random.default_rng(0)
    head, z = make(kind, generator), generator.standard_normal((6, M))
    theta = generator.uniform(0.5, 1.0, head.num_parameters)
    least = np.abs(cases.head_jacobian(head, z)) @ theta
    magnitudes = head.magnitudes(z, theta)
    assert (magnitudes >= least * (1 - 1e-12)).all()
    np.testing.assert_allclose(magnitudes, least, rtol=1e-12)


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_head_is_the_keras_layer(use_bias):
    layer = keras.layers.Dense(C, use_bias=use_bias, dtype=cases.DTYPE, bias_initializer="normal")
    layer.build((None, M))
    z = np.random.default_rng(0).standard_normal((6, M))
    head = DenseHead(M, C, use_bias)
    theta = join([to_numpy(weight) for weight in layer.weights])
    np.testing.assert_allclose(
        head.logits(z, theta), to_numpy(layer(z)), rtol=cases.within(1e-12), atol=cases.within(0.0, 4)
    )


@pytest.mark.parametrize("kind", cases.HEADS)
def test_squares_of_inputs_and_gates_are_those_of_the_rows_of_the_dense_jacobian(kind):
    generator = np.random.default_rng(0)
    head, features = make(kind, generator), generator.standard_normal((1, M)).astype("float32")
    squares = np.sum(cases.head_jacobian(head, features).reshape(C, -1) ** 2, axis=0)
    jacobian = CachedJacobian.of_head(head, features)
    for part, (inputs, gates) in zip(jacobian.parts, next(iter(jacobian.blocks()))[1], strict=True):
        own, squares = squares[: part.num_parameters].reshape(part.shape), squares[part.num_parameters :]
        of_gates = part.gate_squares(gates)
        assert (gates is None) == (part.copies == 0)
        factor = 1.0 if gates is None else np.repeat(of_gates, part.copies)
        np.testing.assert_allclose(own, np.asarray(inputs)[0][:, None] ** 2 * factor * np.ones(own.shape), rtol=1e-4)
        if gates is None:
            assert of_gates == 0
    assert squares.size == 0
