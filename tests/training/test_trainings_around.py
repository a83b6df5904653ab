"""Trainings before and after the two lines, and callbacks that read what the monitor logs."""

import copy
import gc
import pickle
import weakref

import keras
import numpy as np
import pytest
from fits import NUM_CLASSES, compiled, fit, images, moved, small_model, snapshot
from keras import layers, ops

import keras_dal
from keras_dal.training.state import state_of

SOLVED_BEFORE = pytest.mark.filterwarnings("ignore:this fit begins in the second phase")
ON_JAX, ON_TORCH = (keras.backend.backend() == each for each in ("jax", "torch"))


def test_a_callback_that_compares_sees_a_number_from_the_first_epoch_on(tmp_path):
    best = keras.callbacks.ModelCheckpoint(
        tmp_path / "{epoch}.weights.h5",
        monitor="alignment",
        mode="max",
        save_best_only=True,
        save_weights_only=True,
    )
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = fit(compiled(keras.optimizers.SGD(0.1)), 25, callbacks=[monitor, best])
    assert np.isfinite([history["alignment"], history["kernel_change"]]).all()
    assert best.best == max(history["alignment"])


def test_a_monitor_that_does_not_know_how_long_training_lasts_is_refused():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1)))
    callbacks = keras.callbacks.CallbackList([keras_dal.AlignmentMonitor()], model=model)
    with pytest.raises(ValueError, match=r"how many epochs there are.*CallbackList.*Received: params="):
        callbacks.on_train_begin()


def test_evaluate_may_have_the_callbacks_of_fit():
    model, monitor = (
        compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)),
        keras_dal.AlignmentMonitor(verbose=0),
    )
    fit(model, 4, [monitor])
    result = monitor.result
    model.evaluate(*images(), verbose=0, callbacks=[monitor])
    assert monitor.result is result


def test_a_fit_that_is_over_leaves_nothing_of_itself():
    class Takes(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.taken = weakref.ref(monitor._fit)

    model, monitor, takes = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)), None, Takes()
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    fit(model, 4, [monitor, takes])
    gc.collect()
    assert takes.taken() is None


def test_two_loss_scales_are_refused():
    inner = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model = compiled(keras.optimizers.LossScaleOptimizer(keras_dal.Wrap(inner, explore=2)))
    with pytest.raises(ValueError, match="heeds the outer of two only.*Received: 2 LossScaleOptimizers"):
        fit(model, 3)


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_monitor_that_stands_outside_of_a_list_is_a_list_of_one():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    fit(model, 4, callbacks=monitor)
    assert monitor.result is not None


def test_keras_may_run_ahead_of_the_device():
    """With a callback that has a say at the end of a batch, Keras waits for the device after each."""
    own = {name for name in vars(keras_dal.AlignmentMonitor) if name.endswith("batch_end")}
    assert not own


def test_a_first_fit_that_forgets_the_monitor_says_so_and_leaves_the_model_its_weights():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1)))
    before = snapshot(model)
    if keras.backend.backend() == "jax":  # which has no values to give back once a step has raised
        with pytest.warns(UserWarning, match="Training goes on.*Nothing would ever switch.*Received"):
            model.fit(*images(), verbose=0)
        assert moved(before, snapshot(model))
    else:
        with pytest.raises(RuntimeError, match="Nothing would ever switch"):
            model.fit(*images(), verbose=0)
        assert moved(before, snapshot(model)) <= {"norm/moving_mean", "norm/moving_variance"}  # of a forward pass
    fit(model, 5)
    assert state_of(model.optimizer).progress.is_solved


@pytest.mark.parametrize("explore", [1, 5])
def test_a_fit_that_forgets_the_monitor_ends_with_the_weights_it_began_with(explore):
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=explore))
    fit(model, 2)
    before = snapshot(model)
    for train in (model.fit, model.train_on_batch):
        with pytest.raises(RuntimeError, match="second phase" if explore == 1 else "Nothing would ever switch"):
            train(x, y)
        assert not moved(before, snapshot(model))
    compiled(keras.optimizers.SGD(0.1), model)
    model.fit(x, y, verbose=0)
    assert moved(before, snapshot(model))


