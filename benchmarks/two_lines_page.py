"""Writes docs/two_lines.md and its picture from benchmarks/results/two_lines.jsonl.

python benchmarks/two_lines_page.py
"""

import datetime
import functools
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from page import hardware, packages, rows_of

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "two_lines.jsonl"
SWITCH, AVERAGES, CURVES, UNAUGMENTED = (
    RESULT.with_name(f"{name}.jsonl") for name in ("switch", "averages", "curves", "unaugmented")
)
GATES = RESULT.with_name("gate_seeds.json")
PAGE, PICTURE = ROOT / "docs" / "two_lines.md", ROOT / "docs" / "images" / "accuracy_seconds.png"
NAMES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "svhn_cropped": "SVHN", "fashion_mnist": "Fashion-MNIST"}
TASK = 4  # what of a setting says what is trained: data, images, epochs and recipe; the rest are options of `Wrap`
SHARED = ("base", "compressed")  # ways that averages are no part of, the first of which no switch is either
ALL = {"svhn_cropped": 883}  # images, of sets that are used whole
UNDISTURBED = 0.9  # share of the clock that a run had the processor for; with less, something else ran as well
RECIPES = {  # of two_lines.py, in the order of the table of ways
    "sgd": "SGD with momentum 0.9; the rate falls from 0.1 to 0 along a cosine over all epochs",
    "smoothing": "*sgd*, with labels smoothed by 0.1",
    "ema": "*sgd*, with `use_ema=True, ema_momentum=0.99`",
    "steps": "SGD with momentum 0.9; the rate is 0.1, 0.01 from half of the epochs on, 0.001 from three quarters on",
    "constant": "SGD with momentum 0.9, at the rate 0.05",
    "adamw": "AdamW with weight decay 0.02; the rate rises to 2e-3 over three epochs, then falls to 0 along a cosine",
}
WAYS = {
    "base": "the optimizer alone",
    "wrapped": "the two lines",
    "gated": "the two lines, with a gated head",
    "compressed": "the schedule compressed to as many epochs",
    "swap_ema": "SwapEMAWeights, stopped at the switch",
    "plateau": "ReduceLROnPlateau with EarlyStopping",
    "freeze": "freeze at the switch, then train the last layer",
}
DETAILS = {
    "plateau": "SGD with momentum 0.9 from the rate 0.1, `ReduceLROnPlateau(factor=0.2, patience=5)` and "
    "`EarlyStopping(patience=10, restore_best_weights=True)`, both on the validation loss",
    "swap_ema": "the recipe with `ema_momentum=0.99`",
    "freeze": "the recipe until the switch, then SGD with momentum 0.9 at the rate 0.01 for the epochs that are left",
    "compressed": "the epochs until the switch and one more, with the recipe's schedule over these",
}


def settings(rows):
    """Return the last rows by setting, way and seed, each with that of the optimizer alone measured nearest to it."""
    found, alone = defaultdict(lambda: defaultdict(dict)), defaultdict(list)
    for row in rows:
        if row["processor_seconds"] < UNDISTURBED * row["seconds"]:
            row["seconds"] = None
        task = row["dataset"], row["images"], row["epochs"], row["recipe"]
        average = None if row["recipe"] == "ema" else row.get("average")  # of its own it makes none there
        of_way = found[*task, row.get("explore"), average][row["way"]]
        if row.get("loaded"):  # noted in the row: a busy machine, or a base of another day, where no time says anything
            before = of_way.get(row["seed"], row)
            known = before if before is not row and _are_of_one_processor(before, row) else {}
            row |= {name: known.get(name) for name in ("seconds", "processor_seconds", "seconds_to_switch")}
        of_way[row["seed"]] = row
        if row["way"] == "base":
            alone[*task, row["seed"]].append(row)
    for setting, ways in found.items():
        for row in [row for by_seed in ways.values() for row in by_seed.values()]:
            bases = reversed(alone[*setting[:TASK], row["seed"]])
            row["alone"] = min(bases, key=functools.partial(_apart, row["machine"]), default=None)
    for setting in [setting for setting in found if not is_default(setting)]:
        default = found[*setting[:TASK], None, None]
        for way in SHARED if setting[TASK] is None else SHARED[:1]:
            found[setting][way] = found[setting][way] or default[way]
    return dict(sorted(found.items(), key=lambda item: order(item[0])))


