"""Does an extrapolated learning curve hold? `python -m benchmarks.readiness [--json]`.

Each seed divides all texts of a set: a quarter is for testing, the rest are the examples that there will be one day. A
part of these, a quarter or a half, is what there is now. The product's curve is measured on that part and extrapolated
to all (monitoring/readiness/). The truth is the same cheap model trained on all of them, on the texts for testing.

curve      the product's: shifted inverse power laws, weighed by their likelihood, with a 95% interval
least      one inverse power law with a floor, by least squares with the points' own weights
last       the last measured point: no extrapolation

Errors are in shares of right answers. The truth is measured too: on 3,000 texts its own standard error is half a point,
and counts against the interval's coverage. Seeds share texts: intervals over seeds are narrower than they should be.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import curve_fit
from sklearn.feature_extraction.text import TfidfVectorizer
from threadpoolctl import threadpool_limits

from benchmarks import scores
from benchmarks.canary import rate_of
from benchmarks.estimation import SETS
from benchmarks.harness import Goal, Unmeasurable, conclude, options, say, table
from benchmarks.scores import DATA, LAYOUT, DataSet, Labelled
from monitoring.readiness.extrapolation import Curve, extrapolate
from monitoring.readiness.learning_curve import CurveError, measure_curve, predict

ALL_SETS = {**SETS, "cuad": scores.cuad}
DEFAULT_SETS = ("clinc150", "banking77")
TESTED_SHARE = 0.25
ROWS_MIN = 2_000
Z_99 = 2.5758
METHODS = ("curve", "least", "last")
GOALS = (Goal("coverage_high", at_least=0.95), Goal("error_low", at_most=0.02))


@dataclass(frozen=True, slots=True)
class Cell:
    """One extrapolation: from the rows that there are to all, the truth, and what each method said."""

    set: str
    part: float
    seed: int
    rows: int
    all_rows: int
    truth: float
    low: float
    high: float
    said: Mapping[str, float]

    @property
    def holds(self) -> bool:
        """Whether the interval has the truth."""
        return self.low <= self.truth <= self.high


def own_set(path: Path) -> DataSet:
    """A set of one's own: JSON lines with `text` and `label`. Raises Unmeasurable."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return DataSet(path.stem, tuple(Labelled(str(row["text"]), str(row["label"])) for row in rows), (), {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unmeasurable(f"{path} has no JSON lines with text and label: {error}") from error


def cells_of(data: DataSet, parts: Sequence[float], seed: int) -> list[Cell]:
    """The extrapolations of one seed. Raises Unmeasurable for a set that is too small."""
    rows = list(dict.fromkeys(data.train + data.test))
    if len(rows) < ROWS_MIN:
        raise Unmeasurable(f"{data.name} has {len(rows)} different texts: it takes {ROWS_MIN}.")
    order = np.random.default_rng(seed).permutation(len(rows))
    tested, all_rows = np.split(order, [int(TESTED_SHARE * len(rows))])
    truth = accuracy_of(rows, all_rows, tested)
    found = []
    for part in parts:
        now = [rows[at] for at in all_rows[: int(part * len(all_rows))]]
        try:
            curve = measure_curve([row.text for row in now], [row.label for row in now], seed=seed)
        except CurveError as error:
            raise Unmeasurable(f"{data.name}, {part:g} of it: {error}") from error
        (beyond,) = extrapolate(curve, [len(all_rows)], seed)
        said = {"curve": beyond.right, "least": by_least_squares(curve, len(all_rows)), "last": 1 - curve.shares[-1]}
        found.append(Cell(data.name, part, seed, len(now), len(all_rows), truth, beyond.low, beyond.high, said))
    return found


