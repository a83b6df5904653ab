"""The package from the shell."""

import inspect
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import warnings

import cases
import keras
import numpy as np
import pytest

import keras_dal
from keras_dal.__main__ import _parser, main
from keras_dal.output.tables import plain


@pytest.fixture
def files(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, 6)).astype("float32"), generator.integers(0, 3, 60)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "train.npz", x=x, y=y)
    return tmp_path


def run(files, command, *more):
    return main([command, str(files / "model.keras"), "--data", str(files / "train.npz"), *map(str, more)])


@pytest.mark.parametrize("scaled", [False, True])
def test_converge_saves_a_model_that_fits_every_label(files, capsys, scaled):
    arguments = ["--output", files / "done.keras", "--validation", files / "train.npz", "--cache", files / "cache"]
    assert run(files, "converge", *arguments, *(["--scaled"] if scaled else [])) == 0
    assert "training accuracy" in capsys.readouterr().out
    data = np.load(files / "train.npz")
    loss, accuracy = keras.saving.load_model(files / "done.keras").evaluate(data["x"], data["y"], verbose=0)
    assert accuracy == 1.0
    assert (loss < 1.1e-4) == scaled


def test_weights_of_validation_data_and_a_limit_below_zero_are_refused(files, capsys):
    data = dict(np.load(files / "train.npz"))
    np.savez(files / "weighted.npz", **data, sample_weight=np.ones(60))
    arguments = ["--output", files / "done.keras"]
    assert run(files, "converge", *arguments, "--validation", files / "weighted.npz") == 2
    assert "Validation data have no weights" in capsys.readouterr().err
    assert run(files, "converge", *arguments, "--max-bytes", -5) == 2
    assert "max_bytes must be a number of bytes, not negative" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ridge", "-1"], "ridge must be a number that is not negative"),
        (["--patience", "3"], "patience needs validation_data"),
    ],
)
def test_options_of_the_solver_are_checked_before_anything_is_read(tmp_path, capsys, options, said):
    where = ["--data", str(tmp_path / "none.npz"), "--output", str(tmp_path / "done.keras")]
    assert main(["converge", str(tmp_path / "none.keras"), *where, *options]) == 2
    assert said in capsys.readouterr().err


def test_files_that_are_not_there_are_named(files, capsys):
    assert main(["certify", str(files / "model.keras"), "--data", str(files / "none.npz")]) == 2
    assert f"There is no such file. Received: {files / 'none.npz'}" in capsys.readouterr().err
    assert main(["certify", str(files / "none.keras"), "--data", str(files / "train.npz")]) == 2
    assert f"There is no such file. Received: {files / 'none.keras'}" in capsys.readouterr().err


def test_warnings_are_lines_without_the_place_in_the_code(files, capsys):
    data = dict(np.load(files / "train.npz"))
    np.savez(files / "alike.npz", x=np.repeat(data["x"][:1], 60, axis=0), y=data["y"])
    arguments = [str(files / "model.keras"), "--data", str(files / "alike.npz"), "--output", str(files / "done.keras")]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        main(["converge", *arguments, "--quiet"])
    said = capsys.readouterr().err
    assert "keras_dal: warning: " in said
    assert "UserWarning" not in said
    assert ".py" not in said


def test_a_limit_of_no_bytes_is_one_as_in_the_functions(files, capsys):
    model, data = keras.saving.load_model(files / "model.keras"), np.load(files / "train.npz")
    expected = keras_dal.alignment(model, data["x"], data["y"], max_bytes=0, verbose=0)
    assert run(files, "alignment", "--max-bytes", 0, "--json") == 0
    assert json.loads(capsys.readouterr().out)["decided_by"] == expected.decided_by


def test_a_file_of_data_that_was_altered_is_one_sentence(files, capsys):
    path = files / "train.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    assert run(files, "alignment") == 2
    assert "was altered since it was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["train.npz", "model.keras"])
