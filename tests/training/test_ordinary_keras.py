"""Models, data and training steps as people write them, through a fit that switches."""

import contextlib
import functools
import itertools
import math
import re

import cases
import keras
import numpy as np
import pytest
from fits import NUM_CLASSES, compiled, fit, images, moved, small_model, snapshot
from keras import layers

import keras_dal
from keras_dal.training.budget import Budget
from keras_dal.training.state import state_of
from keras_dal.training.statistics import BatchStatistics


def rows(n=120, seed=0):
    generator = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    return generator.standard_normal((n, 4)).astype("float32"), generator.integers(0, 3, n)


def ended(model, x, y, loss="sparse", epochs=3, explore=2, data=None, **options):
    """Compile with the two lines and train; return the monitor and the history."""
    if isinstance(loss, str) and loss == "sparse":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap("adam", explore=explore), loss)
    monitor = keras_dal.AlignmentMonitor(data=data, verbose=False)
    history = model.fit(x, y, epochs=epochs, verbose=0, callbacks=[monitor], **options).history
    assert history["phase"][-1] == 1
    assert monitor.result.point.gap <= 1e-4
    return monitor, history


def dense(*before, outputs=3):
    return keras.Sequential([keras.Input((4,)), *before, layers.Dense(8, activation="relu"), layers.Dense(outputs)])


class CallOfOneArgument(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.norm, self.out = layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)

    def call(self, x):
        return self.out(keras.ops.relu(self.norm(self.hidden(x))))


@pytest.mark.parametrize(
    "make",
    [CallOfOneArgument, lambda: keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(3)])],
    ids=["call(x)", "sequential without Input"],
)
def test_a_model_may_be_built_by_fit(make):
    x, y = rows()
    _, history = ended(make(), x, y)
    assert np.isfinite(history["alignment"]).all()


def test_a_train_step_may_leave_the_inputs_out_of_compute_loss():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the training step of this test is one of TensorFlow")
    import tensorflow as tf

    class Own(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = self.compute_loss(y=y, y_pred=self(x, training=True))
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    x, y = rows()
    inputs = keras.Input((4,))
    _, history = ended(Own(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(inputs))), x, y)
    assert np.isfinite(history["alignment"]).all()


class Prepares(keras.Model):
    """Standardizes its inputs in both steps, before the model is called."""

    def train_step(self, *arguments):
        *state, (x, y) = arguments
        return super().train_step(*state, (x / 50 - 2, y))

    def test_step(self, *arguments):
        *state, (x, y) = arguments
        return super().test_step(*state, (x / 50 - 2, y))


@pytest.mark.parametrize(
    ("kind", "finish", "said"), [(Prepares, "solve", 1), (Prepares, "descend", 0), (keras.Model, "solve", 0)]
)
def test_that_a_train_step_may_add_what_is_not_solved_for_is_said_once_before_training(kind, finish, said, capsys):
    x, y = rows()
    inputs = keras.Input((4,))
    model = kind(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(inputs)))
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1, finish=finish)
    model.compile(wrap, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    printed = []
    look = keras.callbacks.LambdaCallback(on_epoch_begin=lambda epoch, logs: printed.append(capsys.readouterr().out))
    model.fit(50 * (x + 2), y, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor(), look])
    assert printed[0].count("train_step is the model's own") == said
    assert "train_step" not in "".join(printed[1:])


@pytest.mark.parametrize("average", [0, 0.7])
def test_a_model_whose_steps_prepare_the_inputs_is_solved_on_what_they_make_of_them(average):
    x, y = rows(128)
    inputs = keras.Input((4,))
    hidden = layers.ReLU()(layers.BatchNormalization(momentum=0.5)(layers.Dense(8)(inputs)))
    model, raw = Prepares(inputs, layers.Dense(3)(hidden)), 50 * (x + 2)
    model.compile(
        keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=3, average=average),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(raw, y, epochs=5, verbose=0, callbacks=[monitor]).history
    found = model.evaluate(raw, y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(monitor.result.loss, rel=1e-3)
    assert found["accuracy"] == pytest.approx(history["accuracy"][-1])
    assert monitor.result.loss <= keras_dal.converge(model, x, y, gated=False, tol=1e-6, verbose=0).loss + 0.02


@pytest.mark.parametrize("kind", ["smoothing", "mixed", "sigmoid", "squared error"])
def test_losses_of_every_kind_end_at_their_minimum(kind):
    x, y = rows()
    one_hot = np.eye(3, dtype="float32")[y]
    weights = np.random.default_rng(1).uniform(0, 1, (len(x), 1)).astype("float32")
    loss, labels, outputs = {
        "smoothing": (keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1), one_hot, 3),
        "mixed": ("mixed", weights * one_hot + (1 - weights) * np.roll(one_hot, 1, axis=0), 3),
        "sigmoid": (keras.losses.BinaryCrossentropy(from_logits=True), (y > 0).astype("float32")[:, None], 1),
        "squared error": ("mse", x[:, :2] ** 2, 2),
    }[kind]
    loss = keras.losses.CategoricalCrossentropy(from_logits=True) if loss == "mixed" else loss
    model = dense(outputs=outputs)
    monitor, history = ended(model, x, labels, loss)
    evaluated = model.evaluate(x, labels, verbose=0, return_dict=True)["loss"]
    assert history["loss"][-1] == pytest.approx(evaluated, rel=1e-4)
    assert monitor.result.loss == pytest.approx(evaluated, rel=1e-4)
    assert monitor.result.loss >= monitor.result.floor


