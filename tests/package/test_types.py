"""What a type checker sees of the public surface from outside, at its strictest."""

import inspect
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import keras_dal

ROOT = Path(__file__).parents[2]
PYRIGHT = shutil.which("pyright", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def functions_of(exported):
    """Yield names and functions of ours that a user of an exported object can call or read."""
    if inspect.isfunction(exported):
        yield exported.__name__, exported
    for name in dir(exported) if inspect.isclass(exported) else ():
        attribute = inspect.getattr_static(exported, name)
        of_property = getattr(attribute, "fget", None) or getattr(attribute, "func", attribute)
        function = getattr(of_property, "__func__", of_property)
        ours = inspect.isfunction(function) and function.__module__.startswith("keras_dal")
        if ours and (name == "__init__" or not name.startswith("_")):
            yield f"{exported.__name__}.{name}", function


@pytest.mark.parametrize("exported", keras_dal.__all__)
def test_all_that_is_public_is_annotated(exported):
    bare = []
    for name, function in functions_of(getattr(keras_dal, exported)):
        signature = inspect.signature(function)
        parameters = [each for each in signature.parameters.values() if each.name not in ("self", "cls")]
        bare += [f"{name}: {each.name}" for each in parameters if each.annotation is each.empty]
        bare += [name] * (signature.return_annotation is signature.empty and not name.endswith("__init__"))
    assert bare == []


@pytest.mark.skipif(PYRIGHT is None, reason="the type checker is in the test extra")
def test_an_outside_program_is_typed_throughout(tmp_path):
    shutil.copy(Path(__file__).with_name("outside.py"), tmp_path)
    settings = {"typeCheckingMode": "strict", "include": ["outside.py"], "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [PYRIGHT, "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    report = json.loads(done.stdout)
    messages = [f"{each['range']['start']['line'] + 1}: {each['message']}" for each in report["generalDiagnostics"]]
    assert report["summary"]["filesAnalyzed"] >= 1
    assert messages == []
