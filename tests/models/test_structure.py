"""find_structure on models of every kind, and what it must refuse."""

import re

import cases
import keras
import numpy as np
import pytest
from keras import layers
from scipy import special

import keras_dal
from keras_dal.features import tracing
from keras_dal.features.programs import FeatureFunction
from keras_dal.features.tracing import tap, to_numpy
from keras_dal.models.activations import are_made
from keras_dal.models.add_head import add_gated_head
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import GatedDense

WIDEST = "float32" if cases.BACKEND == "jax" else "float64"  # of variables: JAX has no float64 unless it is set to


def snapshot(model):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]


def assert_unchanged(model, before):
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, keras.ops.convert_to_numpy(variable))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_finds_head_and_leaves_the_model_alone(case, dtype):
    model = case.build(dtype)
    before = snapshot(model)
    structure = find_structure(model, case.inputs(3) if case.name == "subclassed" else None)
    assert_unchanged(model, before)
    assert structure.activation == case.activation
    assert structure.num_outputs == case.num_outputs
    assert structure.use_bias == case.use_bias
    assert bool(structure.gated_layers) == case.gated
    assert structure.is_plain is not case.gated
    assert structure.num_features == (3 if case.name == "convolutional" else cases.NUM_FEATURES)


@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_logits_are_those_of_the_model(case):
    model, x = case.build(), case.inputs(7)
    structure = find_structure(model, x)
    expected = to_numpy(cases.logits_from_outputs(model(x, training=False), case.activation))
    logits = structure.logits(x)
    if case.activation == "softmax":
        expected, logits = (f - f.mean(axis=1, keepdims=True) for f in (expected, logits))
    np.testing.assert_allclose(logits, expected, rtol=cases.within(1e-9), atol=cases.within(1e-9))
    from_features = structure.head().logits(np.asarray(structure.features(x), np.float64), structure.theta())
    np.testing.assert_allclose(from_features, structure.logits(x), rtol=cases.within(1e-9), atol=cases.within(1e-9))


def test_features_have_the_dtype_they_were_computed_in():
    x = cases.CASES[0].inputs(7)
    with cases.policy(WIDEST):
        hidden = layers.Dense(4, use_bias=False)
        model = keras.Sequential([layers.Input((5,)), hidden, layers.Dense(3)])
    features = find_structure(model, x).features(x)
    error = np.abs(features - x.astype(np.float64) @ to_numpy(hidden.kernel).astype(np.float64)).max()
    assert error <= 8 * np.finfo(features.dtype).eps * np.abs(features).max()


def test_a_float64_model_is_understood_whatever_it_is_computed_in():
    case = cases.CASES[0]
    model = case.build(WIDEST)
    assert find_structure(model).activation == case.activation
    assert find_structure(model, parameters=model.layers[-1]).num_features == cases.NUM_FEATURES
    with pytest.raises(ValueError, match="are not linear in"):
        find_structure(model, parameters="trunk")


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_an_activation_may_be_computed_in_a_coarser_dtype_than_the_rest(activation):
    with cases.policy(WIDEST):
        after = layers.Activation(activation, dtype="float32")
        model = keras.Sequential([layers.Input((5,)), layers.Dense(6, "relu"), layers.Dense(3), after])
    assert find_structure(model).activation == activation


def test_assign_writes_theta_in_the_order_of_the_head():
    case = cases.CASES[0]
    model = case.build()
    structure = find_structure(model)
    theta = np.arange(structure.head().num_parameters, dtype=np.float64)
    structure.assign(theta)
    np.testing.assert_array_equal(structure.theta(), theta)
    np.testing.assert_array_equal(to_numpy(model.layers[-1].kernel), theta[:-3].reshape(4, 3))