def test_a_fit_without_the_monitor_trains_what_belongs_to_the_phase_it_is_in():
    x, y = images()
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=None)
    model = compiled(wrap, small_model(dropout=0.0))

    def trained():
        before = snapshot(model)
        model.fit(x, y, verbose=0)
        trainable = {variable.path for variable in model.trainable_variables}
        return {path for path in moved(before, snapshot(model)) if path in trainable}

    everything = trained()
    wrap.switch(model)
    assert trained() == {"logits/kernel", "logits/bias"}
    wrap.restart()
    assert trained() == everything == {v.path for v in model.trainable_variables}


class Clipping(keras.Model):
    """A step that works on each gradient, on every backend."""

    def train_step(self, *arguments):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            x, y = arguments[0]
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply([tf.clip_by_norm(g, 1.0) for g in gradients], self.trainable_variables)
            return self.compute_metrics(x, y, self(x), None)
        if ON_TORCH:
            x, y = arguments[0]
            self.zero_grad()
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
            loss.backward()
            gradients = [v.value.grad.clip(-1.0, 1.0) for v in self.trainable_variables]
            self.optimizer.apply(gradients, self.trainable_variables)
            return self.compute_metrics(x, y, self(x), None)
        return super().train_step(*arguments)


def test_a_step_that_works_on_each_gradient_goes_on_after_a_switch_that_descends():
    plain = small_model()
    model = compiled(
        keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=1, finish="descend"), Clipping(plain.inputs, plain.outputs)
    )
    fit(model, 1)
    before = snapshot(model)
    assert len(fit(model, 3, initial_epoch=1)["loss"]) == 2
    assert moved(before, snapshot(model)) == {"logits/kernel", "logits/bias"}


class OfEach(keras.metrics.Metric):
    """The sum of the outputs, one for each class."""

    def __init__(self):
        super().__init__(name="of_each")
        self.sums = self.add_variable((NUM_CLASSES,), "zeros")

    def update_state(self, outputs):
        self.sums.assign_add(ops.sum(outputs, axis=0))

    def result(self):
        return self.sums + 0.0