def accuracy_of(rows: Sequence[Labelled], train: np.ndarray[Any, Any], tested: np.ndarray[Any, Any]) -> float:
    """The share of these texts that the cheap model has right, trained on those."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit([rows[at].text for at in train])
    features = vectorizer.transform([row.text for row in rows])
    labels = np.array([row.label for row in rows], dtype=object)
    return float((predict(features, labels, train, tested) == labels[tested]).mean())


def by_least_squares(curve: Curve, size: int) -> float:
    """The share of right answers at a size by one inverse power law with a floor; the last point where none fits."""
    shares, sizes = curve.shares, np.array(curve.sizes, float)
    errors = np.sqrt(shares * (1 - shares) / sizes) + 1e-4
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted, _ = curve_fit(
                lambda n, floor, height, power: floor + height * n**-power,
                sizes / sizes[-1], shares, (shares[-1] / 2, shares[-1] / 2, 0.5), errors,
                bounds=((0, 0, 0.01), (1, 1, 3)),
            )  # fmt: skip
    except RuntimeError:
        return float(1 - shares[-1])
    floor, height, power = fitted
    return float(1 - floor - height * (size / sizes[-1]) ** -power)


def figures_of(cells: Sequence[Cell]) -> dict[str, Any]:
    """The errors of each method, and how often the interval has the truth."""
    found: dict[str, Any] = {}
    for method in METHODS:
        errors = np.array([cell.said[method] - cell.truth for cell in cells])
        absolute = np.abs(errors)
        half = Z_99 * float(absolute.std(ddof=1)) / math.sqrt(len(cells)) if len(cells) > 1 else 1.0
        found[method] = {
            "error": float(absolute.mean()),
            "error_low": max(0.0, float(absolute.mean()) - half),
            "error_high": float(absolute.mean()) + half,
            "bias": float(errors.mean()),
            "worst": float(absolute.max()),
        }
    covered = rate_of(sum(cell.holds for cell in cells), len(cells))
    found["coverage"] = {name: float(value) for name, value in covered.items()}
    found["width"] = float(np.mean([cell.high - cell.low for cell in cells]))
    return found


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Every set, seed and part."""
    began = time.process_time()
    sets = [own_set(asked.file)] if asked.file else [ALL_SETS[name](asked.data) for name in asked.set]
    cells: list[Cell] = []
    for data in sets:
        for seed in range(asked.seed, asked.seed + asked.seeds):
            say(f"{data.name}, seed {seed}")
            cells += cells_of(data, asked.parts, seed)
    groups = {
        f"{data.name} {part:g}": figures_of([cell for cell in cells if (cell.set, cell.part) == (data.name, part)])
        for data in sets
        for part in asked.parts
    }
    of_all = figures_of(cells)
    worst = max(groups.values(), key=lambda group: group["curve"]["error_low"])["curve"]
    figures = {
        "error": of_all["curve"]["error"],
        "error_low": worst["error_low"],
        "error_high": worst["error_high"],
        "error_least_squares": of_all["least"]["error"],
        "error_last_point": of_all["last"]["error"],
        "coverage": of_all["coverage"]["rate"],
        "coverage_low": of_all["coverage"]["low"],
        "coverage_high": of_all["coverage"]["high"],
        "width": of_all["width"],
    }
    report = {
        "seed": asked.seed,
        "seeds": asked.seeds,
        "cells": [
            {name: getattr(cell, name) for name in Cell.__slots__ if name != "said"} | dict(cell.said) for cell in cells
        ],
        "groups": groups,
        "figures": figures,
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    return report, []


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    rows = []
    for name, group in report["groups"].items():
        cells = [cell for cell in report["cells"] if f"{cell['set']} {cell['part']:g}" == name]
        truth = float(np.mean([cell["truth"] for cell in cells]))
        errors = [group[method]["error"] for method in METHODS]
        held = f"{sum(cell['low'] <= cell['truth'] <= cell['high'] for cell in cells)} of {len(cells)}"
        first, bias, width = cells[0], group["curve"]["bias"], group["width"]
        rows.append([name, first["rows"], first["all_rows"], truth, *errors, bias, width, held])
    head = ["set, part", "rows", "all", "truth", *(f"error, {name}" for name in METHODS), "bias", "width", "held"]
    figures = report["figures"]
    return "\n".join(
        [
            table(head, rows),
            "",
            f"Error {figures['error']:.4f} in all; the interval held in {figures['coverage']:.1%} (99% interval "
            f"{figures['coverage_low']:.1%} to {figures['coverage_high']:.1%}), and is {figures['width']:.3f} wide. "
            f"Seeds {report['seed']} to {report['seed'] + report['seeds'] - 1}, {report['cpu_seconds']:g} s of CPU.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "readiness",
        "The extrapolation of a learning curve from a part of the examples to all: error, coverage of its interval. "
        "--seed is the first seed of the splits.",
        full="20 seeds of five sets: about 10 minutes of CPU time",
    )
    parser.add_argument("--data", type=Path, default=DATA, help=f"{LAYOUT} (default: those that are shipped)")
    parser.add_argument("--file", type=Path, help="a set of your own instead: JSON lines with text and label")
    parser.add_argument(
        "--set", nargs="+", choices=sorted(ALL_SETS), help=f"which data sets (default {' '.join(DEFAULT_SETS)})"
    )
    parser.add_argument("--seeds", type=int, help="number of splits (default 2)")
    parser.add_argument(
        "--parts", type=float, nargs="+", default=(0.25, 0.5), metavar="SHARE",
        help="shares of the examples that there are now, 0.08 to 1 (default 0.25 0.5)",
    )  # fmt: skip
    asked = parser.parse_args(arguments)
    asked.set = asked.set or (sorted(ALL_SETS) if asked.full else DEFAULT_SETS)
    asked.seeds = asked.seeds if asked.seeds is not None else 20 if asked.full else 2
    if asked.seeds < 1 or not all(0.08 <= part <= 1 for part in asked.parts):
        parser.error("--seeds, --parts: at least 1 seed, and shares from 0.08 to 1")
    with threadpool_limits(1):
        return conclude("readiness", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
