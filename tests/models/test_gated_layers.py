"""Gated units against NumPy, the rank they promise, and models that are given a gated head."""

import cases
import keras
import numpy as np
import pytest
from keras import layers

from keras_dal.analysis.certify import certify
from keras_dal.features.tracing import to_numpy
from keras_dal.models.add_head import add_gated_head, with_gates_beside
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import GatedBranch, GatedDense


def features(n=20, m=5, seed=0):
    return (2.0 * np.random.default_rng(seed).normal(size=(n, m)) + 1.0).astype("float32")


def values(variables):
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]


def test_gates_see_every_feature_that_varies_in_whatever_unit():
    x = features(m=6).astype("float64") * [1.0, 1e-9, 1e9, 1e-20, 0.0, 1.0]
    x[:, 2] += 1e12
    x[:, 4], x[:, 5] = 0.1, 7.0 * (1 + 1e-9 * x[:, 5])  # constant, and constant up to the rounding of float32
    layer = GatedDense(3)
    layer.adapt(x)
    np.testing.assert_allclose(values([layer.scale])[0][:4], x.std(axis=0)[:4], rtol=1e-6)
    np.testing.assert_array_equal(values([layer.scale])[0][4:], 1.0)


def randomize(layer, seed=0):
    """Gives every weight of a layer a value that it does not have by chance."""
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        if variable.name not in ("frozen", "scale"):
            variable.assign(rng.normal(size=variable.shape))


def oracle(layer, x, gate_kernel, gate_bias):
    """The formula of the layer in float64."""
    kernel, bias, mean, scale = (
        v.astype("float64") for v in values([layer.kernel, layer.bias, layer.mean, layer.scale])
    )
    u = (x.astype("float64") - mean) / scale
    return (u @ kernel + bias) * cases.gate(layer.sharpness * (u @ gate_kernel + gate_bias))


def test_gates_follow_the_kernel_until_they_are_frozen():
    x, layer = features(), GatedDense(7, sharpness=2.0)
    layer.build(x.shape)
    randomize(layer)
    old = values([layer.kernel, layer.bias])
    np.testing.assert_allclose(to_numpy(layer(x)), oracle(layer, x, *old), rtol=1e-4, atol=1e-5)
    layer.freeze_gates()
    randomize_kernel = np.random.default_rng(1).normal(size=layer.kernel.shape)
    layer.kernel.assign(randomize_kernel)
    np.testing.assert_allclose(to_numpy(layer(x)), oracle(layer, x, *old), rtol=1e-4, atol=1e-5)


def test_random_gates_ignore_the_kernel_and_pass_through_training_samples():
    x, layer = features(), GatedDense(7, gates="random", sharpness=2.0, seed=3)
    layer.adapt(x)
    layer.kernel.assign(np.random.default_rng(1).normal(size=layer.kernel.shape))
    gate_kernel, gate_bias, mean, scale = values([layer.gate_kernel, layer.gate_bias, layer.mean, layer.scale])
    u = (x - mean) / scale
    np.testing.assert_allclose(u.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(u.std(axis=0), 1.0, atol=1e-5)
    assert np.abs(u @ gate_kernel + gate_bias).min(axis=0).max() < 1e-5
    assert layer.gates_frozen
    np.testing.assert_allclose(to_numpy(layer(x)), oracle(layer, x, gate_kernel, gate_bias), rtol=1e-4, atol=1e-5)


def test_a_feature_that_never_moves_stays_finite():
    x = features()
    x[:, 2] = 4.0
    layer = GatedDense(3, gates="random")
    layer.adapt(x)
    assert np.isfinite(to_numpy(layer(x))).all()
    assert values([layer.scale])[0][2] == 1.0


def nearly_still():
    x = features(600, 3)
    x[:, 1], x[5, 1] = 0.0, 4e-7  # a deviation that is zero in float16
    return x


def test_a_feature_that_moves_less_than_half_precision_can_divide_by_stays_finite():
    layer = GatedDense(3, gates="random", dtype="mixed_float16")
    layer.adapt(nearly_still())
    assert np.isfinite(to_numpy(layer(nearly_still()))).all()
    assert values([layer.scale])[0][1] == 1.0


def test_gates_of_a_head_in_half_precision_leave_its_outputs_as_they_are():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, dtype="mixed_float16")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    gated = add_gated_head(model, nearly_still(), loss=loss, verbose=0)
    outputs = gated.predict(nearly_still(), verbose=0)
    np.testing.assert_allclose(outputs, model.predict(nearly_still(), verbose=0), atol=1e-2)


