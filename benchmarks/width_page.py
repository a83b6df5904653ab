"""Writes the results in docs/width.md, and their pictures, from structures.jsonl and suspects.jsonl of the results.

python benchmarks/width_page.py
"""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "structures.jsonl"
SUSPECTS = RESULT.with_name("suspects.jsonl")
PAGE, IMAGES = ROOT / "docs" / "width.md", ROOT / "docs" / "images"
BEGIN, END = "<!-- begin of what benchmarks/width_page.py writes -->", "<!-- end of it -->"
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST"}
STYLES = {"cifar10": ("#0072B2", "o"), "cifar100": ("#D55E00", "s"), "fashion_mnist": ("#009E73", "^")}
OUTSIDE = "kernel regime"  # in the name of what is no residual network
EARLY = {
    "training loss": lambda row: row["early"]["training_loss"],
    "least loss of its head": lambda row: row["early"]["infimum"][1],
    "residual share": lambda row: row["early"]["residual_share"],
    "number of parameters": lambda row: -row["parameters"],
}
LATE = {
    "training loss at the end": lambda row: row["end"]["training_loss"],
    "test accuracy": lambda row: -row["test_accuracy"],
}


def grouped(rows, kind):
    """Return the rows of a kind by data set."""
    found = defaultdict(list)
    for row in rows:
        if row["kind"] == kind:
            found[row["dataset"]].append(row)
    return found


def between(bounds):
    low, high = bounds
    return f"{high:.3g}" if high - low <= 1e-3 * high else f"{low:.3g} to {high:.3g}"


def head_table(heads):
    yield "| data | gates | residual share, predicted | reached | least loss, predicted | reached | right | test |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, rows in heads.items():
        for row in rows:
            predicted = f"{row['predicted_share']:.4f} +- {row['predicted_spread']:.4f}"
            yield (
                f"| {NAMES[name]} | {row['gates']} | {predicted} | {row['share']:.4f} "
                f"| {between(row['predicted_infimum'])} | {row['loss']:.3g} | {row['training_accuracy']:.1%} "
                f"| {row['test_accuracy']:.1%} |"
            )