class Noting(keras.Model):
    """Metrics that only the training step updates."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.noted, self.of_each = keras.metrics.Mean("noted"), OfEach()

    def call(self, x, training=None):
        outputs = super().call(x, training=training)
        if training:
            self.noted.update_state(ops.mean(ops.square(outputs)) + 1.0)
            self.of_each.update_state(outputs)
        return outputs


@pytest.mark.skipif(ON_JAX, reason="Keras carries no metric of a model's call through a step on JAX")
def test_what_only_training_measures_is_not_a_number_in_the_epoch_that_only_reads():
    plain = small_model()
    history = fit(
        compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), Noting(plain.inputs, plain.outputs)), 4
    )
    assert min(history["noted"][:2]) >= 1.0
    assert np.isnan(history["noted"][2])
    assert np.isnan(np.array(history["of_each"])).tolist() == [[False] * NUM_CLASSES] * 2 + [[True] * NUM_CLASSES]
    assert np.isfinite(history["accuracy"]).all()


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda each: pickle.loads(pickle.dumps(each))}


@SOLVED_BEFORE
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("finish", ["solve", "descend"])
def test_a_monitor_that_was_used_can_be_copied(copied, finish):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2, finish=finish))
    monitor = keras_dal.AlignmentMonitor(data=images(), verbose=False)
    fit(model, 4, [monitor])
    (other,) = copied([monitor])
    assert other.certificates == monitor.certificates
    assert other.certificates["end"].loss == pytest.approx(monitor.certificates["end"].loss, rel=1e-6)
    assert other.phase == "exploit"
    if finish == "solve":
        result = other.result  # which would warn, had the copy other weights
        assert result.model is result.structure.model is other.model is not model
        assert any(result.structure.layer is layer for layer in other.model.layers)
        assert str(result) == str(monitor.result)
        result.rescale(2.0)
        kernels = [each.get_layer("logits").kernel for each in (model, other.model)]
        np.testing.assert_allclose(*(k * keras.ops.convert_to_numpy(v) for k, v in zip((2, 1), kernels, strict=True)))
    assert fit(other.model, 6, [other], initial_epoch=5)["phase"] == [1]


def test_a_monitor_whose_fit_was_ended_by_an_exception_can_be_copied():
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    broken = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fit(compiled(keras_dal.Wrap("sgd", explore=2)), 4, [monitor, broken])
    assert copy.deepcopy(monitor).result is None


def test_a_result_with_gates_can_be_copied():
    result = keras_dal.converge(compiled("sgd"), *images(), gated=True, verbose=0)
    other = copy.deepcopy(result)
    assert other.structure.gated_layers == (other.model.get_layer("logits"),)
    np.testing.assert_array_equal(other.structure.theta(), result.structure.theta())
    other.choose(0)
    assert other.structure.theta().tobytes() != result.structure.theta().tobytes()


def test_a_fit_of_a_model_that_is_solved_logs_what_others_do(tmp_path):
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    first = fit(model, 4)
    before = snapshot(model)
    saved = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch:02d}-{loss:.3f}.weights.h5", save_weights_only=True)
    with pytest.warns(UserWarning, match="this fit begins in the second phase"):  # though nothing is printed
        history = fit(model, 4, callbacks=[keras_dal.AlignmentMonitor(verbose=False), saved], shuffle=False)
    x, y = images()
    loss, accuracy = model.evaluate(x[:16], y[:16], verbose=0)
    assert [history["loss"], history["accuracy"]] == [[pytest.approx(loss, rel=1e-4)], [pytest.approx(accuracy)]]
    assert set(history) == set(first)
    assert not moved(before, snapshot(model))


@SOLVED_BEFORE
def test_metrics_with_a_value_for_each_class_have_one_in_every_epoch():
    x, y = images()
    model, labels = small_model(), np.eye(NUM_CLASSES, dtype="float32")[y]
    wrap = keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2)
    scores = [keras.metrics.F1Score(), "accuracy"]
    model.compile(wrap, keras.losses.CategoricalCrossentropy(from_logits=True), metrics=scores)
    options = {"epochs": 4, "verbose": 0, "validation_data": (x, labels)}
    history = model.fit(x, labels, callbacks=[keras_dal.AlignmentMonitor(verbose=False)], **options).history
    assert np.array(history["f1_score"]).shape == np.array(history["val_f1_score"]).shape == (3, NUM_CLASSES)
    assert np.array(history["accuracy"]).shape == (3,)
    expected = model.evaluate(x, labels, verbose=0, return_dict=True)["f1_score"]
    np.testing.assert_allclose(history["f1_score"][-1], keras.ops.convert_to_numpy(expected), rtol=1e-5)
    history = model.fit(x, labels, callbacks=[keras_dal.AlignmentMonitor(verbose=False)], **options).history
    assert np.array(history["f1_score"]).shape == (1, NUM_CLASSES)  # of a fit that has nothing left to do


class WithMore(keras.Model):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return super().compute_loss(x, y, y_pred, sample_weight, training) + 1e-3 * ops.mean(ops.square(y_pred))


@pytest.mark.parametrize("kind", ["compute_loss", "activity regularizer", "regularizer of the last layer"])
def test_what_is_not_solved_is_said_before_the_first_step(kind):
    penalties = {"activity regularizer": {"activity_regularizer": "l2"}, "compute_loss": {}}
    plain = small_model(**penalties.get(kind, {"bias_regularizer": "l1"}))
    model = WithMore(plain.inputs, plain.outputs) if kind == "compute_loss" else plain
    with pytest.warns(UserWarning, match=f"solved for the compiled loss alone, without what the {kind}"):
        fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01), explore=2), model), 3)


def test_all_that_is_not_solved_is_said():
    plain = small_model(activity_regularizer="l2", bias_regularizer="l1")
    model = WithMore(plain.inputs, plain.outputs)
    kinds = "compute_loss of .* and the activity regularizer of .* and the regularizer of"
    with pytest.warns(UserWarning, match=kinds):
        fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01), explore=2), model), 1)


def test_that_the_penalty_of_a_gated_head_is_not_solved_is_said_before_the_first_step():
    plain = compiled("sgd", small_model(kernel_regularizer="l2"))
    gated = keras_dal.add_gated_head(plain, num_samples=96, seed=0, verbose=False)
    with pytest.warns(UserWarning, match="without what the regularizer of the last layer"):
        fit(compiled(keras_dal.Wrap(keras.optimizers.SGD(0.01), explore=2), gated), 1)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_the_rest_of_a_stream_is_not_taken_for_all_of_it():
    def stream():
        x, y = images()
        for _ in range(2):
            for start in range(0, 96, 16):
                yield x[start : start + 16], y[start : start + 16]
        yield x[:16], y[:16]

    monitor = keras_dal.AlignmentMonitor(verbose=False)
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2))
    ran_out = "or the data ran out. Received: 1 of 6 batches"
    with pytest.warns(UserWarning, match=ran_out), pytest.warns(UserWarning, match="exploration goes on"):
        model.fit(stream(), steps_per_epoch=6, epochs=4, verbose=0, shuffle=False, callbacks=[monitor])
    assert monitor.result is None
    assert model.optimizer.phase == "explore"


def test_weights_of_the_optimizer_are_those_of_both_parts():
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1, momentum=0.9), explore=1))
    fit(model, 1)
    wrap = model.optimizer
    kept = [np.array(ops.convert_to_numpy(variable)) for variable in wrap.variables]
    fit(model, 2, initial_epoch=1)
    assert wrap.phase == "exploit"
    wrap.set_weights(kept)
    assert wrap.phase == "explore"
    for variable, value in zip(wrap.variables, kept, strict=True):
        assert np.array_equal(ops.convert_to_numpy(variable), value)


def test_labels_whose_number_of_classes_is_not_known_when_the_step_is_traced():
    tf = pytest.importorskip("tensorflow")
    x, y = images()
    one_hot = keras.utils.to_categorical(y, NUM_CLASSES)

    def unknown(x, y):
        return x, tf.ensure_shape(tf.numpy_function(lambda part: part, [y], tf.float32), [None, None])

    data = tf.data.Dataset.from_tensor_slices((x, one_hot.astype("float32"))).batch(16).map(unknown)
    known = tf.data.Dataset.from_tensor_slices((x, one_hot.astype("float32"))).batch(16)
    found = []
    for each in (data, known):
        model = small_model()
        model.compile(keras.optimizers.SGD(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
        found.append(
            model.fit(each, epochs=1, verbose=0, shuffle=False, callbacks=[keras_dal.AlignmentMonitor(verbose=False)])
        )
    assert found[0].history["alignment"] == pytest.approx(found[1].history["alignment"])


@pytest.mark.skipif(ON_TORCH, reason="Keras has no sparse tensors on PyTorch")
def test_sparse_inputs_are_trained_on():
    tf = pytest.importorskip("tensorflow")
    if ON_JAX:
        pytest.skip("batches of tf.data would be dense on JAX")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), sparse=True)
    model = keras.Model(inputs, layers.Dense(NUM_CLASSES)(layers.Dense(5, activation="relu")(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).random((32, 6)).astype("float32") * (np.arange(6) % 2)
    data = tf.data.Dataset.from_tensor_slices((x, np.arange(32) % 3)).batch(8)
    data = data.map(lambda x, y: (tf.sparse.from_dense(x), y))
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    assert np.isfinite(
        model.fit(data, epochs=2, verbose=0, shuffle=False, callbacks=[monitor]).history["alignment"]
    ).all()


class CountsBatches(keras.Model):
    def __init__(self):
        super().__init__()
        self.flat, self.hidden, self.logits = layers.Flatten(), layers.Dense(6, "relu"), layers.Dense(NUM_CLASSES)
        self.num_batches = keras.metrics.Sum(name="num_batches")

    def call(self, x):
        return self.logits(self.hidden(self.flat(x)))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.num_batches.update_state(1.0)
        return super().compute_metrics(x, y, y_pred, sample_weight)


def test_metrics_of_batches_see_those_of_the_fit_in_the_epoch_that_solves():
    x, y = images()
    model = compiled(keras_dal.Wrap(keras.optimizers.SGD(0.1), explore=2), CountsBatches())
    monitor = keras_dal.AlignmentMonitor(verbose=False)
    history = model.fit(x, y, batch_size=20, epochs=4, verbose=0, callbacks=[monitor]).history
    assert history["num_batches"] == [-(-len(x) // 20)] * 3
    assert monitor.result.stopped_by == "the certified gap"
