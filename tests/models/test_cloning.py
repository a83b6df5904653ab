"""Models with state that no configuration carries: a copy with another head computes what they do."""

import collections
import functools
import types
from typing import NamedTuple

import cases
import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_dal import add_gated_head, certify, converge, finish
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import GatedBranch

N = 40
OWN_LAYERS = "has the model's own layers"


def inputs(shape=(5,)):
    return np.random.default_rng(0).normal(3.0, 2.0, (N, *shape)).astype("float32")


LABELS = np.random.default_rng(1).integers(0, 3, N)


def normalized():
    normalization = layers.Normalization()
    normalization.adapt(inputs())
    return keras.Sequential([keras.Input((5,)), normalization, layers.Dense(6, "tanh"), layers.Dense(3)])


def with_a_closure():
    factor = np.float32(0.1)
    x = keras.Input((5,))
    return keras.Model(x, layers.Dense(3)(layers.Dense(6, "tanh")(layers.Lambda(lambda t: t * factor)(x))))


class Around(keras.Model):
    """Takes its backbone as an argument, and does not say so in a configuration."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone, self.norm = backbone, layers.BatchNormalization()
        self.heads = {"only": layers.Dense(3)}
        self.scale = self.add_weight(shape=(6,), initializer="ones", name="scale")

    def call(self, x):
        return self.heads["only"](self.norm(self.backbone(x)) * self.scale)


def around_a_backbone():
    return Around(keras.Sequential([keras.Input((5,)), layers.Dense(6, "relu"), layers.Dropout(0.3)]))


def around_what_is_adapted():
    return Around(keras.Sequential(normalized().layers[:2]))


@keras.saving.register_keras_serializable("test_cloning")
class Block(layers.Layer):
    """Keeps an adapted layer, beside what its configuration says, and a table that no variable holds."""

    def __init__(self, units, **options):
        super().__init__(**options)
        self.units, self.table = units, np.zeros(5, "float32")
        self.norm, self.dense = layers.Normalization(), layers.Dense(units, "tanh")

    def build(self, shape):
        self.norm.build(shape)
        self.dense.build(shape)

    def call(self, x):
        return self.dense(self.norm(x) + ops.convert_to_tensor(self.table))

    def get_config(self):
        return {**super().get_config(), "units": self.units}

    def save_own_variables(self, store):
        store["table"] = self.table

    def load_own_variables(self, store):
        self.table = store["table"][()]


def with_a_block():
    model = keras.Sequential([keras.Input((5,)), Block(6), layers.Dense(3)])
    model.layers[0].norm.adapt(inputs())
    model.layers[0].table = np.linspace(-0.2, 0.2, 5, dtype="float32")
    return model


def with_layers_in_two_places():
    normalized, dense, halved = layers.Normalization(), layers.Dense(5, "tanh"), layers.Lambda(lambda t: t * 0.5)
    normalized.adapt(inputs())
    x = keras.Input((5,))
    once = dense(halved(normalized(x)))
    return keras.Model(x, layers.Dense(3)(layers.add([once, dense(halved(once))])))


class Applied(layers.Layer):
    """Has no configuration, and trains what it is given, if anything."""

    def __init__(self, function, inner=None):
        super().__init__()
        self.function, self.inner = function, inner

    def call(self, x):
        return self.function(x if self.inner is None else self.inner(x))


def with_a_function():
    return keras.Sequential([keras.Input((5,)), Applied(lambda t: t * 0.5), layers.Dense(6, "tanh"), layers.Dense(3)])


def with_weights_and_no_configuration():
    inner = layers.Dense(6, "tanh")
    return keras.Sequential([keras.Input((5,)), Applied(lambda t: t * 0.5, inner), layers.Dense(3)])


def with_tied_weights():
    first = layers.Dense(5, "tanh")
    back = layers.Lambda(lambda t: ops.matmul(t, ops.transpose(first.kernel)))
    return keras.Sequential([keras.Input((5,)), first, back, layers.Dense(3)])


def transposed(layer, x):
    return ops.matmul(x, ops.transpose(layer.kernel))


def with_weights_tied_by(bound):
    first = layers.Dense(5, "tanh")
    return keras.Sequential([keras.Input((5,)), first, layers.Lambda(bound(first)), layers.Dense(3)])


def by_a_helper():
    def bound(first):
        held = types.SimpleNamespace(layer=first)
        return lambda t: transposed(held.layer, t)

    return with_weights_tied_by(bound)


def by_a_part_of_a_function():
    return with_weights_tied_by(lambda first: functools.partial(transposed, first))


class Tying(keras.Model):
    def __init__(self):
        super().__init__()
        self.first, self.head = layers.Dense(5, "tanh"), layers.Dense(3)
        self.back = layers.Lambda(self.backwards)

    def backwards(self, x):
        return ops.matmul(x, ops.transpose(self.first.kernel))

    def call(self, x):
        return self.head(self.back(self.first(x)))


def top2(y_true, y_pred):
    return keras.metrics.sparse_top_k_categorical_accuracy(y_true, y_pred, k=2)


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, rate):
        self.rate = rate

    def __call__(self, step):
        return self.rate / (1.0 + ops.cast(step, "float32"))

    def get_config(self):
        return {"rate": self.rate}


def trained(make):
    keras.utils.set_random_seed(0)
    model = make()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(Falling(0.01)), loss, metrics=[top2, keras.metrics.SparseCategoricalAccuracy()])
    model.fit(inputs(), LABELS, epochs=1, verbose=0)
    return model


class Blocks(NamedTuple):
    first: layers.Layer
    second: layers.Layer


class Holding(keras.Model):
    """Keeps its layers in a collection of some kind."""

    def __init__(self, held):
        super().__init__()
        self.held, self.head = held, layers.Dense(3)

    def call(self, x):
        for layer in self.held.values() if isinstance(self.held, dict) else self.held:
            x = layer(x)
        return self.head(x)


def blocks():
    return layers.Dense(6, "relu"), layers.BatchNormalization()


def in_an_ordered_dict():
    return Holding(collections.OrderedDict(zip("ab", blocks(), strict=True)))


def in_a_named_tuple():
    return Holding(Blocks(*blocks()))


def in_a_list():
    return Holding(list(blocks()))


COPIED = [
    in_an_ordered_dict,
    in_a_named_tuple,
    in_a_list,
    normalized,
    with_a_closure,
    around_a_backbone,
    around_what_is_adapted,
    with_a_block,
    with_layers_in_two_places,
    with_a_function,
]


@pytest.mark.parametrize("make", COPIED)
def test_whatever_is_understood_takes_a_gated_head(make, recwarn):
    model = trained(make)
    before = model.predict(inputs(), verbose=0)
    gated = add_gated_head(model, inputs(), seed=0)
    np.testing.assert_allclose(gated.predict(inputs(), verbose=0), before, rtol=1e-5, atol=1e-5)
    assert isinstance(find_structure(gated, inputs()).layer, GatedBranch)
    own = {id(variable) for variable in model.trainable_variables}
    assert not own & {id(variable) for variable in gated.trainable_variables}
    assert not [warning for warning in recwarn if OWN_LAYERS in str(warning.message)]
    result = converge(model, inputs(), LABELS, verbose=0)
    assert result.accuracy == 1.0
    np.testing.assert_array_equal(model.predict(inputs(), verbose=0), before)


def with_a_state_that_is_not_taken():
    class Frozen(layers.Dense):
        def load_own_variables(self, store):
            raise OSError("no state for me")

    return keras.Sequential([keras.Input((5,)), Frozen(6, name="frozen"), layers.Dense(3)])


ELSEWHERE = "a copy of its layers that computes something else"
SHARED = [
    (with_weights_and_no_configuration, "layer 'applied.*', (TypeError|NotImplementedError): "),
    (with_a_state_that_is_not_taken, "layer 'frozen', OSError: no state for me"),
    (with_tied_weights, ELSEWHERE),
    (by_a_helper, ELSEWHERE),
    (by_a_part_of_a_function, ELSEWHERE),
    (Tying, ELSEWHERE),
]


@pytest.mark.parametrize(("make", "why"), SHARED)
def test_layers_that_cannot_be_copied_are_shared_but_for_the_head(make, why):
    model = trained(make)
    before = model.predict(inputs(), verbose=0)
    with pytest.warns(UserWarning, match=rf"{OWN_LAYERS}.*Received: model '\w+', and {why}"):
        gated = add_gated_head(model, inputs(), seed=0, verbose=False)
    np.testing.assert_allclose(gated.predict(inputs(), verbose=0), before, rtol=1e-5, atol=1e-5)
    own = {id(variable) for variable in model.trainable_variables}
    assert own & {id(variable) for variable in gated.trainable_variables}
    assert not own & {id(variable) for variable in find_structure(gated, inputs()).linear_parameters}


def weights_of(model):
    return [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]


@pytest.mark.parametrize("make", COPIED)
def test_training_a_copy_leaves_the_model_as_it_was(make):
    model = trained(make)
    before, outputs = weights_of(model), model.predict(inputs(), verbose=0)
    gated = add_gated_head(model, inputs(), seed=0, verbose=False)
    begun = weights_of(gated)
    gated.fit(inputs(), LABELS, epochs=1, verbose=0)
    assert not all(map(np.array_equal, begun, weights_of(gated)))
    assert all(map(np.array_equal, before, weights_of(model)))
    np.testing.assert_array_equal(model.predict(inputs(), verbose=0), outputs)


@pytest.mark.parametrize("make", [normalized, with_a_block, with_layers_in_two_places])
def test_a_copy_of_what_saves_and_loads_does_so_too(make, tmp_path):
    keras.utils.set_random_seed(0)
    gated = add_gated_head(make(), inputs(), seed=0, verbose=False)
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras", safe_mode=False)  # which functions ask for
    np.testing.assert_array_equal(loaded.predict(inputs(), verbose=0), gated.predict(inputs(), verbose=0))


WORDS = np.array(["a b c", "b c", "c d e e", "a"] * (N // 4))
COLOURS = np.array([["red"], ["blue"], ["red"], ["green"]] * (N // 4))
NUMBERS = np.array([[3], [7], [3], [5]] * (N // 4))


@cases.needs_tensorflow(reason="Keras looks words up in tables of TensorFlow")
@pytest.mark.parametrize("mode", ["int", "multi_hot", "tf_idf"])
@pytest.mark.parametrize(
    ("kind", "x"), [(layers.TextVectorization, WORDS), (layers.StringLookup, COLOURS), (layers.IntegerLookup, NUMBERS)]
)
def test_a_copy_has_the_vocabulary_of_the_model(kind, x, mode, tmp_path, recwarn):
    keras.utils.set_random_seed(0)
    lookup = kind(output_mode=mode)
    lookup.adapt(x)
    entries = keras.Input(x.shape[1:], dtype="int64" if kind is layers.IntegerLookup else "string")
    body = [layers.Embedding(10, 4), layers.GlobalAveragePooling1D()] if mode == "int" else [layers.Dense(4, "tanh")]
    model = keras.Sequential([entries, lookup, *body, layers.Dense(3)])
    x = ops.convert_to_tensor(x)
    outputs = model.predict(x, verbose=0)
    gated = add_gated_head(model, x, seed=0, verbose=False)
    assert not [warning for warning in recwarn if OWN_LAYERS in str(warning.message)]
    np.testing.assert_allclose(gated.predict(x, verbose=0), outputs, rtol=1e-6, atol=1e-6)
    assert gated.layers[0] is not lookup
    assert gated.layers[0].get_vocabulary() == lookup.get_vocabulary()
    gated.save(tmp_path / "gated.keras")
    loaded = keras.models.load_model(tmp_path / "gated.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), gated.predict(x, verbose=0))


class Scaled(keras.Model):
    """A graph of a class with a constructor of its own, whose steps prepare images and whose user sets an attribute."""

    def __init__(self, units=3):
        pixels = keras.Input((6,))
        super().__init__(pixels, layers.Dense(units)(layers.Dense(8, activation="relu")(pixels)))

    def test_step(self, *arguments):
        *state, (x, y) = arguments
        return super().test_step(*state, (x / self.largest, y))


class ScaledRow(keras.Sequential):
    def __init__(self):
        super().__init__([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3)])

    def test_step(self, *arguments):
        *state, (x, y) = arguments
        return super().test_step(*state, (x / self.largest, y))


@pytest.mark.parametrize("kind", [Scaled, ScaledRow])
def test_a_copy_has_the_class_of_a_graph_and_what_its_user_set(kind):
    generator = np.random.default_rng(0)
    x, y = generator.uniform(0, 255, (40, 6)).astype("float32"), generator.integers(0, 3, 40)
    keras.utils.set_random_seed(0)
    model = kind()
    model.largest = 255.0
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    gated = add_gated_head(model, num_samples=40, seed=0, verbose=False)
    assert type(gated) is kind
    assert gated.largest == 255.0
    assert gated.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)


class Named(layers.Dense):
    def __init__(self, units, purpose="logits", **options):
        super().__init__(units, **options)
        self.purpose = purpose

    def get_config(self):
        return {**super().get_config(), "purpose": self.purpose}


class Warmup(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return 0.1


def test_a_head_and_a_schedule_of_ones_own_class_cost_no_solved_head():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 8)).astype("float32"), generator.integers(0, 3, 40)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), Named(3)])
    model.compile(keras.optimizers.SGD(Warmup()), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="cannot be made anew.*compile it with another one.*Received: NotImplemented"):
        result = converge(model, x, y, seed=0, verbose=0)
    assert result.accuracy == 1.0
    assert isinstance(result.structure.layer, GatedBranch)


def test_where_no_gated_head_can_be_made_the_own_one_is_minimized(monkeypatch):
    def failing(*arguments, **options):
        raise AttributeError("not today")

    monkeypatch.setattr("keras_dal.finishing.converge.with_gates_beside", failing)
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 2)).astype("float32"), generator.integers(0, 3, 40)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(
        UserWarning, match="a gated one cannot be made: its own loss is minimized.*AttributeError: not today"
    ):
        result = converge(model, x, y, verbose=0)
    assert result.model is model
    assert result.stopped_by.is_of_a_minimum


def test_a_copy_is_compiled_with_the_same_objects_and_an_optimizer_of_its_own():
    model = trained(around_a_backbone)
    gated = add_gated_head(model, inputs(), seed=0, verbose=False)
    assert gated.optimizer is not model.optimizer
    assert type(gated.optimizer) is type(model.optimizer)
    assert int(gated.optimizer.iterations) == 0
    assert gated.loss is model.loss
    history = gated.fit(inputs(), LABELS, epochs=1, verbose=0).history
    assert {"top2", "sparse_categorical_accuracy"} <= set(history)


class Right(keras.metrics.SparseCategoricalAccuracy):
    """As a user's own, which is not registered."""


