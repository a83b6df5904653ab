"""Writes docs/results.md from committed figures: those of examples in docs/runs/, those of benchmarks/results/.

python docs/results.py                        # write the page anew
python docs/results.py runs/cifar10 --name cifar10   # take the results of a run into docs/runs/ first
"""

import argparse
import ast
import json
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path += [str(DOCS.parent / "examples"), str(DOCS.parent / "benchmarks")]

from page import machine_line, rows_of  # noqa: E402
from record import summarize  # noqa: E402

HEADER = """# Results

Measured here. Each figure stands in a committed JSON file, written by the command above it; this page is written from
those files by `python docs/results.py`. What `converge` takes against other solvers is summed up in
[one table](converge_peers.md).

The images were prepared copies, so figures from the full sets will differ: of CIFAR-10 all 60,000 images, compressed as
JPEG; of CIFAR-100 10,000 for training and 2,000 for the test; of SVHN 883 and 200, all from its training file.

Files `*.npz` in a command are features of trained networks, `cifar10_0.npz` those of CIFAR-10 with seed 0:

    python benchmarks/converge_features.py --name SET --samples N --seed S --data-dir DIR --output FILE
    python benchmarks/converge_features.py --name digits --samples 1000 --unlabelled 300 --epochs 40 --output digits.npz

In files and tables *wrapped* is a training with the two lines, *base* or *bare* the same optimizer alone, *explore* the
first phase and *exploit* the second.
"""


_CURVES = (
    "The picture shows each run epoch by epoch, training as a solid line and test as a dotted one. The second phase "
    "of the wrapped run is shaded, and its alignment is drawn where it was measured."
)
_PICTURES = {
    "certified_cifar": "The training loss stays below the bound that the certificate gave before the first step. The "
    "certificate's step is small, and so is what these steps change.",
    "certified_cifar_path": "From step to step `converge` puts every training sample on its right side: the smallest "
    "margin passes zero, and the accuracy on the test images, which are the validation here, does not fall.",
    "converge_scaling": "The time of an iteration grows as samples and as gates do, that of an interpolation as the "
    "third power of the samples it moves: the dashed lines are these powers through the last point; small ones take "
    "longer.",
}


def run_section(path):
    """Return the section of one run of an example."""
    run = json.loads(path.read_text())
    curves = run["curves"].values()
    switch = next((history["phase"].index(1.0) for history in curves if 1.0 in history.get("phase", [])), None)
    lines = [f"## {run['title']}", "", f"    {run['command']}", "", machine_line(run["machine"]) + ".", ""]
    lines += ["```", summarize(run["rows"]), "```", ""]
    lines += [f"The switch came after epoch {switch}."] if switch is not None else []
    lines += [
        _phases(run["rows"]),
        run.get("remark", ""),
        "",
        f"![loss, accuracy and alignment over the epochs](runs/{path.stem}.png)",
        "",
        _CURVES,
    ]
    return "\n".join(lines)


def _phases(rows):
    """Return what an image costs after the switch, as a share of what it cost before."""
    pairs = [(row.get("explore_images_per_second"), row.get("exploit_images_per_second")) for row in rows]
    ratios = [explore / exploit for explore, exploit in pairs if explore and exploit]
    if not ratios:
        return "No run reached the second phase."
    shares = sorted({f"{ratio:.2f}" for ratio in ratios})
    share = " to ".join(shares[:1] + shares[1:][-1:])
    return f"After it, an image took {share} of the time that training on it had taken."


