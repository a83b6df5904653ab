"""Combinations of what people train with, and what must hold in each: one cell is one fit with the two lines.

Exploration is bit for bit that of the bare optimizer, what is frozen stays, and a fit that is saved and loaded ends
with the weights of one that was not. `pairwise` draws few cells with every pair of values, `whole` has all of them,
one fit for those that differ only in when they are saved.
"""

import itertools
import random
from typing import NamedTuple

import keras
import numpy as np
from keras import layers

import keras_dal

EXPLORED, EPOCHS, BATCH, SAMPLES = 2, 4, 8, 48
MOMENTS = {"before the switch": 0, "at the switch": EXPLORED - 1, "after the switch": EXPLORED}  # epochs
_OTHERS = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer"}  # the last is refused: it cannot update a part
OPTIMIZERS = sorted(
    name
    for name, kind in vars(keras.optimizers).items()
    if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer) and name not in _OTHERS
)
FACTORS = {
    "optimizer": OPTIMIZERS,
    "option": [
        "plain",
        "average",
        "accumulation",
        "clipnorm",
        "global_clipnorm",
        "decay",
        "schedule",
        "loss scale",
        "steps_per_execution",
        "jit",
        "eager",
        "class weights",
        "validation",
    ],
    "model": ["sequential", "functional", "subclassed", "nested", "two inputs"],
    "saved": ["never", *MOMENTS],
    "finish": ["solve", "descend"],
}
_OF_OPTIMIZER = {
    "average": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": None},
    "accumulation": {"gradient_accumulation_steps": 2},
    "clipnorm": {"clipnorm": 0.1},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "decay": {"weight_decay": 1e-2},
}
_CLASS_WEIGHT = {0: 1.0, 1: 2.0, 2: 0.5}
_OF_COMPILE = {
    "steps_per_execution": {"steps_per_execution": 3},
    "jit": {"jit_compile": True},
    "eager": {"run_eagerly": True},
}


class Cell(NamedTuple):
    """One value of each factor."""

    optimizer: str
    option: str
    model: str
    saved: str
    finish: str


def pairwise(seed=0):
    """Return cells in which every pair of values of two factors occurs at least once, in a mixed order."""
    generator, names = random.Random(seed), list(FACTORS)
    missing = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in FACTORS[a] for y in FACTORS[b]}
    cells = []
    while missing:
        first = dict(min(missing))
        tried = [
            Cell(**{**{name: generator.choice(values) for name, values in FACTORS.items()}, **first}) for _ in range(40)
        ]
        best = max(tried, key=lambda cell: len(missing & _pairs(cell)))
        missing -= _pairs(best)
        cells.append(best)
    generator.shuffle(cells)
    return cells


def whole(optimizer):
    """Return all cells of an optimizer, those of one fit that is saved at each moment as one."""
    rest = (FACTORS[name] for name in ("option", "model", "finish"))
    return [Cell(optimizer, option, model, "each", finish) for option, model, finish in itertools.product(*rest)]


def moments(cell):
    """Return when the fit of a cell is saved: names and epochs, without what Keras itself cannot resume."""
    chosen = MOMENTS if cell.saved == "each" else {name: MOMENTS[name] for name in [cell.saved] if name in MOMENTS}
    return {name: epoch for name, epoch in chosen.items() if not reason_to_skip(cell._replace(saved=name))}


def _pairs(cell):
    return set(itertools.combinations(cell._asdict().items(), 2))


def reason_to_skip(cell):
    """Return why Keras itself cannot do this, or None."""
    if cell.option == "jit" and keras.backend.backend() == "torch":
        return "compiling takes a C++ compiler and a minute for each model on torch"
    if cell.option == "steps_per_execution" and keras.backend.backend() == "torch":
        return "steps_per_execution is not what Keras does on torch"
    resumes = cell.saved in MOMENTS and (cell.finish == "descend" or cell.saved != "after the switch")
    if (cell.optimizer, cell.option) == ("Nadam", "loss scale") and keras.backend.backend() != "jax" and resumes:
        return "a Nadam inside a LossScaleOptimizer does not go on where it was saved, alone too"
    return None


class Subclassed(keras.Model):
    def __init__(self, **options):
        super().__init__(**options)
        self.hidden, self.norm, self.out = layers.Dense(6), layers.BatchNormalization(), layers.Dense(3)

    def call(self, x):
        return self.out(keras.ops.relu(self.norm(self.hidden(x))))


