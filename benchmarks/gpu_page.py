"""Writes the tables in docs/gpu.md from gpu.jsonl and gpu_heads.jsonl of the results.

python benchmarks/gpu_page.py
"""

import json
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "gpu.md"
BEGIN, END = "<!-- begin of what benchmarks/gpu_page.py writes -->", "<!-- end of it -->"
WAYS = {
    "first": "`converge` on the card, first time",
    "again": "`converge` on the card, again",
    "host": "`converge` on the host",
    "pytorch": "PyTorch's L-BFGS on the card",
}


def rows_of(name):
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def pairs(rows):
    """Yield the name of a network, and its rows by way, seed by seed."""
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        ways = [{row["seed"]: row for row in own if row["way"] == way} for way in ("base", "wrapped")]
        yield name, [(ways[0][seed], ways[1][seed]) for seed in ways[0] if seed in ways[1]]


def training_table(rows):
    yield (
        "| network | dtype | epochs | alone | two lines, minus that | alone, s | two lines, s | over that "
        "| without first epochs | epoch alone, s | exploring | averaging | the switch | of it the solver |"
    )
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name, found in pairs(rows):

        def mean(which, key, found=found):
            return float(np.mean([pair[which][key] for pair in found]))

        base, ours = found[0]
        later = [mean(which, "seconds") - mean(which, "first_epoch_seconds") for which in (0, 1)]
        difference = 100 * (mean(1, "test_accuracy") - mean(0, "test_accuracy"))
        yield (
            f"| {name} | {base['policy']} | {ours['epochs']} of {base['epochs']} | "
            f"{100 * mean(0, 'test_accuracy'):.2f} % | {difference:+.2f} | {mean(0, 'seconds'):.1f} | "
            f"{mean(1, 'seconds'):.1f} | {mean(1, 'seconds') / mean(0, 'seconds'):.2f} | {later[1] / later[0]:.2f} | "
            f"{mean(0, 'epoch_seconds'):.2f} | {mean(1, 'epoch_seconds'):.2f} | {mean(1, 'averaging_seconds'):.2f} | "
            f"{mean(1, 'switch_seconds'):.1f} | {mean(1, 'solver_seconds'):.1f} |"
        )


def waiting_table(rows):
    """The first seed compiles its steps, the second finds them in the compilation cache."""
    yield "| network | seed | way | test accuracy | seconds | first epoch, s | epoch, s | the switch |"
    yield "|---|---:|---|---:|---:|---:|---:|---:|"
    for row in rows:
        switch = f"{row['switch_seconds']:.1f}" if "switch_seconds" in row else ""
        yield (
            f"| {row['network']} | {row['seed']} | {'two lines' if switch else 'alone'} | "
            f"{100 * row['test_accuracy']:.2f} % | {row['seconds']:.1f} | {row['first_epoch_seconds']:.1f} | "
            f"{row['epoch_seconds']:.2f} | {switch} |"
        )


def roofline_table(rows):
    yield "| network | dtype | images a second | TFLOP/s of convolutions | the card's, in a product | share |"
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
    yield "| head | way | to 0.01 | to 0.0001 | all | compiling, in all of the call | programs |"
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
    yield "| head | a product | TFLOP/s | share of the card's | reading the features twice |"
    yield "|---|---:|---:|---:|---:|"
    for row in rows:
        product, machine = row["product"], row["machine"]
        speed, peak = product["operations"] / product["seconds"] / 1e12, machine["peaks"]["float32, whole"]
        size = f"{row['samples']:,} x {row['features']:,}, {row['classes']:,} classes{', gated' * row['gated']}"
        yield (
            f"| {size} | {1e3 * product['seconds']:.2f} ms | {speed:.2f} | {speed / peak:.3f} | "
            f"{1e3 * product['bytes_of_inputs'] / machine['bandwidth']:.2f} ms |"
        )


def machine_line(machine):
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return f"{machine['card']}, {machine['processor']}, {machine['cores']} cores; {packages}; {machine['date']}."


def page():
    """Yield the lines between the marks."""
    all_rows, heads = rows_of("gpu.jsonl"), rows_of("gpu_heads.jsonl")
    trained, waiting = ([row for row in all_rows if ("keras_waits" in row) == waits] for waits in (False, True))
    yield machine_line(trained[0]["machine"])
    for title, table in (
        ("Trainings", training_table(trained)),
        ("While a callback kept Keras from running ahead", waiting_table(waiting)),
        ("Share of the card", roofline_table(trained)),
        ("Heads on features", heads_table(heads)),
        ("Products", product_table(heads)),
    ):
        yield from ("", f"### {title}", "", *table)


def main():
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text("\n".join([before + BEGIN, "", *page(), "", END]) + after)


if __name__ == "__main__":
    main()