def test_constraints_on_the_head_are_refused_before_training():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_constraint="non_neg")])
    model.compile(keras_dal.Wrap("sgd", explore=1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = rows()
    with pytest.raises(ValueError, match="without constraints.*Received: constraints on"):
        model.fit(x, y, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor()])
    with pytest.raises(ValueError, match="without constraints.*Received: constraints on"):
        keras_dal.finish(model, x, y, verbose=0)


@pytest.mark.parametrize("whole", [False, True], ids=["head", "model"])
@pytest.mark.parametrize("finish", ["solve", "descend"])
def test_a_head_that_is_not_trained_is_refused_before_training(whole, finish):
    model = small_model()
    (model if whole else model.get_layer("logits")).trainable = False
    compiled(keras_dal.Wrap("sgd", explore=3, finish=finish), model)
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"must be trainable.*Received: untrained .*\['logits/kernel', 'logits/bias'\]"
    ):
        fit(model, 4)
    assert not moved(before, snapshot(model))


def test_a_head_may_stand_still_where_nobody_switches():
    model = small_model()
    model.get_layer("logits").trainable = False
    assert fit(compiled(keras_dal.Wrap("sgd", explore=None), model), 1)["phase"] == [0]


def test_an_optimizer_of_another_model_is_refused_before_training():
    optimizer = keras_dal.Wrap("sgd", explore=1)
    fit(compiled(optimizer), 2)
    with pytest.raises(ValueError, match="belongs to the model it was first used with.*Received: model"):
        fit(compiled(optimizer, small_model()), 2)


def test_an_iterator_is_refused_as_data_of_the_monitor_before_training():
    x, y = images()
    steps = []
    begun = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: steps.append(batch))
    with pytest.raises(ValueError, match="read after every epoch.*Received: data of type generator"):
        fit(compiled("sgd"), 1, [keras_dal.AlignmentMonitor(data=((x, y) for _ in range(2))), begun])
    assert not steps


@pytest.mark.parametrize("data", [(), []], ids=str)
def test_no_data_at_all_are_refused_as_data_of_the_monitor(data):
    with pytest.raises(ValueError, match=r"data of the monitor must be \(x, y\) or a dataset.*Received: data="):
        fit(compiled("sgd"), 1, [keras_dal.AlignmentMonitor(data=data)])


def test_bad_labels_of_an_epoch_are_said_and_do_not_end_it():
    x, y = images()
    labels = 0.9 * np.eye(NUM_CLASSES)[y]  # rows of 0.9 are no probabilities
    model = small_model()
    model.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="96 samples with other labels"):
        history = model.fit(x, labels, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor()]).history
    assert np.isnan(history["alignment"]).all()


def test_the_certificate_at_the_end_is_of_the_weights_that_are_left():
    x, y = images()
    monitor = keras_dal.AlignmentMonitor(data=(x, y), verbose=False)
    restore = keras.callbacks.EarlyStopping("loss", mode="max", patience=99, restore_best_weights=True)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.5), explore=2))
    with pytest.warns(UserWarning, match="a callback put others back when training ended"):
        fit(model, 5, [monitor, restore])
    assert monitor.certificates["end"].loss == pytest.approx(model.evaluate(x, y, verbose=0)[0], rel=1e-4)


def test_a_result_says_when_the_weights_it_speaks_of_are_gone():
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.5), explore=3))
    fit(model, 6, [monitor])
    model.layers[-1].kernel.assign(0 * model.layers[-1].kernel)
    with pytest.warns(UserWarning, match="no longer has the weights that were solved"):
        assert monitor.result is not None


def test_a_result_says_when_the_batch_statistics_it_speaks_of_are_gone():
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.5), explore=1))
    fit(model, 2, [monitor])
    model.get_layer("norm").moving_mean.assign(np.ones(6))
    with pytest.warns(UserWarning, match="no longer has the weights that were solved"):
        assert monitor.result is not None


@pytest.mark.filterwarnings("ignore:You are using a softmax over axis")
@pytest.mark.parametrize(
    ("activation", "said"),
    [("linear", "loss of one output is constant.*softmax cross-entropy"), ("softmax", "softmax of one output is 1")],
)
def test_one_output_for_several_classes_is_refused_by_every_function_before_it_begins(activation, said):
    x, y = rows()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=activation == "linear")
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(1, activation)])
    model.compile(keras_dal.Wrap("sgd", explore=1), loss)
    calls = (
        lambda: model.fit(x, 0 * y, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor()]),
        lambda: keras_dal.finish(model, x, 0 * y, verbose=0),
        lambda: keras_dal.converge(model, x, 0 * y, verbose=0),
        lambda: keras_dal.certify(model, x, 0 * y, verbose=0),
        lambda: keras_dal.alignment(model, x, 0 * y, verbose=0),
        lambda: keras_dal.width_curve(model, x, 0 * y, verbose=0),
    )
    for call in calls:
        with pytest.raises(ValueError, match=said):
            call()


@pytest.mark.parametrize("comes_first", [True, False])
def test_weights_that_a_callback_put_back_are_said_when_training_ends_wherever_it_is_listed(comes_first):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.5), explore=3))
    callbacks = [Restore(), keras_dal.AlignmentMonitor(verbose=False)]
    with pytest.warns(UserWarning, match="a callback put others back when training ended"):
        fit(model, 6, callbacks if comes_first else callbacks[::-1])


@pytest.mark.parametrize("again", [keras_dal.finish, functools.partial(keras_dal.converge, gated=False)])
def test_a_result_says_that_the_model_was_solved_again_where_it_was(again):
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.5), explore=3))
    fit(model, 6, [monitor])
    x, y = images()
    result = again(model, x[:48], y[:48], verbose=0)
    with pytest.warns(UserWarning, match="Or keras_dal.finish or converge solved it again: take the result that they"):
        assert monitor.result is not result


def test_a_result_that_speaks_of_the_model_comes_without_a_warning():
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.5), explore=3)), 6, [monitor])
    monitor.result.rescale()
    assert monitor.result is not None