@pytest.mark.parametrize(
    ("name", "make", "pattern"), cases.REFUSED, ids=lambda part: part if isinstance(part, str) else ""
)
def test_refuses(name, make, pattern):
    keras.utils.set_random_seed(0)
    model = make()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"(?s){pattern}") as error:
        find_structure(model)
    assert "Received: " in str(error.value)
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("bend", "dtype"),
    [
        (lambda logits: keras.ops.clip(logits, -8, 8), "float32"),
        (lambda logits: keras.ops.clip(logits, -400, 400), "mixed_float16"),
        (lambda logits: 200 * keras.ops.tanh(logits / 200), "mixed_bfloat16"),
        (lambda logits: keras.ops.softmax(keras.ops.clip(logits, -8, 8)), "float32"),
        (lambda logits: keras.ops.softmax(keras.ops.clip(logits, -100, 100)), "float32"),
        (lambda logits: keras.ops.softmax(50 * keras.ops.tanh(logits / 50)), "float32"),
        (lambda logits: keras.ops.sigmoid(keras.ops.clip(logits, -5, 5)), "float32"),
        (lambda logits: keras.ops.sigmoid(keras.ops.clip(logits, -11, 11)), "float32"),
        (lambda logits: keras.ops.sigmoid(20 * keras.ops.tanh(logits / 20)), "float32"),
        (lambda logits: keras.ops.sigmoid(keras.ops.clip(logits, -4, 4)), "mixed_float16"),
    ],
    ids=[
        "clipped",
        "clipped far out",
        "soft cap",
        "clipped before softmax",
        "clipped far out before softmax",
        "soft cap before softmax",
        "clipped before sigmoid",
        "clipped as far as shows before sigmoid",
        "soft cap before sigmoid",
        "clipped before sigmoid in half precision",
    ],
)
def test_refuses_what_bends_large_logits_only(bend, dtype):
    keras.utils.set_random_seed(0)
    with cases.policy(dtype):
        inputs = layers.Input((5,))
        model = keras.Model(inputs, bend(layers.Dense(3, name="top")(inputs)))
    before = snapshot(model)
    with pytest.raises(ValueError, match="what follows it is more than a softmax or sigmoid"):
        find_structure(model)
    assert_unchanged(model, before)


def test_refuses_what_bends_the_logits_that_the_model_has_now():
    inputs = layers.Input((1,))
    dense = layers.Dense(1, use_bias=False)
    model = keras.Model(inputs, keras.ops.clip(dense(inputs), -1e6, 1e6))
    find_structure(model, np.ones((2, 1), "float32"))
    dense.kernel.assign([[-2e6]])
    with pytest.raises(ValueError, match="what follows it is more"):
        find_structure(model, np.ones((2, 1), "float32"))


