"""The examples as processes: several devices, several workers, killed and resumed; and their parts in this one."""

import argparse
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import cases
import keras
import numpy as np
import pytest
from run_example import EXAMPLES

import keras_dal

sys.path.append(str(EXAMPLES))

import checkpoint
import data
import models
import options
import record
import strategies
import tensorflow as tf

EPOCHS, STEPS = 4, 3  # of what run_example.py trains
EXPLORED = 3  # the last epoch reads the data once more, and the head is solved


class Run:
    """A process that trains an example, and then what it left behind."""

    def __init__(self, folder, *arguments, interrupt=(), **environment):
        own = ["--signal", *map(str, interrupt)] if interrupt else []
        command = [sys.executable, "tests/run_example.py", *own, "--", "--run-dir", str(folder), *map(str, arguments)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.folder = folder
        self._process = subprocess.Popen(
            command, cwd=EXAMPLES.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def wait(self, status=0):
        self.output, _ = self._process.communicate(timeout=300)
        assert self._process.returncode == status, self.output
        return self

    def state(self):
        """Return all variables of model and optimizer by number, and the history."""
        with np.load(self.folder / "wrapped-0" / "checkpoint.npz") as saved:
            values = {key: saved[key] for key in saved.files}
        return values, json.loads(str(values.pop("history")))


def on_one(folder):
    return Run(folder, "--batch-size", 32, "--deterministic").wait()


def interrupted(folder):
    """Preempted in the second epoch, then killed in the middle of the rest, then resumed to the end."""
    arguments = ("--batch-size", 32, "--deterministic", "--no-converge")
    preempted = Run(folder, *arguments, interrupt=("SIGTERM", STEPS + 2)).wait(128 + 15)
    step = (EPOCHS - 1) * STEPS // 2  # benchmarks/kills.py draws it
    Run(folder, *arguments, "--resume", interrupt=("SIGKILL", step)).wait(-9)
    final = Run(folder, *arguments, "--resume").wait()
    return preempted, step, final


def on_two_devices(folder):
    return Run(folder, "--batch-size", 16, "--deterministic", "--strategy", "mirrored", "--logical-cpus", 2).wait()


def on_two_workers(folder):
    sockets = [socket.create_server(("localhost", 0)) for _ in range(2)]
    cluster = {"worker": [f"localhost:{each.getsockname()[1]}" for each in sockets]}
    for each in sockets:
        each.close()

    def start(index):
        task = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        return Run(folder, "--batch-size", 16, "--deterministic", "--strategy", "multi-worker", TF_CONFIG=task)

    workers = [start(0), start(1)]
    return [worker.wait() for worker in workers]


def with_jax(folder, *arguments, **environment):
    """Compiled with few optimizations, which take half of the time."""
    environment |= {"KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return Run(folder, "--no-converge", *arguments, **environment).wait()


def on_one_with_jax(folder):
    return with_jax(folder, "--batch-size", 32)


def on_two_with_jax(folder):
    flags = "--xla_force_host_platform_device_count=2"
    return with_jax(folder, "--batch-size", 16, "--strategy", "mirrored", XLA_FLAGS=flags)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs by the name of their function, two at a time."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = (interrupted, on_one, on_one_with_jax, on_two_with_jax)
    if cases.BACKEND == "tensorflow":
        kinds = (on_two_workers, on_two_devices, *kinds)
    with ThreadPoolExecutor(2) as pool:
        yield {kind: pool.submit(kind, folder / kind.__name__) for kind in kinds}


def assert_close(run, other):
    (values, history), (expected, expected_history) = run.state(), other.state()
    assert values.keys() == expected.keys()
    for key in values:
        # the least loss of the head is found on features that differ by rounding, and they are nearly dependent
        rtol = 1e-4 if expected[key].shape in ((4, 10), (10,)) else 0
        np.testing.assert_allclose(values[key], expected[key], rtol=rtol, atol=1e-5, err_msg=key)
    np.testing.assert_allclose(history["alignment"], expected_history["alignment"], atol=1e-4)
    assert history["phase"] == expected_history["phase"] == [0] * EXPLORED + [1] * (EPOCHS - EXPLORED)
    assert run.output.count("exploration is over") == 1


@cases.needs_tensorflow(reason="a strategy of TensorFlow shares batches among devices")
def test_two_devices_train_what_one_does(runs):
    both = runs[on_two_devices].result()
    assert_close(both, runs[on_one].result())
    assert "WARNING:tensorflow" not in both.output  # as of what is traced anew for every batch that is read


@cases.needs_tensorflow(reason="a strategy of TensorFlow shares batches among processes")
def test_two_workers_train_what_one_does_and_one_of_them_speaks(runs):
    chief, other = runs[on_two_workers].result()
    assert_close(chief, runs[on_one].result())
    assert "exploration" not in other.output
    assert "Epoch" not in other.output


def test_two_jax_devices_train_what_one_does(runs):
    assert_close(runs[on_two_with_jax].result(), runs[on_one_with_jax].result())


def test_a_run_that_was_stopped_and_killed_ends_with_the_same_bits(runs):
    preempted, step, final = runs[interrupted].result()
    assert "Stopped by SIGTERM" in preempted.output
    assert "--resume" in preempted.output
    (values, history), (expected, expected_history) = final.state(), runs[on_one].result().state()
    for key in expected:
        assert values[key].tobytes() == expected[key].tobytes(), f"variable {key}, killed after step {step}"
    for key in ("epoch", "loss", "accuracy", "val_loss", "alignment", "alignment_rank", "phase"):
        assert history[key] == expected_history[key], key


def test_a_run_folder_explains_itself(runs):
    folder = runs[on_one].result().folder
    page = (folder / "README.md").read_text()
    assert page.splitlines()[2] == "```"  # the result, first of all
    assert (folder / "table.txt").read_text().strip() in page
    run = folder / "wrapped-0"
    converged = folder / "converged-0"
    for path in [*folder.iterdir(), *run.iterdir(), *converged.iterdir()]:
        assert path.stem in page or path in (folder / "README.md", run, converged, folder / "settings.json"), path
    assert not list(folder.rglob(".*"))  # no file that was half written
    results = json.loads((folder / "results.json").read_text())
    trained, finished = results["rows"]
    assert [trained["name"], finished["name"]] == ["wrapped", "converged"]
    assert trained["train_accuracy"] < finished["train_accuracy"] == 1
    rows = (run / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + EPOCHS == 1 + len(results["curves"]["wrapped, seed 0"]["loss"])
    model = keras.models.load_model(run / "model.keras")
    assert isinstance(model.optimizer, keras_dal.Wrap)
    assert model.optimizer.phase == "exploit"


@pytest.fixture
def numbered():
    """Images that carry their own number."""
    numbers = np.arange(10)
    return data.Images(np.tile(numbers[:, None, None, None], (1, 4, 4, 1)).astype("uint8"), numbers.astype("int32"))


def epochs_of(images, first, last, seed=0, flip=False):
    still = data.ImageSet("numbered", padding=0, flip=flip)
    batches = list(data.training_batches(images, still, 4, seed, first, last).as_numpy_iterator())
    assert all(np.array_equal(x[:, 0, 0, 0], y) for x, y in batches)
    return np.concatenate([y for _, y in batches]).reshape(last - first, -1)


def test_every_epoch_has_its_own_order_whenever_it_is_asked_for(numbered):
    order = epochs_of(numbered, 0, 5)
    assert order.shape == (5, 8)  # two batches of four; two images are left out
    assert all(len(set(row)) == 8 for row in order)
    assert len({tuple(row) for row in order}) == 5
    np.testing.assert_array_equal(epochs_of(numbered, 3, 5), order[3:])
    assert not np.array_equal(epochs_of(numbered, 0, 5, seed=1), order)


def test_augmentation_shifts_and_flips_only_where_it_may():
    image = np.arange(1, 17, dtype="uint8").reshape(4, 4, 1)
    seen = [data.ImageSet("a", padding=1, flip=True).augment(image, (0, seed)).numpy()[..., 0] for seed in range(100)]
    assert any(np.array_equal(each, image[:, ::-1, 0]) for each in seen)
    upright = [data.ImageSet("a", padding=1).augment(image, (0, seed)).numpy()[..., 0] for seed in range(100)]
    padded = np.pad(image[..., 0], 1)
    crops = {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    assert {each.tobytes() for each in upright} == crops


class NoSource:
    """What `data.load` needs to know of a set that is not there."""

    name = "set"
    version = "1.0.0"

    def __init__(self, folder, url_infos):
        self.data_dir = folder / self.name / self.version
        self.url_infos = url_infos


def test_without_network_and_data_one_message_names_the_files(tmp_path):
    infos = {f"http://localhost:9/{name}": argparse.Namespace(filename=name, size="1 MiB") for name in ("a.gz", "b.gz")}
    (tmp_path / "a.gz").touch()
    with pytest.raises(SystemExit) as message:
        data._check_sources(NoSource(tmp_path, infos), tmp_path)
    text = str(message.value)
    assert "http://localhost:9/b.gz" in text
    assert "a.gz" not in text
    assert "--manual-dir" in text
    assert str(tmp_path) in text
    (tmp_path / "b.gz").touch()
    data._check_sources(NoSource(tmp_path, infos), tmp_path)  # all archives are there: no network needed


def test_archives_in_a_folder_that_is_not_there_are_asked_for(tmp_path):
    with pytest.raises(SystemExit, match="--manual-dir is not a folder"):
        data._check_sources(NoSource(tmp_path, {}), tmp_path / "missing")


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "state"
    checkpoint.replace_file(path, lambda file: file.write(b"before"))

    def fail(file):
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.replace_file(path, fail)
    assert path.read_bytes() == b"before"


def test_preemption_ends_what_is_not_training_at_once():
    with pytest.raises(checkpoint.Preempted), checkpoint.preemptible():
        signal.raise_signal(signal.SIGTERM)


def test_preemption_lets_a_step_end():
    with checkpoint.preemptible() as callback:
        callback.on_train_begin()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(checkpoint.Preempted):
            callback.on_train_batch_end(0)


def settings(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["cifar10.py", *map(str, arguments)])
    return options.parse("cifar10")


def test_a_folder_with_a_run_is_neither_overwritten_nor_resumed_with_other_options(monkeypatch, tmp_path):
    where = ("--run-dir", tmp_path / "run")
    record.open_folder(settings(monkeypatch, *where))
    with pytest.raises(SystemExit, match="Pass --resume"):
        record.open_folder(settings(monkeypatch, *where))
    record.open_folder(settings(monkeypatch, *where, "--resume"))
    with pytest.raises(SystemExit, match="Received: epochs=3, before 200"):
        record.open_folder(settings(monkeypatch, *where, "--resume", "--epochs", 3))


def test_a_folder_is_looked_at_without_being_made(monkeypatch, tmp_path):
    where = tmp_path / "run"
    assert record.check_folder(settings(monkeypatch, "--run-dir", where)) == where
    assert not where.exists()


_REFUSED = [
    ("--depth", 21),
    ("--explore", "1.0"),
    ("--explore", 0.1, "--epochs", 3),
    ("--explore", 3, "--epochs", 3),
    ("--epochs", 1),
    ("--subset", 0),
    ("--batch-size", 0),
    ("--logical-cpus", 0),
]


@pytest.mark.parametrize("options", _REFUSED)
def test_options_that_no_training_can_have_are_refused_at_once(monkeypatch, capsys, options):
    with pytest.raises(SystemExit, match="2"):
        settings(monkeypatch, *options)
    assert options[0] in capsys.readouterr().err


def test_a_share_that_leaves_both_phases_an_epoch_is_taken(monkeypatch):
    assert settings(monkeypatch, "--explore", 0.4, "--epochs", 3).explore == 0.4  # which is 1 of 3


@pytest.mark.parametrize("option", ["--data-dir", "--manual-dir", "--run-dir", "--data"])
@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_the_command_of_a_run_names_no_folder_of_this_machine(monkeypatch, option, form):
    given = [*form.format(option, "/home/me/secret").split(), "--depth", "8"]
    monkeypatch.setattr(sys, "argv", ["/home/me/cifar10.py", *given])
    assert record._command() == f"python examples/cifar10.py {form.format(option, 'DIR')} --depth 8"


def test_options_are_read_before_tensorflow_has_devices():
    program = "import options, strategies; options.parse('cifar10'); strategies.choose('mirrored', logical_cpus=2)"
    command = [sys.executable, "-W", "ignore", "-c", program, "--explore", "0.5", "--depth", "8"]
    subprocess.run(command, cwd=EXAMPLES, check=True, capture_output=True, timeout=100)


@pytest.mark.parametrize(
    ("jobs", "task", "found"),
    [
        ({"worker": ["a:1", "b:1"]}, ("worker", 0), (True, 2)),
        ({"worker": ["a:1", "b:1"]}, ("worker", 1), (False, 2)),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("worker", 0), (False, 2)),
        ({"chief": ["c:1"], "worker": ["a:1"]}, ("chief", 0), (True, 2)),
        ({}, ("", 0), (True, 1)),
    ],
)
def test_one_process_of_a_cluster_writes(jobs, task, found):
    spec = tf.train.ClusterSpec(jobs)
    assert strategies._cluster(tf.distribute.cluster_resolver.SimpleClusterResolver(spec, "", *task)) == found


def test_the_table_has_a_mean_over_seeds():
    row = {
        "name": "wrapped", "train_accuracy": 1.0, "train_loss": 0.0, "alignment": 1.0, "seconds": 1.0,
        "explore_images_per_second": 100.0, "exploit_images_per_second": None,
    }  # fmt: skip
    rows = [{**row, "seed": seed, "test_accuracy": accuracy} for seed, accuracy in enumerate((0.5, 0.7))]
    lines = record.summarize(rows).splitlines()
    assert [line.split("  ")[0] for line in lines] == ["run", "wrapped, seed 0", "wrapped, seed 1", "wrapped, mean"]
    assert "60.00" in lines[-1]


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85)])
def test_cifar_resnets_have_the_size_of_the_paper(depth, millions):
    assert models.resnet(depth).count_params() / 1e6 == pytest.approx(millions, rel=0.02)  # He et al., 2016, table 6


@pytest.mark.parametrize("name", models.NAMES)
def test_every_network_standardizes_its_images_and_has_a_linear_head(name):
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("uint8")
    model = models.build(name, 8, 5, images)
    structure = keras_dal.find_structure(model)
    assert structure.layer.name == "logits"
    assert structure.num_outputs == 5
    standardized = keras.ops.convert_to_numpy(model.layers[1](images))
    np.testing.assert_allclose(np.mean(standardized, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(standardized, (0, 1, 2)), 1, atol=1e-5)


def test_no_two_scripts_share_a_name():
    folders = (EXAMPLES, EXAMPLES / "recipes", EXAMPLES.parent / "benchmarks")
    names = [script.stem for folder in folders for script in folder.glob("*.py")]
    assert len(set(names)) == len(names)  # each finds its neighbours by their bare names


@pytest.mark.parametrize("name", ["long_tail", "shortcut", "new_class", "pretrained", "calibration", "suspect_labels"])
def test_a_recipe_compares_its_ways(name, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "recipes")
    check_rows(importlib.import_module(name).run(num_train=600, epochs=2))


def test_a_recipe_with_a_backbone_of_keras_compares_its_ways(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES / "recipes")
    generator = np.random.default_rng(0)
    train, test = ((generator.integers(0, 256, (n, 8, 8, 3)), np.arange(n) % 4) for n in (24, 12))
    rows = importlib.import_module("imagenet").run(images=(train, test), epochs=1, weights=None)
    check_rows(rows)
    assert len(rows) == 6


def check_rows(rows):
    assert {len(values) for values in rows.values()} == {len(next(iter(rows.values())))}
    assert np.isfinite([list(values.values()) for values in rows.values()]).all()
