"""What else stands around the two lines in a fit, and what may happen in the epoch that reads the data."""

import contextlib
import gc
import warnings

import cases
import keras
import numpy as np
import pytest
import scipy.sparse
from fits import NUM_CLASSES, StopsReading, compiled, fit, images, moved, small_model, snapshot
from keras import layers

import keras_dal
from keras_dal.finishing import newton
from keras_dal.finishing.stopping import Ending
from keras_dal.training import convex_phase

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


class Stream(keras.utils.PyDataset):
    """Batches of images; the given one, counted over all epochs, raises, and a sample of each may have a weight."""

    def __init__(self, fails_at=None, weight=None):
        super().__init__()
        self.fails_at, self.weight, self.count = fails_at, weight, 0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        self.count += 1
        if self.count == self.fails_at:
            raise OSError("the disk is gone")
        x, y = (part[16 * index : 16 * (index + 1)] for part in images())
        return (x, y) if self.weight is None else (x, y, np.where(np.arange(16) == index, self.weight, 1.0))


def test_a_mixture_that_computes_something_stays_in_the_model_while_it_explores():
    x, y = images()
    model = keras_dal.add_gated_head(compiled("sgd", small_model(dropout=0.0)), x, seed=0, verbose=False)
    branch = keras_dal.find_structure(model).output_layer
    branch.kernel.assign(0.3 * np.random.default_rng(0).standard_normal(branch.kernel.shape))
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.0), explore=5), model)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    expected = model.evaluate(x, y, verbose=0)[0]
    assert fit(model, 2)["loss"][-1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_stream_of_unknown_length_that_is_stopped_is_not_solved_on_a_part_of_it():
    tf = pytest.importorskip("tensorflow")
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    data = tf.data.Dataset.from_tensor_slices(images()).batch(16).filter(lambda x, y: True)
    with pytest.warns(UserWarning, match="reads the data was stopped.*2 of 6 batches"):
        model.fit(data, epochs=4, verbose=0, shuffle=False, callbacks=[monitor, StopsReading()])
    assert monitor.result is None
    assert model.optimizer.phase == "explore"


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_fit_that_is_ended_after_the_reading_of_a_stream_of_unknown_length_is_solved():
    """As by EarlyStopping, which may come before the monitor."""
    tf = pytest.importorskip("tensorflow")
    model, monitor = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)), keras_dal.AlignmentMonitor()
    data = tf.data.Dataset.from_tensor_slices(images()).batch(16).filter(lambda x, y: True)
    stops = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: setattr(model, "stop_training", epoch == 2))
    model.fit(data, epochs=4, verbose=0, shuffle=False, callbacks=[stops, monitor])
    assert monitor.result.point.gap <= 1e-4


@pytest.mark.parametrize("batch", [1, 4])
def test_data_that_fail_while_they_are_read_leave_a_model_that_goes_on(batch):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    data, monitor = Stream(fails_at=2 * 6 + batch), keras_dal.AlignmentMonitor(verbose=False)
    with pytest.raises(Exception, match="disk is gone"):  # TensorFlow makes another one of it
        model.fit(data, epochs=4, verbose=0, shuffle=False, validation_data=images(), callbacks=[monitor])
    assert all(np.isfinite(value).all() for value in snapshot(model).values())
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.fit(Stream(), epochs=4, initial_epoch=2, verbose=0, shuffle=False, callbacks=[monitor])
    assert monitor.result.point.gap <= 1e-4


def test_negative_weights_are_not_dropped_from_what_is_proved():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.0), explore=1))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    exploring = pytest.warns(UserWarning, match="sample weights not negative. Received: 6 samples")
    failing = pytest.warns(UserWarning, match="second phase could not begin.*must be finite and not negative")
    with failing as seen, exploring as all_said:
        model.fit(Stream(weight=-1.0), epochs=3, verbose=0, shuffle=False, callbacks=[monitor])
    assert monitor.result is None
    (once,) = [each for each in all_said if "sample weights not negative" in str(each.message)]
    assert "Received: 6 samples" in str(once.message)  # in the first of two epochs that measure
    (warning,) = [each.message for each in seen if "could not begin" in str(each.message)]
    assert isinstance(warning.__cause__, ValueError)  # whose traceback an error would show