def is_default(setting):
    return setting[TASK:] == (None, None)


def _are_of_one_processor(*rows):
    return len({row["machine"]["processor"] for row in rows}) == 1


def _apart(machine, base):
    """Return how unlike the circumstances of two measurements are: another state of the code, then days between."""
    dates = [datetime.date.fromisoformat(each["date"]) for each in (machine, base["machine"])]
    return machine.get("commit") != base["machine"].get("commit"), abs((dates[0] - dates[1]).days)


def paired(ways, way, field):
    """Return the values of a way and of the base, seed by seed; without those that are not known of one of them."""
    pairs = [[row[field], row["alone"][field]] for _, row in sorted(ways[way].items()) if row["alone"]]
    return np.array([pair for pair in pairs if None not in pair]).reshape(-1, 2).T


def ratio(ways, way, field):
    """Return the mean of a way over that of the base."""
    values = paired(ways, way, field)
    return np.divide(*values.mean(axis=1)) if values.size else np.nan


def processor_ratio(ways, way):
    """Return the ratio of processor time, and whether it is that of undisturbed pairs; of all, where there are none."""
    clear = {
        way: {s: row for s, row in ways[way].items() if row["seconds"] and row["alone"] and row["alone"]["seconds"]}
    }
    exact = ratio(clear, way, "processor_seconds")
    return (ratio(ways, way, "processor_seconds"), False) if np.isnan(exact) else (exact, True)


def described(setting):
    dataset, images, epochs, recipe, *chosen = setting
    named = zip(("explore", "average"), chosen, strict=True)
    options = "".join(f", {name}={value}" for name, value in named if value is not None)
    return f"{NAMES[dataset]}, {images or ALL[dataset]:,} images, {epochs} epochs, {recipe}{options}"


def order(setting):
    """Return what settings are sorted by, the default first."""
    dataset, images, epochs, recipe, *chosen = setting
    rest = (each or 0 for each in chosen)
    return list(NAMES).index(dataset), images or ALL[dataset], epochs, list(RECIPES).index(recipe), *rest


def of_default(found):
    """Return the settings whose switch is that of the default: with its average, or where not measured with another."""
    measured = {setting[:TASK] for setting, ways in found.items() if is_default(setting) and ways["wrapped"]}
    return {
        setting: ways
        for setting, ways in found.items()
        if setting[TASK] is None and is_default(setting) == (setting[:TASK] in measured)
    }


def timed(setting, found):
    """Return what tells the time of a setting, and a mark: its rows, or on a busy machine those of another average."""
    alike = [setting, *(other for other in found if other[:-1] == setting[:-1] and other != setting)]
    known = [each for each in alike if not np.isnan(ratio(found[each], "wrapped", "processor_seconds"))]
    chosen = (known or alike)[0]
    return found[chosen], " †" * (chosen != setting)


