"""Catalogues of small models of every kind, with a linear head or to be refused, of heads, and of losses."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import pytest
from keras import layers

from keras_dal import heads, losses
from keras_dal.features.tracing import computed_dtype
from keras_dal.models.gated_layers import GatedBranch, GatedDense

NUM_FEATURES = 4
BACKEND = keras.backend.backend()
HAS_FLOAT64 = pytest.mark.skipif(BACKEND == "jax", reason="JAX has no float64 unless it is set to")
TENSORFLOW_TAKES_FLOAT64 = pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends take inputs in float32")
DTYPE = computed_dtype("float64")  # the finest in which layers compute here, for models that an oracle is compared with

KERAS_LOSSES = {  # of logits
    "softmax": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    "softmax of probabilities": keras.losses.CategoricalCrossentropy(from_logits=True),
    "smoothed softmax": keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1),
    "sigmoid": keras.losses.BinaryCrossentropy(from_logits=True),
    "squared error": keras.losses.MeanSquaredError(),
}
LOSSES = {  # what they are to the package, without smoothing
    "softmax": losses.SoftmaxCrossEntropy(),
    "sigmoid": losses.SigmoidCrossEntropy(),
    "squared error": losses.SquaredError(),
}
NUM_OUTPUTS = {"softmax": 3, "sigmoid": 1, "squared error": 2}

needs_tensorflow = functools.partial(pytest.mark.skipif, BACKEND != "tensorflow")  # with a reason


def gate(preactivation):
    """The gate function, written out: a logistic one."""
    return 1 / (1 + np.exp(-preactivation))


def pretend_accelerator(monkeypatch):
    """Let solvers keep their arrays on the device of the backend, however small the head is."""
    monkeypatch.setattr("keras_dal._backend.has_accelerator", lambda: True)
    monkeypatch.setattr("keras_dal._backend.COMPILES_SHAPES", False)
    monkeypatch.setattr("keras_dal._backend.WORTH_AN_ACCELERATOR", 0)


def within(exact, spacings=64):
    """Return a tolerance: `exact` for models that compute in float64, else some spacings of float32 at one."""
    return exact if DTYPE == "float64" else spacings * 2.0**-23


@contextlib.contextmanager
def policy(name):
    """Lets layers be made with a dtype policy; the data goes in as it is."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and what `find_structure` should find in it."""

    name: str
    make: Callable
    activation: str = "linear"
    num_outputs: int = 3
    use_bias: bool = True
    input_shape: tuple = (5,)
    gated: bool = False

    def build(self, dtype=DTYPE, seed=0):
        """Return the model, built, with parameters that are all random."""
        keras.utils.set_random_seed(seed)
        with policy(dtype):
            model = self.make()
            model(np.zeros((2, *self.input_shape), "float32"))
        generator = np.random.default_rng(seed)
        for variable in model.trainable_variables:
            variable.assign(keras.ops.convert_to_numpy(variable) + 0.1 * generator.standard_normal(variable.shape))
        return model

    def inputs(self, n, seed=1):
        return np.random.default_rng(seed).standard_normal((n, *self.input_shape)).astype("float32")

    def labels(self, n, seed=2):
        """Return labels as the loss of `self.loss` takes them."""
        generator = np.random.default_rng(seed)
        if self.activation == "sigmoid":
            return generator.integers(0, 2, (n, self.num_outputs)).astype("float64")
        return generator.integers(0, self.num_outputs, n)

    @property
    def loss(self):
        if self.activation == "sigmoid":
            return keras.losses.BinaryCrossentropy()
        return keras.losses.SparseCategoricalCrossentropy(from_logits=self.activation == "linear")


def trunk():
    return [
        layers.Dense(6, activation="relu", name="trunk"),
        layers.Dense(NUM_FEATURES, activation="tanh", name="tanh"),
    ]


def sequential(*head):
    return keras.Sequential([layers.Input((5,)), *trunk(), *head])


def _functional():
    inputs = keras.Input((5,))
    x = layers.Dense(NUM_FEATURES, activation="tanh")(inputs)
    x = layers.Add()([x, layers.Dense(NUM_FEATURES, activation="relu")(x)])
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def _nested():
    body = keras.Sequential(trunk(), name="body")
    top = keras.Sequential([layers.Dropout(0.5), layers.Dense(3, name="logits")], name="top")
    inputs = keras.Input((5,))
    return keras.Model(inputs, top(body(inputs)))


class Subclassed(keras.Model):
    """A model whose graph is known only by running it; the softmax is an operation, not a layer."""

    def __init__(self, head=None):
        super().__init__()
        self.logits = head or layers.Dense(3)
        self.hidden = layers.Dense(NUM_FEATURES, activation="tanh")
        self.norm = layers.BatchNormalization()

    def call(self, inputs, training=False):
        return keras.ops.softmax(self.logits(self.norm(self.hidden(inputs), training=training)))


