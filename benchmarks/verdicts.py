"""Count false and undecided statements on problems whose separability or alignment is known exactly, in awkward units.

Verdicts and bounds of the infimum are compared with the truth and, of every fourth problem with classes, all numbers of
the certificate, and the gap of a point, with exact arithmetic.

python benchmarks/verdicts.py [--examples 10000]
"""

import argparse
import collections
import json
import pathlib
import sys
import time

from machine import describe

ROOT = pathlib.Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "verdicts.json"
sys.path.insert(0, str(ROOT / "tests"))

import false_numbers  # noqa: E402
import verdict_problems  # noqa: E402

EVERY = 4  # problems, of which one is compared number by number: that takes longer than all verdicts
KINDS = (  # labels, problems, and the truth where it is no and where it is yes
    ("hard", verdict_problems.draw, ("not separable", "separable")),
    ("soft", verdict_problems.draw_soft, ("soft labels out of reach", "soft labels in reach")),
    ("numbers", verdict_problems.draw_regression, ("numbers out of reach", "numbers in reach")),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    examples = parser.parse_args().examples
    counts, undecided, false, start = collections.Counter(), collections.Counter(), [], time.perf_counter()
    compared = 0
    for kind, draw, truths in KINDS:
        for seed in range(examples):
            problem = draw(seed)
            wrong, open_verdicts = problem.false_statements()
            if kind != "numbers" and seed % EVERY == 0:  # numbers' bounds have been compared with exact least squares
                wrong += false_numbers.of_certificate(problem)
                wrong += ["gap"] * (false_numbers.beyond_gap(problem, seed) > 0)
                compared += 1
            truth = truths[problem.separable]
            counts[truth] += 1
            undecided[truth] += open_verdicts
            false += [{"labels": kind, "seed": seed, "statement": statement} for statement in wrong]
    RESULT.write_text(
        json.dumps(
            {
                "command": f"python benchmarks/verdicts.py --examples {examples}",
                "problems": dict(counts),
                "verdicts": 2 * sum(counts.values()),
                "certificates_compared_number_by_number": compared,
                "false_statements": len(false),
                "which": false,
                "undecided": dict(undecided),
                "share_undecided": {truth: undecided[truth] / (2 * counts[truth]) for truth in counts},
                "seconds": round(time.perf_counter() - start),
                "machine": describe(),
            },
            indent=1,
        )
        + "\n"
    )
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