def main_table(found, everything):
    yield (
        "| data and recipe | seeds | test accuracy alone | two lines minus alone, points "
        "| compressed minus alone, points | time of the two lines over alone, clock | processor |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for setting, ways in found.items():
        if not (ways["wrapped"] and ways["base"]):
            continue
        ours, base = 100 * paired(ways, "wrapped", "test_accuracy")
        of_time, mark = timed(setting, everything)
        clock, (processor, is_exact) = ratio(of_time, "wrapped", "seconds"), processor_ratio(of_time, "wrapped")
        shorter = ""
        if ways["compressed"]:
            there, here = 100 * paired(ways, "compressed", "test_accuracy")
            shorter = f"{np.mean(there - here):+.2f}"
        difference = f"{np.mean(ours - base):+.2f}" + (
            f" ({np.min(ours - base):+.2f} to {np.max(ours - base):+.2f})" if len(base) > 1 else ""
        )
        yield (
            f"| {described(setting)} | {len(base)} | {np.mean(base):.2f} % | {difference} | {shorter} | "
            f"{shown(clock, '.3f', mark)} | {shown(processor, '.3f' if is_exact else 'about .2f', mark)} |"
        )


def ways_table(found):
    yield "| data and recipe | way | seeds | test accuracy | minus its own alone | epochs, with the one that reads |"
    yield "|---|---|---:|---:|---:|---:|"
    for setting, ways in found.items():
        for way, title in WAYS.items():
            rows = list(ways[way].values())
            is_of_default = (way in SHARED and setting[-1] is not None) or way == "base"
            if rows and (is_default(setting) or not is_of_default):
                accuracy, trained = mean_of(rows, "test_accuracy"), mean_of(rows, "epochs_trained")
                ours, base = 100 * paired(ways, way, "test_accuracy")
                above = "" if way == "base" else f"{np.mean(ours - base):+.2f}"
                shares = f"{100 * accuracy:.2f} % | {above} | {trained:.1f}"
                yield f"| {described(setting)} | {title} | {len(rows)} | {shares} |"


def mean_of(rows, field):
    """Return the mean over the rows in which it is known; a clock that others disturbed is not."""
    known = [row[field] for row in rows if row.get(field) is not None]
    return np.mean(known) if known else np.nan


def shown(value, form, mark=""):
    """Return a number in a form, with a mark behind it, and nothing for nan."""
    about = "about " * form.startswith("about ")
    return "" if np.isnan(value) else about + format(value, form.removeprefix("about ")) + mark


def price_table(found):
    yield (
        "| data and recipe | alignment | gap, at most | whole fit, s | of it after the switch, s | solver, s "
        "| epochs spared | training accuracy |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for setting, ways in found.items():
        for way in ("wrapped", "gated"):
            rows = list(ways[way].values())
            if rows:
                gap = max((row["gap"] for row in rows if row["gap"] is not None and way == "wrapped"), default=None)
                saved = np.mean([row["epochs"] - row["epochs_trained"] for row in rows])
                after = [row["seconds"] - row["seconds_to_switch"] for row in rows if row["seconds"]]
                yield (
                    f"| {described(setting)}{', gated head' * (way == 'gated')} | "
                    f"{shown(mean_of(rows, 'alignment'), '.2f')} | {'' if gap is None else f'{gap:.1e}'} | "
                    f"{shown(mean_of(rows, 'seconds'), '.1f')} | {shown(np.mean(after) if after else np.nan, '.1f')} | "
                    f"{mean_of(rows, 'seconds_of_solver'):.2f} | {saved:.0f} | "
                    f"{100 * mean_of(rows, 'training_accuracy'):.2f} % |"
                )


def gates(found):
    """Return what the gated head costs in test accuracy, from `gate_seeds.py`."""
    rows, draws = found["rows"], len(found["rows"][0]["gated"])
    apart, deviation = found["points apart, mean"], found["points apart, deviation over gates"]
    by_seed = ", ".join(f"{each:+.2f}" for each in found["points apart, by seed"])
    share = "every" if all(share == 1 for row in rows for share in row["training"]) else "not every"
    return [
        "Two runs differ by more than their heads do. From the same explored weights, of 5,000 images of CIFAR-10 with",
        f"{len(rows)} seeds, and for {draws} draws of its gates each, the gated head ends {apart:+.2f} points of test",
        f"accuracy from the head alone (by seed {by_seed}), {share} training image right; a draw of the gates",
        f"moves it by {deviation:.2f} (standard deviation): [gate seeds](results.md#gate-seeds).",
    ]


def switch_tables(rows):
    """Yield a table for each data set: test accuracy for each switch and number of averaged epochs, minus alone."""
    found = defaultdict(list)
    for row in rows:
        found[row["dataset"], row["images"], row["epochs"], row["recipe"], row["seed"]].append(row)
    for (*setting, _), points in found.items():
        windows = list(points[0]["test_accuracy"])
        names = ["the last weights" if window == "0" else f"mean of {window}" for window in windows]
        yield from ("", f"{described((*setting, None, None))}; alone {100 * points[0]['alone']:.2f} %", "")
        yield f"| epochs explored | {' | '.join(names)} |"
        yield "|---:|" + "---:|" * len(windows)
        for point in points:
            gains = (f"{100 * (point['test_accuracy'][window] - point['alone']):+.2f}" for window in windows)
            yield f"| {point['explored']} | {' | '.join(gains)} |"


def gains(rows):
    """Return what each choice gains over the optimizer alone, and each way to finish over the package's own.

    Args:
        rows: of averages.jsonl.

    Returns:
        By setting, then by (explore, average, steps, way), points by seed; of the way "solved" above the optimizer
        alone, of all others above "solved" in the same row. And accuracies alone in percent, by setting.
    """
    found, alone = defaultdict(lambda: defaultdict(dict)), defaultdict(list)
    for row in rows:
        setting = row["dataset"], row["images"], row["epochs"], row["recipe"], None, None
        alone[setting].append(100 * row["alone"])
        for point in row["two_lines"]:
            choice = point["explore"], point["average"], point["steps"]
            for way in point.keys() - {"explore", "average", "steps"}:
                beside = row["alone"] if way == "solved" else point["solved"]
                found[setting][(*choice, way)][row["seed"]] = 100 * (point[way] - beside)
    return {setting: found[setting] for setting in sorted(found, key=order)}, alone


def gain(by_seed):
    """Return the mean, with its standard error where there are several."""
    values = list(by_seed.values())
    error = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):+.2f}{error}"