def _convolutional():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.Add()([x, layers.Conv2D(3, 3, padding="same")(x)])
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax")(x))


class WithoutTraining(keras.Model):
    """A model, and a layer in it, whose `call` takes inputs alone; what they hold depends on the phase."""

    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.parts = [
                layers.Dense(NUM_FEATURES, activation="tanh"),
                layers.BatchNormalization(),
                layers.Dropout(0.5),
            ]

        def call(self, inputs):
            for part in self.parts:
                inputs = part(inputs)
            return inputs

    def __init__(self):
        super().__init__()
        self.blocks = {"first": self.Block()}
        self.logits = layers.Dense(3)

    def call(self, inputs):
        return self.logits(self.blocks["first"](inputs))


def before_pooling(head):
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(NUM_FEATURES, 3, activation="relu")(inputs)
    return keras.Model(inputs, layers.Softmax()(layers.GlobalAveragePooling2D()(layers.Dropout(0.3)(head(x)))))


CASES = [
    Case("sequential", lambda: sequential(layers.Dense(3))),
    Case("functional", _functional),
    Case("nested", _nested),
    Case("subclassed", Subclassed, "softmax"),
    Case("convolutional", _convolutional, "softmax", input_shape=(6, 6, 2)),
    Case("call without training", WithoutTraining),
    Case("1 x 1 convolution", lambda: before_pooling(layers.Conv2D(3, 1)), "softmax", input_shape=(6, 6, 2)),
    Case("dense at every position", lambda: before_pooling(layers.Dense(3)), "softmax", input_shape=(6, 6, 2)),
    Case("softmax inside", lambda: sequential(layers.Dense(3, activation="softmax")), "softmax"),
    Case("softmax layer", lambda: sequential(layers.Dense(3), layers.Softmax()), "softmax"),
    Case("sigmoid inside", lambda: sequential(layers.Dense(2, activation="sigmoid")), "sigmoid", 2),
    Case("sigmoid layer", lambda: sequential(layers.Dense(1), layers.Activation("sigmoid")), "sigmoid", 1),
    Case("no bias", lambda: sequential(layers.Dense(3, use_bias=False)), use_bias=False),
    Case(
        "no bias, sigmoid",
        lambda: sequential(layers.Dense(2, use_bias=False, activation="sigmoid")),
        "sigmoid",
        2,
        use_bias=False,
    ),
    Case("gated before", lambda: sequential(GatedDense(5, gates="random", seed=0), layers.Dense(3)), gated=True),
    Case("gated branch", lambda: sequential(GatedBranch(layers.Dense(3), 4, seed=0)), gated=True),
]


class Scale(layers.Layer):
    """Multiplies by a trainable number that is one at first."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")

    def call(self, inputs):
        return self.factor * inputs


class Transposed(layers.Layer):
    """Uses the kernel of another layer."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def call(self, inputs):
        return keras.ops.matmul(inputs, keras.ops.transpose(self.other.kernel))


class Noise(layers.Layer):
    """Random in inference mode too."""

    def __init__(self):
        super().__init__()
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seeds)


def _tied():
    head = layers.Dense(5, name="tied")
    head.build((None, 5))
    inputs = keras.Input((5,))
    return keras.Model(inputs, head(layers.ReLU()(Transposed(head)(inputs))))


def _called_twice():
    head = layers.Dense(5, name="twice")
    return keras.Sequential([layers.Input((5,)), head, layers.ReLU(), head])


def _two_outputs():
    inputs = keras.Input((5,))
    return keras.Model(inputs, [layers.Dense(3)(inputs), layers.Dense(2)(inputs)])


class BatchStatistics(layers.Layer):
    """Normalizes by the batch in inference mode too."""

    def __init__(self):
        super().__init__()
        self.norm = layers.BatchNormalization()

    def call(self, inputs):
        return self.norm(inputs, training=True)


def _low_rank():
    model = sequential(layers.Dense(3, name="adapted"))
    model.layers[-1].enable_lora(2)
    return model