@pytest.mark.filterwarnings("ignore:Batch statistics have not settled")  # no average renews them
@pytest.mark.filterwarnings("ignore:The labels of softmax cross-entropy must be")  # said while exploring, too
def test_what_arrives_after_a_reading_that_failed_is_not_kept(monkeypatch):
    """The rest of an epoch may be most of the data."""
    made, gathering = [], convex_phase.Gathering

    def kept(*arguments):
        made.append(gathering(*arguments))
        return made[-1]

    monkeypatch.setattr(convex_phase, "Gathering", kept)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.0), explore=1, average=0))
    with pytest.warns(UserWarning, match="must be finite and not negative"):
        model.fit(Stream(weight=-1.0), epochs=2, verbose=0, shuffle=False, callbacks=[keras_dal.AlignmentMonitor()])
    assert made[0].batches == 6
    assert not made[0].arrived


@pytest.mark.parametrize("average", [0, 0.5])
@pytest.mark.filterwarnings("ignore:Batch statistics have not settled")  # no average renews them
def test_what_was_read_is_let_go_of_where_the_data_fail_and_the_average_is_kept(monkeypatch, average):
    """It may be gigabytes, and nobody tells the monitor that the fit is over."""
    made, gathering = [], convex_phase.Gathering

    def kept(*arguments):
        made.append(gathering(*arguments))
        return made[-1]

    monkeypatch.setattr(convex_phase, "Gathering", kept)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2, average=average))
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    with contextlib.suppress(Exception):  # whose traceback would keep the fit
        model.fit(Stream(fails_at=2 * 6 + 4), epochs=4, verbose=0, shuffle=False, callbacks=[monitor])
    gc.collect()
    assert 0 < made[0].batches < 6
    assert not made[0]._waiting
    assert not made[0]._rows._writer._blocks
    assert model.optimizer.averaged_steps == 6 * (average > 0)


class PreparesInTraining(keras.Model):
    """Its evaluation takes the inputs as they come."""

    def train_step(self, *arguments):
        *state, (x, y) = arguments
        return super().train_step(*state, (x / 255.0, y))


def test_features_of_inputs_that_training_has_not_seen_are_not_solved_on():
    generator, y = np.random.default_rng(0), np.arange(96) % 3
    keras.utils.set_random_seed(0)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1)
    model, monitor = PreparesInTraining(plain.inputs, plain.outputs), keras_dal.AlignmentMonitor(verbose=False)
    compiled(wrap, model)
    with pytest.warns(UserWarning, match="On what was read the loss is far above that of training"):
        model.fit(255 * generator.standard_normal((96, 4)), y, epochs=2, verbose=0, callbacks=[monitor])
    assert monitor.result is None
    assert wrap.phase == "explore"


@pytest.mark.parametrize("unit", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("factor", [1.0, 255.0])
def test_whether_other_features_were_read_hangs_on_no_unit_of_the_labels(unit, factor):
    """As where a train_step prepares inputs by `factor`, which the features are of, and an evaluation does not."""
    generator = np.random.default_rng(0)
    x = factor * generator.standard_normal((96, 4)).astype("float32")
    y = (unit * generator.standard_normal((96, 1))).astype("float32")
    keras.utils.set_random_seed(0)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(1)])
    plain.layers[-1].set_weights([unit * plain.layers[-1].get_weights()[0], np.zeros(1)])
    model, monitor = PreparesInTraining(plain.inputs, plain.outputs), keras_dal.AlignmentMonitor(verbose=False)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.0), explore=1), "mse")
    is_refused = "On what was read the loss is far above that of training"
    with pytest.warns(UserWarning, match=is_refused) if factor > 1 else contextlib.nullcontext():
        model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    assert (monitor.result is None) == (factor > 1)


def test_a_start_that_is_far_above_training_in_numbers_alone_is_solved_from():
    """A few thousandths of the variance of the labels, which is 10^6."""
    generator = np.random.default_rng(0)
    x, noise = generator.standard_normal((96, 4)).astype("float32"), generator.standard_normal((96, 1))
    y = 1e3 * x[:, :1] + noise.astype("float32")
    model, monitor = keras.Sequential([keras.Input((4,)), layers.Dense(1)]), keras_dal.AlignmentMonitor(verbose=0)

    class Shaken(keras.callbacks.Callback):  # as by an average of weights that is not where they are
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 0:
                self.model.layers[0].kernel.assign([[1e3 + 50], [0], [0], [0]])

    model.layers[0].kernel.assign([[1e3], [0], [0], [0]])
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.0), explore=1, average=0), "mse")
    model.fit(x, y, batch_size=96, epochs=2, verbose=0, callbacks=[Shaken(), monitor])
    assert monitor.result.path[0].loss > 100 * (1 + float(np.mean(noise**2)))
    assert monitor.result.loss < monitor.result.path[0].loss