class Restore(keras.callbacks.Callback):
    """Puts the weights of the first epoch back when training ends."""

    def on_epoch_end(self, epoch, logs=None):
        self.first = self.model.get_weights() if epoch == 0 else self.first

    def on_train_end(self, logs=None):
        self.model.set_weights(self.first)


@pytest.mark.parametrize("options", [{}, {"finish": "descend", "exploit_learning_rate": "auto"}])
def test_the_weight_of_a_loss_is_in_what_is_logged_and_in_the_proven_step(options):
    x, y = images()
    histories = []
    for weight in (None, 4.0):
        monitor = keras_dal.AlignmentMonitor(data=(x, y), verbose=False)
        wrapped = keras_dal.Wrap(keras.optimizers.SGD(0.0), explore=1, **options)
        model = compiled(wrapped, loss_weights=weight)
        histories.append(fit(model, 2, [monitor], batch_size=96))
        if not options:
            assert histories[-1]["loss"][-1] == pytest.approx(model.evaluate(x, y, verbose=0)[0], rel=1e-4)
    assert histories[1]["loss"] == pytest.approx(4 * np.array(histories[0]["loss"]), rel=1e-3)


@pytest.mark.filterwarnings("ignore:The last layer is solved for the compiled loss alone")
@pytest.mark.parametrize(("kind", "is_solved"), [("l2", True), ("l1", False)])
def test_a_regularizer_of_the_head_is_minimized_or_said_to_be_left_out(kind, is_solved, capsys):
    model = compiled(keras_dal.Wrap("sgd", explore=1), small_model(kernel_regularizer=kind))
    monitor = keras_dal.AlignmentMonitor()
    fit(model, 2, [monitor])
    printed = capsys.readouterr().out
    assert monitor.result.penalized == is_solved
    assert ("left out:   the regularizer of the head" in printed) != is_solved
    assert ("x change of the head + its L2 penalty" in printed) == is_solved
    assert ("minimized with it" if is_solved else "left out") in str(monitor.result)


def test_no_head_is_promised_to_tell_equal_samples_apart(capsys):
    x, y = rows()
    x[:6], y[:6] = x[0], [0, 0, 0, 0, 1, 2]
    model = dense()
    model.compile(keras_dal.Wrap("sgd", explore=1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor()])
    assert "can put every sample on its right side but 2, whose features" in capsys.readouterr().out


def test_statistics_that_move_after_the_switch_are_seen():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the training step of this test is one of TensorFlow")
    import tensorflow as tf

    class LayerByLayer(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                for layer in self.layers[1:]:
                    x = layer(x, training=True) if isinstance(layer, layers.BatchNormalization) else layer(x)
                loss = self.compute_loss(y=y, y_pred=x)
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            return {"loss": loss}

    x, y = rows()
    inputs = keras.Input((4,))
    model = LayerByLayer(inputs, layers.Dense(3)(layers.BatchNormalization()(layers.Dense(8)(inputs))))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap("sgd", explore=1, finish="descend"), loss)
    with pytest.warns(UserWarning, match="State of the model moved after the switch.*moving_mean"):
        model.fit(x, y, epochs=3, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])


