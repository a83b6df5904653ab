"""Writes the results in docs/width.md, and their pictures, from structures.jsonl and suspects.jsonl of the results.

python benchmarks/width_page.py
"""

from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from page import packages, rows_of, spliced
from scipy import stats

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "structures.jsonl"
SUSPECTS = RESULT.with_name("suspects.jsonl")
PAGE, IMAGES = ROOT / "docs" / "width.md", ROOT / "docs" / "images"
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "fashion_mnist": "Fashion-MNIST"}
STYLES = {"cifar10": ("#0072B2", "o"), "cifar100": ("#D55E00", "s"), "fashion_mnist": ("#009E73", "^")}
OUTSIDE = "kernel regime"  # in the name of what is no residual network
LEAST = 12  # structures of a seed whose orders are compared
FIRST_SEED = "The picture shows the first seed of each set."
KERNEL = (
    "Change of the feature kernel since the start (see [glossary](glossary.md)), by epoch, one line for each network."
)
PRICE = (
    "Processor time of a step of 128 images on one core, with the monitor, in the second epoch of seed 0; and the "
    "outputs of all layers in float32, an upper bound of what training keeps of them."
)
EARLY = {
    "training loss": lambda row: row["early"]["training_loss"],
    "training loss that fit shows": lambda row: row["early"].get("shown_loss"),
    "upper bound of its head's least loss": lambda row: row["early"]["infimum"][1],
    "residual share": lambda row: row["early"]["residual_share"],
    "its change over one epoch": lambda row: row["change"],
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


def seeds_of(rows, name):
    """Yield what stands under a name, and the rows that have it, one for each seed."""
    found = defaultdict(list)
    for row in rows:
        found[row[name]].append(row)
    yield from found.items()


def mean(rows, value):
    return np.mean([value(row) for row in rows], axis=0)


def bounded(rows, value):
    """Return the mean of numbers that are enclosed, and that of their upper bounds where one of them is not."""
    low, high = np.transpose([value(row) for row in rows])
    return "at most " * bool(np.any(high - low > 1e-3 * high)) + f"{high.mean():.3g}"


def head_table(heads):
    columns = "residual share, predicted", "reached", "least loss, predicted", "reached", "right", "test"
    yield f"| data | gates | seeds | {' | '.join(columns)} |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, all_rows in heads.items():
        for gates, rows in seeds_of(all_rows, "gates"):
            share, spread, reached, loss, right, test = mean(
                rows,
                lambda row: [
                    row[key]
                    for key in (
                        "predicted_share",
                        "predicted_spread",
                        "share",
                        "loss",
                        "training_accuracy",
                        "test_accuracy",
                    )
                ],
            )
            yield (
                f"| {NAMES[name]} | {gates} | {len(rows)} | {share:.4f} +- {spread:.4f} | {reached:.4f} "
                f"| {bounded(rows, lambda row: row['predicted_infimum'])} | {loss:.3g} | {right:.1%} "
                f"| {test:.1%} |"
            )


def settled_table(heads):
    """Yield where `width_curve` says that nothing more is gained, and where training images were all right."""
    yield "| data | settled, predicted, by seed | all right from, reached |"
    yield "|---|---:|---:|"
    for name, all_rows in heads.items():
        seeds = [rows for _, rows in seeds_of(all_rows, "seed")]
        predicted = ", ".join(str(rows[0]["settled"]) for rows in seeds)
        right = ", ".join(str(min(row["gates"] for row in rows if row["training_accuracy"] == 1)) for rows in seeds)
        yield f"| {NAMES[name]} | {predicted} | {right} |"


def structure_table(structures):
    yield (
        "| data | structure | parameters | seeds | loss after a fifth | least loss of its head then | loss at the end "
        "| least loss of its head then | right | test |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, all_rows in structures.items():
        for structure, rows in seeds_of(all_rows, "structure"):
            early, end = (mean(rows, lambda row, when=when: row[when]["training_loss"]) for when in ("early", "end"))
            before, after = (bounded(rows, lambda row, when=when: row[when]["infimum"]) for when in ("early", "end"))
            right = mean(rows, lambda row: row["end"]["training_accuracy"])
            yield (
                f"| {NAMES[name]} | {structure} | {rows[0]['parameters']:,} | {len(rows)} "
                f"| {early:.3f} | {before} | {end:.3f} | {after} | {right:.1%} "
                f"| {mean(rows, lambda row: row['test_accuracy']):.1%} |"
            )


def correlation_table(structures):
    late = " | ".join(f"with {name}" for name in LATE)
    yield f"| data | structures | measured after a fifth of the epochs | {late} |"
    yield "|---|---:|---|" + "---:|" * len(LATE)
    for name, all_rows in structures.items():
        compared = [row for row in all_rows if OUTSIDE not in row["structure"]]
        seeds = [rows for _, rows in seeds_of(compared, "seed")]
        for early, value in EARLY.items():
            known = ([row for row in rows if value(row) is not None] for rows in seeds)
            known = [rows for rows in known if len(rows) >= LEAST]
            counts = [len(rows) for rows in known]
            found = [
                [
                    stats.spearmanr([value(row) for row in rows], [late(row) for row in rows])[0]
                    for late in LATE.values()
                ]
                for rows in known
            ]
            if found:
                numbers = sorted({min(counts), max(counts)})
                cells = (f"{np.mean(each):.2f}{ranged(each)}" for each in zip(*found, strict=True))
                yield f"| {NAMES[name]} | {' to '.join(map(str, numbers))} | {early} | " + " | ".join(cells) + " |"


def price_table(rows):
    """Yield what a step of each structure takes on one core, and how large the outputs of its layers are."""
    found = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["structure"]][row["dataset"]].append(row)
    yield f"| structure | {' | '.join(f'{name}, ms' for name in NAMES.values())} | outputs of a batch, MiB |"
    yield "|---|" + "---:|" * (len(NAMES) + 1)
    for structure, sets in found.items():
        steps = (f"{1e3 * np.median([row['step_processor_seconds'] for row in sets[name]]):.0f}" for name in NAMES)
        outputs = sorted({f"{row['outputs_mib']:.0f}" for each in sets.values() for row in each}, key=int)
        yield f"| {structure} | {' | '.join(steps)} | {' to '.join(dict.fromkeys((outputs[0], outputs[-1])))} |"


def ranged(values):
    """Return the range of values in brackets, and nothing for one of them."""
    return f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""


def step_table(steps):
    yield "| data | accelerated gradient steps, proved to be enough | that were | Newton's |"
    yield "|---|---:|---:|---:|"
    for name, rows in steps.items():
        names = ("proved_gradient_steps", "gradient_steps", "newton_steps")
        counts = (", ".join(str(row[each]) for row in rows) for each in names)
        yield f"| {NAMES[name]} | " + " | ".join(counts) + " |"


def suspect_caption(rows):
    seeds = len({row["seed"] for row in rows})
    return f"AUROC, and precision among as many as are wrong; means of {seeds} seeds."


def suspect_table(rows):
    ways = list(rows[0]["ways"])
    yield f"| data | wrong labels | {' | '.join(ways)} |"
    yield "|---|---|" + "---:|" * len(ways)
    cases = defaultdict(list)
    for row in rows:
        cases[f"{NAMES[row['dataset']]} | {row['share']:.0%}, {row['kind']}"].append(row)
    for case, found in [*cases.items(), ("mean |", rows)]:
        pairs = (mean(found, lambda row, way=way: list(row["ways"][way].values())) for way in ways)
        yield f"| {case} | " + " | ".join(f"{auroc:.3f}, {precision:.0%}" for auroc, precision in pairs) + " |"


def axes_for(columns):
    figure = Figure(figsize=(4.6 * columns, 3.6), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def draw_heads(heads, path):
    figure, (share, loss) = axes_for(2)
    for name, all_rows in heads.items():
        colour, marker = STYLES[name]
        rows = [row for row in all_rows if row["seed"] == all_rows[0]["seed"]]
        gates = [row["gates"] for row in rows]
        for axis, predicted, reached in (
            (share, [row["predicted_share"] for row in rows], [row["share"] for row in rows]),
            (loss, [row["predicted_infimum"][1] for row in rows], [row["loss"] for row in rows]),
        ):
            axis.plot(gates, predicted, "--", color=colour, label=f"{NAMES[name]}, predicted")
            axis.plot(gates, reached, marker, color=colour, fillstyle="none", label="reached")
    share.set(xlabel="gates beside the head", ylabel="residual share", title="squared error")
    loss.set(xlabel="gates beside the head", ylabel="training cross-entropy", title="cross-entropy, predicted: at most")
    loss.set_yscale("symlog", linthresh=1e-4)  # some are zero
    loss.set_ylim(bottom=0)
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
        axis.plot(least, late, "^", color=STYLES[name][0], label="upper bound of the head's")
        axis.set(xlabel="after a fifth of the epochs", ylabel="training loss at the end", title=NAMES[name])
        axis.legend(frameon=False, fontsize="small")
    figure.savefig(path, dpi=110)


def draw_trunks(structures, path):
    figure, axes = axes_for(len(structures))
    for axis, (name, all_rows) in zip(axes, structures.items(), strict=True):
        found = sorted((width(rows[0]), rows) for _, rows in seeds_of(all_rows, "structure") if width(rows[0]) < np.inf)
        filters = [number for number, _ in found]
        bound = [mean(rows, lambda row: row["early"]["infimum"][1]) for _, rows in found]
        axis.plot(filters, bound, "--", color=STYLES[name][0], label="predicted: at most, by the head after a fifth")
        for number, rows in found:
            late = [row["end"]["training_loss"] for row in rows]
            label = "reached at the end, each seed" if number == filters[0] else None
            axis.plot([number] * len(rows), late, STYLES[name][1], color="black", fillstyle="none", label=label)
        axis.set_xscale("log", base=2)
        axis.set(xlabel="filters", ylabel="training cross-entropy", title=NAMES[name], ylim=(0, None))
        axis.set_xticks(filters, map(str, filters))
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


def width(row):
    """Return the filters of networks that differ in nothing else, which come first; of others what is larger."""
    filters = row["structure"].removesuffix(" filters")
    return int(filters) if filters.isdigit() else np.inf


def with_changes(structures, early):
    """Return the rows of structures with what an epoch changed in the residual share, None where it was not noted."""
    names = ("dataset", "seed", "structure")
    shares = {tuple(row[name] for name in names): row["residual_shares"] for row in early}
    found = (shares.get(tuple(row[name] for name in names)) for row in structures)
    return [
        row | {"change": None if each is None else each[-1] - each[-2]}
        for row, each in zip(structures, found, strict=True)
    ]


def written(rows, suspects):
    """Yield the lines of the results."""
    heads, structures, steps = (grouped(rows, kind) for kind in ("head", "structure", "steps"))
    early = [row for row in rows if row["kind"] == "early"]
    structures = {name: sorted(with_changes(each, early), key=width) for name, each in structures.items()}
    machines, first = [row["machine"] for row in rows], rows[0]
    processors = " and ".join(dict.fromkeys(machine["processor"] for machine in machines))
    dates = sorted({machine["date"] for machine in machines})
    seeds = len({row["seed"] for each in structures.values() for row in each})
    yield (
        f"{first['images']:,} images, {first['epochs']} epochs; structures: up to {seeds} seed{'s' * (seeds > 1)}; "
        f"{dates[0]} to {dates[-1]}, {processors}, {packages(machines[-1], 'keras')}."
    )
    for title, text, picture in (
        (
            "Do wider heads reach what was predicted?",
            [*head_table(heads), "", *settled_table(heads), "", FIRST_SEED],
            "width_heads",
        ),
        ("Do wider networks reach a smaller loss?", structure_table(structures), "width_trunks"),
        ("Does what is measured early tell the order at the end?", correlation_table(structures), "structures"),
        ("What a step takes", [PRICE, "", *price_table(sorted(early, key=width))], None),
        ("How many gradient steps", step_table(steps), None),
        ("Beyond the kernel regime", [KERNEL], "kernel_change"),
        ("Wrong labels", [suspect_caption(suspects), "", *suspect_table(suspects)], None),
    ):
        yield from ("", f"### {title}", "", *text)
        if picture:
            yield from ("", f"![{title.lower()}](images/{picture}.png)")


def pictures(rows):
    """Draw the pictures of the results."""
    heads, structures = (grouped(rows, kind) for kind in ("head", "structure"))
    draw_heads(heads, IMAGES / "width_heads.png")
    draw_trunks(structures, IMAGES / "width_trunks.png")
    draw_structures(structures, IMAGES / "structures.png")
    draw_kernels(structures, IMAGES / "kernel_change.png")


def pages():
    """Return the text of the page by its path."""
    return {PAGE: spliced(PAGE, "benchmarks/width_page.py", written(rows_of(RESULT), rows_of(SUSPECTS)))}


def main():
    for path, text in pages().items():
        path.write_text(text)
    pictures(rows_of(RESULT))


if __name__ == "__main__":
    main()
