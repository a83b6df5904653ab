"""What the private names of Keras do that the package relies on, with the installed Keras."""

import ast
import collections
import inspect
import pathlib
import re

import keras
import numpy as np
import pytest
from keras import layers

from keras_dal import _keras


class Net(keras.Model):
    """A subclassed model with state of every kind."""

    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(4, activation="relu"), layers.Dropout(0.5)]
        self.heads = {"a": layers.Dense(2)}
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        self.kept = 7

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["a"](x * self.scale)


@pytest.fixture
def net():
    keras.utils.set_random_seed(0)
    model = Net()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(np.ones((8, 3)), np.ones((8, 2)), verbose=0)
    return model


def test_sublayers_are_all_below_and_parts_those_held_directly(net):
    outer = keras.Sequential([keras.Input((3,)), net])
    below = _keras.sublayers(outer)
    assert {layer for layer in below if not isinstance(layer, layers.InputLayer)} == {
        net,
        *net.blocks,
        net.heads["a"],
    }
    assert len(below) == len(set(below)) == 5
    assert _keras.parts(net) == [*net.blocks, net.heads["a"]]
    assert _keras.parts(net.blocks[0]) == []


def test_the_loss_of_one_replica_is_whole():
    assert (
        float(_keras.whole_loss(keras.ops.convert_to_tensor(2.0))) == 2.0
    )  # of several: tests/training/test_replicas.py


def test_graphs_are_what_clone_model_walks(net):
    inputs = keras.Input((3,))
    functional = keras.Model(inputs, layers.Dense(2)(inputs))
    for graph in (functional, keras.Sequential([inputs, layers.Dense(2)])):
        assert _keras.is_graph(graph)
        head = graph.layers[-1]
        assert keras.models.clone_model(graph, clone_function=lambda layer: layer).layers[-1] is head
    assert not _keras.is_graph(net)
    assert not _keras.is_graph(layers.Dense(2))


def test_compile_arguments_are_the_objects_themselves():
    def own(y_true, y_pred):
        return keras.ops.mean(y_pred)

    optimizer = keras.optimizers.SGD(0.1)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert _keras.compile_arguments(model) == {}
    model.compile(optimizer, "mse", metrics=[own])
    arguments = _keras.compile_arguments(model)
    assert arguments["optimizer"] is optimizer
    assert arguments["metrics"] == [own]
    assert set(arguments) <= set(inspect.signature(model.compile).parameters)


def test_a_layer_is_made_anew_from_its_parts_and_its_state_is_tracked(net):
    other = layers.Dense(2, name="other")
    other.build((None, 4))
    head = net.heads["a"]

    def exchanged(value):
        if value is head:
            return other
        return {key: exchanged(each) for key, each in value.items()} if isinstance(value, dict) else value

    new = _keras.remade(net, exchanged)
    assert type(new) is Net
    assert new.kept == 7
    assert new.built
    assert not new.compiled
    assert _keras.parts(new) == [*net.blocks, other]
    assert [v.path for v in new.trainable_variables] == [
        v.path for v in (net.scale, *net.blocks[0].variables, *other.variables)
    ]
    x = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
    other.set_weights(head.get_weights())
    np.testing.assert_allclose(new.predict(x, verbose=0), net.predict(x, verbose=0), rtol=1e-6)
    new.compile("sgd", "mse")
    before = net.scale.numpy().copy()
    new.fit(x, np.ones((5, 2)), verbose=0)
    assert not np.array_equal(net.scale.numpy(), before)  # the same variable


def test_layers_that_no_copy_is_known_of_come_last(net):
    copies = {id(block): type(block).from_config(block.get_config()) for block in net.blocks}
    new = _keras.remade(net, lambda value: copies.get(id(value), value))  # which leaves lists as they are
    assert _keras.parts(new) == [*copies.values(), net.heads["a"], *net.blocks]


