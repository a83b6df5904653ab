"""What a type checker sees of the public surface from outside, at its strictest."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYRIGHT = shutil.which("pyright", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


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