@pytest.mark.parametrize("dtype", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_trained_weights_whose_products_cancel_are_no_reason_to_refuse(dtype):
    generator = np.random.default_rng(0)
    x = (1e3 + generator.random((16, 64))).astype("float32")
    with cases.policy(dtype):
        dense = layers.Dense(1)
        model = keras.Sequential([layers.Input((64,)), dense])
    kernel = generator.standard_normal((64, 1))
    dense.set_weights([kernel, -1e3 * kernel.sum(axis=0)])
    assert find_structure(model, x).activation == "linear"


@pytest.mark.parametrize("gates", ["learned", "random"])
def test_learned_gates_are_checked_as_they_will_be_frozen(gates):
    keras.utils.set_random_seed(0)
    gated, dense = GatedDense(5, gates=gates, name="gated"), layers.Dense(3, activation="softmax", name="top")
    model = cases.sequential(gated, dense)
    before = snapshot(model)
    structure = find_structure(model)
    assert_unchanged(model, before)
    assert structure.layer is gated
    assert structure.output_layer is dense
    assert structure.gated_layers == (gated,)
    assert structure.place == "before"
    assert structure.linear_parameters == (gated.kernel, gated.bias, dense.bias)
    plain = find_structure(model, parameters=dense)  # the last layer alone is a linear head too
    assert plain.layer is dense
    assert plain.place is None
    assert plain.gated_layers == ()


class TestSelection:
    """`parameters`: what the user names is checked, not trusted."""

    @pytest.fixture
    def model(self):
        keras.utils.set_random_seed(0)
        return keras.Sequential(
            [
                layers.Input((5,)),
                layers.Dense(6, activation="relu", use_bias=False, name="inner"),
                layers.Dense(4, name="linear"),
                layers.Dense(3, name="top"),
            ]
        )

    @pytest.mark.parametrize("parameters", ["head", "top", ["top"], "top/", "^.*/top/(kernel|bias)$"])
    def test_accepts(self, model, parameters):
        assert find_structure(model, parameters=parameters).layer is model.layers[-1]

    def test_accepts_a_layer(self, model):
        assert find_structure(model, parameters=model.layers[-1]).layer is model.layers[-1]

    def test_accepts_the_name_of_a_head_with_gates(self, model):
        gated = add_gated_head(model, num_samples=20, seed=0, verbose=False)
        assert find_structure(gated, parameters="top").place == "beside"

    @pytest.mark.parametrize("name", ["inner", "top"])
    def test_of_two_layers_of_one_name_the_layer_itself_says_which(self, name):
        body = keras.Sequential([layers.Input((5,)), layers.Dense(6, "relu", name=name)], name="body")
        model = keras.Sequential([layers.Input((5,)), body, layers.Dense(3, name=name)])
        with pytest.raises(ValueError, match=f"Several layers.*Received: '{name}'"):
            find_structure(model, parameters=name)
        assert find_structure(model, parameters=model.layers[-1]).layer is model.layers[-1]

    @pytest.mark.parametrize(
        ("parameters", "pattern"),
        [
            ("inner", "are not linear in"),  # homogeneous of degree one in this kernel, and not linear
            ("inner/kernel", "are not linear in"),
            ("linear", "are linear, but not as a head of features"),
            ("top/bias", "linear up to a constant"),
            (["linear", "top"], "are not linear in"),
            ("nothing", r"No layer.*\['inner', 'linear', 'top'\]"),
            ("top(", "not a valid regular expression"),
            ([], "at least one layer"),
        ],
    )
    def test_refuses(self, model, parameters, pattern):
        before = snapshot(model)
        with pytest.raises(ValueError, match=pattern) as error:
            find_structure(model, parameters=parameters)
        assert f"Received: {parameters!r}" in str(error.value)
        assert_unchanged(model, before)


def test_restores_on_an_exception():
    class Fragile(layers.Layer):
        calls = 0

        def call(self, inputs):
            Fragile.calls += 1
            if Fragile.calls == 4:  # in the middle of the check
                raise KeyboardInterrupt
            return inputs

    keras.utils.set_random_seed(0)
    model = keras.Sequential([layers.Input((5,)), layers.Dense(4, activation="tanh"), layers.Dense(3)])
    model = keras.Sequential([layers.Input((5,)), Fragile(), *model.layers])
    model.compile(run_eagerly=True)  # or JAX calls its layers only to trace them
    Fragile.calls = 0
    before, calls = snapshot(model), [vars(layer).get("call") for layer in model.layers]
    with pytest.raises(KeyboardInterrupt):
        find_structure(model)
    assert_unchanged(model, before)
    assert [vars(layer).get("call") for layer in model.layers] == calls


@cases.needs_tensorflow(reason="a function of TensorFlow is traced")
def test_tap_sees_traced_calls():
    import tensorflow as tf

    model = cases.CASES[2].build("float32")
    head = find_structure(model).layer

    @tf.function
    def features(x):
        with tap(head) as inputs:
            model(x, training=False)
        return inputs[-1]

    x = cases.CASES[2].inputs(3)
    np.testing.assert_allclose(features(x), find_structure(model).features(x), rtol=1e-6)
    assert "call" not in vars(head)


@pytest.mark.parametrize("shape", [(2, 4), (2,), (2, 5, 5), (2, 5, 2)])
def test_refuses_inputs_of_another_shape(shape):
    with pytest.raises(ValueError, match=rf"inputs of shape \(None, 5\).*Received: x of shape {re.escape(str(shape))}"):
        find_structure(cases.CASES[0].build(), np.zeros(shape, "float32"))


@pytest.mark.parametrize("dtype", ["<U1", "object"])
def test_refuses_text_for_numbers(dtype):
    with pytest.raises(ValueError, match=f"inputs of dtype float32.*Received: x of dtype {dtype}, text"):
        find_structure(cases.CASES[0].build(), np.full((2, 5), "a", dtype))


def test_a_last_axis_of_one_may_be_left_out_or_added_as_in_keras():
    plain = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    assert find_structure(plain, np.ones((2, 5, 1), "float32")).num_features == 5
    image = keras.Sequential([keras.Input((4, 1)), layers.Flatten(), layers.Dense(3)])
    assert find_structure(image, np.ones((2, 4), "float32")).num_features == 4


def test_a_model_that_was_built_from_inputs_takes_others():
    class Pooled(keras.Model):
        def __init__(self):
            super().__init__()
            self.conv, self.head = layers.Conv2D(4, 3, activation="relu"), layers.Dense(3)

        def call(self, x):
            return self.head(keras.ops.mean(self.conv(x), (1, 2)))

    generator = np.random.default_rng(0)
    pooled = [layers.Conv2D(4, 3, activation="relu"), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    for model in (Pooled(), keras.Sequential(pooled)):
        model(np.zeros((1, 8, 8, 1), "float32"))
        assert find_structure(model, generator.random((2, 9, 9, 1), np.float32)).num_features == 4


def test_refuses_features_that_show_nothing():
    model = cases.CASES[0].build()
    with pytest.raises(ValueError, match=r"features must be finite.*Received: 4 values"):
        find_structure(model, np.full((1, 5), np.nan, "float32"))


def test_units_that_are_dead_for_a_few_samples_by_chance_do_not_hide_a_head():
    few = np.random.default_rng(0).random((6, 5), np.float32)
    dead = layers.Dense(2, "relu", kernel_initializer=keras.initializers.Constant(-0.2))
    model = keras.Sequential([keras.Input((5,)), dead, layers.Dense(3)])
    before = snapshot(model)
    assert not to_numpy(dead(few)).any()
    structure = find_structure(model, few)
    assert_unchanged(model, before)
    assert (structure.num_features, structure.activation) == (2, "linear")
    curved = keras.Sequential([*model.layers[:-1], layers.Dense(3, "tanh")])
    with pytest.raises(ValueError, match="more than a softmax or sigmoid"):
        find_structure(curved, few)


DEAD = [[0.29, 0.36], [-0.87, -0.91], [-0.13, -0.39], [0.08, -0.32], [0.56, 0.61]]  # for the samples seen twice


@pytest.mark.parametrize(("bias", "kernel"), [(-5.0, "glorot_uniform"), (0.0, lambda *_, **__: np.array(DEAD))])
def test_features_that_depend_on_the_batch_are_refused_behind_dead_units_too(bias, kernel):
    inputs = keras.Input((5,))
    centred = layers.Lambda(lambda x: x - keras.ops.mean(x, axis=0, keepdims=True))(inputs)
    bias = keras.initializers.Constant(bias)
    units = layers.Dense(2, "relu", kernel_initializer=kernel, bias_initializer=bias)(centred)
    with pytest.raises(ValueError, match="must not depend on the other samples of its batch"):
        find_structure(
            keras.Model(inputs, layers.Dense(3)(units)), np.random.default_rng(0).random((12, 5), np.float32)
        )


@pytest.mark.parametrize("model", ["model.keras", None, layers.Dense], ids=str)
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ValueError, match=r"must be a Keras model; keras.saving.load_model.*Received: model="):
        find_structure(model)


@pytest.mark.parametrize("changed", [lambda m: m.layers[-1].enable_lora(2), lambda m: m.layers[-1].quantize("int8")])
@pytest.mark.parametrize("before", [[], [layers.Dense(4, "relu")]], ids=["alone", "after another one"])
def test_a_head_that_was_adapted_or_quantized_is_named_as_such(changed, before):
    model = keras.Sequential([keras.Input((5,)), *before, layers.Dense(3, name="top")])
    changed(model)
    with pytest.raises(ValueError, match=r"LoRA or quantization.*Received: layer 'top'"):
        find_structure(model)


def test_a_quantized_layer_inside_is_not_taken_for_the_last_one():
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, name="inner"), layers.LayerNormalization()])
    model.get_layer("inner").quantize("int8")
    with pytest.raises(ValueError, match="no linear last layer"):
        find_structure(model)