def by_seeds(found, is_meant):
    """Return the choices whose way is meant, by the seeds that all settings have of them; the most seeds first."""
    of_choice = defaultdict(set)
    for by_choice in found.values():
        for choice, values in by_choice.items():
            of_choice[choice].add(tuple(sorted(values)))
    groups = defaultdict(list)
    for choice, seeds in of_choice.items():
        if is_meant(choice[-1]):
            (own,) = seeds  # every setting has the same ones, or a table would compare what is not alike
            groups[own].append(choice)
    return sorted(((seeds, sorted(choices)) for seeds, choices in groups.items()), key=lambda group: -len(group[0]))


def averages_tables(rows):
    """Yield a table of switches and windows for each set of seeds that has choices of its own."""
    found, alone = gains(rows)
    for seeds, choices in by_seeds(found, lambda way: way == "solved"):
        yield from ("", f"Seeds {seeds[0]} to {seeds[-1]}:", "")
        whole = len(seeds) == len(next(iter(alone.values())))
        yield f"| data and recipe |{' alone |' * whole} {' | '.join(_named(*choice[:3]) for choice in choices)} |"
        yield "|---|" + "---:|" * (len(choices) + whole)
        for setting, by_choice in found.items():
            base = f" {np.mean(alone[setting]):.2f} % |" * whole
            yield f"| {described(setting)} |{base} {' | '.join(gain(by_choice[choice]) for choice in choices)} |"


def _named(explore, average, steps):
    if not average:
        return f"{explore:g}: last weights"
    return f"{explore:g}: last {100 * average:.0f} %" + ", later steps count more" * (steps == "rising")


def changes_table(rows):
    """Yield a table of other weights of the change of the head, each above the package's own in the same row."""
    found, _ = gains(rows)
    weighted = [choice for _, group in by_seeds(found, lambda way: "," in way) for choice in group]
    weighted.sort(key=lambda choice: float(choice[-1].split()[-1]))
    seeds = {choice: sorted(next(iter(found.values()))[choice]) for choice in weighted}
    names = [
        f"{choice[-1].split()[-1]} (last {100 * choice[1]:.0f} %, seeds {seeds[choice][0]} to {seeds[choice][-1]})"
        for choice in weighted
    ]
    averaged = (0.71, 0.15, "even", "averaged")
    yield f"| data and recipe | not solved (last 15 %) | {' | '.join(names)} |"
    yield "|---|---:|" + "---:|" * len(weighted)
    for setting, by_choice in found.items():
        yield f"| {described(setting)} | {' | '.join(gain(by_choice[each]) for each in (averaged, *weighted))} |"


def time_of(ways, way):
    """Return the time of a way over that of the base: of the two lines as measured, of all others in epochs."""
    if way == "wrapped":
        return processor_ratio(ways, way)[0]
    rows = ways[way].values()
    return np.mean([row["epochs_trained"] / row["epochs"] for row in rows])