def wide(width, n, epochs):
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((n, 8)).astype("float32"), generator.integers(0, 3, n)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8,)), layers.Dense(width, activation="relu"), layers.Dense(3)])
    model.compile(keras_dal.Wrap("sgd"), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model.fit(x, y, epochs=epochs, verbose=0, callbacks=[keras_dal.AlignmentMonitor()]).history


def test_many_features_are_measured_only_where_training_takes_a_hundred_times_as_long(capsys):
    history = wide(1400, 64, 4)
    assert np.isnan(history["alignment"]).all()
    assert len(set(history["kernel_change"])) == 4
    assert "the alignment is not measured in this fit" in capsys.readouterr().out


def test_some_features_are_measured_every_so_many_epochs(capsys):
    history = wide(150, 640, 30)
    measured = np.flatnonzero(~np.isnan(history["alignment"]))
    interval = int(re.search(r"measured every (\d+) epochs", capsys.readouterr().out)[1])
    assert 1 < interval < 10
    assert measured[0] == 0
    explored = np.array(history["alignment"][: history["phase"].index(1)])[measured[0] :]
    assert len(set(explored)) - -(-len(explored) // interval) in (0, 1)  # and once where the schedule looks at it


def test_a_kernel_is_used_at_every_position():
    pixels = 8 * 8
    products = pixels * (3 * 3 * 2 * 6 + 2 * 6 + (3 * 3 * 6 + 1) * 6) + 6 * NUM_CLASSES + NUM_CLASSES
    assert Budget(small_model(), 6, NUM_CLASSES, epochs=5).alignment() == 1
    measuring = 4 * (1501 + NUM_CLASSES) ** 2 * 1000 + 10 * 1501**3 + 5e9
    expected = math.ceil(measuring / (0.005 * (max(1e6, 6 * products) * 1000 + 1e9)))
    assert Budget(small_model(), 1500, NUM_CLASSES, epochs=10).alignment(1000) == expected > 1


def test_a_measurement_that_takes_little_is_made_five_times_a_fit_or_as_half_a_percent_of_it():
    budget = Budget(small_model(), 6, NUM_CLASSES, epochs=60)
    assert budget.alignment(1000) == budget.kernel_change(1000) == 12
    assert budget.alignment(10**9) == budget.kernel_change(10**9) == 1
    assert budget.alignment(1000, first=True) == budget.kernel_change(1000, first=True) == 1


@pytest.mark.parametrize("epochs", [1, 4, 5, 6, 8, 9, 11, 14, 60])
def test_short_fits_have_five_measurements_too(epochs):
    interval = Budget(small_model(), 6, NUM_CLASSES, epochs).alignment(1000)
    assert len(range(0, epochs, interval)) >= min(5, epochs)


def test_what_the_host_computes_counts_for_more_where_an_accelerator_trains(monkeypatch):
    """A network of which a host measures every epoch, and a card five times a fit."""
    keras.utils.set_random_seed(0)
    convolutions = [layers.Conv2D(64, 3, padding="same") for _ in range(4)]
    stack = [keras.Input((16, 16, 3)), *convolutions, layers.GlobalAveragePooling2D(), layers.Dense(3)]
    model, intervals = keras.Sequential(stack), []
    for is_there in (False, True):
        monkeypatch.setattr("keras_dal._backend.has_accelerator", lambda is_there=is_there: is_there)
        budget = Budget(model, 64, 3, epochs=60)
        intervals.append((budget.alignment(50_000), budget.kernel_change(50_000)))
    assert intervals == [(1, 1), (12, 12)]
    assert Budget(model, 512, 3, epochs=40).alignment(50_000) == 8  # the sums of a card are cheap, however many


def test_a_kernel_change_takes_a_pass_over_the_samples_that_are_looked_at():
    images = keras.Input((128, 128, 64))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(64, 3, padding="same")(images))
    products = 128 * 128 * (3 * 3 * 64 + 1) * 64 + (64 + 1) * 3
    expected = math.ceil((64 * 2 * products + 5e8) / (0.005 * (6 * products * 100 + 1e9)))
    assert Budget(keras.Model(images, layers.Dense(3)(x)), 64, 3, epochs=1000).kernel_change(100) == expected > 1


@pytest.mark.filterwarnings("ignore:The structure of .inputs. doesn't match")  # Keras takes it all the same
def test_the_kernel_change_of_an_input_that_comes_by_its_name_is_measured():
    (x, y), found = images(), []
    for given in (x, {"image": x}):
        keras.utils.set_random_seed(1)
        image = keras.Input((8, 8, 2), name="image")
        hidden = layers.Dense(5, activation="relu")(layers.Flatten()(image))
        model = compiled("sgd", keras.Model(image, layers.Dense(NUM_CLASSES)(hidden)))
        monitor = keras_dal.AlignmentMonitor(verbose=False)
        found.append(model.fit(given, y, epochs=1, verbose=0, callbacks=[monitor]).history)
    assert found[1]["kernel_change"] == found[0]["kernel_change"]
    assert found[1]["kernel_change"][0] > 0


def test_a_table_that_is_looked_up_in_is_not_multiplied_with():
    intervals = []
    for size in (10, 100_000):
        words = keras.Input((7,))
        x = layers.GlobalAveragePooling1D()(layers.Embedding(size, 64)(words))
        intervals.append(Budget(keras.Model(words, layers.Dense(3)(x)), 1500, 3, epochs=10).alignment(1000))
    assert intervals[0] == intervals[1] > 1


def test_positions_are_those_of_either_data_format():
    intervals = []
    for shape, data_format in (((16, 16, 3), "channels_last"), ((3, 16, 16), "channels_first")):
        images = keras.Input(shape)
        x = layers.Conv2D(64, 3, data_format=data_format)(images)
        x = layers.GlobalAveragePooling2D(data_format=data_format)(x)
        intervals.append(Budget(keras.Model(images, layers.Dense(3)(x)), 1500, 3, epochs=10).alignment(5000))
    assert intervals[0] == intervals[1] > 1


def test_when_to_measure_follows_from_the_samples_of_the_epoch_before(monkeypatch):
    alignment, counts = Budget.alignment, []

    def counted(budget, count=None, first=False):
        counts.append(count)
        return alignment(budget, count, first)

    monkeypatch.setattr(Budget, "alignment", counted)
    fit(compiled("sgd"), 3)
    assert counts[0] is None
    assert set(counts[1:]) == {96}


def test_labels_in_a_dict_may_have_weights():
    x, y = rows()
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"out": layers.Dense(3)(layers.Dense(8, activation="relu")(inputs))})
    loss = {"out": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    weights = np.linspace(0.5, 1.5, len(y)).astype("float32")
    monitor, _ = ended(model, x, {"out": y}, loss, sample_weight=weights, batch_size=40, shuffle=False)
    np.testing.assert_allclose(monitor.result._data.train.weights, weights, rtol=1e-6)


def test_a_fit_may_read_strings():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("strings are tensors of TensorFlow")
    import tensorflow as tf

    words = layers.TextVectorization(output_sequence_length=3, vocabulary=["red", "green", "blue"])
    model = keras.Sequential(
        [keras.Input((1,), dtype="string"), words, layers.Embedding(5, 4), layers.GlobalAveragePooling1D()]
    )
    model.add(layers.Dense(3))
    x = np.array([["red"], ["green"], ["blue"]] * 10)
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(30) % 3)).batch(10)
    _, history = ended(model, data, None, shuffle=False)
    assert np.isfinite(history["alignment"]).all()