class HasOptions(keras.metrics.Metric):
    """Counts by an option that it does not list in its configuration."""

    def __init__(self, step=1.0):
        super().__init__(name="counted")
        self.step, self.total = step, self.add_variable((), "zeros", name="total")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(self.step)

    def result(self):
        return self.total + 0.0


def test_the_first_evaluation_of_a_copy_is_of_its_own_samples_alone():
    metrics = [Right(name="right"), HasOptions(0.25), top2, "accuracy"]
    keras.utils.set_random_seed(0)
    model, x, half = with_a_closure(), inputs(), len(LABELS) // 2
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=metrics, weighted_metrics=[keras.metrics.SparseCategoricalAccuracy(name="w")])
    model.fit(x, LABELS, batch_size=8, epochs=1, verbose=0)
    gated = add_gated_head(model, x, seed=0, verbose=False)
    model.evaluate(x[half:], LABELS[half:], verbose=0)
    found = gated.evaluate(x[:half], LABELS[:half], batch_size=half, verbose=0, return_dict=True)
    right = np.mean(gated.predict(x[:half], verbose=0).argmax(axis=1) == LABELS[:half])
    assert [found[name] for name in ("right", "accuracy", "w")] == pytest.approx([right] * 3)
    assert found["counted"] == 0.25
    model.evaluate(x[half:], LABELS[half:], verbose=0)
    again = gated.evaluate(x[:half], LABELS[:half], batch_size=half, verbose=0, return_dict=True)
    assert again == pytest.approx(found)


