"""Kept features: equal to computed ones, reused only when valid, and never half written."""

import errno
import gc
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
import weakref
from types import SimpleNamespace

import cases
import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_dal
from keras_dal.features import cache, store
from keras_dal.features.cache import cached_features
from keras_dal.features.fingerprint import fingerprint
from keras_dal.models.find_structure import find_structure


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])


@pytest.fixture
def structure(model):
    return find_structure(model)


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(size=(50, 6)).astype("float32")


@pytest.fixture
def expected(structure, x):
    return structure.features(x)


@pytest.fixture
def passes(monkeypatch):
    """Counts passes over the data with the model."""
    counted, original = [], cache.feature_batches

    def counting(*args, **kwargs):
        counted.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(cache, "feature_batches", counting)
    return counted


def files(directory):
    return sorted(path.suffix for path in directory.iterdir())


@pytest.mark.parametrize("max_bytes", [0, 1000, 2**20], ids=["on disk", "grows onto disk", "in memory"])
@pytest.mark.parametrize("kept", [False, True])
def test_features_labels_and_weights_are_those_of_the_data(structure, x, expected, tmp_path, max_bytes, kept):
    y, w = np.arange(50), np.linspace(0, 1, 50)
    found = cached_features(structure, x, y, w, 16, tmp_path if kept else None, max_bytes)
    np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-6)
    assert (found.labels == y).all()
    assert (found.weights == w).all()
    assert isinstance(found.features, np.memmap) == (max_bytes < 50 * 8 * 4 or kept)
    assert files(tmp_path) == ([".features", ".json"] if kept else [])


def test_a_dataset_is_read_once_and_not_kept(structure, x, expected, tmp_path):
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(50))).batch(16)
    with pytest.warns(UserWarning, match="not kept: only arrays can be recognized. Received:"):
        found = cached_features(structure, data, directory=tmp_path)
    np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-6)
    assert (found.labels == np.arange(50)).all()
    assert files(tmp_path) == []


def test_valid_features_are_found_again(structure, x, expected, tmp_path, passes):
    first = cached_features(structure, x, np.arange(50), directory=tmp_path)
    again = cached_features(structure, x.copy(), np.arange(50) + 1, directory=tmp_path)
    assert len(passes) == 1
    assert (np.asarray(first.features) == again.features).all()
    assert again.labels[0] == 1
    np.testing.assert_allclose(again.features, expected, rtol=1e-5, atol=1e-6)


def test_another_head_finds_the_same_features(model, x, tmp_path, passes):
    cached_features(find_structure(model), x, directory=tmp_path)
    model.layers[-1].kernel.assign_add(np.ones((8, 3)))
    cached_features(find_structure(model), x, directory=tmp_path)
    assert len(passes) == 1


@pytest.mark.parametrize("change", ["data", "weights", "activation"])
def test_what_features_depend_on_is_noticed(model, x, tmp_path, passes, change):
    cached_features(find_structure(model), x, directory=tmp_path)
    if change == "data":
        x[-1, -1] += 1e-3
    elif change == "weights":
        model.layers[0].bias.assign_add(np.full(8, 1e-3))
    else:
        other = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "elu"), keras.layers.Dense(3)])
        other.set_weights(model.get_weights())
        model = other
    found = cached_features(find_structure(model), x, directory=tmp_path)
    assert len(passes) == 2
    np.testing.assert_allclose(found.features, find_structure(model).features(x), rtol=1e-5, atol=1e-6)


def test_statistics_and_shapes_of_the_data_are_noticed(tmp_path, passes):
    """Even where the features barely change, or the bytes of the data not at all."""
    x = np.random.default_rng(0).normal(size=(50, 6, 2)).astype("float32")
    inputs = keras.Input((None, 2))
    norm = keras.layers.BatchNormalization()
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.GlobalMaxPooling1D()(norm(inputs))))
    cached_features(find_structure(model), x, directory=tmp_path)
    norm.moving_mean.assign(np.full(2, 1e-5))
    cached_features(find_structure(model), x, directory=tmp_path)
    assert len(passes) == 2
    found = cached_features(find_structure(model), x.reshape(25, 12, 2), directory=tmp_path)
    assert len(passes) == 3
    assert len(found) == 25