class Grows(keras.utils.PyDataset):
    """Inputs that are a thousand times as large from the third epoch on."""

    def __init__(self):
        super().__init__()
        self.factor = 1.0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        x = self.factor * np.random.default_rng(index).standard_normal((16, 4))
        return x, np.arange(16) % 3

    def on_epoch_begin(self):
        self.factor = 1.0 if self.model.optimizer.phase == "explore" else 1e3


def test_batch_statistics_are_not_blamed_where_there_are_none():
    keras.utils.set_random_seed(0)
    model, data = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(3)]), Grows()
    data.model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), model)
    with pytest.warns(UserWarning, match="far above that of training. Lower the learning rate where the loss grows"):
        model.fit(data, epochs=3, verbose=0, shuffle=False, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])


def test_probabilities_that_keras_clips_are_no_other_features():
    """Of logits in the hundreds, wrong ones too, Keras shows a loss of at most 16 a sample on some backends."""
    x, y = np.random.default_rng(0).normal(size=(96, 4)).astype("float32"), np.arange(96) % 3
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
    model.add(layers.Activation("softmax"))
    model.layers[1].kernel.assign(1e3 * model.layers[1].kernel)
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.0), explore=1), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    assert monitor.result.path[0].loss > 100
    assert monitor.result.loss < monitor.result.path[0].loss


class OnAGrid(keras.callbacks.Callback):
    """Puts the kernel of a layer on a grid after every batch, those that are only read too."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def on_train_batch_end(self, batch, logs=None):
        kernel = self.model.layers[self.place].kernel
        kernel.assign(np.round(np.array(keras.ops.convert_to_numpy(kernel)) * 2) / 2)


@pytest.mark.parametrize("place", [0, -1])
def test_features_of_several_models_are_not_solved_on(place):
    x, y = np.random.default_rng(0).normal(size=(96, 4)).astype("float32"), np.arange(96) % 3
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=3, average=0.9), LOSS)
    with pytest.warns(UserWarning, match="Weights changed while the data were read"):
        model.fit(x, y, epochs=4, verbose=0, callbacks=[OnAGrid(place), monitor])
    assert monitor.result is None


class TracksNoLoss(keras.Model):
    """Keras shows a loss of 0 for steps like this."""

    def train_step(self, *arguments):
        found = super().train_step(*arguments)
        logs, *state = found if isinstance(found, tuple) else (found,)
        logs = {**logs, "loss": 0.0 * logs["loss"]}
        return (logs, *state) if state else logs


def test_a_loss_that_the_training_step_does_not_track_is_no_evidence():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
    keras.utils.set_random_seed(0)
    plain = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(1)])
    model, monitor = TracksNoLoss(plain.inputs, plain.outputs), keras_dal.AlignmentMonitor(verbose=0)
    model.compile(keras_dal.Wrap("adam", explore=1), "mse")
    history = model.fit(x, 5 * x[:, :1] + 30, epochs=3, verbose=0, callbacks=[monitor]).history
    assert monitor.result.stopped_by == Ending.CERTIFIED
    assert history["loss"][-1] == pytest.approx(monitor.result.loss)


class Unweighted(keras.Model):
    """Its evaluation leaves weights out, as that of Keras' guide does."""

    def test_step(self, *arguments):
        *state, data = arguments
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        return super().test_step(*state, (x, y))


class OfPairs(keras.Model):
    """Its evaluation knows of no weights."""

    def test_step(self, *arguments):
        *state, (x, y) = arguments
        return super().test_step(*state, (x, y))


@pytest.mark.parametrize("kind", [Unweighted, OfPairs])
def test_class_weights_count_where_an_evaluation_leaves_them_out(kind):
    x, y = images()
    whole = small_model()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1), kind(whole.inputs, whole.outputs))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.fit(x, y, epochs=2, verbose=0, class_weight={0: 1.0, 1: 5.0, 2: 1.0}, callbacks=[monitor])
    logits = model.predict(x, verbose=0)
    values = keras.ops.convert_to_numpy(keras.losses.sparse_categorical_crossentropy(y, logits, from_logits=True))
    assert monitor.result.loss == pytest.approx(np.mean(np.where(y == 1, 5.0, 1.0) * values), rel=1e-4)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_fit_that_has_nothing_to_explore_says_so(capsys, frozen):
    model = small_model()
    for layer in model.layers[:-1]:
        layer.trainable = not frozen
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1), model)
    fit(model, 2, [keras_dal.AlignmentMonitor()])
    assert ("there is nothing to explore" in capsys.readouterr().out) == frozen