def test_a_generator_may_write_into_one_buffer():
    if keras.backend.backend() == "tensorflow":
        pytest.skip("its input pipeline reads ahead, and such a generator trains on wrong images")
    x, y = rows()

    def batches():
        buffer = np.empty((30, 4), "float32")
        while True:
            for start in range(0, 120, 30):
                buffer[:] = x[start : start + 30]
                yield buffer, y[start : start + 30]

    model = dense(layers.BatchNormalization())
    monitor, _ = ended(model, batches(), None, steps_per_epoch=4, shuffle=False)
    result, before = monitor.result, keras.Model(model.inputs, model.layers[-1].input)
    read = {tuple(row) for row in np.round(result._data.train.features, 4).tolist()}
    expected = {tuple(row) for row in np.round(before.predict(x, verbose=0), 4).tolist()}
    assert len(read & expected) > 100  # rounded at the border, a few differ


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="elsewhere Keras builds the model before callbacks")
def test_a_fit_without_a_step_leaves_nothing_behind():
    import tensorflow as tf

    x, y = rows()
    model = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(3)])
    model.compile(keras_dal.Wrap("sgd"), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(30)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    with contextlib.suppress(Exception):  # of Keras, which finds no logs
        model.fit(data.filter(lambda *_: False), epochs=1, verbose=0, callbacks=[monitor])
    assert model.train_function is None
    assert state_of(model.optimizer).driver.fit is None


def test_a_fit_of_one_epoch_may_begin_in_the_second_phase():
    x, y = rows()
    model = dense()
    model.compile(keras_dal.Wrap("adam"), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.build(model.trainable_variables)
    model.optimizer.switch(model)
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[monitor])
    assert monitor.result.point.gap <= 1e-4


def test_a_frozen_backbone_takes_time_too():
    keras.utils.set_random_seed(0)
    backbone = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(64, 3), layers.Conv2D(64, 3)])
    model = keras.Sequential([backbone, layers.GlobalAveragePooling2D(), layers.Dense(3)])
    intervals = []
    for trainable in (True, False):
        backbone.trainable = trainable
        intervals.append(Budget(model, 2048, 10, 1000).alignment(5000))
    assert intervals[0] < intervals[1] <= 4 * intervals[0]


def test_a_train_step_may_update_every_metric_with_labels_and_outputs():
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the training step of this test is one of TensorFlow")
    import tensorflow as tf

    class Guided(keras.Model):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                predicted = self(x, training=True)
                loss = self.compute_loss(y=y, y_pred=predicted)
            self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(y, predicted)
            return {metric.name: metric.result() for metric in self.metrics}

    x, y = rows()
    whole = dense()
    _, history = ended(Guided(whole.inputs, whole.outputs), x, y)
    assert np.isfinite(history["alignment"]).all()


def test_callbacks_before_the_monitor_see_the_solved_model(tmp_path):
    x, y = rows()
    model, log = dense(), tmp_path / "log.csv"
    model.compile(keras_dal.Wrap("sgd", explore=2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[keras.callbacks.CSVLogger(log), monitor]).history
    losses = [float(line.split(",")[1]) for line in log.read_text().splitlines()[1:]]
    assert losses == pytest.approx(history["loss"], rel=1e-6)
    assert losses[-1] == pytest.approx(monitor.result.loss, rel=1e-5)


def test_weights_that_are_not_numbers_are_not_solved_upon():
    x, y = rows()
    x[5, 2] = np.nan
    model = dense()  # whose units turn NaN into zeros
    model.compile(keras_dal.Wrap("sgd", explore=1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    with pytest.warns(UserWarning, match="exploration goes on.*not finite|not a number"):
        model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor])
    assert monitor.result is None


@pytest.mark.parametrize(
    ("explore", "said"), [(7, "comes after 7 epochs, and this fit ends after 2"), (None, "no Wrap")], ids=str
)
def test_a_fit_that_will_not_switch_says_so_when_it_begins(explore, said, capsys):
    x, y = rows()
    model = dense()
    optimizer = "sgd" if explore is None else keras_dal.Wrap("sgd", explore=explore)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    printed = []
    begins = keras.callbacks.LambdaCallback(
        on_train_batch_begin=lambda batch, logs: printed.append(capsys.readouterr().out)
    )
    model.fit(x, y, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor(), begins])
    assert said in printed[0]


def test_statistics_are_renewed_for_any_model_that_asks_for_it():
    x, y = rows()
    model = dense(layers.BatchNormalization(name="norm"))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    keras_dal.finish(model, x, y, statistics_from=x, verbose=0)
    moving = keras.ops.convert_to_numpy(model.get_layer("norm").moving_mean)
    np.testing.assert_allclose(moving, x.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("others", [5, 32])
def test_a_step_that_calls_the_model_twice_is_measured_by_the_call_with_labels(others):
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the training step of this test is one of TensorFlow")

    class Consistent(keras.Model):
        def train_step(self, data):
            x, y = data
            predicted, _ = self(x, training=True), self(0.0 * x[:others], training=True)
            return {"loss": self.compute_loss(y=y, y_pred=predicted)}

    x, y = rows(128)
    inputs = keras.Input((4,))
    model = Consistent(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = keras_dal.alignment(model, x, y).alignment
    history = model.fit(x, y, epochs=1, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)]).history
    assert history["alignment"] == [pytest.approx(expected, abs=1e-5)]


def test_a_head_under_a_mask_that_an_average_leaves_out_is_refused():
    inputs = keras.Input((6, 3))
    x = layers.Dense(3)(layers.LSTM(4, return_sequences=True)(layers.Masking()(inputs)))
    model = keras.Model(inputs, layers.GlobalAveragePooling1D()(x))
    with pytest.raises(ValueError, match="a mask leaves positions out of the average.*Received"):
        keras_dal.find_structure(model)


@pytest.mark.parametrize("width", [0, 5])
def test_a_masked_average_before_the_head_is_understood_and_solved_on(width):
    words = np.random.default_rng(0).integers(0, 9, (60, 7))
    keras.utils.set_random_seed(0)
    masked = [layers.Embedding(9, 4, mask_zero=True), layers.GlobalAveragePooling1D()]
    between = [layers.Dense(width, activation="relu")] if width else []
    model = keras.Sequential([keras.Input((7,), dtype="int32"), *masked, *between, layers.Dense(3)])
    monitor, _ = ended(model, words, words.sum(axis=1) % 3)
    pooled = keras.Sequential(model.layers[:-1])
    logits = keras.ops.convert_to_numpy(model(words))
    features = keras.ops.convert_to_numpy(pooled(words))
    np.testing.assert_allclose(monitor.result.logits(features), logits, atol=1e-5)
    assert monitor.result.loss == pytest.approx(model.evaluate(words, words.sum(axis=1) % 3, verbose=0), rel=1e-5)


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_samples_of_nothing_but_padding_are_not_what_a_model_is_tried_on(length):
    """Their masked average is 0 / 0, and nobody gave them."""
    masked = [layers.Embedding(20, 6, mask_zero=True), layers.GlobalAveragePooling1D()]
    model = keras.Sequential([keras.Input((length,), dtype="int32"), *masked, layers.Dense(2)])
    assert keras_dal.find_structure(model).num_features == 6