def test_every_input_is_noticed(tmp_path, passes):
    inputs = [keras.Input((3,)), keras.Input((2,))]
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Concatenate()(inputs)))
    x = [np.random.default_rng(0).normal(size=(50, size)).astype("float32") for size in (3, 2)]
    cached_features(find_structure(model), x, directory=tmp_path)
    x[1][-1, -1] += 1e-5
    cached_features(find_structure(model), x, directory=tmp_path)
    assert len(passes) == 2


def functional():
    x = keras.Input((6,))
    hidden = keras.layers.Dense(8, "relu")(x)
    return keras.Model(x, keras.layers.Dense(3)(keras.ops.relu(hidden + 1.0)))


OWN_LAYER = """
import keras

class Scales(keras.layers.Layer):
    factor = {factor}

    def __init__(self):
        super().__init__()
        self.limits, self.skipped = [{limit}, 100.0], {{"a", "b", "c", None}}
        self.table = {{None: keras.ops.relu, "slope": {slope}}}

    def call(self, x):
        return keras.ops.clip(self.table["slope"] * x, -self.limits[0], self.limits[0]) {operation} self.factor
"""


@keras.saving.register_keras_serializable("tests")
class Sized(keras.layers.Layer):
    """Its configuration calls numbers layers, and knows nothing of something."""

    def __init__(self, layers, **options):
        super().__init__(**options)
        self.sizes = layers

    def call(self, x):
        return x

    def get_config(self):
        return {**super().get_config(), "layers": list(self.sizes)}


@pytest.mark.parametrize("sizes", [[64, 32], [{"config": None}], [{"config": {"name": 3}}], ["x"]])
def test_what_a_configuration_calls_layers_need_be_none(sizes, x):
    parts = [keras.Input((6,)), Sized(sizes), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
    names = [fingerprint(find_structure(keras.Sequential(made)), x) for made in (parts, parts, [parts[0], *parts[2:]])]
    assert names[0] == names[1] != names[2]


@pytest.fixture
def with_own_layer(tmp_path, monkeypatch):
    """A function that makes a model with a layer of the user's own, as a file with some changes defines it."""

    def make(**changed):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        values = {"factor": 2.0, "limit": 3.5, "slope": 1.0, "operation": "*"} | changed
        (folder / "own.py").write_text(OWN_LAYER.format(**values))
        monkeypatch.syspath_prepend(folder)
        sys.modules.pop("own", None)
        scales = importlib.import_module("own").Scales()
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input((6,)), scales, keras.layers.Dense(3)])

    return make


def test_what_layers_of_ones_own_compute_with_is_noticed(with_own_layer, x):
    changes = [{"factor": 2.5}, {"limit": 4.0}, {"slope": 1.1}, {"operation": "/"}]
    names = [fingerprint(find_structure(with_own_layer(**each)), x) for each in ({}, *changes)]
    assert len(set(names)) == 5
    assert fingerprint(find_structure(with_own_layer()), x) == names[0]


@pytest.mark.parametrize("change", ["number", "array", "shape", "set"])
def test_an_attribute_that_was_changed_is_noticed(with_own_layer, x, change):
    model = with_own_layer()
    layer = model.layers[0]
    layer.table["array"] = np.zeros((2, 3))
    before = fingerprint(find_structure(model), x)
    if change == "number":
        layer.limits[0] = 100.0
    elif change == "set":
        layer.skipped.add("d")
    else:
        layer.table["array"] = np.ones((2, 3)) if change == "array" else np.zeros((3, 2))
    assert fingerprint(find_structure(model), x) != before


class WithOwnStep(keras.Model):
    def train_step(self, *arguments):
        return super().train_step(*arguments)