def picture(found, curves):
    """Draw accuracy against seconds of one pair of trainings, and against relative time of all settings."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    one, all_of_them = figure.subplots(1, 2)
    draw_curves(one, curves)
    draw_settings(all_of_them, found)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


def draw_curves(axis, curves):
    """Draw the validation accuracy of runs of one setting against the seconds that they have taken."""
    for row, color, marker in zip(curves, ("#000000", "#0072B2"), "*o", strict=True):
        seconds, accuracy = np.transpose(row["curve"])
        ends = f"{row['processor_seconds']:.0f} s, {100 * row['test_accuracy']:.1f} % of the whole test set"
        axis.plot(seconds, 100 * accuracy, color=color, linewidth=1.2, label=f"{WAYS[row['way']]}: {ends}")
        axis.plot(seconds[-1], 100 * accuracy[-1], marker, color=color, markersize=10)
    first = curves[0]
    axis.set(xlabel="seconds of a processor core, of the whole fit", ylabel="accuracy on 1,000 test images, %")
    axis.set_title(
        f"{NAMES[first['dataset']]}, {first['images']:,} images, {first['epochs']} epochs", fontsize="medium"
    )
    axis.legend(frameon=False, fontsize="small", loc="lower right")


def draw_settings(axis, found):
    """Draw what each way gains in test accuracy against the time it takes, both relative to the optimizer alone."""
    colors = {
        "wrapped": "#0072B2",
        "compressed": "#D55E00",
        "freeze": "#999999",
        "swap_ema": "#009E73",
        "plateau": "#CC79A7",
    }
    for (way, color), marker in zip(colors.items(), "osv^D", strict=True):
        points = [
            (time_of(timed(setting, found)[0] if way == "wrapped" else ways, way), np.mean(ours - base))
            for setting, ways in (of_default(found) if way in ("wrapped", "compressed") else found).items()
            if ways[way]
            for ours, base in [100 * paired(ways, way, "test_accuracy")]
        ]
        if points:
            axis.plot(*zip(*points, strict=True), marker, color=color, label=WAYS[way], alpha=0.85)
    axis.plot([1], [0], "k*", markersize=12, label=WAYS["base"])
    axis.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axis.set(
        xlabel="time / that of the optimizer alone (two lines: processor; others: epochs)",
        ylabel="test accuracy, points above it",
    )
    axis.set_title("each point a data set and recipe, mean of the seeds", fontsize="medium")
    axis.legend(frameon=False, fontsize="small", loc="lower right")


def runs():
    """Return the rows of runs that were bound to a core."""
    return [row for row in rows_of(RESULT) if row["core"] is not None]


def unaugmented_table(rows):
    """Yield the table of averages without augmentation: what each gains over the optimizer alone, by setting."""
    found = defaultdict(list)
    for row in rows:
        found[row["dataset"], row["images"], row["epochs"], row["batch"]].append(row)
    averages = list(rows[0]["test_accuracy"])
    yield f"| data | seeds | alone | {' | '.join(f'last {100 * float(average):.0f} %' for average in averages)} |"
    yield "|---|---:|---:|" + "---:|" * len(averages)
    for (dataset, images, epochs, batch), points in sorted(found.items()):
        alone = 100 * np.mean([point["alone"] for point in points])
        gained = [
            {point["seed"]: 100 * (point["test_accuracy"][average] - point["alone"]) for point in points}
            for average in averages
        ]
        name = f"{NAMES[dataset]}, {images:,} images, {epochs} epochs, batches of {batch}"
        yield f"| {name} | {len(points)} | {alone:.2f} % | {' | '.join(map(gain, gained))} |"


def machines(rows):
    """Return on what the rows were measured, each with its dates."""
    dates = defaultdict(set)
    for row in rows:
        each = row["machine"]
        dates[f"{hardware(each)}, {packages(each, 'keras', 'tensorflow')}"].add(each["date"])
    return "; ".join(f"{', '.join(sorted(days))}: {name}" for name, days in dates.items()) + "."


def written(found, switches, averages, unaugmented, measured):
    """Return the lines of the page."""
    default = of_default(found)
    return [
        "# The two lines, measured",
        "",
        "A ResNet-8 with the same optimizer alone and with the two lines, from the same start, with the same",
        "order of images. Keras layers in the model shift and mirror the images, so that the pass for features",
        "sees them as they are. Accuracy is that of the whole test set, differences in points; time is that of",
        "the whole `fit`, on the clock and of the processor: compilation, validation, monitor, the pass for",
        "statistics and features and the solver included. A run has one core, and the other core trains",
        "another row of this table meanwhile, so that both see the same machine; where other programs ran too,",
        "the time is that of the same training before, and without one the clock is left out. Of SVHN",
        "there are 200 images for the test, so that one of them is half a",
        "point, and of CIFAR-100 2,000. The page is written by",
        "`python benchmarks/two_lines_page.py` from [the rows](../benchmarks/results/two_lines.jsonl) of",
        "`python benchmarks/two_lines.py SET --data-dir DIR --images N --recipe NAME --ways ...",
        "--seeds 0 1 2 --core 0`,",
        measured,
        "",
        "![test accuracy against time](images/accuracy_seconds.png)",
        "",
        "On the left one training alone and one with the two lines",
        "([rows of their own](../benchmarks/results/curves.jsonl), made with `--result`); on the right what the tables",
        "below have.",
        "",
        "Batches of 128. Validation is on the first 1,000 test images, or on all there are. The recipes:",
        "",
        *(f"- *{name}*: {text}." for name, text in RECIPES.items()),
        "",
        "Rows with `average=0.15` were measured when that was the default, which is 0.07 now: the time does",
        "not depend on it, so that times marked with † are those of such rows, where the machine was busy otherwise;",
        "what accuracy gains by it is [below](#over-many-seeds).",
        "",
        *main_table(default, found),
        "",
        "## What each part costs, and what is proved",
        "",
        "The gap is that to the minimum of `loss + weight x change of the head`, in float64",
        "(see [the guide](guide.md#when-to-switch)). The weight was 0.01 in all rows but those of Fashion-MNIST, and",
        "without `average` those of CIFAR-100, *constant* and *adamw*, which have the default.",
        "After the switch come tracing, the pass for batch statistics and features, the solver and validation.",
        "The alignment is the share of the labels in the column space of the head at the switch, where noted.",
        "Of 5,000 images of CIFAR-10 [each part by itself](results.md#switch-price); what averaging adds to a step is",
        "less than [its noise](results.md#step-time).",
        "",
        *price_table(default),
        "",
        "## Beside what people do today",
        "",
        *(f"- {WAYS[way]}: {text}." for way, text in DETAILS.items()),
        "",
        *ways_table(found),
        "",
        *gates(json.loads(GATES.read_text())),
        "",
        "## When to switch, and over how many epochs to average",
        "",
        "One training alone each, whose weights were kept. For each choice the head is solved, and the model compared",
        "with the end of that training, in points; averaged weights have their batch statistics renewed, the last",
        "weights keep those that training left them:",
        "`python benchmarks/switch.py cifar10 --images 5000 --data-dir DIR --seeds 0` and",
        "`python benchmarks/switch.py cifar100 --images 10000 --data-dir DIR --seeds 0`,",
        "[the rows](../benchmarks/results/switch.jsonl) (the default's 43 epochs are not among them).",
        *switch_tables(switches),
        "",
        "## Over many seeds",
        "",
        "Three seeds tell differences of two tenths of a point. `benchmarks/averages.py` runs the steps of an",
        "epoch in one program on an accelerator: the same network, recipes and kinds of augmentation, but no `fit`,",
        "and at a switch what the two lines do there, with the package's own solver. Seeds differ in the weights they",
        "begin with and in the order of images; shifts and mirror images are drawn alike. Figures are points above",
        "the same training alone to its end, mean and standard error. A column is a switch, as a share of all",
        'epochs, and the last part of the epochs before it over which weights are averaged. `explore="auto"`',
        "switches at 0.71, and at 0.8 where the alignment is low, as on CIFAR-100; it averages over the last 7 %.",
        "Not all choices were made for all seeds, as the rows say; the script makes all for each.",
        "",
        "```bash",
        "KERAS_BACKEND=jax python benchmarks/averages.py cifar10,5000,sgd cifar10,5000,adamw --data DIR --seeds 0 1 2",
        "```",
        "",
        f"[The rows](../benchmarks/results/averages.jsonl), {averages[-1]['machine']['date']}: "
        f"{averages[-1]['machine']['card']}, {packages(averages[-1]['machine'], 'keras', 'jax')}.",
        *averages_tables(averages),
        "",
        "The head solved with another weight of its change than 0.01, or left as it is, after 0.71 of the epochs:",
        "points above 0.01, the weight of all rows above, on the same seeds.",
        "",
        *changes_table(averages),
        "",
        "- **A switch at 0.71 costs nothing on CIFAR-10** with SGD, AdamW or steps, to a twentieth of a point. It",
        "  gains 2.5 points on 883 images of SVHN, and 6 on a constant rate. It costs 0.07 points with smoothed",
        "  labels, 0.14 on Fashion-MNIST, trained for half as many epochs, and 0.15 on CIFAR-100, where the default",
        "  is 0.8.",
        "- **A switch at 0.8**, with averages over 10 to 20 % of the exploration, **costs nothing anywhere**, to a",
        "  twentieth, and gains a tenth and more in most rows: `Wrap(..., explore=0.8)` where time matters less.",
        "- Averages over 7 % of the exploration, the default, are above those over 15 % on SVHN (by 1.0 ± 0.4",
        "  points on the same seeds), CIFAR-100 (0.15 ± 0.07) and Fashion-MNIST (0.08 ± 0.02), and within a",
        "  twentieth elsewhere. Longer ones than a fifth lose: over 30 % before a switch at 0.8, CIFAR-100 ends",
        "  0.13 and Fashion-MNIST 0.09 points below the optimizer alone. The last weights alone are up to 1.2 points",
        "  worse, except where the rate is low already (*steps*) or images are few (SVHN).",
        "- The head left unsolved costs 0.16 to 0.34 points, and four on SVHN. As the weight of its change 0.01 is",
        "  right on CIFAR-10: a tenth of that costs 0.3 to 0.5 points, ten times of it up to 0.3. Fashion-MNIST and",
        "  CIFAR-100, where the loss is less curved in a logit, gain a tenth with 0.003; SVHN loses one to two",
        "  points far from 0.01. So the default is a third of the mean curvature, from 0.003 to 0.01: the three",
        "  trainings on Fashion-MNIST above end 0.01 to 0.04 points higher than the same ones with 0.01.",
        "",
        "## Without augmentation",
        "",
        "Where images are trained on as they are, a longer average did no harm in four settings. It gained a point and",
        "more in one of them, 2,000 images of CIFAR-10 with two seeds, and no more than the noise in the others. One",
        "training alone each; after 0.71 of the epochs the mean over the last part of these becomes the model, its",
        "batch statistics are renewed, in batches of 128 images in every row, and its head is solved",
        "(`benchmarks/unaugmented.py`,",
        f"[the rows](../benchmarks/results/unaugmented.jsonl); {machines(unaugmented)[:-1]}). Points above the same",
        "training alone to its end, mean and standard error:",
        "",
        *unaugmented_table(unaugmented),
        "",
        "`make quickstart` takes 0.3 for that reason, though the row of 3,000 images, which is nearest to it, gains",
        "nothing. It divides pixels by 255 instead of standardizing them, and was",
        "[measured over seeds](results.md#quickstart-seeds) with 0.3 only.",
        "",
        "## Whole trainings with another switch or average",
        "",
        "With `explore=` or `average=` other than the default, as in the first table:",
        "",
        *main_table({setting: ways for setting, ways in found.items() if setting not in default}, found),
        "",
    ]


def pages():
    """Return the text of the page by its path."""
    rows = runs()
    others = map(rows_of, (SWITCH, AVERAGES, UNAUGMENTED))
    return {PAGE: "\n".join(written(settings(rows), *others, machines(rows)))}


def main():
    for path, text in pages().items():
        path.write_text(text)
    picture(settings(runs()), rows_of(CURVES))


if __name__ == "__main__":
    main()