def model_of(kind):
    keras.utils.set_random_seed(0)
    if kind == "subclassed":
        model = Subclassed(name="subclassed")
        model(np.zeros((1, 4), "float32"))
        return model
    if kind == "sequential":
        hidden = [layers.Dense(6), layers.BatchNormalization(), layers.ReLU()]
        return keras.Sequential([keras.Input((4,)), *hidden, layers.Dense(3)], name="sequential")
    inputs = [keras.Input((4,), name="a")] + ([keras.Input((4,), name="b")] if kind == "two inputs" else [])
    x = inputs[0] if kind != "two inputs" else layers.Concatenate()(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Dense(6)(x)))
    if kind == "nested":
        x = keras.Model(inputs, x, name="trunk")(inputs[0])
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], layers.Dense(3)(x))


def optimizer_of(cell):
    kind = getattr(keras.optimizers, cell.optimizer)
    rate = keras.optimizers.schedules.ExponentialDecay(0.02, 4, 0.9) if cell.option == "schedule" else 0.02
    made = kind(rate, **_OF_OPTIMIZER.get(cell.option, {}))
    return keras.optimizers.LossScaleOptimizer(made) if cell.option == "loss scale" else made


def data_of(kind):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((SAMPLES, 4)).astype("float32"), generator.integers(0, 3, SAMPLES)
    return ([x, x[:, ::-1].copy()] if kind == "two inputs" else x), y


class Keep(keras.callbacks.Callback):
    """Keeps the weights at the end of every epoch, and saves the model at the end of some."""

    def __init__(self, paths=()):
        super().__init__()
        self.paths, self.weights = dict(paths), []

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append(weights_of(self.model))
        if epoch in self.paths:
            self.model.save(self.paths[epoch])


def weights_of(model):
    return [np.array(keras.ops.convert_to_numpy(v)) for v in model.weights]


def trained(cell, model, epochs, callbacks, first=0):
    x, y = data_of(cell.model)
    options = {}
    if cell.option == "class weights":
        options["class_weight"] = _CLASS_WEIGHT
    if cell.option == "validation":
        options["validation_data"] = (x, y)
    return model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        initial_epoch=first,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
        **options,
    ).history


def compiled(cell, optimizer):
    model = model_of(cell.model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"], **_OF_COMPILE.get(cell.option, {}))
    return model


def check(cell, folder):
    """Raise an AssertionError unless everything holds in a cell.

    Args:
        cell: a `Cell`.
        folder: for a saved model.
    """
    bare = compiled(cell, optimizer_of(cell))
    if cell.optimizer == "ScheduleFreeAdamW":  # its start is lost where fit builds it: weights move at rate 0 then
        bare.optimizer.build(bare.trainable_variables)
    alone = Keep()
    trained(cell, bare, EXPLORED, [alone])
    wrapped = compiled(cell, keras_dal.Wrap(optimizer_of(cell), explore=EXPLORED, finish=cell.finish))
    paths = {epoch: folder / f"{epoch}.keras" for epoch in moments(cell).values()}
    keep, monitor = Keep(paths), keras_dal.AlignmentMonitor(verbose=False)
    history = trained(cell, wrapped, EPOCHS, [monitor, keep])
    exploited = 1 if cell.finish == "solve" else EPOCHS - EXPLORED
    assert history["phase"] == [0.0] * EXPLORED + [1.0] * exploited
    _assert_equal(keep.weights[:EXPLORED], alone.weights, "explored otherwise than the bare optimizer")
    head = {id(v) for v in wrapped.layers[-1].weights}
    frozen = [index for index, v in enumerate(wrapped.weights) if id(v) not in head]
    after = [[weights[index] for index in frozen] for weights in keep.weights[EXPLORED:]]
    _assert_equal(after[1:], after[:1] * (len(after) - 1), "moved after the switch")
    if cell.finish == "solve":
        weights = [_CLASS_WEIGHT[label] if cell.option == "class weights" else 1.0 for label in data_of(cell.model)[1]]
        assert monitor.result.point.gap <= 1e-4 * np.mean(weights)  # the tolerance is in units of the loss
    for saved, path in paths.items():
        loaded = keras.saving.load_model(path, custom_objects={"Subclassed": Subclassed})
        if cell.finish == "descend" or saved < EXPLORED:
            trained(cell, loaded, EPOCHS, [keras_dal.AlignmentMonitor(verbose=False)], saved + 1)
        what = f"ended elsewhere after it was saved after epoch {saved + 1} and loaded"
        _assert_equal([weights_of(loaded)], [weights_of(wrapped)], what)


def _assert_equal(found, expected, what):
    for each, other in zip(found, expected, strict=True):
        for a, b in zip(each, other, strict=True):
            assert np.array_equal(a, b), f"{what}, by {np.abs(a - b).max():.1e}"