def test_moves_that_wake_some_samples_do_not_lose_others():
    x = np.random.default_rng(0).uniform(0, 1000, (12, 50)).astype("float32")
    x[:5] = 0
    bias = keras.initializers.Constant(-5.0)
    dead = layers.Dense(4, "relu", bias_initializer=bias, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((50,)), dead, layers.Dense(3, dtype="mixed_float16")])
    assert find_structure(model, x).num_features == 4


def test_units_that_are_dead_are_named_as_what_they_are():
    dead = layers.Dense(4, "relu", bias_initializer=keras.initializers.Constant(-1e9))
    with pytest.raises(ValueError, match=r"units that are dead.*Received: zeros only"):
        find_structure(keras.Sequential([keras.Input((5,)), dead, layers.Dense(3)]))


def test_a_network_for_raw_pixel_values_that_sees_nothing_in_small_ones():
    dense = layers.Dense(
        4, activation="relu", kernel_initializer="ones", bias_initializer=keras.initializers.Constant(-0.1)
    )
    model = keras.Sequential([layers.Input((3,)), layers.Rescaling(1 / 255), dense, layers.Dense(2, name="logits")])
    assert find_structure(model).layer.name == "logits"


class TakesParts(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.logits = layers.Dense(4, activation="tanh"), layers.Dense(3)

    def call(self, inputs):
        return self.logits(self.hidden(keras.ops.concatenate([inputs["a"], inputs["b"]], axis=-1)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (keras.Sequential([layers.Dense(4, "relu"), layers.Dense(3)]), np.ones((6, 5), "float32")),
        lambda: (cases.WithoutTraining(), np.ones((6, 5), "float32")),
        lambda: (TakesParts(), {"a": np.ones((6, 2), "float32"), "b": np.ones((6, 3), "float32")}),
    ],
    ids=["sequential without Input", "subclassed", "several inputs"],
)
def test_models_that_fit_has_built_are_understood_without_inputs(make):
    keras.utils.set_random_seed(0)
    model, x = make()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, np.zeros(6), verbose=0)
    structure = find_structure(model)
    assert structure.num_features == 4
    head = structure.head().logits(structure.features(x).astype("float64"), structure.theta())
    np.testing.assert_allclose(head, model.predict(x, verbose=0), atol=1e-5)