def test_a_head_that_was_put_back_alone_is_told():
    x, y = images()
    model = small_model()
    for layer in model.layers[:-1]:
        layer.trainable = False
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1), model)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    before = model.get_layer("logits").get_weights()
    model.fit(x, y, epochs=2, verbose=0, callbacks=[monitor])
    result = monitor.result
    result.rescale(2.0)  # is not another head
    assert monitor.result is result
    for other in (before, [0.0 * part for part in before]):
        model.get_layer("logits").set_weights(other)
        with pytest.warns(UserWarning, match="no longer has the weights that were solved"):
            assert monitor.result is result


def test_a_step_that_is_never_measured_does_not_begin_a_phase_in_which_nothing_moves():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the training step of this test is one of TensorFlow")
    import tensorflow as tf

    class Around(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                value = LOSS(y, self(x, training=True))
            self.optimizer.apply(tape.gradient(value, self.trainable_variables), self.trainable_variables)
            return {"loss": value}

    whole = small_model()
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2, exploit_learning_rate="auto")
    model = Around(whole.inputs, whole.outputs)
    model.compile(wrap, LOSS)
    nothing = pytest.warns(UserWarning, match="Nothing was measured: the model's train_step")
    with nothing, pytest.warns(UserWarning, match="second phase could not begin.*needs a measurement"):
        fit(model, 4)
    assert model.optimizer.phase == "explore"


def test_weights_that_are_all_0_are_the_reason_why_nothing_is_measured():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=5))
    with pytest.warns(
        UserWarning, match="Nothing was measured: the epoch had no samples, or none of a positive weight"
    ) as said:
        fit(model, 3, sample_weight=np.zeros(len(images()[0])))
    assert sum("Nothing was measured" in str(each.message) for each in said) == 1


def test_metrics_that_leave_out_those_of_keras_are_the_reason_why_nothing_is_measured():
    if keras.backend.backend() != "jax":
        pytest.skip("elsewhere a model carries all variables it has through its steps")

    class Own(keras.Model):
        @property
        def metrics(self):
            return [self._loss_tracker]

    whole = small_model()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=5), Own(whole.inputs, whole.outputs))
    with pytest.warns(UserWarning, match="metrics leave out those of super"):
        fit(model, 1)


def test_statistics_that_no_average_renewed_are_looked_at_before_and_after_the_head_is_solved():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2, average=0))
    with pytest.warns(UserWarning, match="Batch statistics have not settled"):
        model.fit(x + 3.0, y, epochs=3, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])
    with pytest.warns(UserWarning, match="Batch statistics have not settled"):
        keras_dal.converge(model, x + 3.0, y, gated=False, ridge=1e-2, verbose=0)


def test_statistics_that_were_renewed_with_the_average_are_not_called_unsettled():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    model.fit(x + 3.0, y, epochs=3, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])
    keras_dal.converge(model, x, y, gated=False, ridge=1e-2, verbose=0)  # other data have others


def test_statistics_that_finish_did_not_renew_are_looked_at_again():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, average=0))
    fit(model, 1, [])
    for _ in range(2):
        with pytest.warns(UserWarning, match="Batch statistics have not settled"):
            keras_dal.finish(model, x + 3.0, y, verbose=0)


def test_layers_that_were_frozen_inside_others_keep_that_and_their_name_in_a_copy():
    @keras.saving.register_keras_serializable(package="test_what_fit_meets")
    class Block(layers.Layer):
        def __init__(self, **options):
            super().__init__(**options)
            self.norm, self.dense = layers.BatchNormalization(), layers.Dense(8, activation="relu")

        def call(self, x, training=None):
            return self.dense(self.norm(x, training=training))

    x = np.random.default_rng(0).standard_normal((60, 4)).astype("float32")
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(NUM_CLASSES)(Block(name="own")(inputs)))
    model.get_layer("own").norm.trainable = False
    model.compile("sgd", LOSS)
    gated = keras_dal.add_gated_head(model, x, seed=0, verbose=False)
    assert not gated.get_layer("own").norm.trainable
    assert [v.path.split("/")[-1] for v in gated.get_layer("own").trainable_variables] == ["kernel", "bias"]
    before = snapshot(gated)
    gated.compile("sgd", LOSS)
    gated.fit(x, np.zeros(60, int), verbose=0)
    assert not [path for path in moved(before, snapshot(gated)) if "norm" in path]


