"""Is a better arm shown better, and an equal one not, when every pair is looked at? `python -m benchmarks.looking`.

Two arms answer the same requests, and a person judges both: the other arm is right and the version wrong in a part of
them, and the other way round in another. After each pair the bound of the advantage is looked at, and the first one
above 0 counts for good, as the monitor acts on it (monitoring/quality/signals/arms.py, with the blocks that it
would keep).

fixed     the 95% interval that is for one look (monitoring/quality/detectors/estimates.py, `difference`)
always    the bound that holds at all times (`always`), at the monitor's own error probability
bets      the bets on pairs since a verdict (monitoring/quality/signals/arm_bets.py), at the e-value that is enough
either    whichever of both comes first: what moves the traffic of a degraded version
judged    the same where people judge one pair of ten, and a judge that is right in 85% of all answers the others

`shown` is how often the other arm is shown better within so many pairs, `pairs` the median of pairs that it took.
Intervals are at 99%, and the goal stands on the end that is nearer to it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.canary import rate_of
from benchmarks.harness import Goal, conclude, options, say, table
from monitoring.quality.detectors import estimates, sequential
from monitoring.quality.detectors.estimates import ADDED_DIFFERENCE, DIFFERENCES, Sums
from monitoring.quality.signals import arms
from monitoring.quality.signals.arms import Arm
from monitoring.quality.verdicts.quality import E_VALUE_MIN

PAIRS = 2_000
DIFFERENT = (0.02, 0.1, 0.3, 0.5)
"""Shares of the requests that one of two equal arms gets right and the other wrong."""
POINTS = (0.05, 0.1, 0.2, 0.38)
ONE_LOOK = 0.05
GOAL = Goal("wrongly_most_low", at_most=0.035)
JUDGE_RIGHT, JUDGED_BESIDE = 0.85, 9

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


def first_pairs(count: int) -> Places:
    """The first pair of those on which an estimate rests, after each pair: the blocks that an arm keeps."""
    arm, found = Arm(other="general"), []
    for number in range(count):
        arm = arms.add_label(arms.add_pair(arm, number, None), number, (1.0, 1.0), None)
        found.append(int(arms.get_newest_blocks(arm, None)[-1].begins))
    return np.array(found)


def bounds_of(differences: npt.NDArray[np.int8], first: Places) -> dict[str, Numbers]:
    """Both lower bounds after each pair, of many runs at once; -1 with fewer than 20 pairs.

    Those of bets are by how much the logarithm of the e-value is over the one that is enough.
    """
    runs = len(differences)
    begun = np.zeros((runs, 1))
    values = np.concatenate([begun, differences.cumsum(1)], axis=1)
    squares = np.concatenate([begun, np.abs(differences).cumsum(1)], axis=1)
    n = np.arange(1, differences.shape[1] + 1) - first
    y, yy = values[:, 1:] - values[:, first], squares[:, 1:] - squares[:, first]
    rows = n + ADDED_DIFFERENCE * len(DIFFERENCES)
    middle = y / rows
    spread = np.maximum(0.0, (yy + ADDED_DIFFERENCE * sum(one * one for one, _ in DIFFERENCES)) / rows - middle**2)
    radius = np.array([estimates.find_radius(float(one), arms.ALPHA) for one in n])
    student = np.array([estimates.find_two_sided_quantile(int(one) - 1, 1 - 2 * ONE_LOOK) for one in n])
    least, deviation = np.minimum(y / n, middle), np.sqrt(spread * rows / (rows - 1))
    found = {"fixed": least - student * deviation / np.sqrt(rows), "always": least - radius * deviation}
    lows = {name: np.where(n < arms.LABELS_MIN, -1.0, low) for name, low in found.items()}
    bets = log_e_of(differences) - math.log(E_VALUE_MIN)
    return {**lows, "bets": bets, "either": np.maximum(lows["always"], bets)}


def log_e_of(differences: npt.NDArray[np.int8]) -> Numbers:
    """The logarithm of the e-value after each pair, as `sequential.observe` makes it pair by pair."""
    parts = [
        math.log(weight)
        + np.select([differences > 0, differences < 0], [math.log1p(stake), math.log1p(-stake)]).cumsum(1)
        for stake, weight in zip(sequential.STAKES, sequential.WEIGHTS, strict=True)
    ]
    found: Numbers = np.logaddexp.reduce(parts)
    return found


def drawn(runs: int, pairs: int, better: float, worse: float, draw: np.random.Generator) -> npt.NDArray[np.int8]:
    """1 where the other arm alone is right, -1 where the version alone is, else 0."""
    told = draw.random((runs, pairs))
    return (told < better).astype(np.int8) - (told >= 1.0 - worse).astype(np.int8)


def shown_of(lows: Numbers) -> dict[str, Any]:
    """How often a bound was above 0, and after how many pairs at the median (None: less than half were)."""
    above = lows > 0.0
    shown = above.any(axis=1)
    first = float(np.median(np.where(shown, above.argmax(axis=1) + 1.0, math.inf)))
    return {**rate_of(int(shown.sum()), len(lows)), "pairs": first if math.isfinite(first) else None}


def judged_too(runs: int, labels: int, different: float, draw: np.random.Generator) -> dict[str, Any]:
    """The same for equal arms of which a judge sees all pairs, and people one of ten; no figure of pairs."""
    shown = 0
    for _ in range(runs):
        told = drawn(labels, 1 + JUDGED_BESIDE, different / 2, different / 2, draw).astype(np.float64)
        right = np.where(told == 0, 1.0, np.where(told > 0, 1.0, 0.0))
        own = right - told
        word = [np.where(draw.random(told.shape) < JUDGE_RIGHT, arm, 1 - arm) for arm in (right, own)]
        apart, sums = word[0] - word[1], Sums()
        for at in range(labels):
            for one in apart[at, 1:]:
                sums = estimates.add_guess(sums, float(one))
            sums = estimates.add_label(sums, float(told[at, 0]), float(apart[at, 0]))
            bounds = estimates.bound_always(sums, arms.ALPHA) if sums.labelled >= arms.LABELS_MIN else None
            if bounds is not None and bounds[0] > 0.0:
                shown += 1
                break
    return rate_of(shown, runs)


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Draw, look, and count."""
    began, draw = time.process_time(), np.random.default_rng(asked.seed)
    first = first_pairs(asked.pairs)
    rows: dict[str, dict[str, Any]] = {}
    for name, better, worse in (
        *((f"equal, {share:.0%} differ", share / 2, share / 2) for share in DIFFERENT),
        *((f"{100 * points:.0f} points better", 0.1 + points, 0.1) for points in POINTS),
    ):
        say(f"{asked.runs} runs: {name}")
        parts = [
            bounds_of(drawn(min(500, asked.runs - begin), asked.pairs, better, worse, draw), first)
            for begin in range(0, asked.runs, 500)
        ]
        rows[name] = {one: shown_of(np.concatenate([part[one] for part in parts])) for one in parts[0]}
    for share in DIFFERENT:
        say(f"{asked.runs // 10} runs with a judge: {share:.0%} differ")
        rows[f"equal, {share:.0%} differ"]["judged"] = judged_too(asked.runs // 10, asked.pairs // 10, share, draw)
    equal = [found for name, row in rows.items() if name.startswith("equal") for found in row.items()]
    figures = {
        "wrongly_most": max(row["rate"] for name, row in equal if name != "fixed"),
        "wrongly_most_low": max(row["low"] for name, row in equal if name != "fixed"),
        "wrongly_by_one_look": max(row["rate"] for name, row in equal if name == "fixed"),
    }
    report = {
        "seed": asked.seed,
        "runs": asked.runs,
        "pairs": asked.pairs,
        "figures": figures,
        "rows": rows,
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    return report, []


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    head = ["the other arm is", "bound", "shown", "99% from", "to", "pairs"]
    lines = [
        [name, bound, one["rate"], one["low"], one["high"], one.get("pairs")]
        for name, row in report["rows"].items()
        for bound, one in row.items()
    ]
    told = (
        f"{report['runs']} runs of {report['pairs']} pairs, seed {report['seed']}, {report['cpu_seconds']:g} s of CPU."
    )
    return f"{table(head, lines)}\n\n{told}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "looking",
        "How often an equal arm is shown better though every pair is looked at, and how soon a better one is.",
        full="20,000 runs: 40 s of CPU time",
    )
    parser.add_argument("--runs", type=int, help="simulated runs, at least 100 (default 4000)")
    parser.add_argument("--pairs", type=int, default=PAIRS, help=f"pairs of a run, at least 300 (default {PAIRS})")
    asked = parser.parse_args(arguments)
    asked.runs = asked.runs or (20_000 if asked.full else 4_000)
    if asked.runs < 100 or asked.pairs < 300:
        parser.error("--runs, --pairs: at least 100 runs, of at least 300 pairs")
    return conclude("looking", lambda: measure(asked), [GOAL], None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