def test_an_optimizer_keeps_averages_and_variables_in_one_order_and_counts_steps():
    first, second = (keras.Variable(np.full(2, value, "float32")) for value in (1.0, 2.0))
    optimizer = keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.75)
    optimizer.build([first, second])
    optimizer.apply([keras.ops.ones(2), keras.ops.zeros(2)])
    assert _keras.optimized(optimizer) == [first, second]
    averages = [keras.ops.convert_to_numpy(v) for v in _keras.moving_averages(optimizer)]
    np.testing.assert_allclose(averages, [[0.5, 0.5], [2.0, 2.0]])  # the first step counts whole
    _keras.count_step(optimizer)
    assert int(optimizer.iterations) == 2
    setattr(optimizer, _keras.RATE, lambda: 0.25)
    assert optimizer.learning_rate == 0.25


def test_averages_that_another_optimizer_keeps_are_what_swapping_weights_reads():
    class Outer(keras.optimizers.SGD):
        pass

    _keras.lend_averages(Outer, lambda outer: outer.keeps)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    inner = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    inner.build(model.trainable_variables)
    for average in _keras.moving_averages(inner):
        average.assign(7.0 * keras.ops.ones(average.shape))
    model.compile(Outer(0.1), "mse")
    model.optimizer.keeps = inner
    model.optimizer.build(model.trainable_variables)
    swap = keras.callbacks.SwapEMAWeights()
    swap.set_model(model)
    swap.on_test_begin()
    assert all((keras.ops.convert_to_numpy(v) == 7).all() for v in model.trainable_variables)


def test_what_a_random_layer_draws_from_is_known_by_the_path_of_its_variable():
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5), layers.BatchNormalization(), layers.Dense(2)])
    seeds = [v for v in model.variables if _keras.is_seed(v)]
    assert [id(v) for v in seeds] == [id(model.layers[0].seed_generator.state)]


def test_collections_of_a_layer_are_known_as_what_keras_makes_of_them():
    class Own(layers.Layer):
        def __init__(self):
            super().__init__()
            self.list, self.dict, self.set = [1], {"a": 1}, {1}
            self.ordered, self.tuple = collections.OrderedDict(a=1), (1,)

    class Mine(list):
        pass

    layer = Own()
    for value in ([1], {"a": 1}, {1}, layer.list, layer.dict, layer.set, layer.ordered, collections.OrderedDict()):
        assert _keras.is_collection(value), type(value)
    for value in (layer.tuple, Mine(), "a", np.ones(2), collections.Counter()):
        assert not _keras.is_collection(value), type(value)


def test_what_an_optimizer_has_of_its_own_is_found_whatever_its_properties_say():
    dense = layers.Dense(2)
    dense.build((None, 3))
    optimizer, tracked = keras.optimizers.SGD(0.25), keras.Variable(1.0)
    optimizer.build(dense.trainable_variables)
    assert [_keras.index_of(optimizer, v) for v in [dense.bias, dense.kernel, tracked]] == [1, 0, None]
    _keras.track(optimizer, tracked)
    assert any(v is tracked for v in optimizer.variables)
    assert float(keras.ops.convert_to_numpy(_keras.rate_variable(optimizer))) == 0.25
    assert _keras.step_count(optimizer) is optimizer.iterations
    outer = keras.optimizers.LossScaleOptimizer(optimizer)
    assert list(_keras.optimizers(outer)) == [outer, optimizer]
    assert list(_keras.optimizers(None)) == []


def test_a_tensor_carries_its_mask_and_a_variable_its_layout():
    masked = layers.Masking()(np.array([[[1.0], [0.0]]], "float32"))
    assert keras.ops.convert_to_numpy(_keras.mask_of(masked)).tolist() == [[True, False]]
    assert _keras.mask_of(keras.ops.ones(2)) is None
    _keras.set_mask(other := keras.ops.ones((1, 2)), _keras.mask_of(masked))
    assert _keras.mask_of(other) is _keras.mask_of(masked)
    if keras.backend.backend() == "jax":
        import jax

        traced = []
        jax.eval_shape(lambda x: traced.append(_keras.mask_of(layers.Masking()(x))), np.ones((1, 2, 1), "float32"))
        assert traced[0].shape == (1, 2)
    assert _keras.layout_of(keras.Variable(1.0)) is None