def of_a_graph():
    x = keras.Input((6,))
    return WithOwnStep(x, keras.layers.Dense(3)(keras.layers.Dense(8, "relu")(x)))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.body = keras.Sequential([keras.layers.Dense(8, "relu")])
        self.head = keras.layers.Dense(3)

    def call(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("make", [functional, Subclassed, of_a_graph])
def test_a_model_is_recognized_when_it_is_built_again(make, x, tmp_path, passes):
    for _ in range(2):  # Keras counts on in the names of the second one's layers
        keras.utils.set_random_seed(0)
        model = make()
        cached_features(find_structure(model, x), x, directory=tmp_path)
    model.compile("sgd", "mse")
    model.evaluate(x, np.zeros((50, 3)), verbose=0)
    model.predict(x, verbose=0)
    cached_features(find_structure(model, x), x, directory=tmp_path)
    assert len(passes) == 1


@cases.needs_tensorflow(reason="only TensorFlow has tensors of strings")
def test_strings_are_recognized(tmp_path, passes):
    words = np.array(["a b", "b c", "c", "a"])
    vectors = keras.layers.TextVectorization(output_mode="multi_hot")
    vectors.adapt(words)
    model = keras.Sequential([keras.Input((), dtype="string"), vectors, keras.layers.Dense(3)])
    for x in (words, words.astype(object), words[::-1]):
        cached_features(find_structure(model, x), x, directory=tmp_path)
    assert len(passes) == 2


def test_a_model_with_dropout_is_recognized_when_it_is_loaded_again(x, tmp_path, passes):
    layers = [keras.layers.Dense(8, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile("sgd", "mse")
    model.save(tmp_path / "model.keras")
    for _ in range(2):
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        cached_features(find_structure(loaded), x, directory=tmp_path / "cache")
    loaded.compile("adam", "mse")
    cached_features(find_structure(loaded), x, directory=tmp_path / "cache")
    assert len(passes) == 1


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


def damage_flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_description(path):
    path.with_suffix(".json").write_text('{"rows": 50')


def damage_be_old(path):
    description = json.loads(path.with_suffix(".json").read_text())
    del description["format"]
    path.with_suffix(".json").write_text(json.dumps(description))


def damage_no_object(path):
    path.with_suffix(".json").write_text("[1]")


def damage_lose_description(path):
    path.with_suffix(".json").unlink()


def damage_wrong_rows(path):
    rows = np.fromfile(path, np.float32)
    rows[-8:] += 1  # the last of the samples
    rows.tofile(path)
    description = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps({**description, "checksum": store.checksum(path)}))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_truncate, "size"),
        (damage_flip, "checksum"),
        (damage_description, "description"),
        (damage_be_old, "its format is 0"),
        (damage_no_object, "description"),
        (damage_lose_description, "description"),
        (damage_wrong_rows, "other features"),
    ],
)
def test_an_invalid_file_is_refused_and_replaced(structure, x, expected, tmp_path, passes, damage, reason):
    cached_features(structure, x, directory=tmp_path)
    (path,) = tmp_path.glob("*.features")
    damage(path)
    with pytest.warns(UserWarning, match=reason):
        found = cached_features(structure, x, directory=tmp_path)
    np.testing.assert_allclose(found.features, expected, rtol=1e-5, atol=1e-6)
    cached_features(structure, x, directory=tmp_path)
    assert len(passes) == 2


def test_a_full_disk_leaves_nothing_behind(structure, x, tmp_path, monkeypatch):
    class Full:
        def __init__(self, **kwargs):
            self.name = str(tmp_path / "full.partial")
            self.file = open(self.name, "wb")  # noqa: SIM115

        def write(self, data):
            self.file.write(bytes(data)[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self):
            self.file.close()

    monkeypatch.setattr(store.tempfile, "NamedTemporaryFile", Full)
    with pytest.raises(OSError, match=r"do not fit on the disk.*Received: 50 rows") as raised:
        cached_features(structure, x, directory=tmp_path)
    assert raised.value.errno == errno.ENOSPC
    assert files(tmp_path) == []


def test_a_disk_that_is_full_for_the_description_leaves_nothing_behind(structure, x, tmp_path, monkeypatch):
    def full(description):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.json, "dumps", full)
    with pytest.raises(OSError, match="No space left on device"):
        cached_features(structure, x, directory=tmp_path)
    assert files(tmp_path) == []