def structure_table(structures):
    yield (
        "| data | structure | parameters | loss after a fifth | least loss of its head then | loss at the end "
        "| least loss of its head then | right | test |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    for name, rows in structures.items():
        for row in rows:
            early, end = row["early"], row["end"]
            yield (
                f"| {NAMES[name]} | {row['structure']} | {row['parameters']:,} | {early['training_loss']:.3f} "
                f"| {between(early['infimum'])} | {end['training_loss']:.3f} | {between(end['infimum'])} "
                f"| {end['training_accuracy']:.1%} | {row['test_accuracy']:.1%} |"
            )


def correlation_table(structures):
    late = " | ".join(f"with {name}" for name in LATE)
    yield f"| data | structures | measured after a fifth of the epochs | {late} |"
    yield "|---|---:|---|" + "---:|" * len(LATE)
    for name, rows in structures.items():
        rows = [row for row in rows if OUTSIDE not in row["structure"]]
        for early, value in EARLY.items():
            found = (
                stats.spearmanr([value(row) for row in rows], [late(row) for row in rows])[0] for late in LATE.values()
            )
            yield f"| {NAMES[name]} | {len(rows)} | {early} | " + " | ".join(f"{each:.2f}" for each in found) + " |"


def step_table(steps):
    yield "| data | accelerated gradient steps, proved to be enough | that were | Newton's |"
    yield "|---|---:|---:|---:|"
    for name, rows in steps.items():
        for row in rows:
            counts = row["proved_gradient_steps"], row["gradient_steps"], row["newton_steps"]
            yield f"| {NAMES[name]} | " + " | ".join(map(str, counts)) + " |"


def suspect_table(rows):
    ways = list(rows[0]["ways"])
    yield f"| data | wrong labels | {' | '.join(ways)} |"
    yield "|---|---|" + "---:|" * len(ways)
    for row in rows:
        cells = (f"{row['ways'][way]['auroc']:.3f}, {row['ways'][way]['precision']:.0%}" for way in ways)
        yield f"| {NAMES[row['dataset']]} | {row['share']:.0%}, {row['kind']} | {' | '.join(cells)} |"
    means = ([np.mean([row["ways"][way][name] for row in rows]) for name in ("auroc", "precision")] for way in ways)
    yield "| mean | | " + " | ".join(f"**{auroc:.3f}, {precision:.0%}**" for auroc, precision in means) + " |"


def axes_for(columns):
    figure = Figure(figsize=(4.6 * columns, 3.6), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def draw_heads(heads, path):
    figure, (share, loss) = axes_for(2)
    for name, rows in heads.items():
        colour, marker = STYLES[name]
        gates = [row["gates"] for row in rows]
        for axis, predicted, reached in (
            (share, [row["predicted_share"] for row in rows], [row["share"] for row in rows]),
            (loss, [row["predicted_infimum"][1] for row in rows], [row["loss"] for row in rows]),
        ):
            axis.plot(gates, predicted, "--", color=colour, label=f"{NAMES[name]}, predicted")
            axis.plot(gates, reached, marker, color=colour, fillstyle="none", label="reached")
    share.set(xlabel="gates beside the head", ylabel="residual share", title="squared error")
    loss.set(xlabel="gates beside the head", ylabel="training cross-entropy", title="cross-entropy", yscale="log")
    figure.legend(
        *share.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize="small"
    )
    figure.savefig(path, dpi=110)


def draw_structures(structures, path):
    figure, axes = axes_for(len(structures))
    for axis, (name, rows) in zip(axes, structures.items(), strict=True):
        rows = [row for row in rows if OUTSIDE not in row["structure"]]
        late = [row["end"]["training_loss"] for row in rows]
        axis.plot([row["early"]["training_loss"] for row in rows], late, "o", color="#767676", label="training loss")
        least = [row["early"]["infimum"][1] for row in rows]
        axis.plot(least, late, "^", color=STYLES[name][0], label="least loss of the head")
        axis.set(xlabel="after a fifth of the epochs", ylabel="training loss at the end", title=NAMES[name])
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def draw_kernels(structures, path):
    figure, axes = axes_for(len(structures))
    for axis, (name, rows) in zip(axes, structures.items(), strict=True):
        for row in rows:
            inside = OUTSIDE not in row["structure"]
            epochs = np.arange(1, len(row["kernel_change"]) + 1)
            colour, label = ("#767676", "residual networks") if inside else ("#D55E00", row["structure"])
            axis.semilogy(epochs, row["kernel_change"], "-" if inside else "--", color=colour, label=label)
        handles, labels = axis.get_legend_handles_labels()
        once = dict(zip(labels, handles, strict=True))
        axis.legend(once.values(), once.keys(), frameon=False, fontsize="small")
        axis.set(xlabel="epoch", ylabel="change of the feature kernel", title=NAMES[name])
    figure.savefig(path, dpi=110)


def written(rows, suspects):
    """Yield the lines of the results; draw their pictures."""
    heads, structures, steps = (grouped(rows, kind) for kind in ("head", "structure", "steps"))
    draw_heads(heads, IMAGES / "width_heads.png")
    draw_structures(structures, IMAGES / "structures.png")
    draw_kernels(structures, IMAGES / "kernel_change.png")
    machine, first = rows[-1]["machine"], rows[0]
    yield (
        f"{first['images']:,} images, {first['epochs']} epochs, one seed; {machine['date']}, {machine['processor']}, "
        f"keras {machine['packages']['keras']}."
    )
    for title, table, picture in (
        ("Do wider heads reach what was predicted?", head_table(heads), "width_heads"),
        ("Do wider networks reach a smaller loss?", structure_table(structures), None),
        ("Does what is measured early tell the order at the end?", correlation_table(structures), "structures"),
        ("How many gradient steps", step_table(steps), None),
        ("Beyond the kernel regime", (), "kernel_change"),
        ("Wrong labels", suspect_table(suspects), None),
    ):
        yield from ("", f"### {title}", "", *table)
        if picture:
            yield from ("", f"![{title.lower()}](images/{picture}.png)")


def main():
    rows, suspects = ([json.loads(line) for line in path.read_text().splitlines()] for path in (RESULT, SUSPECTS))
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text("\n".join([before + BEGIN, "", *written(rows, suspects), "", END]) + after)


if __name__ == "__main__":
    main()