def test_a_tracked_metric_is_part_of_what_a_step_carries(net):
    metric = keras.metrics.Mean(name="own")
    _keras.tracked_metrics(net).append(metric)
    assert metric.variables[0] in net.metrics_variables
    _keras.tracked_metrics(net).remove(metric)
    assert all(metric is not each for each in net.metrics)


def test_metrics_are_built_for_symbolic_tensors():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    assert not _keras.lacks_metrics(model)
    symbolic = keras.KerasTensor((None, 3), "float32"), keras.KerasTensor((None, 2), "float64"), None
    for _ in range(2):  # compiled again, it lacks them again
        model.compile("sgd", "mse", metrics=["mae"])
        assert _keras.lacks_metrics(model)
        weights = model.get_weights()
        _keras.build_metrics(model, *symbolic)
        assert not _keras.lacks_metrics(model)
        assert [v.name for v in model.metrics_variables].count("total") == 2  # of the loss and the metric
        assert all(map(np.array_equal, weights, model.get_weights()))


def test_a_step_of_the_users_own_may_have_metrics_of_its_own():
    class Own(keras.Sequential):
        def train_step(self, *arguments):
            return super().train_step(*arguments)

    model = Own([keras.Input((3,)), layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"])
    assert not _keras.lacks_metrics(model)


def test_what_is_no_single_number_is_logged_as_an_array():
    each = keras.ops.convert_to_tensor([1.0, 2.0])
    found = _keras.logged({"loss": keras.ops.convert_to_tensor(3.0), "each": each})
    assert found["loss"] == 3.0
    assert isinstance(found["loss"], float)
    assert isinstance(found["each"], np.ndarray)
    assert found["each"].tolist() == [1.0, 2.0]


def test_a_call_turns_into_one_of_inference_from_inside():
    class Quiet(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = layers.Dropout(0.9)

        def call(self, x):
            with _keras.inference_mode(self):
                return self.drop(x)

    model, x = Quiet(), np.ones((4, 4), "float32")
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model(x, training=True)), x)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(model.call(x)), x)  # as the training step of JAX does
    other = layers.Dropout(0.9)
    assert other._get_call_context().entry_layer is other  # nothing is left of that
    other._maybe_reset_call_context()


def test_what_keras_sets_on_a_layer_is_known_by_name(net):
    """A new attribute of Keras would be taken for one of the user's, and carried over."""
    fresh = set(vars(keras.Model()))
    own = {"blocks", "heads", "scale", "kept"}
    later = {name for name in set(vars(net)) - fresh if not name.startswith("_self_")}
    assert later - own <= set(_keras._COMPILED)
    missing = set(_keras._CARRIED) - fresh
    assert not missing


def test_a_model_gets_back_what_fit_has_handed_to_a_train_function(net):
    if keras.backend.backend() != "jax":
        pytest.skip("elsewhere a model keeps its variables while it trains")
    own = net.trainable_variables, net.non_trainable_variables, net.optimizer.variables, net.metrics_variables
    state = [[variable.value + 1 for variable in variables] for variables in own]
    net._jax_state_synced = False  # as while a train function runs
    _keras.reattach(net, state)
    for variables, values in zip(own, state, strict=True):
        for variable, value in zip(variables, values, strict=True):
            np.testing.assert_array_equal(variable.value, value)


def test_a_variable_whose_value_was_taken_is_known(net):
    variable = net.trainable_variables[0]
    assert not _keras.is_taken(variable)
    if keras.backend.backend() == "jax":
        net._purge_model_variables(trainable_variables=True)
        assert _keras.is_taken(variable)


def test_attributes_of_ones_own_are_those_that_keras_does_not_give():
    class Own(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.limit = 3.0

        def call(self, x):
            return x

    layer = Own()
    layer(np.ones((2, 3), "float32"))
    assert _keras.own_attributes(layer) == {"limit": 3.0}
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Dense(2)])
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 3)), np.ones((4, 2)), validation_split=0.5, verbose=0)
    model.predict(np.ones((4, 3)), verbose=0)
    assert not {"optimizer", "stop_training", "stop_predicting", "name"} & set(_keras.own_attributes(model))


