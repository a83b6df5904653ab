"""The package as it is handed out: what the wheel and the source archive hold, and that the wheel works elsewhere."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import keras_dal

ROOT = Path(__file__).parents[2]


def run(*command, cwd, **environment):
    command = [sys.executable, *map(str, command)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel and the source archive of this checkout; building needs no network."""
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (wheel,) = built.glob("*.whl")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--root-user-action=ignore")
    run("-m", "pip", "install", *quiet, "--target", folder, wheel, cwd=folder)
    return folder


def test_the_installed_wheel_imports_from_where_it_was_installed(installed, tmp_path):
    code = "import keras_dal, keras_dal.plots; print(keras_dal.__file__, keras_dal.__version__, *keras_dal.__all__)"
    file, version, *names = run("-c", code, cwd=tmp_path, PYTHONPATH=str(installed)).split()
    assert Path(file) == installed / "keras_dal" / "__init__.py"
    assert (installed / f"keras_dal-{version}.dist-info").is_dir()
    assert {"converge", "Wrap"} <= set(names)


def test_the_installed_command_speaks(installed, tmp_path):
    command = installed / "bin" / "keras-dal"
    assert "keras-dal converge" in run(command, "--help", cwd=tmp_path, PYTHONPATH=str(installed))


def test_what_a_user_meets_first_works_from_the_installed_wheel(installed, tmp_path):
    """The commands and the two lines, by the tests of this checkout, beside which there is no package."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for path in [*(ROOT / "tests").glob("*.py"), ROOT / "tests" / "training" / "test_two_lines.py"]:
        shutil.copy(path, tmp_path)
    (tmp_path / "test_where.py").write_text(
        f"import keras_dal\ndef test(): assert keras_dal.__file__.startswith({str(installed)!r})\n"
    )
    tests = "test_where.py", "test_main.py", "test_two_lines.py"
    run("-m", "pytest", "--override-ini=addopts=", "-p", "no:xdist", *tests, cwd=tmp_path, PYTHONPATH=str(installed))


def test_the_wheel_holds_every_module_the_types_and_the_licence_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "keras_dal").rglob("*.py")}
    assert names == sources | {"keras_dal/py.typed"}
    assert any(name.endswith("licenses/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_one_version_is_said_everywhere(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name.split("-")[1] == keras_dal.__version__
    assert f"{wheel.name}[plots]" in (ROOT / "docs" / "notebook.md").read_text()
    assert f"\nversion: {keras_dal.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_source_archive_can_be_tested_and_documented(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.split("/", 1)[1] for name in files.getnames() if "/" in name}
    settings = {"Makefile", "pyproject.toml", "conftest.py", "docs/conf.py", ".ci/run", ".pre-commit-config.yaml"}
    assert settings | {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"} <= names
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")} <= names
    assert not [name for name in names if name.startswith((".venv", "build", "dist", "runs"))]