@cases.needs_tensorflow(reason="only TensorFlow has tensors of strings")
def test_inputs_may_be_strings():
    words = np.array(["a b", "b c", "c d", "a a", "d", "b"])
    vectors = layers.TextVectorization(output_mode="tf_idf")
    vectors.adapt(words)
    model = keras.Sequential([keras.Input((), dtype="string"), vectors, layers.Dense(4, "tanh"), layers.Dense(3)])
    for x in (None, words, words.astype(object)):
        assert find_structure(model, x).num_features == 4


def test_inputs_may_have_other_names_than_places():
    a, b = keras.Input((5,), name="a"), keras.Input((3,), name="b")
    model = keras.Model([b, a], layers.Dense(2)(layers.Concatenate()([a, b])))
    x = {"a": np.ones((4, 5), "float32"), "b": np.zeros((4, 3), "float32")}
    np.testing.assert_array_equal(find_structure(model, x).features(x), [[1.0] * 5 + [0.0] * 3] * 4)


@pytest.mark.parametrize(("count", "shown"), [(100, slice(60, None)), (31, slice(16, None)), (3, slice(1, 2))])
def test_samples_are_looked_at_from_the_first_to_the_last(count, shown):
    x = np.zeros((count, 5), "float32")
    x[shown] = 1.0  # the others alone show nothing
    model = keras.Sequential([layers.Input((5,)), layers.Dense(3, use_bias=False)])
    assert find_structure(model, x).num_features == 5


def test_random_numbers_of_a_generator_that_is_not_the_models_are_seen():
    seeds = keras.random.SeedGenerator(0)

    class Noisy(layers.Layer):
        def call(self, x):
            return x + keras.random.normal(keras.ops.shape(x), seed=seeds)

    model = keras.Sequential([layers.Input((5,)), Noisy(), layers.Dense(3)])
    assert not any("seed" in variable.path for variable in model.variables)
    with pytest.raises(ValueError, match="random in inference mode"):
        find_structure(model)