def test_freezing_moves_the_outputs_no_more_than_the_noise_and_only_once():
    x, layer = features(), GatedDense(7, sharpness=2.0)
    layer.build(x.shape)
    randomize(layer)
    model = keras.Sequential([keras.Input((5,)), layer])
    before, start = model.predict(x, verbose=0), values(layer.variables)
    changes = []
    for noise in (0.0, 1e-3, 1e-2):
        for variable, value in zip(layer.variables, start, strict=True):
            variable.assign(value)
        layer.freeze_gates(noise=noise, seed=0)
        changes.append(np.abs(model.predict(x, verbose=0) - before).max())  # compiled before: no new trace is needed
    assert changes[0] == 0.0
    assert 0.0 < changes[1] < 0.02 * np.abs(before).max()
    assert changes[2] == pytest.approx(10 * changes[1], rel=0.2)
    frozen = values(layer.variables)
    layer.freeze_gates(noise=1.0, seed=1)
    assert all((one == other).all() for one, other in zip(frozen, values(layer.variables), strict=True))


def test_frozen_units_are_linear_in_their_kernel_and_exploring_ones_are_not():
    x, layer = features(), GatedDense(7)
    layer.build(x.shape)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 7))

    def defect():
        outputs = []
        for kernel in (a, b, a + b):
            layer.kernel.assign(kernel)
            outputs.append(to_numpy(layer(x)))
        return np.abs(outputs[0] + outputs[1] - outputs[2]).max()

    assert defect() > 0.1
    layer.freeze_gates()
    assert defect() < 1e-4


