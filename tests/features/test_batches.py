"""Features from every kind of data, the same as from arrays."""

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dal
from keras_dal.features import precision as precision_module
from keras_dal.features import tracing
from keras_dal.features.batches import as_arguments, batches, feature_batches, first_inputs
from keras_dal.features.precision import eps_of
from keras_dal.features.store import SpooledRows
from keras_dal.models.find_structure import find_structure

N = 11
CASE = cases.CASES[2]


class Batches(keras.utils.PyDataset):
    """Arrays in batches of four."""

    def __init__(self, *arrays):
        super().__init__()
        self.arrays = arrays

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return tuple(array[4 * index : 4 * index + 4] for array in self.arrays)


DATA = {
    "arrays": lambda *arrays: arrays,
    "tensors": lambda *arrays: tuple(tf.constant(array) for array in arrays),
    "tf.data": lambda *arrays: (tf.data.Dataset.from_tensor_slices(arrays).batch(4),),
    "PyDataset": lambda *arrays: (Batches(*arrays),),
    "list of batches": lambda *arrays: ([tuple(array[i : i + 4] for array in arrays) for i in (0, 4, 8)],),
    "generator": lambda *arrays: (tuple(array[i : i + 4] for array in arrays) for i in (0, 4, 8)),
}


@pytest.fixture(scope="module")
def structure():
    return find_structure(CASE.build("float32"))


@pytest.mark.parametrize("kind", DATA)
def test_every_kind_of_data(structure, kind):
    x, y, weight = CASE.inputs(N), CASE.labels(N), np.linspace(0, 1, N)
    data = DATA[kind](x, y, weight)
    data = data if isinstance(data, tuple) else (data,)
    seen = list(feature_batches(structure, *data, batch_size=4))
    assert [len(part) for part, _, _ in seen] == [4, 4, 3]
    z, labels, weights = (np.concatenate(parts) for parts in zip(*seen, strict=True))
    body = structure.model.get_layer("body")
    expected = tracing.to_numpy(body(x, training=False))  # dropout and all in inference mode
    np.testing.assert_allclose(z, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(labels, y)
    np.testing.assert_allclose(weights, weight)


def test_follows_the_model_when_its_weights_change(structure):
    x = CASE.inputs(4)
    ((before, _, _),) = feature_batches(structure, x)
    kernel = structure.model.get_layer("body").layers[-1].kernel
    kernel.assign(2 * tracing.to_numpy(kernel))
    ((after, _, _),) = feature_batches(structure, x)
    assert np.abs(after - before).max() > 1e-3


def test_several_inputs():
    a, b = keras.Input((3,), name="a"), keras.Input((2,), name="b")
    joined = keras.layers.Concatenate()([a, b])
    model = keras.Model({"a": a, "b": b}, keras.layers.Dense(2)(joined))
    x = {"a": np.ones((5, 3), "float32"), "b": np.zeros((5, 2), "float32")}
    parts = [part for part, _, _ in feature_batches(find_structure(model), x, batch_size=3)]
    np.testing.assert_array_equal(np.concatenate(parts), np.column_stack([x["a"], x["b"]]))


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (lambda: (tf.data.Dataset.from_tensor_slices(CASE.inputs(4)).repeat().batch(2),), "must be finite: leave out"),
        (lambda: (tf.data.Dataset.from_tensor_slices(CASE.inputs(4)).take(0).batch(2),), "no samples"),
        (lambda: (Batches(CASE.inputs(4)), np.zeros(4)), "its own labels and weights"),
        (lambda: (np.full((4, 5), np.inf, "float32"),), "Received: 16 such values in the inputs of layer 'logits'"),
        (lambda: (CASE.inputs(4), np.zeros(3)), "same number of samples"),
    ],
    ids=["infinite", "empty", "labels twice", "not finite", "lengths"],
)
def test_bad_data(structure, make, pattern):
    with pytest.raises(ValueError, match=pattern) as error:
        list(feature_batches(structure, *make()))
    assert "Received: " in str(error.value)