def test_a_layer_that_calls_a_part_of_it_a_linear_head_is_one_like_others():
    class Encoder(layers.Layer):
        def __init__(self):
            super().__init__()
            self.linear_head, self.is_zero, self.gates_frozen = layers.Dense(5), True, False

        def call(self, x):
            return self.linear_head(x)

    inputs = keras.Input((4,))
    structure = keras_dal.find_structure(keras.Model(inputs, layers.Dense(3)(Encoder()(inputs))))
    assert (structure.num_features, structure.gated_layers) == (5, ())


def test_all_variables_have_paths_of_their_own_while_a_model_of_two_inputs_is_trained():
    first, second = keras.Input((4,)), keras.Input((4,))
    model = keras.Model([first, second], layers.Dense(3)(layers.Concatenate()([first, second])))
    x, y = rows()
    saved = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: model.get_state_tree())
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.compile(keras_dal.Wrap("sgd", explore=1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = model.fit([x, x], y, epochs=2, verbose=0, callbacks=[monitor, saved]).history
    assert history["phase"] == [0, 1]


def test_samples_without_weight_are_not_counted_among_those_the_head_is_solved_on(capsys):
    x, y = rows()
    model = dense()
    model.compile(keras_dal.Wrap("sgd", explore=1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    weights = (np.arange(120) < 20).astype("float32")
    model.fit(x, y, sample_weight=weights, epochs=2, verbose=0, callbacks=[keras_dal.AlignmentMonitor()])
    printed = capsys.readouterr().out
    assert "parameters on 20 samples of 8 features" in printed
    assert "fewer than 5 samples for each feature" in printed


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="modules that are no layers are PyTorch's")
def test_running_statistics_of_a_torch_module_are_said_and_left_as_training_left_them(recwarn):
    import torch

    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    inputs = keras.Input((4,))
    wrapped = keras.layers.TorchModuleWrapper(module, output_shape=(None, 8))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.BatchNormalization()(wrapped)))
    x, y = rows()
    kept = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: kept.append(module[1].running_mean.detach().cpu().numpy().copy())
    )
    model.compile(
        keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2, average=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor, keep])
    assert kept[1].any()
    np.testing.assert_array_equal(kept[2], kept[1])
    said = [str(warning.message) for warning in recwarn if "keep what the last steps left" in str(warning.message)]
    assert len(said) == 1
    assert "running_mean" in said[0]


def test_a_mask_of_whole_samples_that_the_loss_leaves_out_is_refused():
    model = keras.Sequential([keras.Input((4,)), layers.Masking(), layers.Dense(3)])
    with pytest.raises(ValueError, match="a mask leaves samples out of the loss.*Received"):
        keras_dal.find_structure(model)


def test_statistics_leave_a_spectral_norm_where_it_is():
    inputs = keras.Input((4,))
    x = layers.SpectralNormalization(layers.Dense(6))(inputs)
    model = keras.Model(inputs, layers.Dense(3)(layers.BatchNormalization()(x)))
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]
    statistics = BatchStatistics(model)
    statistics.add((3 * rows()[0],))
    statistics.settle()
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_a_layer_that_works_eagerly_only_is_trained_eagerly():
    if keras.backend.backend() == "jax":
        pytest.skip("Keras differentiates inside JAX, where nothing is eager")

    class Eager(layers.Layer):
        def call(self, inputs):
            return inputs if float(keras.ops.convert_to_numpy(keras.ops.max(inputs))) < 100 else 0 * inputs

        def compute_output_shape(self, shape):
            return shape

    x, y = rows()
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8, activation="relu"), Eager(), layers.Dense(3)])
    model.compile(
        keras_dal.Wrap("sgd", explore=2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=True,
    )
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(x, y, epochs=4, verbose=0, callbacks=[monitor]).history
    assert monitor.result is not None
    assert np.isfinite(history["kernel_change"]).all()


needs_traces = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the other backends make metrics before they trace"
)


def counted(model):
    """Return a list that grows with every call of the loss of a model, which a trace makes once."""
    compute_loss, calls = model.compute_loss, []

    def counting(*args, **arguments):
        calls.append(arguments)
        return compute_loss(*args, **arguments)

    model.compute_loss = counting
    return calls