@pytest.mark.parametrize("gates", ["learned", "random"])
def test_saved_models_keep_the_state_of_their_gates(gates, tmp_path):
    x = features()
    model = keras.Sequential([keras.Input((5,)), GatedDense(7, gates=gates, seed=0), layers.Dense(2)])
    model.layers[0].freeze_gates(noise=0.01, seed=0)
    model.layers[0].kernel.assign(np.random.default_rng(1).normal(size=(5, 7)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    fresh = keras.models.clone_model(model)
    fresh.load_weights(tmp_path / "model.weights.h5")
    for other in (loaded, fresh):
        assert other.layers[0].gates_frozen
        np.testing.assert_array_equal(other.predict(x, verbose=0), model.predict(x, verbose=0))


def test_branch_adds_nothing_until_it_moves_and_survives_saving(tmp_path):
    x, dense = features(), layers.Dense(3, activation="softmax", kernel_regularizer=keras.regularizers.L2(0.1))
    expected = to_numpy(dense(x))
    branch = GatedBranch(dense, 6, sharpness=2.0, seed=0)
    branch.build(x.shape)
    for new, old in zip(branch.dense.variables, dense.variables, strict=True):
        new.assign(old)
    branch.adapt(x)
    model = keras.Sequential([keras.Input((5,)), branch])
    np.testing.assert_array_equal(to_numpy(branch(x)), expected)
    assert branch.dense.kernel.regularizer is not None
    branch.kernel.assign(np.arange(90.0).reshape(5, 6, 3) / 90)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert np.abs(to_numpy(branch(x)) - expected).max() > 1e-3


def test_mixed_precision_computes_in_half_and_keeps_the_weights_in_single():
    layer = GatedDense(7, gates="random", dtype="mixed_float16")
    layer.adapt(features())
    assert keras.backend.standardize_dtype(layer(features()).dtype) == "float16"
    assert {variable.dtype for variable in layer.variables} == {"float32"}
    branch = GatedBranch(layers.Dense(3, dtype="float32"), 7)
    assert keras.backend.standardize_dtype(branch(features().astype("float16")).dtype) == "float32"


@pytest.mark.parametrize("dtype", ["mixed_float16", "float16", "float32"])
def test_a_branch_computes_all_in_the_dtype_that_is_said_of_it(dtype, tmp_path):
    x, branch = features(), GatedBranch(layers.Dense(2, activation="tanh"), 4, dtype=dtype)
    model = keras.Sequential([keras.Input((5,)), branch])
    assert branch.dense.dtype_policy == branch.dtype_policy
    assert keras.backend.standardize_dtype(branch(x).dtype) == branch.compute_dtype
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("n", "m", "units", "outputs"),
    [(30, 4, 20, 3), (30, 4, 10, 3), (6, 30, 2, 5), (6, 30, 5, 5), (12, 8, 3, 3)],
)
def test_rank_is_the_least_of_labels_parameters_and_directions(n, m, units, outputs):
    """Row (i, j) is (V_j * g_i) kron (u_i, 1): one sample's rows span H directions at most, which n H bounds."""
    x, rng = features(n, m), np.random.default_rng(0)
    layer, dense = GatedDense(units, gates="random", sharpness=3.0, seed=0), layers.Dense(outputs, use_bias=False)
    layer.adapt(x)
    dense.build((None, units))
    dense.kernel.assign(rng.normal(size=(units, outputs)))
    head, _ = layer.linear_head(dense)
    jacobian = cases.head_jacobian(head, x.astype("float64"))
    rank = np.linalg.matrix_rank(jacobian.reshape(n * outputs, -1))
    assert rank == min(n * outputs, units * (m + 1), n * units)


def test_a_branch_is_the_sum_of_its_formula():
    x, branch = features(), GatedBranch(layers.Dense(3, bias_initializer="normal"), 6, sharpness=2.0, seed=0)
    branch.adapt(x)
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(5, 6, 3)), rng.normal(size=(6, 3))
    branch.kernel.assign(kernel)
    branch.bias.assign(bias)
    expected = to_numpy(branch.dense(x))
    gate_kernel, gate_bias, mean, scale = values([branch.gate_kernel, branch.gate_bias, branch.mean, branch.scale])
    u = (x - mean) / scale
    for k in range(6):
        gate = cases.gate(2.0 * (u @ gate_kernel[:, k] + gate_bias[k]))
        expected = expected + gate[:, None] * (u @ kernel[:, k] + bias[k])
    np.testing.assert_allclose(to_numpy(branch(x)), expected, rtol=1e-4, atol=1e-4)
    assert branch.gates_frozen
    branch.freeze_gates(noise=1.0)
    np.testing.assert_allclose(to_numpy(branch(x)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("n", "m", "gates", "outputs"), [(30, 4, 6, 3), (30, 4, 5, 3), (6, 30, 1, 5), (12, 8, 3, 2)])
def test_rank_of_a_branch_is_that_of_one_output_times_outputs(n, m, gates, outputs):
    x = features(n, m)
    branch = GatedBranch(layers.Dense(outputs, use_bias=False), gates, sharpness=3.0, seed=0)
    branch.adapt(x)
    jacobian = cases.head_jacobian(branch.linear_head()[0].parts[0], x.astype("float64"))
    assert np.linalg.matrix_rank(jacobian.reshape(n * outputs, -1)) == outputs * min(n, gates * (m + 1))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.convolution = layers.Conv2D(5, 3)
        self.normalization = layers.BatchNormalization()
        self.pooling = layers.GlobalAveragePooling2D()
        self.head = layers.Dense(3, activation="softmax")

    def call(self, x, training=None):
        return self.head(self.pooling(self.normalization(self.convolution(x), training=training)))


class SubclassedWithLists(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [layers.Flatten(), keras.Sequential([layers.Dense(5, activation="relu"), layers.Dense(3)])]

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return keras.ops.softmax(x)


def functional():
    inputs = keras.Input((6, 6, 3))
    x = layers.BatchNormalization()(layers.Conv2D(5, 3)(inputs))
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="predictions")(x))