@pytest.mark.parametrize("wrapped", [lambda part: [part], lambda part: {"out": part}], ids=["list", "dict"])
def test_labels_and_weights_of_one_output_may_be_wrapped(structure, wrapped):
    x, y, weight = CASE.inputs(N), CASE.labels(N), np.linspace(0, 1, N)
    dataset = [(x[:5], wrapped(y[:5]), wrapped(weight[:5])), (x[5:], wrapped(y[5:]), wrapped(weight[5:]))]
    for data in ((x, wrapped(y), wrapped(weight)), (dataset,)):
        _, labels, weights = zip(*feature_batches(structure, *data), strict=True)
        np.testing.assert_array_equal(np.concatenate(labels), y)
        np.testing.assert_array_equal(np.concatenate(weights), weight)


def test_labels_of_several_outputs_are_refused(structure):
    x, y = CASE.inputs(N), CASE.labels(N)
    for data in ((x, [y, y]), ([(x, {"a": y, "b": y})],)):
        with pytest.raises(ValueError, match=r"labels must be one array.*Received: 2 arrays of shapes \[\(11,\)"):
            list(feature_batches(structure, *data))


def test_two_or_three_arrays_in_a_list_are_what_they_are_in_a_tuple():
    x, y, weight = CASE.inputs(N), CASE.labels(N), np.ones(N)
    assert as_arguments(None) is None
    for data in ((x, y), (x, y, weight), ({"a": x}, y), ([x, x], y), (x, y, None)):
        assert as_arguments(data) is data
        assert [id(part) for part in as_arguments(list(data))] == [id(part) for part in data]
    for dataset in ([(x, y), (x, y)], [(x, y)], DATA["tf.data"](x, y)[0], Batches(x, y)):
        assert as_arguments(dataset) == (dataset,)


def arguments_that_are_no_data():
    """Return calls with a number where data should be, by what that is called in the message."""
    x, y = CASE.inputs(N), CASE.labels(N)
    noisy = keras.Sequential([keras.Input((5,)), keras.layers.BatchNormalization(), keras.layers.Dense(3)])
    noisy.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return {
        "x": lambda: keras_dal.certify(CASE.build(), 7, loss=CASE.loss),
        "anchors": lambda: keras_dal.converge(CASE.build(), x, y, anchors=7, loss=CASE.loss, verbose=0),
        "validation data": lambda: keras_dal.converge(CASE.build(), x, y, validation_data=7, loss=CASE.loss, verbose=0),
        "statistics_from": lambda: keras_dal.finish(noisy, x, y, statistics_from=7, verbose=0),
        "data": lambda: noisy.fit(x, y, callbacks=[keras_dal.AlignmentMonitor(data=7, verbose=0)], verbose=0),
    }


@pytest.mark.parametrize("name", arguments_that_are_no_data())
def test_what_is_no_data_is_called_by_its_own_name(name):
    with pytest.raises(ValueError, match=f"^{name} must be arrays, a tf.data.Dataset.*Received: {name}=7$"):
        arguments_that_are_no_data()[name]()


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset", "list of batches", "generator"])
def test_a_dataset_is_refused_by_what_it_is_where_arrays_are_wanted(kind):
    told = "x must be arrays, and a dataset is not read here.*Received: x of type"
    options = {"parameters": "all", "loss": CASE.loss, "verbose": 0}
    for function, given in ((keras_dal.alignment, options), (keras_dal.tangent_operator, {})):
        data = DATA[kind](CASE.inputs(N), CASE.labels(N))
        with pytest.raises(ValueError, match=told):
            function(CASE.build(), data[0] if isinstance(data, tuple) else data, **given)


def test_first_inputs_uses_nothing_up():
    x = CASE.inputs(6)
    assert first_inputs(x) is x
    np.testing.assert_array_equal(first_inputs(tf.data.Dataset.from_tensor_slices((x, x)).batch(4)), x[:4])
    stream = iter([(x, x)])
    assert first_inputs(stream) is None
    assert len(list(batches(stream))) == 1