def test_private_names_of_other_packages_are_in_one_file():
    folder = pathlib.Path(_keras.__file__).parent
    trees = {path: ast.parse(path.read_text()) for path in folder.rglob("*.py") if path.name != "_keras.py"}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    own = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for _, node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    attributes = [(path, node) for path, node in nodes if isinstance(node, ast.Attribute)]
    own |= {node.attr for _, node in attributes if isinstance(node.ctx, ast.Store)}
    own |= {alias.name for _, node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    private = {
        f"{path.relative_to(folder)}: {node.attr}"
        for path, node in attributes
        if node.attr.startswith("_") and not node.attr.startswith("__") and node.attr not in own | {"_asdict"}
    }
    assert private == set()


def test_private_names_of_keras_are_no_texts_or_functions_of_other_files():
    """As for `getattr`, or to stand in for what Keras looks up."""
    folder = pathlib.Path(_keras.__file__).parent

    files = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.py")}
    trees = {name: list(ast.walk(ast.parse(text))) for name, text in files.items()}

    def texts(name):
        return {n.value for n in trees[name] if isinstance(n, ast.Constant) and isinstance(n.value, str)}

    known = {text for text in texts("_keras.py") if re.fullmatch(r"_[a-z]\w+", text)}
    known |= {"seed_generator_state", "TrackedList", "TrackedDict", "TrackedSet", "TrackedOrderedDict"}
    assert _keras.AVERAGES in known
    for name in trees.keys() - {"_keras.py"}:
        functions = {n.name for n in trees[name] if isinstance(n, ast.FunctionDef)}
        assert not known & (texts(name) | functions), name


def test_a_train_function_of_keras_is_known_from_one_of_somebody_else(net):
    net.make_train_function(force=True)
    assert _keras.is_own(net.train_function)
    assert not _keras.is_own(lambda *arguments: net.train_function(*arguments))


def test_the_model_whose_step_it_is_is_known_to_its_optimizer():
    found = []

    class Asking(keras.optimizers.SGD):
        def apply(self, *args, **kwargs):
            found.append(_keras.model_in_step(self))
            return super().apply(*args, **kwargs)

    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile(Asking(0.1), "mse")
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0)
    model.optimizer.apply([keras.ops.ones(v.shape) for v in model.trainable_variables], model.trainable_variables)
    assert found[0] is model
    assert found[-1] is None


def test_the_steps_that_a_fit_was_given_are_known_inside_of_it(net):
    x, y, seen = np.ones((8, 3)), np.ones((8, 2)), []
    ask = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(_keras.steps_per_epoch(net)))
    net.fit(x, y, batch_size=2, steps_per_epoch=3, callbacks=[ask], verbose=0)
    net.fit(x, y, batch_size=2, callbacks=[ask], verbose=0)
    assert [*seen, _keras.steps_per_epoch(net)] == [3, None, None]