@pytest.mark.parametrize("repeats", [False, True])
def test_an_epoch_of_few_samples_is_said_to_be_few(repeats, capsys):
    x = np.random.default_rng(0).standard_normal((256, 8)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(2)])
    model.compile(keras_dal.Wrap("sgd"), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = [((x[:32], y[:32]) for _ in range(100))] if repeats else [x, y]
    monitor = keras_dal.AlignmentMonitor()
    model.fit(*data, epochs=3, steps_per_epoch=int(repeats) or None, shuffle=False, verbose=0, callbacks=[monitor])
    assert ("keras_dal.finish(model, x, y) solves on all of them" in capsys.readouterr().out) == repeats


class OfTheFirstLabel(keras.Model):
    """Has more numbers for a label than outputs, and a loss that takes one of them."""

    def __init__(self):
        super().__init__()
        self.head = keras.layers.Dense(1)

    def call(self, inputs):
        return self.head(inputs)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x=x, y=y[:, :1], y_pred=y_pred, sample_weight=sample_weight)


@pytest.mark.parametrize("optimizer", [lambda: "sgd", lambda: keras_dal.Wrap("sgd")])
def test_labels_that_cannot_be_measured_do_not_end_a_training(optimizer):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).standard_normal((64, 5)).astype("float32")
    y = np.stack([x[:, 0] > 0, x[:, 1] > 0], axis=1).astype("float32")
    model = OfTheFirstLabel()
    model.compile(optimizer(), keras.losses.BinaryCrossentropy(from_logits=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        history = model.fit(x, y, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=0)])
    assert len(history.epoch) == 2
    assert any("cannot be measured in this training step" in str(each.message) for each in caught)


@cases.needs_tensorflow(reason="the warning is TensorFlow's")
def test_fits_in_a_row_trace_anew_without_a_warning(caplog):
    """Of 90 images the last batch is a smaller one."""
    x, y = (part[:90] for part in images())
    for _ in range(6):
        model = compiled(keras_dal.Wrap("sgd", explore=1))
        model.fit(x, y, epochs=2, batch_size=16, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])
    told = [text for text in caplog.messages if "retracing" in text]
    assert [text for text in told if "TensorFlowTrainer" not in text] == []  # Keras' own step is traced for each model


class WithoutTraining(keras.Model):
    """A `call` that takes no `training`: Keras' own step runs it, and its normalization, in inference mode."""

    def __init__(self):
        super().__init__()
        self.before, self.norm, self.head = layers.Flatten(), layers.BatchNormalization(), layers.Dense(NUM_CLASSES)

    def call(self, inputs):
        return self.head(self.norm(self.before(inputs)))


@pytest.mark.parametrize("mean", [0.0, 0.5])  # as in the beginning, or of an earlier training
def test_statistics_that_training_does_not_move_are_left_as_they_are(mean):
    x, y = images()
    keras.utils.set_random_seed(0)
    model, monitor = WithoutTraining(), keras_dal.AlignmentMonitor(verbose=False)
    model(x[:1])
    model.norm.moving_mean.assign(np.full(128, mean))
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01), average=0.5), model).fit(
        5 * x + 3, y, epochs=6, verbose=0, callbacks=[monitor]
    )
    assert monitor.result.reached
    np.testing.assert_array_equal(model.norm.moving_mean, np.full(128, mean, "float32"))
    np.testing.assert_array_equal(model.norm.moving_variance, np.ones(128, "float32"))


def test_finish_leaves_statistics_as_they_are_that_no_step_moved():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01), explore=None), WithoutTraining())
    model(x[:1])
    model.optimizer.build(model.trainable_variables)
    model.optimizer.begin_average()
    fit(model, 1, callbacks=[])
    assert keras_dal.finish(model, x, y, verbose=0).reached
    np.testing.assert_array_equal(model.norm.moving_mean, np.zeros(128, "float32"))