@needs_traces
@pytest.mark.parametrize("scaled", [False, True], ids=["", "loss scale"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
def test_a_step_is_traced_once_whatever_its_metrics_keep(weighted, scaled):
    optimizer = keras_dal.Wrap(keras.optimizers.Adam(0.01))
    optimizer = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
    traced = counted(model := compiled(optimizer, weighted_metrics=["accuracy"]))
    weights = {"sample_weight": np.ones(96, "float32")} if weighted else {}
    history = fit(model, 4, **weights)
    assert len(traced) == 1
    assert len(history["accuracy"]) == len(history["weighted_accuracy"]) == 4


@needs_traces
@pytest.mark.parametrize("source", ["generator", "dataset"])
def test_a_step_without_weights_is_traced_once(source):
    import tensorflow as tf

    data = ((*images(32), None) for _ in itertools.count())
    if source == "dataset":
        data = tf.data.Dataset.from_tensors(images(32)).repeat().map(lambda x, y: (x, y, None))
    traced = counted(model := compiled(keras_dal.Wrap("sgd", explore=2)))
    fit_options = {"steps_per_epoch": 3, "epochs": 3, "verbose": 0, "shuffle": False}
    model.fit(data, callbacks=[keras_dal.AlignmentMonitor(verbose=False)], **fit_options)
    assert len(traced) == 1


class Outputs(keras.metrics.Metric):
    """A metric that keeps what it saw, as is usual where models run eagerly."""

    def __init__(self):
        super().__init__(name="outputs")
        self.seen = []

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.seen.append(y_pred)

    def result(self):
        return sum(int(each.shape[0]) for each in self.seen)

    def reset_state(self):
        self.seen.clear()


def test_a_metric_that_runs_eagerly_sees_samples_alone():
    if keras.backend.backend() == "jax":
        pytest.skip("Keras on JAX calls every metric once without samples")
    model = small_model()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap("sgd", explore=1), loss, metrics=[Outputs()], run_eagerly=True)
    assert fit(model, 2)["outputs"] == [96, 96]


@pytest.mark.parametrize("is_built", [False, True])
def test_a_generator_may_say_that_there_are_no_weights(is_built):
    x, y = rows()
    hidden = [layers.Dense(8, activation="relu"), layers.Dense(3)]
    model = keras.Sequential([keras.Input((4,)), *hidden] if is_built else hidden)
    compiled(keras_dal.Wrap("sgd", explore=2), model)

    def batches():
        while True:
            for k in range(0, 120, 40):
                yield x[k : k + 40], y[k : k + 40], None

    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(batches(), steps_per_epoch=3, epochs=3, verbose=0, shuffle=False, callbacks=[monitor]).history
    assert len(history["accuracy"]) == 3
    assert monitor.result.point.gap <= 1e-4


class BuiltByItself(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = layers.Dense(8, activation="relu"), layers.Dense(3)
        self.hidden.build((None, 4))
        self.out.build((None, 8))
        self.built = True

    def call(self, x):
        return self.out(self.hidden(x))


def test_a_model_that_says_itself_that_it_is_built_is_trained_on_data_of_the_monitor():
    x, y = rows()
    ended(BuiltByItself(), x, y, data=(x, y))


def test_a_model_that_says_itself_that_it_is_built_is_refused_with_its_weights_where_its_inputs_are_not_known():
    x, y = rows()
    model = BuiltByItself()
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"leave out self.built = True, or pass AlignmentMonitor\(data=.*Received"):
        ended(model, x, y)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


class LossOfOtherNames(keras.Model):
    def compute_loss(self, inputs, targets, outputs, weights=None, training=True):
        return super().compute_loss(inputs, targets, outputs, weights)


class LossOfAnything(keras.Model):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)


class LossOfThree(keras.Model):
    def compute_loss(self, x, y, y_pred):
        return super().compute_loss(x, y, y_pred)

    def train_step(self, data):
        x, y = data
        return {"loss": self.compute_loss(x, y, self(x, training=True))}


class LossOfTwo(keras.Model):
    def compute_loss(self, y, y_pred):
        return super().compute_loss(y=y, y_pred=y_pred)

    def train_step(self, data):
        x, y = data
        return {"loss": self.compute_loss(y, self(x, training=True))}


@pytest.mark.parametrize("kind", [LossOfOtherNames, LossOfAnything, LossOfThree, LossOfTwo])
def test_compute_loss_may_name_its_arguments_as_it_likes(kind):
    if kind in (LossOfThree, LossOfTwo) and keras.backend.backend() != "tensorflow":
        pytest.skip("the training step of this test is one of TensorFlow")
    x, y = rows()
    inputs = keras.Input((4,))
    model = kind(inputs, layers.Dense(3)(layers.Dense(8, activation="relu")(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.optimizer.learning_rate = 0.0
    expected = keras_dal.alignment(model, x, y).alignment
    history = model.fit(x, y, epochs=1, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)]).history
    assert history["alignment"] == [pytest.approx(expected, abs=1e-5)]


class RunningMean(layers.Layer):
    """Statistics that are not named as those of Keras are."""

    def build(self, shape):
        self.running = self.add_weight(shape=shape[-1:], initializer="zeros", trainable=False, name="running_mean")

    def call(self, x, training=False):
        if training:
            self.running.assign(0.9 * self.running + 0.1 * keras.ops.mean(x, axis=0))
        return x - self.running


@pytest.mark.parametrize("average", [0, 0.5])
def test_statistics_that_nobody_renews_beside_an_average_are_said(average, recwarn):
    x, y = rows()
    model = dense(RunningMean(name="centred"), layers.BatchNormalization())
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras_dal.Wrap("adam", explore=2, average=average), loss)
    model.fit(x, y, epochs=3, verbose=0, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])
    said = [str(warning.message) for warning in recwarn if "keep what the last steps left" in str(warning.message)]
    assert len(said) == (average > 0)
    assert all(text.endswith("centred/running_mean") for text in said)