def benchmark_section(path):
    """Return the section of one benchmark: the numbers at the top levels of its file."""
    result = json.loads(path.read_text())
    commands, machines = (dict.fromkeys(map(show, _found(result, name))) for name, show in _SHOWN.items())
    lines = [*_heading(path.stem, re.search(r"benchmarks/\w+\.py", next(iter(commands)))[0]), ""]
    lines += [*(f"    {command}" for command in commands), ""] if commands else []
    lines += [f"{described}.\n" for described in machines]
    groups = {"": result} | {name: values for name, values in result.items() if isinstance(values, dict)}
    numbers = [
        (f"{group.replace('_', ' ')}: {_readable(name)}".removeprefix(": "), value)
        for group, values in groups.items()
        if group not in ("machine", "settings", "setting")
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    if numbers:
        lines += ["| | |", "|---|---:|", *(f"| {name} | {_written(value)} |" for name, value in numbers), ""]
    for picture in sorted(DOCS.glob(f"{path.stem}*.png")):
        lines += [f"![{picture.stem.replace('_', ' ')}]({picture.name})", "", _PICTURES[picture.stem], ""]
    if (DOCS / f"{path.stem}.md").exists():
        lines += [f"Written up in [{path.stem}.md]({path.stem}.md)", ""]
    return "\n".join([*lines, f"All figures: [{path.name}](../benchmarks/results/{path.name})"])


def _readable(name):
    """Return a name in words; in one of several words what is joined is the name of a function or an argument."""
    return re.sub(r"\w+_\w+", r"`\g<0>`", name) if " " in name else name.replace("_", " ")


def _heading(stem, script):
    """Return the lines that head a section: an anchor, and what the script asks, the first line of its docstring."""
    asked = ast.get_docstring(ast.parse((DOCS.parent / script).read_text())).splitlines()[0].removesuffix(".")
    of_several = stem.removeprefix(Path(script).stem).replace("_", " ").strip()
    return [f"({stem.replace('_', '-')})=", f"## {asked}" + f" ({of_several})" * bool(of_several)]


def rows_section(path):
    """Return the section of a benchmark that adds a line for each run: where it is shown, and what the runs ran on."""
    page = _PAGES[path.stem]
    runs, machines = [row["machine"] for row in rows_of(path)], {}
    for run in runs:
        machines.setdefault(machine_line(run | {"date": "", "commit": None}), []).append(run["date"])
    counted = (f"{len(dates)} rows on {line}" if len(machines) > 1 else line for line, dates in machines.items())
    ends = (" to ".join(sorted({min(dates), max(dates)})) for dates in machines.values())
    script = f"benchmarks/{_SCRIPTS.get(path.stem, path.stem)}.py"
    return "\n".join(
        [
            *_heading(path.stem, script),
            "",
            f"By `{script}`, which says how it is run; shown in [{page}]({page}).",
            "",
            *(f"{line}{dates}.\n" for line, dates in zip(counted, ends, strict=True)),
            f"All rows: [{path.name}](../benchmarks/results/{path.name})",
        ]
    )


_SCRIPTS = {"curves": "two_lines"}  # of rows that stand by themselves
_PAGES = {
    "averages": "two_lines.md",
    "curves": "two_lines.md",
    "gpu": "gpu.md",
    "gpu_heads": "gpu.md",
    "structures": "width.md",
    "suspects": "width.md",
    "switch": "two_lines.md",
    "two_lines": "two_lines.md",
    "unaugmented": "two_lines.md",
}
_SHOWN = {"command": str, "machine": machine_line}


def _found(result, name):
    """Yield what stands under a name at the top of a file, or in its groups."""
    if name in result:
        yield result[name]
        return
    for group in result.values():
        yield from _found(group, name) if isinstance(group, dict) else ()


def peers_summary(paths):
    """Return the Markdown page that compares `converge` with the fastest other solver in every file and head."""
    lines = [
        "# `converge` against the fastest other solver",
        "",
        "Written by `python docs/results.py` from the files of `benchmarks/converge_peers.py`. Commands, machines and "
        "all methods stand in the pages that are linked. Seconds to a training loss of 1e-2 and 1e-4 above the least, "
        "the fastest of the others at that loss, and how many times longer it took. Test accuracy in percent.",
        "",
        "| features | head | `converge`, to 1e-2 | to 1e-4 | fastest other, to 1e-2 | to 1e-4 | times "
        "| test before | after | other |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for path in paths:
        result = json.loads(path.read_text())
        for head in ("plain", "gated"):
            rows = {name.split(": ")[1]: row for name, row in result["rows"].items() if name.startswith(head)}
            if rows:
                title = f"[{result['name'].removesuffix('_0')}, {result['samples']:,}]({path.stem}.md)"
                start = f"{100 * result['start']['test']:.2f}"
                lines.append(f"| {title} | {head} | " + " | ".join(_compared(rows, result["limit"], start)) + " |")
    return "\n".join(lines) + "\n"


def _compared(rows, limit, start):
    """Return the cells of one head: seconds, ratios and test accuracies."""
    ours, others = rows["converge"], {name: row for name, row in rows.items() if not name.startswith("converge")}
    seconds, fastest, ratios = [], [], []
    for key in ("seconds_to_0.01", "seconds_to_0.0001"):
        reached = {name: row[key] for name, row in others.items() if row[key] is not None}
        best = min(reached, key=reached.get, default=None)
        seconds.append("-" if ours[key] is None else f"{ours[key]:.3g}")
        fastest.append(f"none in {limit:g}" if best is None else f"{reached[best]:.3g} ({best})")
        bound = "> " if best is None else ""
        ratios.append(
            "-" if ours[key] is None else f"{bound}{(limit if best is None else reached[best]) / ours[key]:.2g}"
        )
    last = [name for name, row in others.items() if row["seconds_to_0.0001"] is not None] or list(others)
    test = max(others[name]["test"] for name in last)
    return [*seconds, *fastest, ", ".join(ratios), start, f"{100 * ours['test']:.2f}", f"{100 * test:.2f}"]


def _written(value):
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def take(run_folder, name, remark):
    """Copy results and picture of a run into docs/runs/."""
    (DOCS / "runs").mkdir(exist_ok=True)
    run = json.loads((run_folder / "results.json").read_text()) | ({"remark": remark} if remark else {})
    (DOCS / "runs" / f"{name}.json").write_text(json.dumps(run, indent=1) + "\n")
    shutil.copy(run_folder / "curves.png", DOCS / "runs" / f"{name}.png")


def pages():
    """Return the text of the pages that are written from committed figures, by their paths."""
    results = DOCS.parent / "benchmarks" / "results"
    sections = [run_section(path) for path in sorted((DOCS / "runs").glob("*.json"))]
    for path in sorted(results.glob("*.json*")):
        sections.append(rows_section(path) if path.suffix == ".jsonl" else benchmark_section(path))
    return {
        DOCS / "converge_peers.md": peers_summary(sorted(results.glob("converge_peers_*.json"))),
        DOCS / "results.md": "\n\n".join([HEADER.rstrip(), *sections]) + "\n",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a finished run")
    parser.add_argument("--name", help="under which to keep it; the folder's by default")
    parser.add_argument("--remark", help="what a reader must know of how it was run")
    arguments = parser.parse_args()
    if arguments.run is not None:
        take(arguments.run, arguments.name or arguments.run.name, arguments.remark)
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