def test_a_description_that_cannot_be_put_in_place_leaves_nothing_behind(structure, x, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full)
    with pytest.raises(OSError, match=r"do not fit on the disk.*Received: 50 rows"):
        cached_features(structure, x, directory=tmp_path)
    assert files(tmp_path) == []


def test_two_processes_may_write_the_same_features(structure, x, tmp_path, monkeypatch, passes):
    original, waiting = store.os.replace, [True]

    def interrupted(source, target):
        if str(target).endswith(".json") and waiting.pop():
            waiting.append(False)
            cached_features(structure, x, directory=tmp_path)  # as another process would, from its start to its end
        original(source, target)

    monkeypatch.setattr(store.os, "replace", interrupted)
    cached_features(structure, x, directory=tmp_path)
    assert files(tmp_path) == [".features", ".json"]
    cached_features(structure, x, directory=tmp_path)
    assert len(passes) == 2


def test_kept_features_of_tensors_are_found_again(structure, x, tmp_path, passes):
    for _ in range(2):
        cached_features(structure, tf.constant(x), directory=tmp_path)
    assert len(passes) == 1


def test_an_interrupt_leaves_nothing_behind(structure, x, tmp_path):
    def interrupt(rows):
        if rows >= 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_features(structure, x, batch_size=16, directory=tmp_path, on_batch=interrupt)
    assert files(tmp_path) == []