class MadeAnew(keras.callbacks.Callback):
    """Lets Keras make its train function anew, as whoever unfreezes layers in training must."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if epoch in self.epochs:
            self.model.make_train_function(force=True)


@pytest.mark.parametrize("finish", ["solve", "descend"])
def test_another_callback_may_let_the_train_function_be_made_anew(finish):
    x, y = rows()
    weights = []
    for before, after in (((), ()), ((1,), (2, 3, 4))):
        keras.utils.set_random_seed(0)
        model = dense(layers.BatchNormalization())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras_dal.Wrap("adam", explore=3, finish=finish), loss)
        callbacks = [MadeAnew(before), keras_dal.AlignmentMonitor(verbose=False), MadeAnew(after)]
        history = model.fit(x, y, epochs=5, verbose=0, callbacks=callbacks).history
        assert history["phase"][-1] == 1
        assert np.isfinite(history["alignment"]).all()
        weights.append(model.get_weights())
    for value, expected in zip(*weights, strict=True):
        np.testing.assert_array_equal(value, expected)


class Interrupts(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if logs.get("phase") == 1:
            raise KeyboardInterrupt


def test_an_evaluation_after_an_interrupted_fit_leaves_the_model_as_it_is():
    x, y = rows()
    model = dense(layers.BatchNormalization())
    model.compile(keras_dal.Wrap("adam", explore=1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=3, verbose=0, callbacks=[monitor, Interrupts()])
    before = model.get_weights()
    model.evaluate(x, y, verbose=0, callbacks=[monitor])
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)


@pytest.fixture(params=["float64", "float16", "bfloat16"])
def floatx(request):
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx(request.param)
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


@pytest.mark.filterwarnings("ignore:.*float64.*truncated", "ignore:.*loss of precision")
def test_what_keras_computes_in_by_default_ends_no_training_early(floatx):
    x, y = rows()
    x, y = x.astype(floatx), keras.utils.to_categorical(y, 3).astype(floatx)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.BatchNormalization(), layers.Dense(3)])
    model.compile(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), keras.losses.CategoricalCrossentropy(True))
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    history = model.fit(x, y, epochs=6, verbose=0, callbacks=[monitor]).history
    assert monitor.result is not None
    assert len(history["loss"]) == 3
    assert np.isfinite(history["alignment"]).all()


@pytest.mark.parametrize("steps", [1] if keras.backend.backend() == "torch" else [1, 4])  # in a call, where it can be
@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_a_generator_that_has_ended_is_not_taken_for_all_data(steps):
    """Keras goes on with the two batches that it has looked ahead."""
    x, y = rows()
    options = {} if steps == 1 else {"steps_per_execution": steps}
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), dense(), **options)
    batches = ((x[start : start + 10], y[start : start + 10]) for start in range(0, 120, 10))
    monitor = keras_dal.AlignmentMonitor(verbose=0)
    with pytest.warns(UserWarning, match=r"data ran out. Received: \d of (12|9) batches"):
        history = model.fit(batches, epochs=5, verbose=0, shuffle=False, callbacks=[monitor]).history
    assert monitor.result is None
    assert len(history["loss"]) == 5


def test_a_fit_prints_the_loss_that_it_logs_too(capsys):
    x, y = rows()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1), dense(), loss_weights=[0.5])
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[keras_dal.AlignmentMonitor()]).history
    logged = history["loss"][-1]
    assert f"loss {2 * logged:.4g}, {logged:.4g} with its loss weight" in capsys.readouterr().out


def test_statistics_from_nothing_are_refused():
    x, y = rows()
    model = compiled("sgd", keras.Sequential([keras.Input((4,)), layers.BatchNormalization(), layers.Dense(3)]))
    with pytest.raises(ValueError, match="no samples to renew batch statistics on.*Received: list_iterator"):
        keras_dal.finish(model, x, y, statistics_from=iter([]))


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("momentum", [0.5, 0.99])
@pytest.mark.parametrize("kept", [{"average": 0}, {"finish": "descend"}], ids=["solved", "descended"])
def test_statistics_that_have_not_settled_are_said_in_fit_where_nothing_renews_them(kept, momentum, with_data, recwarn):
    x, y = rows()
    model = keras.Sequential([keras.Input((4,)), layers.BatchNormalization(momentum=momentum), layers.Dense(3)])
    compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01), explore=4, **kept), model)
    monitor = keras_dal.AlignmentMonitor((5 * x + 3, y) if with_data else None, verbose=0)
    model.fit(5 * x + 3, y, epochs=6, verbose=0, callbacks=[monitor])
    assert model.optimizer.phase == "exploit"
    said = [str(each.message) for each in recwarn if "have not settled" in str(each.message)]
    assert len(said) == (momentum == 0.99)


class Prepared(keras.Model):
    """Its steps divide by 255, as the call of a model for real pixels may not."""

    def __init__(self):
        super().__init__()
        self.flat, self.last = keras.layers.Flatten(), keras.layers.Dense(3)

    def call(self, x):
        if "float" not in keras.backend.standardize_dtype(x.dtype):
            raise TypeError("pixels must be floating-point numbers")
        return self.last(self.flat(x))

    def _prepared(self, data):
        x, y = data[:2]
        return keras.ops.cast(x, "float32") / 255, y

    def train_step(self, *args):
        return super().train_step(*args[:-1], self._prepared(args[-1]))

    def test_step(self, *args):
        return super().test_step(*args[:-1], self._prepared(args[-1]))


def pixels():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (12, 4, 4), dtype="uint8"), generator.integers(0, 3, 12)


def prepared():
    model = Prepared()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model


@cases.needs_tensorflow(reason="elsewhere Keras itself refuses what its fit cannot build")
def test_a_model_whose_steps_prepare_what_builds_it_is_to_be_called_once():
    model, (x, y) = prepared(), pixels()
    with pytest.raises(ValueError, match=r"Call it once before fit.*model\(few\). Received: "):
        model.fit(x, y, verbose=0, callbacks=[keras_dal.AlignmentMonitor()])
    model(x[:2] / 255.0)
    assert "alignment" in model.fit(x, y, verbose=0, callbacks=[keras_dal.AlignmentMonitor()]).history


@pytest.mark.parametrize("function", ["alignment", "certify", "finish", "converge", "width_curve"])
def test_inputs_that_an_evaluation_would_prepare_are_said_to_be_taken_as_they_are(function, capsys):
    model, (x, y) = prepared(), pixels()
    x = x.astype("float32") / 255
    model(x[:2])
    options = {"widths": [0]} if function == "width_curve" else {}
    getattr(keras_dal, function)(model, x, y, **options)
    assert "where the model's test_step prepares inputs, pass them prepared" in capsys.readouterr().out