def fit_in_uneven_epochs(epochs):
    """Return history and monitor of a fit whose epochs have, of 6 batches and 4 steps, 4 and 2 in turn."""
    (x, y), monitor = images(), keras_dal.AlignmentMonitor(verbose=0)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=3))
    history = model.fit(x, y, batch_size=16, steps_per_epoch=4, epochs=epochs, verbose=0, callbacks=[monitor])
    return history, monitor


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_an_epoch_that_is_shorter_than_others_is_followed_by_one_that_reads_again():
    with pytest.warns(UserWarning, match="next one reads them again.*Received: Incomplete.*2 of 4 batches"):
        history, monitor = fit_in_uneven_epochs(8)
    assert len(history.epoch) == 5
    assert monitor.result.reached


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_no_epoch_is_promised_to_read_again_after_the_last():
    with pytest.warns(UserWarning, match="second phase could not begin.*Received: Incomplete.*2 of 4 batches"):
        _, monitor = fit_in_uneven_epochs(4)
    assert monitor.result is None


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_all_there_is_may_be_less_than_the_steps_that_were_asked_for():
    (x, y), monitor = images(), keras_dal.AlignmentMonitor(verbose=0)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=3))
    history = model.fit(x, y, batch_size=16, steps_per_epoch=7, epochs=8, verbose=0, callbacks=[monitor])
    assert len(history.epoch) == 4
    assert monitor.result.reached


def test_epochs_that_never_read_everything_are_trained(monkeypatch):
    def never(self, expected):
        raise convex_phase.Incomplete("Received: none")

    monkeypatch.setattr(convex_phase.ConvexPhase, "end", never)
    model, monitor = (
        compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)),
        keras_dal.AlignmentMonitor(verbose=0),
    )
    told = "reads them again.*call keras_dal.finish after training"
    with pytest.warns(UserWarning, match=told), pytest.warns(UserWarning, match="exploration goes on"):
        phases = fit(model, 6, [monitor])["phase"]
    assert phases == [0.0] * 6
    assert monitor.result is None


@cases.needs_tensorflow(reason="the decorator is TensorFlow's")
def test_a_step_that_keeps_its_trace_is_refused_before_training_where_it_would_have_to_change():
    import tensorflow as tf

    class Traced(keras.Sequential):
        @tf.function
        def train_step(self, data):
            return super().train_step(data)

    model = Traced([keras.Input((8, 8, 2)), layers.Flatten(), layers.Dense(NUM_CLASSES)])
    compiled(keras_dal.Wrap("sgd", explore=2, finish="descend"), model)
    with pytest.raises(ValueError, match="keeps what it traced before the switch.*Received: model"):
        fit(model, 4)


def test_what_was_not_proved_is_not_called_solved(capsys, monkeypatch):
    monkeypatch.setattr(newton, "prove", lambda *arguments: None)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    fit(model, 4, [keras_dal.AlignmentMonitor()])
    said = capsys.readouterr().out
    assert "the head is solved" not in said
    assert "the solver ended, and training ends at epoch 3 of 4: 1 spared" in said
    assert "not proved: the solver was ended by a step that gained nothing, at most about" in said


def test_a_head_in_half_precision_is_spoken_of_as_one_in_float64(capsys):
    model = keras.Sequential(
        [keras.Input((8, 8, 2)), layers.Flatten(), layers.Dense(NUM_CLASSES, dtype="mixed_bfloat16")]
    )
    fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), model), 4, [keras_dal.AlignmentMonitor()])
    assert "computes its logits in bfloat16: this is of the head in float64" in capsys.readouterr().out


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_right_sides_are_promised_for_hard_labels_only(capsys, smoothing):
    x, y = images()
    model = small_model()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), loss)
    model.fit(x, np.eye(NUM_CLASSES)[y], epochs=4, verbose=0, callbacks=[keras_dal.AlignmentMonitor()])
    assert ("can put every sample on its right side" in capsys.readouterr().out) == (not smoothing)