def test_metrics_that_a_model_makes_when_it_is_compiled_are_not_asked_for():
    class Tracking(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def call(self, x):
            return self.dense(x)

        @property
        def metrics(self):
            return [self.tracker]

    assert find_structure(Tracking(), np.ones((4, 5), "float32")).num_features == 5


class OnTheHost(keras.layers.Layer):
    def call(self, x):
        return keras.ops.convert_to_tensor(2.0 * keras.ops.convert_to_numpy(x))


@pytest.mark.skipif(cases.BACKEND == "jax", reason="JAX finds the shapes in a model by tracing it")
def test_a_layer_that_no_program_can_have_is_run_operation_by_operation():
    stack = [layers.Dense(4), OnTheHost(), layers.Dense(3)]
    model = keras.Sequential(stack)
    model(np.ones((2, 5), "float32"))
    structure = find_structure(model, np.random.default_rng(0).standard_normal((8, 5)).astype("float32"))
    assert (structure.num_features, structure.num_outputs) == (4, 3)


def test_a_program_that_rounds_otherwise_refuses_no_model(monkeypatch):
    evaluate = FeatureFunction.evaluate
    monkeypatch.setattr(FeatureFunction, "evaluate", lambda *args: [part + 0.1 for part in evaluate(*args)])
    model = cases.CASES[0].build()
    before = snapshot(model)
    assert find_structure(model).num_features == cases.NUM_FEATURES
    assert_unchanged(model, before)


@pytest.mark.skipif(cases.BACKEND != "jax", reason="other backends run operation by operation")
def test_features_are_one_value_for_whoever_sees_them_and_the_layer():
    import jax

    model = cases.CASES[0].build()
    layer = find_structure(model).layer
    program = str(jax.make_jaxpr(lambda x: tracing.features_and_outputs(model, layer, x))(cases.CASES[0].inputs(2)))
    barrier = next(line for line in program.splitlines() if "optimization_barrier" in line)
    name = barrier.strip().split(":")[0]
    assert program.count(f" {name} ") + program.count(f"({name},") >= 2  # of the product, and of what is returned


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_kernel_that_is_used_otherwise_is_seen_whatever_size_features_have(dtype):
    class Equalized(keras.layers.Dense):
        def call(self, inputs):
            return keras.ops.matmul(inputs, 2.0 * self.kernel) + self.bias

    x = (1e-5 * np.random.default_rng(0).standard_normal((20, 6))).astype(dtype)
    for kind, understood in ((keras.layers.Dense, True), (Equalized, False)):
        model = keras.Sequential([keras.Input((6,), dtype=dtype), kind(3, dtype=dtype)])
        if understood:
            assert find_structure(model, x).num_features == 6
        else:
            with pytest.raises(ValueError, match="what follows it is more"):
                find_structure(model, x)


def test_a_head_of_half_precision_without_bias_is_tried_within_its_range():
    x = (1e-5 * np.random.default_rng(0).standard_normal((20, 6))).astype("float16")
    dense = keras.layers.Dense(3, use_bias=False, dtype="float16")
    model = keras.Sequential([keras.Input((6,), dtype="float16"), dense])
    assert find_structure(model, x).num_outputs == 3


class RoundedByBatchSize(layers.Layer):
    """An accelerator has a kernel for each size of a batch, and each rounds in its own way."""

    def call(self, x):
        return x * (1 + 0.05 / keras.ops.cast(keras.ops.shape(x)[0], x.dtype))


def test_samples_are_apart_though_batches_of_other_sizes_are_rounded_differently():
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4), RoundedByBatchSize(), layers.Dense(3)])
    assert find_structure(model).num_features == 4


@pytest.mark.skipif(cases.BACKEND != "tensorflow", reason="ragged tensors are TensorFlow's")
def test_samples_of_ragged_inputs_are_apart():
    import tensorflow as tf

    x = tf.ragged.constant([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0], [7.0], [8.0, 9.0], [1.0]])
    inputs = keras.Input((None,), ragged=True)
    means = layers.Lambda(lambda rows: tf.reduce_mean(rows, axis=1, keepdims=True), output_shape=(1,))(inputs)
    assert find_structure(keras.Model(inputs, layers.Dense(3)(means)), x).num_features == 1