@pytest.mark.parametrize("place", ["beside", "before"])
@pytest.mark.parametrize("pooling", ["global", "window"])
@pytest.mark.parametrize("kind", ["convolution", "dense"])
def test_a_head_at_every_position_takes_gates_of_pooled_features(kind, pooling, place):
    keras.utils.set_random_seed(0)
    pools = {"global": [layers.GlobalAveragePooling2D()], "window": [layers.AveragePooling2D(4), layers.Flatten()]}
    head = layers.Conv2D(3, 1) if kind == "convolution" else layers.Dense(3)
    body = layers.Conv2D(4, 3, activation="relu")
    model = keras.Sequential([keras.Input((6, 6, 2)), body, head, *pools[pooling]])
    x, y = inputs((6, 6, 2)), LABELS
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert certify(model, x, y).loss == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-5)
    gated = add_gated_head(model, x, place=place, seed=0, verbose=False)
    assert certify(gated, x, y).verdict == "aligned"
    if place == "beside":
        np.testing.assert_allclose(gated.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-5)
    result = converge(gated, x, y, verbose=0)
    assert result.model.predict(x, verbose=0).argmax(axis=1).tolist() == y.tolist()


class Weighted(keras.Model):
    """A graph whose training step needs what it keeps for itself."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self._weight = 0.3

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self._weight * super().compute_loss(x, y, y_pred, sample_weight, training)


def test_a_copy_of_a_graph_keeps_what_its_class_keeps_for_itself():
    x = keras.Input((5,))
    model = Weighted(x, layers.Dense(3)(layers.Dense(6, "tanh")(x)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    copy = add_gated_head(model, inputs(), seed=0, verbose=0)
    assert copy.evaluate(inputs(), LABELS, verbose=0) == pytest.approx(model.evaluate(inputs(), LABELS, verbose=0))
    copy.fit(inputs(), LABELS, verbose=0)


@pytest.mark.parametrize("place", ["beside", "before"])
def test_a_copy_that_would_go_on_calling_the_head_of_the_model_is_refused(place):
    class Scored(keras.Model):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = layers.Dense(5, activation="relu"), layers.Dense(3)
            self.score = lambda z: self.head(z)

        def call(self, x):
            return self.score(self.backbone(x))

    model, x = Scored(), np.random.default_rng(0).standard_normal((20, 4)).astype("float32")
    model(x)
    with pytest.raises(ValueError, match="do not keep methods of a model, or functions of its layers"):
        add_gated_head(
            model,
            x,
            place=place,
            gates="random",
            verbose=False,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )


@pytest.mark.parametrize("functional", [False, True])
def test_a_copy_of_a_frozen_model_is_frozen_as_it_is(functional):
    inputs = keras.Input((4,))
    parts = [layers.Dense(5, activation="relu"), layers.Dense(3)]
    model = keras.Model(inputs, parts[1](parts[0](inputs))) if functional else keras.Sequential([inputs, *parts])
    parts[0].trainable = False
    for whole in (True, False):
        if not whole:
            model.trainable = False
        copy = add_gated_head(model, np.ones((6, 4), "float32"), verbose=False)
        assert copy.trainable == model.trainable
        assert not copy.layers[-2].trainable
        assert bool(copy.trainable_variables) == bool(model.trainable_variables) == whole


@pytest.mark.parametrize("solve", [converge, finish])
@pytest.mark.parametrize("place", ["beside", "before"])
@pytest.mark.parametrize("kind", ["convolution", "dense"])
def test_gates_of_a_head_that_is_frozen_are_frozen_and_solved_for_as_it_is(kind, place, solve):
    keras.utils.set_random_seed(0)
    head = layers.Conv2D(3, 1) if kind == "convolution" else layers.Dense(3)
    body = layers.Conv2D(4, 3, activation="relu")
    model = keras.Sequential([keras.Input((6, 6, 2)), body, head, layers.GlobalAveragePooling2D()])
    head.trainable = False
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = inputs((6, 6, 2))
    gated = add_gated_head(model, x, place=place, verbose=0)
    assert len(gated.trainable_variables) == len(model.trainable_variables) == 2
    assert solve(gated, x, LABELS, verbose=0).accuracy == 1.0


@pytest.mark.parametrize("place", ["beside", "before"])
def test_the_output_of_a_copy_has_the_name_that_losses_are_given_by(place, tmp_path):
    x = keras.Input((5,))
    model = keras.Model(x, layers.Dense(3, name="out")(layers.Dense(6, "tanh")(x)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", {"out": loss}, metrics={"out": ["accuracy"]})
    gated = add_gated_head(model, inputs(), place=place, seed=0, verbose=0)
    gated.fit(inputs(), LABELS, verbose=0)
    gated.save(tmp_path / "gated.keras")
    loaded = keras.saving.load_model(tmp_path / "gated.keras")
    assert loaded.evaluate(inputs(), LABELS, verbose=0) == pytest.approx(gated.evaluate(inputs(), LABELS, verbose=0))
    loaded.fit(inputs(), LABELS, verbose=0)
    assert find_structure(loaded).place == place
    named = find_structure(loaded, parameters="out").linear_parameters
    inner = [variable for variable in named if len(variable.shape) == 2 and variable.shape[-1] == 3]
    assert inner[-1].path.endswith("out/kernel")


@pytest.mark.parametrize("subclassed", [False, True])
def test_what_cannot_be_saved_as_a_whole_says_how_to_save_it(subclassed):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)

        def call(self, x):
            return self.head(x)

    model = Own() if subclassed else keras.Sequential([keras.Input((2,)), layers.Dense(3)])
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 2)).astype("float32"), generator.integers(0, 3, 40)
    model(x)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    assert ("to save             model.save_weights" in str(converge(model, x, y, gated=True, verbose=0))) == subclassed


def test_a_copy_penalizes_the_outputs_that_the_model_does():
    x = np.random.default_rng(0).standard_normal((20, 4)).astype("float32")
    inputs = keras.Input((4,))
    head = layers.Dense(3, activation="softmax", activity_regularizer=keras.regularizers.L2(0.3))
    model = keras.Model(inputs, head(layers.Dense(5, activation="relu")(inputs)))
    model.compile("sgd", "sparse_categorical_crossentropy")
    copy = add_gated_head(model, x, verbose=False)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(copy.layers[-1]))
    assert again.activity_regularizer is not None
    y = np.arange(20) % 3
    assert copy.evaluate(x, y, verbose=0) == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-6)


@cases.needs_tensorflow(reason="other backends compute in float32 unless they are told otherwise")
def test_pooled_features_of_a_copy_keep_their_dtype():
    inputs = keras.Input((4, 4, 3), dtype="float64")
    outputs = layers.GlobalAveragePooling2D(dtype="float64")(layers.Conv2D(2, 1, dtype="float64")(inputs))
    model, x = keras.Model(inputs, outputs), np.random.default_rng(0).standard_normal((9, 4, 4, 3))
    copy = add_gated_head(model, x, verbose=False, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    features = find_structure(copy, x).features(x)
    assert features.dtype == np.float64
    np.testing.assert_allclose(features, x.mean(axis=(1, 2)), rtol=0, atol=1e-15)


@pytest.mark.parametrize("functional", [False, True])
def test_a_copy_has_the_dtype_policy_of_its_model_and_so_its_loss_scale(functional):
    with cases.policy("mixed_float16"):
        model = keras.Sequential([keras.Input((5,)), layers.Dense(6, "tanh"), layers.Dense(3, dtype="float32")])
        model = keras.Model(model.inputs[0], model.outputs[0]) if functional else model
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    copy = add_gated_head(model, inputs(), seed=0, verbose=0)
    assert copy.dtype_policy.name == model.dtype_policy.name == "mixed_float16"
    assert type(copy.optimizer) is type(model.optimizer) is keras.optimizers.LossScaleOptimizer


@pytest.mark.parametrize("place", ["beside", "before"])
def test_invented_inputs_that_are_all_padding_are_no_reason_to_refuse(place):
    embedded = [layers.Embedding(9, 4, mask_zero=True), layers.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((2,), dtype="int32"), *embedded, layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    gated = add_gated_head(model, num_samples=20, place=place, loss=loss, verbose=0)
    assert find_structure(gated).place == place
    x = np.array([[1, 2], [3, 0]])
    if place == "beside":
        np.testing.assert_allclose(gated.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_a_branch_that_is_not_finite_is_not_taken_for_the_head(monkeypatch):
    monkeypatch.setattr(GatedBranch, "call", lambda self, inputs: self.dense(inputs) + np.nan)
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    with pytest.raises(ValueError, match="computes something else.*differ by nan"):
        add_gated_head(model, num_samples=20, loss=loss, verbose=0)