@cases.needs_tensorflow(reason="the layers run in tf.data")
@pytest.mark.parametrize("layer", [layers.MixUp, layers.CutMix])
def test_labels_that_a_data_set_mixes_are_solved_for_to_a_proved_gap(layer):
    import tensorflow as tf

    x, y = images()
    data = tf.data.Dataset.from_tensor_slices({"images": x, "labels": np.eye(NUM_CLASSES, dtype="float32")[y]})
    mixed = data.shuffle(96, seed=0).batch(16).map(layer(seed=0)).map(lambda both: (both["images"], both["labels"]))
    model, monitor = small_model(), keras_dal.AlignmentMonitor(verbose=False)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=3), loss, metrics=["accuracy"])
    history = model.fit(mixed, epochs=6, shuffle=False, verbose=0, callbacks=[monitor]).history
    assert len(history["loss"]) == 4
    assert monitor.result.reached
    assert 0 < monitor.result.floor < monitor.result.loss
    assert history["loss"][-1] == pytest.approx(monitor.result.loss, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_fit_that_begins_with_a_short_reading_says_what_to_do():
    """Of a training that was stopped while it read: the optimizer has switched."""
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    fit(model, 1)
    model.optimizer.switch(model)
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    stops = "exploration goes on.*2 of 4 batches"
    with pytest.warns(UserWarning, match="reads them again.*2 of 4 batches"), pytest.warns(UserWarning, match=stops):
        model.fit(x[:32], y[:32], batch_size=16, steps_per_epoch=4, epochs=3, verbose=0, callbacks=[monitor])
    assert monitor.result is None


def test_statistics_are_renewed_where_no_epoch_of_this_fit_trained_before_a_short_reading(monkeypatch):
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    fit(model, 2)
    short, whole = iter([True, False]), convex_phase.ConvexPhase.end

    def once(self, expected):
        if next(short, False):
            raise convex_phase.Incomplete("Received: some")
        whole(self, expected)

    monkeypatch.setattr(convex_phase.ConvexPhase, "end", once)
    before = np.array(model.get_layer("norm").moving_mean)
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    with pytest.warns(UserWarning, match="reads them again"):
        model.fit(x, y, batch_size=16, initial_epoch=2, epochs=6, verbose=0, callbacks=[monitor])
    assert monitor.result.reached
    assert np.any(before != model.get_layer("norm").moving_mean)


def test_statistics_that_no_step_moved_are_not_called_unsettled():
    x, y = images()
    model = compiled(keras.optimizers.SGD(0.01), WithoutTraining())
    model.fit(5 * x + 3, y, epochs=1, verbose=0)
    keras_dal.converge(model, 5 * x + 3, y, gated=False, verbose=0)


def test_a_second_reading_that_another_callback_stops_is_said(monkeypatch):
    model, said = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)), []

    def short(self, expected):
        model.stop_training = bool(said)
        said.append(expected)
        raise convex_phase.Incomplete("Received: some")

    monkeypatch.setattr(convex_phase.ConvexPhase, "end", short)
    stops = "stops training before the head is solved"
    with pytest.warns(UserWarning, match="reads them again"), pytest.warns(UserWarning, match=stops):
        fit(model, 6)
    assert len(said) == 2


def test_labels_that_keras_stretches_to_all_outputs_are_not_measured_and_training_goes_on():
    x = np.random.default_rng(0).standard_normal((200, 6)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    model.compile(keras_dal.Wrap(keras.optimizers.Adam(1e-2), explore=2), "mse")
    with pytest.warns(UserWarning, match="(cannot be measured|goes on)"):
        history = model.fit(x, x[:, :1], epochs=4, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=0)])
    assert len(history.epoch) == 4
    assert model.optimizer.phase == "explore"


def test_two_monitors_are_refused_before_the_first_step_of_a_model_that_fit_builds():
    """As it does on TensorFlow at the first step, and elsewhere before callbacks hear of it."""
    model, begun = keras.Sequential([layers.Flatten(), layers.Dense(NUM_CLASSES)]), []
    counts = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: begun.append(batch))
    monitors = [keras_dal.AlignmentMonitor(verbose=0) for _ in range(2)]
    with pytest.raises(ValueError, match="leave one AlignmentMonitor"):
        fit(compiled(keras_dal.Wrap("sgd", explore=2), model), 4, [*monitors, counts])
    assert not begun


FUNCTIONS = keras_dal.alignment, keras_dal.certify, keras_dal.converge, keras_dal.finish
ROWS = np.random.default_rng(0).normal(size=(96, 6)).astype("float32")


def of_rows(optimizer="sgd"):
    keras.utils.set_random_seed(0)
    hidden = layers.Dense(8, activation="relu")
    return compiled(optimizer, keras.Sequential([keras.Input((6,)), hidden, layers.Dense(NUM_CLASSES)]))


class AddsIfThere(layers.Layer):
    def call(self, first, second):
        return first if second is None else first + second

    def compute_output_shape(self, first_shape, second_shape):
        return first_shape


def of_two(optimizer="sgd", structure=lambda first, second: {"first": first, "second": second}):
    """Return a model whose second input is optional."""
    keras.utils.set_random_seed(0)
    first, second = keras.Input((6,), name="first"), keras.Input((6,), name="second", optional=True)
    hidden = layers.Dense(8, activation="relu")(AddsIfThere()(first, second))
    return compiled(optimizer, keras.Model(structure(first, second), layers.Dense(NUM_CLASSES)(hidden)))


def of_two_in_a_list(optimizer="sgd"):
    """Return the same model, which takes its inputs in a list."""
    return of_two(optimizer, lambda first, second: [first, second])