def test_a_model_that_random_inputs_do_not_suit_says_which_would():
    def short(x):
        if x.shape[1] is not None and x.shape[1] > 20:
            raise IndexError("index 20 is out of range")
        return keras.ops.mean(x, axis=1)

    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Lambda(short, output_shape=(3,))(inputs)))
    with pytest.raises(ValueError, match=r"find_structure\(model, x\).*Received: .*index 20"):
        find_structure(model)
    assert find_structure(model, np.ones((4, 12, 3), "float32")).num_outputs == 2


def test_one_value_that_was_squeezed_is_said_to_be():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.ops.squeeze(keras.layers.Dense(1)(inputs), -1))
    with pytest.raises(ValueError, match=r"squeezes.*Received"):
        find_structure(model)


def widened(x, large):
    """Return samples whose first column is so large."""
    return np.concatenate([large * x[:, :1], x[:, 1:]], axis=1)


class Centred(layers.Layer):
    """Subtracts the mean over the batch."""

    def call(self, x):
        return x - keras.ops.mean(x, axis=0)


def batch_dependent():
    inputs = layers.Input((12,))
    return keras.Model(inputs, layers.Dense(2)(layers.Concatenate()([inputs[:, :1], Centred()(inputs[:, 1:])])))


class Tied(keras.Model):
    """Has a parameter of its head in one of its features."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)
        self.dense.build((None, 12))

    def call(self, x):
        tied = keras.ops.tanh(x[:, 11:] * self.dense.kernel[0, 0])
        return self.dense(keras.ops.concatenate([x[:, :11], tied], axis=1))


@pytest.mark.parametrize("large", [1.0, 1e3])
@pytest.mark.parametrize(
    ("make", "pattern"),
    [(batch_dependent, "must not depend on the other samples"), (Tied, "its parameters also change its own inputs")],
)
def test_one_large_feature_does_not_hide_what_becomes_of_the_others(make, pattern, large):
    x = np.random.default_rng(0).standard_normal((100, 12)).astype("float32")
    model = make()
    model(x[:2])
    with pytest.raises(ValueError, match=pattern):
        find_structure(model, widened(x, large))


@pytest.mark.parametrize("large", [1.0, 1e3, 1e6])
def test_one_large_feature_is_no_reason_to_refuse(large):
    model = keras.Sequential([layers.Input((12,)), layers.Dense(16, "relu"), layers.Dense(3)])
    x = np.random.default_rng(0).standard_normal((100, 12)).astype("float32")
    assert find_structure(model, widened(x, large)).activation == "linear"


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_of_logits_within_their_error_follow_from_them(activation):
    generator = np.random.default_rng(0)
    function = {"softmax": lambda logits: special.softmax(logits, axis=1), "sigmoid": special.expit}[activation]
    for size in (1.0, 30.0, 1e3):
        logits = size * generator.standard_normal((50, 4))
        for slack in (1e-3 * size, 0.1 * size):
            outputs = function(logits + slack * generator.choice([-1.0, 1.0], logits.shape))
            assert are_made(activation, logits, outputs, slack, (1e-15, 1e-12)).all()
    logits = generator.standard_normal((50, 4))
    moved = function(logits + np.array([0.1, 0.0, 0.0, 0.0]))
    assert not are_made(activation, logits, moved, 0.01, (1e-15, 1e-12))[:, 0].any()


@pytest.mark.parametrize("call", [keras_dal.converge, keras_dal.certify, keras_dal.width_curve])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_among_the_first_samples_are_named(value, call):
    x = np.random.default_rng(0).standard_normal((60, 12)).astype("float32")
    x[0, 0] = value
    model = keras.Sequential([layers.Input((12,)), layers.Dense(16, "relu"), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="must be finite"):
        call(model, x, np.arange(60) % 3, verbose=0)


def test_no_arrays_are_no_samples():
    model = keras.Sequential([layers.Input((12,)), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(ValueError, match="Inputs must be arrays with an axis of samples. Received: x of type list"):
        keras_dal.converge(model, [])