REFUSED = [
    ("no linear layer", lambda: keras.Sequential([layers.Input((5,)), layers.ReLU(name="last")]), "'last' .ReLU"),
    ("relu inside", lambda: sequential(layers.Dense(3, activation="relu", name="rectified")), "'rectified'.*'relu'"),
    ("relu after", lambda: sequential(layers.Dense(3), layers.ReLU(name="after")), "'after' .ReLU"),
    ("scale after", lambda: sequential(layers.Dense(3), Scale(name="temperature")), "'temperature' .Scale"),
    ("normalized logits", lambda: sequential(layers.Dense(3), layers.BatchNormalization(name="bn")), "'bn'"),
    ("tied weights", _tied, "tied weights.*'tied'"),
    ("called twice", _called_twice, "'twice', called 2 times"),
    ("random features", lambda: sequential(Noise(), layers.Dense(3, name="top")), "random in inference mode.*'top'"),
    (
        "batch statistics",
        lambda: sequential(BatchStatistics(), layers.Dense(3, name="top")),
        "other samples of its batch.*training=True.*'top'",
    ),
    (
        "maximum after a convolution",
        lambda: keras.Sequential(
            [layers.Input((6, 6, 2)), layers.Conv2D(3, 1, name="conv"), layers.GlobalMaxPooling2D(name="max")]
        ),
        "'max' .Global.*'conv'",
    ),
    (
        "a wide kernel before pooling",
        lambda: keras.Sequential([layers.Input((6, 6, 2)), layers.Conv2D(3, 3), layers.GlobalAveragePooling2D()]),
        "no linear last layer",
    ),
    ("three axes", lambda: keras.Sequential([layers.Input((4, 5)), layers.Dense(3, name="wide")]), "'wide'.*pool|pool"),
    ("two outputs", _two_outputs, "2 outputs"),
    (
        "constant, as a softmax of one value is",
        lambda: sequential(layers.Dense(1), layers.Rescaling(0.0, 1.0, name="constant")),
        "'constant' .Rescaling",
    ),
    ("low-rank adapter", _low_rank, "'adapted'"),
    ("unknown input shape", lambda: keras.Sequential([layers.Dense(3)]), "pass a few sample inputs"),
]


def _gates(generator, m, count):
    return {
        "mean": generator.normal(size=m),
        "scale": generator.uniform(0.5, 2.0, m),
        "gate_kernel": generator.normal(size=(m, count)) / np.sqrt(m),
        "gate_bias": generator.normal(size=count),
        "sharpness": 3.0,
    }


def _gated(generator, m, count, outputs, use_bias=True):
    gates, output_kernel = _gates(generator, m, count), generator.normal(size=(count, outputs))
    return heads.GatedHead(**gates, output_kernel=output_kernel, use_bias=use_bias)


def _mixture(generator, m, count, outputs):
    return heads.MixtureHead(**_gates(generator, m, count), num_outputs=outputs)


def _mixture_of_few_gates(generator, m, count, outputs):
    return _mixture(generator, m, m // 2, outputs)  # with fewer gates than features sums are made in the other order


def _beside_dense(make):
    return lambda generator, m, count, outputs: heads.SumHead(
        [make(generator, m, count, outputs), heads.DenseHead(m, outputs)]
    )


_gated_without_bias = functools.partial(_gated, use_bias=False)
HEADS = {  # functions of a generator, and of the numbers of features, of gates or gated units, and of outputs
    "dense": lambda generator, m, count, outputs: heads.DenseHead(m, outputs),
    "dense without bias": lambda generator, m, count, outputs: heads.DenseHead(m, outputs, use_bias=False),
    "gated": _gated,
    "gated without bias": _gated_without_bias,
    "gated beside": _beside_dense(_gated_without_bias),
    "mixture": _mixture,
    "mixture of few gates": _mixture_of_few_gates,
    "branch": _beside_dense(_mixture),
    "branch of few gates": _beside_dense(_mixture_of_few_gates),
}


def head_jacobian(head, features):
    """Return J_S, `(n, C, P)`, from its definition: the logits of unit vectors, which is no product of ours."""
    return np.stack([head.logits(features, unit) for unit in np.eye(head.num_parameters)], axis=-1)


def logits_from_outputs(outputs, activation):
    """Return logits that give these outputs; for softmax those whose exponentials sum to one."""
    if activation == "softmax":
        return keras.ops.log(outputs)
    if activation == "sigmoid":
        return keras.ops.log(outputs) - keras.ops.log1p(-outputs)
    return outputs


def dense_jacobian(case, model, x, variables):
    """Return d vec(logits) / d variables, `(n, C, P)`, by the backend's automatic differentiation of the outputs."""

    def logits():
        return logits_from_outputs(model(x, training=False), case.activation)

    shape = tuple(logits().shape)
    return np.concatenate([part.reshape(*shape, -1) for part in JACOBIANS[BACKEND](logits, variables)], axis=-1)


def _by_tensorflow(function, variables):
    import tensorflow as tf

    with tf.GradientTape(persistent=True) as tape:
        outputs = function()
    values = [variable.value for variable in variables]
    return [part.numpy() for part in tape.jacobian(outputs, values, experimental_use_pfor=False)]


def _by_jax(function, variables):
    import jax

    def outputs(values):
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function()

    return [np.array(part) for part in jax.jacrev(outputs)([variable.value for variable in variables])]


def _by_torch(function, variables):
    import torch

    values = [variable.value for variable in variables]
    rows = [
        torch.autograd.grad(output, values, retain_graph=True, allow_unused=True, materialize_grads=True)
        for output in function().flatten()
    ]
    return [torch.stack(part).numpy() for part in zip(*rows, strict=True)]


JACOBIANS = {"tensorflow": _by_tensorflow, "jax": _by_jax, "torch": _by_torch}