UNREAD = [
    (of_rows, scipy.sparse.csr_matrix(ROWS), "Inputs must be dense.*Received: x of type csr_matrix"),
    (of_rows, scipy.sparse.coo_matrix(ROWS), "Inputs must be dense.*Received: x of type coo_matrix"),
    (of_two, {"first": ROWS, "second": None}, "one that is optional is not left out.*Received: x with 1 of 2 inputs"),
    (of_two_in_a_list, [ROWS, None], "one that is optional is not left out.*Received: x with 1 of 2 inputs"),
]
KINDS = ["csr", "coo", "optional", "optional in a list"]


@pytest.mark.parametrize(("made", "x", "told"), UNREAD, ids=KINDS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_inputs_of_a_kind_that_is_not_read_are_refused_by_name(function, made, x, told):
    with pytest.raises(ValueError, match=told):
        function(made(), x, images()[1], verbose=0)


@pytest.mark.parametrize(("made", "x", "_"), UNREAD[:1] + UNREAD[2:], ids=KINDS[:1] + KINDS[2:])
def test_fit_measures_and_solves_whatever_the_inputs_are(made, x, _):
    if cases.BACKEND == "jax" and made is not of_rows:
        pytest.skip("Keras does not take None there")
    model, monitor = made(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)), keras_dal.AlignmentMonitor(verbose=0)
    history = model.fit(x, images()[1], epochs=4, verbose=0, callbacks=[monitor]).history
    assert np.isfinite(history["alignment"]).all()
    assert monitor.result.reached


def test_layers_that_carry_a_state_from_batch_to_batch_are_refused():
    inputs = keras.Input(batch_shape=(16, 5, 4))
    plain = keras.Model(inputs, layers.Dense(NUM_CLASSES)(layers.LSTM(8, stateful=True, name="memory")(inputs)))
    x, y = np.zeros((96, 5, 4), "float32"), images()[1]
    told = r"must not depend on the batches before.*stateful=False.*Received: stateful layers \['memory'\]"
    for function in FUNCTIONS:
        with pytest.raises(ValueError, match=told):
            function(compiled("sgd", plain), x, y, verbose=0)
    with pytest.raises(ValueError, match=told):
        compiled(keras_dal.Wrap("sgd"), plain).fit(x, y, 16, 4, verbose=0, callbacks=[keras_dal.AlignmentMonitor()])


LABELS = images()[1]
BAD_DATA = [
    ((list(ROWS), LABELS), "must have the same number of samples"),
    ((ROWS.tolist(), LABELS), "x must be arrays: numpy.asarray makes one of a list. Received: .* of float"),
    ((ROWS, LABELS[:4]), "must have the same number of samples"),
    ((ROWS, LABELS.tolist()), "labels must be an array"),
    ((ROWS,), "Labels are needed"),
    (([ROWS, None], LABELS), "one that is optional is not left out|must have the same number of samples"),
    (({"x": ROWS}, LABELS), "does not take the inputs it was given.*Received: dict of shapes"),
]


@pytest.mark.parametrize(("data", "told"), BAD_DATA)
def test_data_that_the_monitor_cannot_read_are_refused_before_the_first_step(data, told):
    begun = []
    counts = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda batch, logs: begun.append(batch))
    monitor = keras_dal.AlignmentMonitor(data=data, verbose=0)
    with pytest.raises(ValueError, match=f"(?s){told}"):
        of_rows(keras_dal.Wrap("sgd")).fit(ROWS, LABELS, epochs=4, verbose=0, callbacks=[monitor, counts])
    assert not begun


class Switches(keras.callbacks.Callback):
    """Calls `switch` at the end of the second epoch."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.model.optimizer.switch(self.model)


@pytest.mark.parametrize("monitor_first", [True, False])
@pytest.mark.parametrize("finish", [None, "descend"])
def test_a_fit_that_a_callback_switches_logs_what_its_steps_did_and_says_that_nothing_was_solved(
    capsys, monitor_first, finish
):
    model = of_rows(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None, finish=finish))
    monitor = keras_dal.AlignmentMonitor()
    callbacks = [monitor, Switches()] if monitor_first else [Switches(), monitor]
    history = model.fit(ROWS, LABELS, epochs=4, verbose=0, callbacks=callbacks).history
    assert history["phase"] == [0, 0, 1, 1]
    assert monitor.result is None
    said = capsys.readouterr().out
    assert said.count("nothing was solved, as with explore=None") == (finish is None)
    assert finish or keras_dal.finish(model, ROWS, LABELS, verbose=0).reached