@pytest.mark.parametrize("max_bytes", [0, 10, np.inf], ids=["none", "file", "memory"])
def test_kept_rows_come_back(max_bytes):
    generator = np.random.default_rng(0)
    kept = [(generator.standard_normal((k, 3)).astype("float32"), np.arange(k)) for k in (4, 0, 7)]
    with SpooledRows(max_bytes) as rows:
        for arrays in kept:
            rows.append(*arrays)
        for _ in range(2):
            for arrays, again in zip(kept, rows, strict=True):
                for array, copy in zip(arrays, again, strict=True):
                    assert array.dtype == copy.dtype
                    np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(("dtype", "bits"), [("float64", 52), ("float32", 23), ("float16", 10), ("bfloat16", 7)])
def test_precision(dtype, bits):
    assert eps_of(np.dtype(getattr(precision_module.ml_dtypes, dtype, dtype))) == 2.0**-bits


def test_the_features_of_a_structure_are_compiled_once(monkeypatch):
    compiled, original = [], tracing._backend.compiled
    monkeypatch.setattr(tracing._backend, "compiled", lambda *args: compiled.append(args) or original(*args))
    fresh = find_structure(CASE.build())
    for _ in range(3):
        list(feature_batches(fresh, CASE.inputs(4)))
    assert len(compiled) == 1


@pytest.mark.parametrize("labels", [[0, 1, 2], (1,)], ids=str)
def test_labels_in_a_list_of_numbers_are_refused_as_what_they_are(labels):
    with pytest.raises(ValueError, match=f"labels must be an array: numpy.asarray.*a list of {len(labels)} numbers"):
        list(batches(np.ones((len(labels), 2)), labels))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scalar_of_any_dtype_becomes_an_array(dtype):
    variable = keras.Variable(1.5, dtype=dtype)
    for scalar in (variable, keras.ops.convert_to_tensor(variable)):
        found = tracing.to_numpy(scalar)
        assert (found.shape, float(found)) == ((), 1.5)


@pytest.mark.parametrize("where", ["inputs", "validation", "statistics", "weights"])
def test_nan_behind_fused_units_is_seen(where):
    """On TensorFlow a compiled relu makes zero of NaN."""
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((60, 6)).astype("float32"), np.arange(60) % 3
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(8, activation="relu"), keras.layers.BatchNormalization(momentum=0.5)]
    model = keras.Sequential([keras.Input((6,)), *hidden, keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=60, verbose=0)
    bad = np.where(np.arange(60)[:, None] == 40, np.nan, x).astype("float32")
    if where == "weights":
        kernel, bias = hidden[0].get_weights()
        hidden[0].set_weights([np.where(np.arange(8) < 4, np.nan, kernel), bias])
    calls = {
        "inputs": [(keras_dal.certify, bad, {}), (keras_dal.alignment, bad, {})],
        "validation": [(keras_dal.converge, x, {"validation_data": (bad, y)})],
        "statistics": [(keras_dal.finish, x, {"statistics_from": bad})],
        "weights": [(keras_dal.finish, x, {}), (keras_dal.converge, x, {})],
    }
    before = model.get_weights()
    for function, inputs, options in calls[where]:
        with pytest.raises(ValueError, match="must be finite|not finite"):
            function(model, inputs, y, verbose=0, **options)
    for ours, theirs in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("y", [None, np.array([0, 1])])
@pytest.mark.parametrize(("x", "kind"), [([[1.0, 2.0], [3.0, 4.0]], "float"), (("first", "second"), "str")])
def test_inputs_in_a_list_are_no_dataset(x, kind, y):
    with pytest.raises(
        ValueError, match=f"x must be arrays: numpy.asarray makes one of a list. Received: .* of {kind}"
    ):
        next(batches(x, y))
