"""Steps and samples that are not what most of a fit is made of: of callbacks, without weight, in frames, masked."""

import cases
import keras
import numpy as np
import pytest
from fits import compiled, fit, images, small_model, snapshot
from keras import layers, ops

import keras_dal

COLUMNS = ("loss", "alignment", "alignment_rank", "kernel_change", "phase")


class StepsByHand(keras.callbacks.Callback):
    """Trains on the same few images before an epoch's first batch, after each batch or epoch, by steps or a fit."""

    def __init__(self, after):
        super().__init__()
        self.after = after

    def on_epoch_end(self, epoch, logs=None):
        if self.after == "epoch":
            self.model.train_on_batch(*images(8, seed=5))
        if self.after == "fit":
            self.model.fit(*images(8, seed=5), verbose=0)

    def on_train_batch_begin(self, batch, logs=None):  # the monitor, which comes first, waits for a step by now
        if self.after == "beginning" and batch == 0:
            self.model.train_on_batch(*images(8, seed=5))
        if self.after == "fit at the beginning" and batch == 0:
            self.model.fit(*images(8, seed=5), verbose=0)

    def on_train_batch_end(self, batch, logs=None):
        if self.after == "batch":
            self.model.train_on_batch(*images(8, seed=5))


WITH_WEIGHTS = pytest.mark.skipif(cases.BACKEND == "jax", reason="Keras has no weights there meanwhile")


AFTER = ["epoch", "fit", "beginning", "fit at the beginning", pytest.param("batch", marks=WITH_WEIGHTS)]


@pytest.mark.parametrize("after", AFTER)
def test_steps_that_a_callback_takes_train_the_model_and_the_head_is_solved_on_the_stream_alone(after):
    alone = compiled(keras.optimizers.SGD(0.1, momentum=0.9))
    expected = fit(alone, 2, [StepsByHand(after)])["loss"]
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=2))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = fit(model, 4, [monitor, StepsByHand(after)])
    assert history["loss"][:2] == expected
    epochs = 4 if after == "fit" else 3  # a fit takes back that training is to end
    assert {len(history[name]) for name in COLUMNS} == {epochs}
    assert model.evaluate(*images(), verbose=0)[0] == pytest.approx(monitor.result.loss, rel=1e-4)
    assert np.isfinite(np.concatenate([value.ravel() for value in snapshot(model).values()])).all()


@pytest.mark.parametrize("after", ["epoch", "beginning"])
def test_what_is_measured_goes_on_after_steps_of_a_callback(after):
    history = fit(compiled("sgd"), 3, [keras_dal.AlignmentMonitor(verbose=False), StepsByHand(after)])
    assert {len(history[name]) for name in COLUMNS} == {3}
    assert np.isfinite(history["alignment"]).all()


class Weighted(keras.utils.PyDataset):
    """Batches of images whose weights are zero in one epoch."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        x, y = (part[16 * index : 16 * (index + 1)] for part in images())
        return x, y, np.full(16, float(self.epoch != 1))

    def on_epoch_end(self):
        self.epoch += 1


def test_an_epoch_without_weight_leaves_no_column_short():
    model, monitor = compiled("sgd"), keras_dal.AlignmentMonitor(verbose=False)
    with pytest.warns(UserWarning, match="none of a positive weight"):
        history = model.fit(Weighted(), epochs=3, verbose=0, shuffle=False, callbacks=[monitor]).history
    assert {len(history[name]) for name in COLUMNS} == {3}
    assert np.isfinite(history["alignment"]).sum() == 2


def test_accuracy_at_the_end_is_said_to_be_of_samples_with_a_weight_where_others_have_none(capsys):
    x, y = images()
    model, monitor = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1)), keras_dal.AlignmentMonitor()
    model.fit(x, y, 16, 2, verbose=0, sample_weight=(y > 0).astype("float32"), callbacks=[monitor])
    weighted = np.mean(model.predict(x, verbose=0).argmax(axis=1)[y > 0] == y[y > 0])
    assert f"{weighted:.2%} of what this epoch read with a weight is right" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*structure of `inputs` doesn't match")
class Frame:
    """Rows that NumPy makes an array of, as those of a data frame."""

    def __init__(self, rows):
        self._rows, self.shape = rows, rows.shape

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, rows):
        return Frame(self._rows[rows])

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self._rows, dtype)


def test_rows_of_a_data_frame_are_arrays():
    x, y = images()
    model = compiled("sgd", small_model(dropout=0.0))
    expected, found = (keras_dal.alignment(model, *data, verbose=0) for data in ((x, y), (Frame(x), Frame(y))))
    assert found.alignment == expected.alignment


def masked(marked):
    """Return a model whose outputs vanish where a second input is zero, and inputs that mark some samples."""
    generator = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    features, allowed = keras.Input((6,)), keras.Input((3,))
    logits = layers.Dense(3)(features)
    outputs = layers.Lambda(lambda parts: ops.where(parts[1] == 0, -1e9, parts[0]), output_shape=(3,))(
        [logits, allowed]
    )
    model = keras.Model([features, allowed], outputs)
    x, y = generator.standard_normal((60, 6)).astype("float32"), generator.integers(0, 3, 60)
    open_to = np.ones((60, 3), "float32")
    open_to[marked] = np.eye(3, dtype="float32")[y[marked]]
    return compiled("sgd", model), [x, open_to], y


@pytest.mark.parametrize("function", [keras_dal.certify, keras_dal.alignment, keras_dal.converge])
def test_outputs_that_a_mask_changes_for_some_samples_are_none_of_the_last_layer(function):
    """The first samples, which are looked at before all data are, are not among them."""
    model, x, y = masked([41])
    with pytest.raises(ValueError, match=r"some samples only.*Received: .*for 1 of 60 samples"):
        function(model, x, y, verbose=0)
    function(model, x, y, np.where(np.arange(60) == 41, 0.0, 1.0), verbose=0)  # it is in no loss then
    model, x, y = masked([])
    function(model, x, y, verbose=0)


def test_a_fit_whose_outputs_are_masked_goes_on_exploring_and_says_so():
    model, x, y = masked(np.arange(0, 60, 2))
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), model)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    with pytest.warns(UserWarning, match="could not begin.*some samples only"):
        history = model.fit(x, y, epochs=4, verbose=0, callbacks=[monitor]).history
    assert history["phase"] == [0.0] * 4
    assert monitor.result is None