def test_calls_of_fit_are_known_from_inside_of_it(net):
    x, y, seen = np.ones((8, 3)), np.ones((8, 2)), []

    class Ask(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((_keras.running(), _keras.calling_list(), _keras.steps_in_fit(net)))
            net.train_on_batch(x, y)

    class Asking(keras.optimizers.SGD):
        def apply(self, *args, **kwargs):
            seen.append((_keras.running(), _keras.calling_list(), _keras.steps_in_fit(net)))
            return super().apply(*args, **kwargs)

    ask = Ask()
    net.compile(Asking(0.1), "mse", run_eagerly=keras.backend.backend() != "jax")
    net.fit(x, y, callbacks=[ask], verbose=0)
    (fit, *of_step), (outer, listed, _), *others = seen
    assert fit == outer
    assert of_step == [None, False]
    assert ask in listed.callbacks
    for running, its_list, is_nested in others:  # a step that was traced before asks no more
        assert running != fit
        assert its_list is listed
        assert is_nested
    assert (_keras.running(), _keras.calling_list(), _keras.steps_in_fit(net)) == (None, None, False)


def test_a_test_step_of_the_users_own_is_known(net):
    class Prepared(Net):
        def test_step(self, *args):
            return super().test_step(*args)

    assert _keras.has_own_test_step(Prepared())
    assert not _keras.has_own_test_step(net)


def test_every_function_that_knows_keras_is_tested_by_name():
    tree = ast.parse(pathlib.Path(_keras.__file__).read_text())
    public = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
    named = {
        node.attr for node in ast.walk(ast.parse(pathlib.Path(__file__).read_text())) if isinstance(node, ast.Attribute)
    }
    assert public - named == set()


def test_no_module_is_long():
    folder = pathlib.Path(_keras.__file__).parent
    assert [path.name for path in folder.rglob("*.py") if len(path.read_text().splitlines()) > 350] == []


def test_the_function_of_a_loss_and_its_options_are_what_it_computes():
    function, options = _keras.loss_function(keras.losses.CategoricalCrossentropy(label_smoothing=0.3))
    assert function is keras.losses.categorical_crossentropy
    assert options["label_smoothing"] == 0.3


def test_a_loss_of_the_users_own_is_known():
    class Own(keras.Model):
        def compute_loss(self, *data):
            return super().compute_loss(*data)

    assert _keras.has_own_compute_loss(Own())
    assert not _keras.has_own_compute_loss(keras.Model())
    assert not _keras.has_own_compute_loss(keras.Sequential())


def test_a_train_step_of_the_users_own_is_known():
    class Own(keras.Model):
        def train_step(self, *data):
            return super().train_step(*data)

    assert _keras.has_own_train_step(Own())
    assert not _keras.has_own_train_step(keras.Model())
    assert not _keras.has_own_train_step(Net())


@pytest.mark.parametrize(("weights", "expected"), [(None, 1.0), (0.25, 0.25), ([0.25], 0.25), ({"out": 0.25}, 0.25)])
def test_the_weight_of_a_loss_is_what_training_multiplies_it_by(weights, expected):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(2, name="out")(inputs))
    x, y = np.ones((4, 3), "float32"), np.ones((4, 2), "float32")
    model.compile("sgd", "mse", loss_weights=None)
    plain = model.evaluate(x, y, verbose=0)
    named = {"out": "mse"} if isinstance(weights, dict) else ["mse"] if isinstance(weights, list) else "mse"
    model.compile("sgd", named, loss_weights=weights)
    assert _keras.loss_weight(model) == expected
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(expected * plain, rel=1e-6)


class Graph(keras.Model):
    """A graph whose class has a constructor and a method of its own."""

    def __init__(self, units):
        inputs = keras.Input((3,))
        super().__init__(inputs, layers.Dense(units)(inputs))
        self.kept = units

    def doubled(self):
        return 2 * self.kept


def test_a_graph_made_anew_takes_after_the_class_and_the_attributes_of_the_old_one():
    model = Graph(2)
    graph = keras.models.clone_model(model)
    assert not hasattr(graph, "doubled")
    layers_before = graph.layers
    _keras.take_after(graph, model, lambda value: value + 1)
    assert type(graph) is Graph
    assert graph.doubled() == 6
    assert graph.layers == layers_before


class Total(keras.metrics.Metric):
    """Has an option that no configuration lists, and a metric of its own."""

    def __init__(self, step):
        super().__init__(name="total")
        self.looked_at = keras.layers.Dense(1)
        self.step, self.total, self.mean = step, self.add_variable((), "zeros", name="sum"), keras.metrics.Mean()

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(self.step)
        self.mean.update_state(self.step)

    def result(self):
        return self.total + self.mean.result()


def test_a_copied_metric_has_the_options_and_variables_of_its_own():
    metric = Total(0.5)
    metric.update_state(0, 0)
    copied = _keras.copied_metric(metric)
    assert (float(copied.result()), len(copied.variables), type(copied)) == (0.0, 3, Total)
    assert copied.looked_at is metric.looked_at
    copied.update_state(0, 0)
    copied.update_state(0, 0)
    assert (float(copied.result()), float(metric.result())) == (1.5, 1.0)
    rows = np.array([[1.0, 0.0], [1.0, 1.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    similar = keras.metrics.CosineSimilarity(axis=0)  # which `get_config` leaves out
    assert float(_keras.copied_metric(similar)(*rows)) == pytest.approx(float(similar(*rows)))