def sequential():
    dense = layers.Dense(6, activation="relu")
    return keras.Sequential(
        [keras.Input((6, 6, 3)), layers.Rescaling(0.5), layers.Flatten(), dense, layers.Dense(3), layers.Softmax()]
    )


def nested():
    features_in = keras.Input((5,))
    head = keras.Model(features_in, layers.Dense(3, activation="softmax")(features_in))
    body = keras.Sequential([layers.Conv2D(5, 3), layers.GlobalAveragePooling2D()])
    inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, head(body(inputs)))


def subclassed_in_functional():
    inputs = keras.Input((6, 6, 3))
    return keras.Model(inputs, Subclassed()(inputs))


MODELS = [functional, sequential, nested, Subclassed, SubclassedWithLists, subclassed_in_functional]


def images(n=20, side=6):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, side, side, 3)).astype("float32"), rng.integers(0, 3, n)


@pytest.mark.parametrize("make", MODELS)
def test_a_gated_head_changes_nothing_and_aligns_everything(make):
    keras.utils.set_random_seed(0)
    (x, y), model = images(), make()
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=1, verbose=0)  # moves the batch statistics, which a copy must have too
    expected, old = model.predict(x, verbose=0), values(model.variables)
    gated = add_gated_head(model, x, seed=0, verbose=False)
    np.testing.assert_allclose(gated.predict(x, verbose=0), expected, rtol=0, atol=1e-6)
    assert isinstance(find_structure(gated, x).layer, GatedBranch)
    assert not {id(variable) for variable in model.variables} & {id(variable) for variable in gated.variables}
    certificate = certify(gated, x, y)
    assert certificate.verdict == "aligned"
    assert certificate.rank == certificate.full_rank == 20 * 2
    gated.fit(x, y, epochs=1, verbose=0)
    assert all((one == other).all() for one, other in zip(old, values(model.variables), strict=True))


@pytest.mark.parametrize("make", [functional, Subclassed])
def test_the_placement_before_the_last_layer_is_recognized(make):
    keras.utils.set_random_seed(0)
    (x, y), model = images(), make()
    model(x)
    gated = add_gated_head(model, x, place="before", gates="learned", seed=0, verbose=False)
    structure = find_structure(gated, x)
    assert [type(layer) for layer in structure.gated_layers] == [GatedDense]
    assert structure.linear_parameters[0] is structure.layer.kernel
    certificate = certify(gated, x, y, loss="sparse_categorical_crossentropy")
    assert certificate.verdict == "aligned"
    assert any("still move" in sentence for sentence in certificate.not_covered)
    structure.layer.freeze_gates()
    certificate = certify(gated, x, y, loss="sparse_categorical_crossentropy")
    assert not any("still move" in sentence for sentence in certificate.not_covered)


def test_gates_are_counted_by_samples_and_units_by_free_outputs_and_the_number_is_said(capsys):
    model = functional()
    beside = add_gated_head(model, num_samples=100, oversample=1.5)
    assert find_structure(beside).layer.num_gates == 25  # 1.5 * 100 / (5 + 1)
    assert find_structure(beside).place == "beside"
    added = sum(np.prod(v.shape) for v in beside.trainable_variables) - sum(
        np.prod(v.shape) for v in model.trainable_variables
    )
    assert added == 25 * 6 * 3
    assert "25 gates" in (said := capsys.readouterr().out)
    assert "450 trainable" in said
    before = add_gated_head(model, num_samples=100, place="before", oversample=1.5)
    assert find_structure(before).layer.units == 50  # 1.5 * 100 * (3 - 1) / (5 + 1)
    assert "50 gated units" in capsys.readouterr().out
    fewest = add_gated_head(model, num_samples=1, place="before", verbose=False)
    assert find_structure(fewest).layer.units == 2


def test_applications_take_a_gated_head():
    model = keras.applications.MobileNetV2(input_shape=(32, 32, 3), weights=None, classes=3, alpha=0.35)
    x, _ = images(n=8, side=32)
    gated = add_gated_head(model, x, seed=0, verbose=False)
    np.testing.assert_allclose(to_numpy(gated(x)), to_numpy(model(x)), rtol=0, atol=1e-6)


