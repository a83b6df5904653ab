"""Writes the tables in docs/gpu.md from gpu.jsonl and gpu_heads.jsonl of the results.

python benchmarks/gpu_page.py
"""

from pathlib import Path

import numpy as np
from page import machine_line, rows_of, spliced

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "gpu.md"
WAYS = {
    "first": "`converge` on the card, first time",
    "again": "`converge` on the card, again",
    "host": "`converge` on the host",
    "pytorch": "PyTorch's L-BFGS on the card",
}


def pairs(rows):
    """Yield a network with its epochs, and its rows of both ways, seed by seed, of processes of their own."""
    for name, epochs in dict.fromkeys((row["network"], row["of_epochs"]) for row in rows):
        own = [row for row in rows if (row["network"], row["of_epochs"]) == (name, epochs) and row["alone_in_process"]]
        ways = [{row["seed"]: row for row in own if row["way"] == way} for way in ("base", "wrapped")]
        if found := [(ways[0][seed], ways[1][seed]) for seed in ways[0] if seed in ways[1]]:
            yield f"{name}, {epochs} epochs", found


def training_table(rows):
    yield (
        "| network, epochs alone | dtype | epochs with two lines | test accuracy alone | two lines minus alone, points "
        "| seconds alone | two lines | two lines over alone | programs compiled alone | two lines |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, found in pairs(rows):
        base, ours = found[0]
        accuracy, seconds = ([mean(found, which, key) for which in (0, 1)] for key in ("test_accuracy", "seconds"))
        yield (
            f"| {name} | {base['policy']} | {ours['epochs']} | {100 * accuracy[0]:.2f} % | "
            f"{100 * (accuracy[1] - accuracy[0]):+.2f} | {seconds[0]:.1f} | {seconds[1]:.1f} | "
            f"{seconds[1] / seconds[0]:.2f} | {base['programs']} | {ours['programs']} |"
        )


def parts_table(rows):
    yield (
        "| network | first epoch, alone | two lines: before the first epoch | first epoch | a later epoch, alone "
        "| two lines: exploring | averaging | switch to the end | compiling in it | solver in it |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, found in pairs(rows):
        columns = (
            (0, "first_epoch_seconds", 1),
            (1, "before_first_epoch_seconds", 1),
            (1, "first_epoch_seconds", 1),
            (0, "epoch_seconds", 3),
            (1, "epoch_seconds", 3),
            (1, "averaging_seconds", 3),
            (1, "switch_seconds", 1),
            (1, "switch_compiling_seconds", 1),
            (1, "solver_seconds", 1),
        )
        values = " | ".join(f"{mean(found, which, key):.{digits}f}" for which, key, digits in columns)
        yield f"| {name} | {values} |"


def mean(found, which, key):
    return float(np.mean([pair[which][key] for pair in found]))


def waiting_table(rows):
    """The first seed compiles its steps, the second finds them in the compilation cache."""
    yield "| network | seed | way | test accuracy | fit, s | first epoch, s | a later epoch, s | switch to the end, s |"
    yield "|---|---:|---|---:|---:|---:|---:|---:|"
    for row in rows:
        switch = f"{row['switch_seconds']:.1f}" if "switch_seconds" in row else ""
        yield (
            f"| {row['network']} | {row['seed']} | {'two lines' if switch else 'alone'} | "
            f"{100 * row['test_accuracy']:.2f} % | {row['seconds']:.1f} | {row['first_epoch_seconds']:.1f} | "
            f"{row['epoch_seconds']:.2f} | {switch} |"
        )


def roofline_table(rows):
    yield "| network | dtype | images a second | TFLOP/s of training | the card's in matrix products | share |"
    yield "|---|---|---:|---:|---:|---:|"
    for name, found in pairs(rows):
        base = found[0][0]
        peak = base["machine"]["peaks"][base["policy"]]
        yield (
            f"| {name} | {base['policy']} | {base['images_per_second']:,.0f} | {base['training_tflops']:.1f} | "
            f"{peak:.0f} | {base['share_of_peak']:.2f} |"
        )


def seconds(value):
    return "not in its time" if value is None else f"{value:.2f} s"


def heads_table(rows):
    yield (
        "| head | way | to 0.01 above the least loss of all ways | to 0.0001 | solver "
        "| compiling in the whole call | programs compiled in it |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|"
    for row in rows:
        size = f"{row['samples']:,} x {row['features']:,}, {row['classes']:,} classes{', gated' * row['gated']}"
        for way, title in WAYS.items():
            if way in row:
                found = row[way]
                compiled = " | " if way == "pytorch" else f"{found['compiling_seconds']:.1f} s | {found['programs']}"
                yield (
                    f"| {size} | {title} | {seconds(found['0.01'])} | {seconds(found['0.0001'])} | "
                    f"{found['seconds']:.1f} s | {compiled} |"
                )


def product_table(rows):
    yield "| head | one product | TFLOP/s | share of the card's in matrix products | two reads of the features |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows:
        product, machine = row["product"], row["machine"]
        speed, peak = product["operations"] / product["seconds"] / 1e12, machine["peaks"]["float32, whole"]
        size = f"{row['samples']:,} x {row['features']:,}, {row['classes']:,} classes{', gated' * row['gated']}"
        yield (
            f"| {size} | {1e3 * product['seconds']:.2f} ms | {speed:.2f} | {speed / peak:.3f} | "
            f"{1e3 * product['bytes_of_inputs'] / machine['bandwidth']:.2f} ms |"
        )


def written(rows, heads):
    """Yield the lines between the marks."""
    trained, waiting = ([row for row in rows if ("keras_waits" in row) == waits] for waits in (False, True))
    machine = trained[0]["machine"]
    yield f"{machine['card']}, {machine_line(machine | {'commit': None})}."
    for title, table in (
        ("Trainings", training_table(trained)),
        ("What they took, in seconds", parts_table(trained)),
        ("While a callback kept Keras from running ahead", waiting_table(waiting)),
        ("Share of the card", roofline_table(trained)),
        ("Heads on features", heads_table(heads)),
        ("Products", product_table(heads)),
    ):
        yield from ("", f"### {title}", "", *table)


def pages():
    """Return the text of the page by its path."""
    lines = written(rows_of(RESULTS / "gpu.jsonl"), rows_of(RESULTS / "gpu_heads.jsonl"))
    return {PAGE: spliced(PAGE, "benchmarks/gpu_page.py", lines)}


def main():
    for path, text in pages().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
