"""Models with state that no configuration carries: a copy with another head computes what they do."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_dal import add_gated_head, certify, converge
from keras_dal.models.find_structure import find_structure
from keras_dal.models.gated_layers import GatedBranch

N = 40


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


@pytest.mark.parametrize("make", [normalized, with_a_closure, around_a_backbone, around_what_is_adapted])
def test_whatever_is_understood_takes_a_gated_head(make, recwarn):
    model = trained(make)
    before = model.predict(inputs(), verbose=0)
    gated = add_gated_head(model, inputs(), seed=0)
    np.testing.assert_allclose(gated.predict(inputs(), verbose=0), before, rtol=1e-5, atol=1e-5)
    assert isinstance(find_structure(gated, inputs()).layer, GatedBranch)
    own = {id(variable) for variable in model.trainable_variables}
    shared = own & {id(variable) for variable in gated.trainable_variables}
    said = any("has the model's own layers" in str(warning.message) for warning in recwarn)
    assert bool(shared) == said
    # what Normalization makes of its variables is a view of them on PyTorch, so that a copy has it too
    adapted = () if keras.backend.backend() == "torch" else (normalized, around_what_is_adapted)
    assert said == (make in (with_a_closure, *adapted))
    assert not {id(v) for v in find_structure(gated, inputs()).linear_parameters} & own
    result = converge(model, inputs(), LABELS, verbose=0)
    assert result.accuracy == 1.0
    np.testing.assert_array_equal(model.predict(inputs(), verbose=0), before)


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
