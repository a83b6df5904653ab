"""Run every recipe for three seeds, and write its table into its page.

python benchmarks/recipes.py [long_tail shortcut new_class pretrained imagenet calibration suspect_labels]

All but `imagenet` are of Fashion-MNIST; that one reads CIFAR-10 from the folder that TFDS_DATA_DIR names.
"""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
from machine import describe

ROOT = Path(__file__).parents[1]
RESULT, DOCS = ROOT / "benchmarks" / "results" / "recipes.json", ROOT / "docs"
RECIPES = ("long_tail", "shortcut", "new_class", "pretrained", "imagenet", "calibration", "suspect_labels")
PAGES = {"pretrained": "pretrained.md", "imagenet": "pretrained.md"}  # of others: recipe_<name>.md
SEEDS = (0, 1, 2)
sys.path[:0] = [str(ROOT / "examples" / "recipes"), str(ROOT / "examples")]

from quickstart import FASHION  # noqa: E402


def table(runs):
    """Yield the lines of a Markdown table of means over the seeds, with the range where it is wide enough to show."""
    ways, columns = list(runs[0]), list(next(iter(runs[0].values())))
    digits_of = [3 if name == "log loss" else 1 for name in columns]
    yield f"| | {' | '.join(columns)} |"
    yield f"|---|{'---:|' * len(columns)}"
    for way in ways:
        values = np.array([[run[way][column] for column in columns] for run in runs])
        cells = [f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})" for mean, low, high, digits in
                 zip(values.mean(0), values.min(0), values.max(0), digits_of, strict=True)]  # fmt: skip
        yield f"| {way} | {' | '.join(cells)} |"


def pages(results):
    """Yield each page with tables of recipes, a path, and its text with these made anew."""
    texts = {}
    for name, result in results["recipes"].items():
        page = DOCS / PAGES.get(name, f"recipe_{name}.md")
        lines = "\n".join(table(result["runs"]))
        marked = rf"(<!-- {name} -->\n).*?(\n<!-- end -->)"
        text = texts.get(page) or page.read_text()
        texts[page] = re.sub(marked, rf"\1\n{lines}\n\2", text, flags=re.DOTALL)
    yield from texts.items()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    recipes = parser.parse_args().recipes
    if set(recipes) != {"imagenet"} and not FASHION.is_dir():
        raise SystemExit(f"The figures are of Debian's dataset-fashion-mnist. Received: no folder {FASHION}")
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {"recipes": {}}
    results["command"] = "python benchmarks/recipes.py"
    for name in recipes:
        recipe = importlib.import_module(name)
        runs = []
        for seed in SEEDS:
            runs.append(recipe.run(seed))
            print(name, seed, runs[-1], flush=True)
        results["recipes"][name] = {"runs": runs, "seeds": list(SEEDS), "machine": describe()}
        RESULT.write_text(json.dumps(results, indent=1) + "\n")
        for page, text in pages(results):
            page.write_text(text)


if __name__ == "__main__":
    main()