def test_training_the_head_reaches_labels_that_are_noise():
    keras.utils.set_random_seed(0)
    x, y = features(30), np.random.default_rng(0).integers(0, 3, 30)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")])
    gated = add_gated_head(model, x, oversample=2.0, seed=0, verbose=False)
    for each in (model, gated):
        each.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy", metrics=["accuracy"])
        each.fit(np.tile(x, (10, 1)), np.tile(y, 10), epochs=10, batch_size=30, shuffle=False, verbose=0)  # whole steps
    assert gated.evaluate(x, y, verbose=0)[1] == 1.0
    assert model.evaluate(x, y, verbose=0)[1] < 0.8


def test_bad_arguments_get_one_clear_sentence():
    model = functional()
    for arguments, message in [
        ({}, "Pass the training inputs"),
        ({"num_samples": 0}, "num_samples must be a positive integer"),
        ({"num_samples": 9, "place": "after"}, "place must be one of"),
        ({"num_samples": 9, "oversample": 0.5}, "oversample must be a finite number of at least 1"),
        ({"num_samples": 9, "oversample": np.inf}, "oversample must be a finite number of at least 1"),
        ({"num_samples": 9, "gates": "fixed", "place": "before"}, "gates must be one of"),
        ({"num_samples": 9, "gates": "learned"}, "Beside the last layer gates are random"),
        ({"num_samples": 9, "sharpness": 0}, "sharpness must be positive"),
        ({"num_samples": 9, "sharpness": np.inf}, "sharpness must be positive"),
    ]:
        with pytest.raises(ValueError, match=f"{message}.*Received"):
            add_gated_head(model, **arguments)
    with pytest.raises(ValueError, match="gated head already.*Received"):
        add_gated_head(add_gated_head(model, num_samples=9, verbose=False), num_samples=9)
    with pytest.raises(ValueError, match="units must be.*Received: units=0"):
        GatedDense(0)
    with pytest.raises(ValueError, match="num_gates must be.*Received: num_gates=0"):
        GatedBranch(layers.Dense(3), 0)
    with pytest.raises(ValueError, match="finite features.*Received"):
        GatedDense(2).adapt(np.full((3, 2), np.nan))
    layer = GatedDense(2)
    layer.build((None, 3))
    for noise in (-1.0, np.nan):
        with pytest.raises(ValueError, match="noise must not be negative.*Received"):
            layer.freeze_gates(noise=noise)


@pytest.mark.parametrize(("place", "gates"), [("beside", "random"), ("before", "learned")])
def test_a_gated_head_is_trained_certified_and_saved_on_every_backend(place, gates, tmp_path):
    x, y = features(), np.arange(20) % 3
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    gated = add_gated_head(model, x, place=place, gates=gates, seed=0, verbose=False)
    if place == "beside":
        np.testing.assert_allclose(gated.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)
    gated.fit(x, y, verbose=0)
    assert certify(gated, x, y, verbose=0).verdict == "aligned"
    before = gated.predict(x, verbose=0)
    (layer,) = find_structure(gated).gated_layers
    layer.freeze_gates(noise=1e-4, seed=0)
    np.testing.assert_allclose(gated.predict(x, verbose=0), before, atol=1e-2)
    gated.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), gated.predict(x, verbose=0), atol=1e-6)


PLAIN = [case for case in cases.CASES if not case.gated]


@pytest.mark.parametrize("case", PLAIN, ids=[case.name for case in PLAIN])
def test_what_is_said_of_a_copy_is_what_a_look_at_it_finds(case):
    x = case.inputs(4)
    said = with_gates_beside(find_structure(case.build("float32"), x), 5, x, seed=0)
    found = find_structure(said.model, x)
    assert repr(said) == repr(found)
    assert (said.layer, said.output_layer) == (found.layer, found.output_layer)
    assert said.linear_parameters == found.linear_parameters
    assert said.gated_layers == found.gated_layers