def test_a_compressed_file_that_was_altered_is_one_sentence(files, capsys, name):
    if name == "train.npz":
        np.savez_compressed(files / name, **np.load(files / name))
    content = bytearray((files / name).read_bytes())
    for place in range(len(content) // 3, len(content) // 2):
        content[place] ^= 255
    (files / name).write_bytes(content)
    assert run(files, "alignment") == 2
    assert capsys.readouterr().err.count("\n") <= 2


@cases.needs_tensorflow(reason="others take tokens that an embedding does not have")
def test_inputs_that_the_model_does_not_take_are_one_sentence(files, capsys):
    layers = keras.layers.Embedding(5, 3), keras.layers.Flatten(), keras.layers.Dense(2)
    model = keras.Sequential([keras.Input((2,)), *layers])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(files / "model.keras")
    np.savez(files / "train.npz", x=np.full((8, 2), 99), y=np.arange(8) % 2)
    assert run(files, "converge", "--output", files / "done.keras") == 2
    assert capsys.readouterr().err
    assert not (files / "done.keras").exists()


def test_what_cannot_be_written_to_is_refused_before_anything_is_read(files, capsys):
    (files / "folder.keras").mkdir()
    assert run(files, "converge", "--output", files / "folder.keras") == 2
    assert "--output cannot be written to" in capsys.readouterr().err


def test_no_file_beside_the_output_is_touched(files, capsys):
    (files / "done.partial.keras").write_text("mine")
    assert run(files, "finish", "--output", files / "done.keras", "--quiet") == 0
    assert (files / "done.partial.keras").read_text() == "mine"
    assert sorted(path.name for path in files.iterdir()) == [
        "done.keras", "done.partial.keras", "model.keras", "train.npz",
    ]  # fmt: skip


def test_a_loss_that_is_not_reached_is_the_exit_status(files, capsys):
    assert run(files, "converge", "--output", files / "done.keras", "--no-gated") == 1
    assert (files / "done.keras").exists()


def test_a_model_that_cannot_be_saved_leaves_the_old_file(files, capsys, monkeypatch):
    def full(self, path, *_, **__):
        pathlib.Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = (files / "model.keras").read_bytes()
    monkeypatch.setattr(keras.Model, "save", full)
    assert run(files, "converge", "--output", files / "model.keras") == 2
    printed = capsys.readouterr()
    assert "No space left" in printed.err
    assert "training accuracy" in printed.out
    assert (files / "model.keras").read_bytes() == before
    assert not list(files.glob("*.partial*"))


KILLED = """
import os, pathlib, signal, sys
import keras
from keras_dal.__main__ import main

def killed(self, path, *_, **__):
    pathlib.Path(path).write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

keras.Model.save = killed
main(sys.argv[1:])
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_run_that_was_killed_has_left_is_removed_by_one_that_writes_there_later(files, capsys):
    arguments = ["finish", files / "model.keras", "--data", files / "train.npz", "--output", files / "done.keras"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *map(str, arguments)], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = files.glob("done-*.partial")
    mine = files / "done-mine1234.partial"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    assert run(files, "finish", "--output", files / "done.keras", "--quiet") == 0
    assert left.exists()  # as long as another process may be saving there
    for path in (left, left / "done.keras", mine, mine / "notes.txt"):
        os.utime(path, (0, 0))
    assert run(files, "finish", "--output", files / "done.keras", "--quiet") == 0
    assert not left.exists()
    assert (mine / "notes.txt").read_text() == "mine"


def test_finish_saves_the_minimum_and_is_silent_where_that_is_asked_for(files, capsys):
    assert run(files, "finish", "--output", files / "done.keras", "--quiet") == 0
    printed = capsys.readouterr().out
    assert printed.startswith("training loss")
    assert "ended by            the certified gap" in printed
    assert "saved" not in printed
    data = np.load(files / "train.npz")
    before, after = (
        keras.saving.load_model(files / f"{name}.keras").evaluate(data["x"], data["y"], verbose=0)[0]
        for name in ("model", "done")
    )
    assert after < before
    assert run(files, "finish", "--output", files / "done.keras", "--statistics-from", files / "train.npz") == 0
    printed = capsys.readouterr().out
    (saved,) = [line for line in printed.splitlines() if line.startswith("saved ")]
    (loss,) = [line for line in printed.splitlines() if line.startswith("training loss ")]
    value = re.search(r"\d", loss)
    assert value is not None
    assert saved == f"{'saved':<{value.start()}}{files / 'done.keras'}"  # in the column of the other values


@pytest.mark.parametrize(("command", "more"), [("converge", ["--validation", "train.npz"]), ("finish", [])])
def test_a_result_is_printed_as_json_and_nothing_else(files, capsys, command, more):
    options = [str(files / each) if each.endswith(".npz") else each for each in more]
    assert run(files, command, "--output", files / "done.keras", "--json", *options) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result["reached"] is True
    assert result["stopped_by"] in ("separation", "the certified gap")
    assert result["point"] in result["path"]
    assert {"model", "structure", "theta"}.isdisjoint({*result, *result["point"]})
    assert (result["after"] is not None) == (command == "converge")
    assert "done.keras" in printed.err
    assert (files / "done.keras").exists()


def test_numbers_that_are_not_finite_are_null_in_json():
    found = plain({"gap": np.inf, "values": np.array([1.0, np.nan]), "count": np.int64(3), "pair": (1, "a")})
    assert json.loads(json.dumps(found)) == {"gap": None, "values": [1.0, None], "count": 3, "pair": [1, "a"]}


@pytest.mark.parametrize("output", ["done", "none/done.keras"])
def test_where_to_save_is_checked_first(files, capsys, output):
    assert run(files, "converge", "--output", files / output) == 2
    printed = capsys.readouterr()
    assert "--output must be a .keras file in a directory that exists. Received:" in printed.err
    assert printed.out == ""


def test_options_are_checked_before_anything_is_read(tmp_path, capsys):
    nowhere = [
        str(tmp_path / "none.keras"),
        "--data",
        str(tmp_path / "none.npz"),
        "--output",
        str(tmp_path / "a.keras"),
    ]
    assert main(["converge", *nowhere, "--tol", "-1"]) == 2
    assert "tol must be a positive number. Received: tol=-1.0" in capsys.readouterr().err


def test_an_interrupt_before_there_is_a_model_is_said(files, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["keras_dal.finishing.converge"], "gathered", interrupted)
    assert run(files, "converge", "--output", files / "done.keras") == 130
    assert "nothing was saved" in capsys.readouterr().err
    assert not (files / "done.keras").exists()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [(OSError("no space is left"), 2, "no space is left\n"), (BrokenPipeError("has read enough"), 0, "")],
)
def test_what_cannot_be_printed_is_saved_all_the_same(files, capsys, monkeypatch, error, status, said):
    class Closed:
        def write(self, text):
            raise error

        def flush(self):
            """Nothing is kept."""

        def fileno(self):
            raise OSError("not one of the system's")

    monkeypatch.setattr(sys, "stdout", Closed())
    assert run(files, "finish", "--output", files / "done.keras", "--quiet") == status
    assert capsys.readouterr().err.endswith(said)
    assert (files / "done.keras").exists()


def test_who_has_read_enough_gets_no_complaint(files):
    command = [sys.executable, "-m", "keras_dal", "alignment", files / "model.keras", "--data", files / "train.npz"]
    root = pathlib.Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 0, said
    assert "pipe" not in said.lower()


def test_a_missing_backend_is_said_with_what_to_do():
    missing = "import sys; sys.modules['tensorflow'] = None; import keras_dal"
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, "-c", missing], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert "set KERAS_BACKEND to jax or torch" in done.stderr


def test_an_empty_name_of_a_folder_is_none(files, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run(files, "converge", "--output", files / "done.keras", "--cache", "") == 0
    assert not list(folder.iterdir())


def test_options_of_the_solver_are_passed_on(files, capsys):
    validation = ["--validation", files / "train.npz", "--patience", 1]
    assert run(files, "converge", "--output", files / "done.keras", "--ridge", 1e-6, *validation) == 1
    assert "ended by            patience" in capsys.readouterr().out
    assert run(files, "converge", "--output", files / "done.keras", "--no-gated", "--ridge", 1e-2) == 0
    printed = capsys.readouterr().out
    assert "ended by            the certified gap" in printed
    assert "not reached" not in printed


def test_labels_that_are_python_objects_are_refused_with_their_file(files, capsys):
    np.savez(files / "train.npz", x=np.zeros((60, 6), "float32"), y=np.zeros(60, int).astype(object))
    assert run(files, "alignment") == 2
    said = capsys.readouterr().err
    assert "Arrays of Python objects are not read" in said
    assert "train.npz" in said


def test_a_name_of_a_file_that_is_empty_is_none(files):
    assert run(files, "converge", "--output", files / "done.keras", "--validation", "", "--anchors", "") == 0


def test_certify_prints_a_table_or_json(files, capsys):
    assert run(files, "certify") == 0
    assert "Certificate" in capsys.readouterr().out
    assert run(files, "certify", "--json") == 0
    assert json.loads(capsys.readouterr().out)["num_samples"] == 60


@pytest.mark.parametrize("command", ["certify", "alignment"])
def test_solvers_have_the_time_that_is_given(files, capsys, command):
    assert run(files, command, "--time-limit", 30) == 0
    assert "each solver has 30 seconds" in capsys.readouterr().err
    assert run(files, command, "--time-limit", 0) == 2
    assert "time_limit must be a positive number" in capsys.readouterr().err


def test_alignment_prints_its_number(files, capsys):
    assert run(files, "alignment") == 0
    assert "alignment" in capsys.readouterr().out
    assert run(files, "alignment", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_samples"] == 60
    assert report["alignment"] == 1 - report["residual_share"]
    assert len(report["residual_share_per_sample"]) == 60


def test_classes_of_the_users_own_are_bad_input(files, capsys):
    class Twice(keras.layers.Layer):
        def call(self, inputs):
            return 2 * inputs

    model = keras.Sequential([keras.Input((6,)), Twice(), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(files / "model.keras")
    assert run(files, "alignment") == 2
    printed = capsys.readouterr().err
    assert "register_keras_serializable" in printed
    assert f"Received: {files / 'model.keras'} with class 'Twice'" in printed


def test_python_code_in_a_file_is_run_by_no_command(files, capsys):
    model = keras.Sequential([keras.Input((6,)), keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(3)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.save(files / "model.keras")
    assert run(files, "alignment") == 2
    printed = capsys.readouterr().err
    assert "safe_mode=False" in printed
    assert printed.endswith(f"Received: {files / 'model.keras'}\n")


def test_memory_of_the_solver_can_be_limited(files, capsys):
    few = ["--output", files / "done.keras", "--max-bytes", 100, "--gated"]
    assert run(files, "converge", *few) == 2
    assert "max_bytes=100" in capsys.readouterr().err
    assert run(files, "finish", *few[:-1]) == 0
    assert run(files, "certify", "--max-bytes", 100) == 2
    assert "Features and logits are needed in memory" in capsys.readouterr().err


def test_bad_files_get_one_sentence(files, capsys):
    np.savez(files / "train.npz", features=np.zeros(3))
    assert run(files, "certify") == 2
    assert "must hold an array named x. Received:" in capsys.readouterr().err
    assert main(["alignment", str(files / "none.keras"), "--data", "x.csv"]) == 2
    assert "keras_dal: " in capsys.readouterr().err
    np.savez(files / "train.npz", x=np.zeros((4, 2, 3)), y=np.zeros(4, int))
    assert run(files, "certify") == 2
    assert capsys.readouterr().err.endswith("Received: x of shape (4, 2, 3)\n")
    (files / "train.npz").write_bytes(b"garbage")
    assert run(files, "certify") == 2
    assert "is not a whole .npz file. Received:" in capsys.readouterr().err
    (files / "model.keras").write_bytes(b"garbage")
    assert run(files, "certify") == 2
    assert "is not a whole .keras file. Received:" in capsys.readouterr().err


def test_arrays_of_other_names_are_said_not_to_be_read(files, capsys):
    with np.load(files / "train.npz") as arrays:
        np.savez(files / "train.npz", **arrays, sample_weights=np.ones(3))
    assert run(files, "alignment") == 0
    assert "only x, y, sample_weight are read, not sample_weights" in capsys.readouterr().err


def test_help_has_examples_that_it_understands(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    examples = [line.split(" > ")[0] for line in lines if line.startswith("keras-dal ")]
    assert len(examples) == 6
    for example in examples:
        assert _parser().parse_args(shlex.split(example)[1:]).model == "model.keras"


@pytest.mark.parametrize("command", ["converge", "finish", "certify", "alignment"])
def test_every_option_is_an_argument_of_the_function_or_of_the_command_alone(command):
    saving = ["--output", "done.keras"] if command in ("converge", "finish") else []
    options = vars(_parser().parse_args([command, "model.keras", "--data", "train.npz", *saving]))
    taken = inspect.signature(getattr(keras_dal, command)).parameters
    assert options["function"] is getattr(keras_dal, command)
    assert {*options} - {*taken} <= {"function", "data", "json", "output", "scaled"}


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"keras-dal {keras_dal.__version__}\n"


def test_the_module_runs():
    command = [sys.executable, "-m", "keras_dal", "converge", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[1], check=True)
    assert "--tol" in done.stdout