def test_a_killed_process_leaves_no_file_that_counts(tmp_path):
    script = """
        import sys, time, keras, numpy as np
        from keras_dal.features.cache import cached_features
        from keras_dal.models.find_structure import find_structure
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
        x = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
        def wait(rows):
            print(rows, flush=True)
            time.sleep(60)
        cached_features(find_structure(model), x, batch_size=16, directory=sys.argv[1], on_batch=wait)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=pathlib.Path(__file__).parents[2])
    assert process.stdout.readline().strip() == "16"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert files(tmp_path) == [".partial"]
    (partial,) = tmp_path.iterdir()
    foreign = tmp_path / "download.partial"
    for age, left in ((7200, {partial, foreign}), (172800, {foreign})):  # of a process that may live, and a killed one
        for path in (partial, foreign):
            path.touch()
            os.utime(path, (time.time() - age,) * 2)
        writer = store.RowWriter(tmp_path, 0, keep=True)
        writer.append(np.ones((1, 2), np.float32))
        writer.discard()
        assert set(tmp_path.iterdir()) == left


@pytest.mark.parametrize("max_bytes", [2**20, 100])
def test_samples_of_weight_zero_are_left_out(structure, x, max_bytes, monkeypatch):
    monkeypatch.setattr(store, "_CHUNK", 8 * 4 * 7)  # seven rows are copied at a time
    w = np.where(np.arange(50) < 10, 0.0, 2.0)
    whole = cached_features(structure, x, np.arange(50), w, max_bytes=max_bytes)
    found = whole.weighted
    assert isinstance(found.features, np.memmap) == (max_bytes < 2**20)
    np.testing.assert_array_equal(found.features, whole.features[10:])
    assert whole.weighted is found
    assert len(found) == 40
    assert found.labels[0] == 10
    assert found.weights.sum() / 40 == pytest.approx(w.mean())


def test_weights_that_are_all_zero_are_refused(structure, x):
    with pytest.raises(ValueError, match="positive weight.*Received"):
        len(cached_features(structure, x, np.arange(50), np.zeros(50)).weighted)


def test_kept_features_are_as_particular_about_weights(structure, x, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="not negative"):
            cached_features(structure, x, np.arange(50), -np.ones(50), directory=tmp_path)
        cached_features(structure, x, directory=tmp_path)


def test_mapped_inputs_are_never_copied_as_a_whole(structure, x, tmp_path, monkeypatch, passes):
    np.save(tmp_path / "x.npy", x)
    mapped, convert = np.load(tmp_path / "x.npy", mmap_mode="r"), keras.ops.convert_to_numpy

    def converted(values):
        assert not isinstance(values, np.ndarray)
        return convert(values)

    monkeypatch.setattr(keras.ops, "convert_to_numpy", converted)
    for _ in range(2):
        cached_features(structure, mapped, np.arange(50), np.ones(50), directory=tmp_path / "kept")
    assert len(passes) == 1


def test_a_file_of_which_all_outputs_were_compared_is_good_for_any_weights(structure, x, tmp_path, passes):
    some = np.arange(50) % 2
    for weights, num_passes in ((some, 1), (some, 1), (1 - some, 2), (None, 3), (1 - some, 3), (np.roll(some, 3), 3)):
        found = cached_features(structure, x, None, weights, directory=tmp_path)
        assert len(passes) == num_passes
        np.testing.assert_allclose(found.features, structure.features(x), rtol=1e-5, atol=1e-6)
    assert len(list(tmp_path.glob("*.features"))) == 3


def test_samples_whose_outputs_nobody_compared_are_not_taken_from_a_file(x, tmp_path):
    """What zeroes some outputs does no harm to samples without a weight, whose features are kept all the same."""
    inputs = keras.Input((6,))
    outputs = keras.layers.Dense(3)(keras.layers.Dense(8, activation="relu")(inputs))
    shows = keras.layers.Lambda(lambda pair: keras.ops.where(pair[1][:, :1] < 1.5, pair[0], 0.0))([outputs, inputs])
    model = keras.Model(inputs, shows)
    shown = (x[:, 0] < 1.5).astype("float32")
    assert 0 < shown.mean() < 1
    structure = find_structure(model, x[shown > 0])
    for _ in range(2):
        cached_features(structure, x, None, shown, directory=tmp_path)
        with pytest.raises(ValueError, match="acts on some samples only"):
            cached_features(structure, x, directory=tmp_path)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_features_through_half_precision_are_found_again(policy, x, tmp_path, passes):
    """They are compared by the program that computed them: operation by operation they round otherwise."""
    keras.utils.set_random_seed(0)
    inner = [keras.layers.Dense(32, activation="gelu", dtype=policy) for _ in range(3)]
    model = keras.Sequential([keras.Input((6,)), *inner, keras.layers.Dense(3, dtype="float32")])
    structure = find_structure(model)
    first, again = (cached_features(structure, x[:49], directory=tmp_path, batch_size=7) for _ in range(2))
    assert len(passes) == 1
    np.testing.assert_array_equal(first.features, again.features)


def test_rows_that_do_not_stay_have_no_file_that_an_interrupt_could_leave(tmp_path):
    writer = store.RowWriter(str(tmp_path), 0, keep=False)
    block = np.arange(12.0, dtype="float32").reshape(4, 3)
    writer.append(block)
    assert not list(tmp_path.iterdir())
    np.testing.assert_array_equal(writer.finish(None), block)


def test_a_column_in_tiny_units_is_compared_by_itself(tmp_path):
    sign = SimpleNamespace(of=1.0)  # in which nobody looks for what a model depends on

    class Edited(keras.Model):
        def __init__(self):
            super().__init__()
            self.out = keras.layers.Dense(2)

        def call(self, x):
            return self.out(x * keras.ops.convert_to_tensor([1e6, 1e-3 * sign.of]))

    x = np.random.default_rng(0).standard_normal((30, 2)).astype("float32")
    model = Edited()
    model(x)
    structure = find_structure(model, x)
    first = cached_features(structure, x, np.zeros(30, int), None, 16, tmp_path)
    sign.of = -1.0
    with pytest.warns(UserWarning, match="computed again: the model computes other features"):
        again = cached_features(find_structure(model, x), x, np.zeros(30, int), None, 16, tmp_path)
    np.testing.assert_allclose(again.features[:, 1], -first.features[:, 1])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this backend multiplies float64 in float32")
@pytest.mark.parametrize("size", [1e50, 1e-60])
def test_features_that_float32_does_not_hold_are_refused(size):
    model = keras.Sequential([keras.Input((3,), dtype="float64"), keras.layers.Dense(2, dtype="float64")])
    x = size * np.random.default_rng(0).standard_normal((8, 3))
    with pytest.raises(ValueError, match="float32, which does not hold these.*Received"):
        cached_features(find_structure(model), x, None)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="this backend multiplies float64 in float32")
def test_features_are_exact_where_those_of_every_batch_are():
    model = keras.Sequential([keras.Input((3,), dtype="float64"), keras.layers.Dense(2, dtype="float64")])
    x = np.ones((4, 3))
    assert cached_features(find_structure(model), x, batch_size=2).exact
    x[0] = 1 / 3
    assert not cached_features(find_structure(model), x, batch_size=2).exact


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="Keras' lookups are TensorFlow's")
def test_other_words_of_a_lookup_are_other_features(tmp_path):
    lookup = keras.layers.IntegerLookup()
    lookup.adapt(np.array([3, 3, 3, 5, 5, 7]))
    embedding = keras.layers.Embedding(6, 4)
    model = keras.Sequential([keras.Input((1,), dtype="int64"), lookup, embedding, keras.layers.Flatten()])
    model.add(keras.layers.Dense(2))
    x = np.array([3, 5, 7, 3])[:, None]
    first = cached_features(find_structure(model, x), x, np.zeros(4, int), None, 2, tmp_path)
    lookup.adapt(np.array([7, 7, 7, 5, 5, 3]))
    again = cached_features(find_structure(model, x), x, np.zeros(4, int), None, 2, tmp_path)
    expected = keras.ops.convert_to_numpy(embedding(lookup(x)))[:, 0]
    np.testing.assert_array_equal(again.features, expected)
    assert not np.array_equal(first.features, again.features)
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_features_are_freed_with_their_last_user(structure, x):
    found = cached_features(structure, x, np.arange(50))
    assert found.weighted is found
    seen = weakref.ref(found)
    gc.disable()
    try:
        del found
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("size", [1e-60, 1e39])
def test_rows_that_float32_does_not_hold_are_refused_wherever_they_come_from(size):
    with pytest.raises(ValueError, match="float32, which does not hold these.*Received"):
        cache.FeatureRows(2**20).add(np.full((2, 3), size), None, np.ones(2))


def test_rows_say_whether_float32_holds_them_exactly():
    for features, exact in ((np.full((2, 3), 0.5), True), (np.full((2, 3), 0.1), False), (np.float32([[0.1]]), True)):
        rows = cache.FeatureRows(2**20)
        rows.add(features, None, np.ones(len(features)))
        assert rows.finish().exact is exact


@pytest.mark.parametrize("as_dataset", [False, True])
def test_data_without_the_labels_that_are_needed_are_not_evaluated(structure, x, as_dataset):
    seen, data = [], tf.data.Dataset.from_tensor_slices(x).batch(10) if as_dataset else x
    with pytest.raises(ValueError, match="Labels are needed.*Received"):
        cached_features(structure, data, on_batch=seen.append, labelled=True)
    assert not seen


@pytest.mark.parametrize("function", [keras_dal.converge, keras_dal.finish, keras_dal.add_gated_head])
def test_every_function_that_keeps_features_finds_those_of_another(function, tmp_path, monkeypatch):
    x, labels = np.random.default_rng(0).standard_normal((50, 6)).astype("float32"), np.arange(50) % 2
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    cached_features(find_structure(model), x, directory=tmp_path)
    monkeypatch.setattr(cache, "FeatureRows", None)  # which collects them anew
    data = (x,) if function is keras_dal.add_gated_head else (x, labels)
    function(model, *data, cache=tmp_path, verbose=0)


@pytest.mark.parametrize("directory", [3, "file"])
def test_what_is_no_directory_is_refused_before_features_are_computed(directory, structure, x, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="cache must be a directory, which need not exist yet. Received: cache="):
        cached_features(structure, x, directory=directory)


def test_an_empty_name_is_no_directory(structure, x, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cached_features(structure, x, directory="")
    assert not list(tmp_path.iterdir())
