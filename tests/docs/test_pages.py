"""What the pages promise is there: files, headings, commands, messages, and every public name."""

import ast
import importlib
import inspect
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import keras_dal
from keras_dal import plots
from keras_dal.__main__ import _parser

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def shown(page):
    """Return the text of a page that readers see, without comments."""
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)


def prose(page):
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", shown(page), flags=re.DOTALL | re.MULTILINE)


def files_of_git():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no checkout of git, which knows what a fresh one would have")
    return set(listed.stdout.splitlines())


def slugs(page):
    """Return the anchors that Sphinx and GitHub give to the headings of a page, and those that it names itself."""
    text = re.sub(r"^```.*?^```", "", shown(page), flags=re.DOTALL | re.MULTILINE)
    headings, named = (re.findall(pattern, text, re.MULTILINE) for pattern in (r"^#+ (.+)$", r"^\((\S+)\)=$"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings} | set(named)


@each_page
def test_links_and_images_lead_to_files_of_git(page):
    known = files_of_git()
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.relative_to(ROOT).as_posix() in known, f"{page.name} promises {target}"
        if anchor:
            assert anchor in slugs(file), f"{page.name} promises {target}"


def commands(page):
    """Yield the shell commands of a page, without their comments and environment."""
    for block in re.findall(r"^```bash\n(.*?)^```", shown(page), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words.pop(0)
            if words:
                yield words


def imported(tree):
    """Return module and name behind each name that a script imports; the name of a whole module is None."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.asname or alias.name: (alias.name, None) for alias in node.names}
    return found


def options_of(script):
    """Return the options that a script adds to its parser, itself or in functions that it calls from beside it."""
    options, todo, seen = set(), [(script, None)], set()
    while todo:
        file, function = todo.pop()
        tree = ast.parse(file.read_text())
        origins = imported(tree)
        scopes = [node for node in tree.body if function in (None, getattr(node, "name", None))]
        for call in (node for scope in scopes for node in ast.walk(scope) if isinstance(node, ast.Call)):
            if getattr(call.func, "attr", None) == "add_argument":
                options |= {word.value for word in call.args if isinstance(word, ast.Constant)}
                continue
            first, _, rest = ast.unparse(call.func).partition(".")
            module, name = origins.get(first, (file.stem, first))
            target = file.with_name(f"{module}.py"), name or rest
            if target not in seen and target[0].is_file():
                seen.add(target)
                todo.append(target)
    return options


def test_the_options_of_a_script_are_its_own():
    examples, benchmarks = ROOT / "examples", ROOT / "benchmarks"
    assert {"--compare", "--resume"} <= options_of(examples / "cifar10.py")
    assert "--threads" in options_of(benchmarks / "two_lines.py")
    assert "--threads" in options_of(benchmarks / "switch.py")  # whose parser is that of two_lines.py
    assert options_of(benchmarks / "recipes.py") == {"recipes"}
    assert "--heads" not in options_of(benchmarks / "contradictions.py")  # which imports from converge_peers.py


@each_page
def test_commands_name_what_is_there(page):
    targets = set(re.findall(r"^([\w./]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:]) <= targets
        elif words[0] == "keras-dal":
            _parser().parse_args(words[1:])
        elif words[0].endswith("python"):
            assert words[1].endswith(".py")
            assert (ROOT / words[1]).is_file()
            assert {word for word in words[2:] if word.startswith("--")} <= options_of(ROOT / words[1])
        else:
            assert words[0].endswith("pip"), f"no check for {words}"


def test_the_reference_has_every_public_name_and_no_other():
    listed = re.findall(r"^\.\. auto(?:class|function):: (\S+)$", (ROOT / "docs" / "reference.md").read_text(), re.M)
    functions = [value for value in vars(plots).values() if inspect.isfunction(value)]
    drawn = [each.__name__ for each in functions if each.__module__ == plots.__name__ and each.__name__[0] != "_"]
    expected = [f"keras_dal.{name}" for name in keras_dal.__all__] + [f"keras_dal.plots.{name}" for name in drawn]
    expected += ["keras_dal.losses.Loss", "keras_dal.losses.register"]
    assert sorted(listed) == sorted(expected)


def test_every_public_method_is_in_the_reference():
    text = (ROOT / "docs" / "reference.md").read_text()
    for name in ("Result", "Certificate", "AlignmentReport", "Structure"):
        members = re.search(rf"^\.\. autoclass:: keras_dal\.{name}\n   :members: (.+)$", text, re.MULTILINE)
        assert members is not None
        own = {key for key, value in vars(getattr(keras_dal, name)).items() if getattr(value, "__doc__", None)}
        fields = set(getattr(keras_dal, name).__dataclass_fields__)
        public = {key for key in own - fields if not key.startswith("_")}
        assert public <= set(members[1].split(", ")), name


def sentences():
    """Return all strings of the package, with what is filled in as ?."""
    for path in (ROOT / "keras_dal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "?" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_messages_on_the_page_are_messages_of_the_package():
    said = "\n".join(sentences())
    explained = re.findall(r"^(.+)\n: ", (ROOT / "docs" / "messages.md").read_text(), re.MULTILINE)
    assert len(explained) > 15
    assert [message for message in explained if message not in said] == []


def test_tests_that_the_page_on_reliability_names_are_there():
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()):
        assert f"def {name}(" in text, name


def test_private_names_in_the_table_of_changes_stand_in_the_files_beside_them():
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")]
    checked = 0
    for row in rows:
        words = re.findall(r"`([^`]+)`", row)
        named = [ROOT / folder / word for word in words if word.endswith(".py") for folder in ("keras_dal", "")]
        text = "\n".join(path.read_text() for path in named if path.is_file())
        for name in (word for word in words if re.fullmatch(r"_[a-z]\w*|_[A-Z]+", word)):
            assert re.search(rf"\b{name}\b", text), f"{name}, in the row that begins {row[:40]}"
            checked += 1
    assert checked > 10


def test_every_page_of_the_site_is_in_its_contents():
    pages = {path.stem for path in ROOT.glob("docs/*.md")} - {"index"}
    blocks = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("index", "measurements", "recipes")]
    listed = re.findall(r"^(\w+)$", "\n".join(blocks), re.MULTILINE)
    assert pages <= set(listed)


def test_the_notebook_is_its_page():
    script = runpy.run_path(str(ROOT / "docs" / "notebook.py"))
    written = json.loads((ROOT / "examples" / "two_lines.ipynb").read_text())
    assert written == script["notebook"](script["PAGE"].read_text()), "run python docs/notebook.py"


@pytest.mark.parametrize(
    "name", ["contradictions", "converge_accuracy", "converge_peers", "gated_price", "gated_study"]
)
def test_tables_are_those_of_the_committed_figures(name, monkeypatch):
    pytest.importorskip("torch", reason="some benchmarks compare with it, and it is in the backends extra")
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    table = importlib.import_module(name).table
    written = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob(f"{name}*.json")}
    assert written
    for stem, results in written.items():
        assert (ROOT / "docs" / f"{stem}.md").read_text() == table(results), f"write docs/{stem}.md anew"


@pytest.mark.parametrize(
    "script",
    ["docs/results.py", "benchmarks/gpu_page.py", "benchmarks/two_lines_page.py", "benchmarks/width_page.py"],
)
def test_pages_are_those_of_the_committed_figures(script, monkeypatch):
    monkeypatch.setattr("sys.path", [str((ROOT / script).parent), *sys.path])
    written = runpy.run_path(str(ROOT / script))["pages"]()
    assert written
    for page, text in written.items():
        assert page.read_text() == text, f"run python {script}"


def test_every_picture_of_the_results_has_a_sentence_below_it():
    blocks = (ROOT / "docs" / "results.md").read_text().split("\n\n")
    below = [after for block, after in itertools.pairwise(blocks) if block.startswith("![")]
    assert below
    for text in below:
        assert re.match(r"(?!All figures)[A-Z].*\.$", text), text


def test_tables_of_the_recipes_are_those_of_the_committed_figures(monkeypatch):
    monkeypatch.setattr("sys.path", [str(ROOT / "benchmarks"), *sys.path])
    recipes = importlib.import_module("recipes")
    for page, text in recipes.pages(json.loads(recipes.RESULT.read_text())):
        assert page.read_text() == text, "run python benchmarks/recipes.py"
