"""Is the adapter's answer good enough, and is the stated risk kept: `python -m benchmarks.confidence [--json]`.

A pool of answers whose truth is known is taken for all requests there will ever be. Again and again some rows are drawn
from it (each at random from all, so that one may come twice), a confidence model is fitted and calibrated on these, and
then the pool says exactly how many of all requests its thresholds keep, and how many of those are wrong.

violated    share of draws whose threshold keeps more wrong answers than the target. delta is 10%: one in ten may.
            `design` is what exact risk control comes to with so many rows: whole rows can't use up all of delta.
rest        the same, counted on the rows that were not drawn: by chance alone more, since they hold the errors that
            the draw happened to miss
kept        share of all requests that the adapter's answer is kept for, mean over the draws
of oracle   that, by what the same score keeps with the threshold that the whole pool would choose
split       the other valid way: fitted on a quarter of the rows, calibrated on the rest
naive       the threshold at which the drawn rows themselves just show the target

Pools: banking77 and clinc150 with its out-of-scope queries, answered by a cheap classifier (confidence_pools.py; these
are not logprobs of a language model); `weak` and `tied` are simulated: features that say next to nothing, and scores
of a few values only. With --rows the pool are the answers of a real adapter, and the curve of general's share against
error is printed. Intervals are exact at 99% for rates, and normal for `of oracle`. A goal stands on the end of its
interval that is better for us, so that it is missed only where the figure is shown to miss it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import confidence_pools
from benchmarks.confidence_curve import FORM, curve_of, picture, read_rows
from benchmarks.harness import Goal, Unmeasurable, conclude, options, say, table
from router.confidence_model import (
    ConfidenceModel,
    bound_wrong_share,
    compute_probability_at_most,
    count_wrong_allowed,
)
from router.fitted import CALIBRATION_ROWS_MIN
from router.fitting.confidence import (
    DELTA_MAX,
    CalibrationRow,
    Matrix,
    Measured,
    Truth,
    calibrate,
    compute_scores,
    fit_measured,
    measure_rows,
    weigh,
)
from router.fitting.errors import FittingError

DATA = Path(__file__).with_name("data")
TARGETS = (0.02, 0.05, 0.10)
SIZES = (500, 1_000)
SIZES_FULL = (200, 500, 1_000, 2_000)
SPLITS = 300
SPLITS_FULL = 1_000
VIOLATED_SLACK = 0.02
KEPT_GOAL = 0.95
GOAL_SIZE = 1_000
GOAL_TARGETS = (0.05, 0.10)
KEPT = f"kept_of_oracle_{GOAL_SIZE}"
SIMULATED = ("weak", "tied")
SIMULATED_ROWS = 8_000
SIMULATED_RIGHT = 0.8
CONFIDENCE = 0.99
TAIL = (1 - CONFIDENCE) / 2
Z = 2.5758
FITTING_SHARE = 4
"""One in so many rows is fitted on, where fitting and calibration have rows of their own."""
TIMED_TOKENS = 200


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one threshold does to the pool: shares of all, and whether that is more than its target, there and in the
    rows that were not drawn."""

    kept: float
    violated: bool
    violated_rest: bool


# ---- one draw -----------------------------------------------------------------------------------


def taken(pool: Measured, rows: Any) -> Measured:
    """Some rows of a pool."""
    return Measured(pool.matrix[rows], pool.right[rows], pool.scope_mean, pool.silent[rows])


def oracle_kept(scores: Matrix, right: Truth, target: float) -> float:
    """What the pool itself would keep by this score: as much as the target lets it, with every error known."""
    wrong = np.sort(scores[~right])[::-1]
    allowed = int(target * len(scores) + 1e-9)
    return 1.0 if allowed >= len(wrong) else float((scores > wrong[allowed]).mean())


def outcome(scores: Matrix, right: Truth, drawn: Any, threshold: float | None, target: float) -> Outcome:
    """What a threshold does to the pool."""
    if threshold is None:
        return Outcome(0.0, False, False)
    kept = scores >= threshold
    bad = kept & ~right
    rest = np.ones(len(scores), dtype=bool)
    rest[drawn] = False
    return Outcome(
        float(kept.mean()), bool(bad.mean() > target + 1e-12), bool(rest.any() and bad[rest].mean() > target + 1e-12)
    )


def one_draw(
    pool: Measured, size: int, targets: Sequence[float], delta: float, seed: Sequence[int]
) -> list[dict[str, Any]]:
    """Draw rows, fit, calibrate, and try the thresholds of every target, in each of the ways."""
    chance = np.random.default_rng(list(seed))
    drawn = chance.integers(0, len(pool.right), size)
    sample = taken(pool, drawn)
    if not sample.right.any():
        return [{"cross": Outcome(0.0, False, False), "split": Outcome(0.0, False, False)} for _ in targets]
    model = fit_measured(sample, int(chance.integers(2**31)), delta)
    scores = compute_scores(pool, np.array(model.weights), model.bias)
    cut = size // FITTING_SHARE
    apart = weigh(sample.matrix[:cut], sample.right[:cut])
    apart_scores = compute_scores(pool, *apart)
    held = calibrate(apart_scores[drawn[cut:]], sample.right[cut:], delta)
    apart_model = ConfidenceModel(tuple(apart[0]), apart[1], pool.scope_mean, held)
    own_wrong = np.sort(scores[drawn][~sample.right])[::-1]
    found = []
    for target in targets:
        allowed = int(target * size + 1e-9)
        naive = 0.0 if allowed >= len(own_wrong) else float(np.nextafter(own_wrong[allowed], 2.0))
        found.append(
            {
                "cross": outcome(scores, pool.right, drawn, model.threshold(target), target),
                "split": outcome(apart_scores, pool.right, drawn, apart_model.threshold(target), target),
                "naive": outcome(scores, pool.right, drawn, naive, target),
                "oracle": oracle_kept(scores, pool.right, target),
            }
        )
    return found


# ---- many draws ---------------------------------------------------------------------------------


def rate_of(count: int, trials: int) -> dict[str, float]:
    """A rate with its exact interval."""
    low = 1.0 - bound_wrong_share(trials - count, trials, TAIL)
    return {"rate": count / trials, "low": low, "high": bound_wrong_share(count, trials, TAIL)}


def ratio_of(ones: Sequence[float], others: Sequence[float]) -> dict[str, float | None]:
    """The ratio of two means over the same draws, with its normal interval; None where there is nothing to keep."""
    one, other = np.array(ones), np.array(others)
    if other.mean() <= 0.0:
        return {"ratio": None, "low": None, "high": None}
    ratio = float(one.mean() / other.mean())
    error = float((one - ratio * other).std() / other.mean() / np.sqrt(len(one)))
    return {"ratio": ratio, "low": ratio - Z * error, "high": ratio + Z * error}


def cells(name: str, pool: Measured, size: int, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A row of the table for each target: so many draws from one pool."""
    say(f"{asked.splits} draws of {size} rows from {name}")
    place = [*name.encode(), size]
    draws = [one_draw(pool, size, asked.targets, asked.delta, (asked.seed, n, *place)) for n in range(asked.splits)]
    some = sum(any(one["cross"].violated for one in draw) for draw in draws)
    found = []
    for at, target in enumerate(asked.targets):
        column = [draw[at] for draw in draws if "oracle" in draw[at]]
        if not column:
            raise Unmeasurable(f"{name}: every answer is wrong, so nothing can be kept: look at the labels.")
        kept = [one["cross"].kept for one in column]
        oracle = [one["oracle"] for one in column]
        allowed = count_wrong_allowed(size, target, asked.delta)
        found.append(
            {
                "pool": name,
                "rows": size,
                "target": target,
                "violated": rate_of(sum(one["cross"].violated for one in column), len(column)),
                "design": compute_probability_at_most(allowed, size, target) if allowed >= 0 else 0.0,
                "violated_rest": sum(one["cross"].violated_rest for one in column) / len(column),
                "violated_any_target": some / len(draws),
                "kept": float(np.mean(kept)),
                "oracle": float(np.mean(oracle)),
                "kept_of_oracle": ratio_of(kept, oracle),
                "split_violated": sum(one["split"].violated for one in column) / len(column),
                "split_of_oracle": ratio_of([one["split"].kept for one in column], oracle)["ratio"],
                "naive_violated": sum(one["naive"].violated for one in column) / len(column),
            }
        )
    return found


def simulated(name: str, seed: int) -> list[CalibrationRow]:
    """Answers whose features say next to nothing of whether they are right, or whose scores are few."""
    chance = np.random.default_rng([seed, len(name)])
    rows = []
    for right in chance.random(SIMULATED_ROWS) < SIMULATED_RIGHT:
        if name == "weak":
            sure = chance.normal(0.15 * right, 1.0, 8)
            logprobs = (-np.exp(-sure)).clip(-20.0, 0.0).tolist()
            scope = float(chance.normal(0.1 * right)) if chance.random() < 0.5 else None
            rows.append(CalibrationRow(logprobs, scope, bool(chance.random() < 0.9 + 0.02 * right), bool(right)))
        else:
            step = int(chance.binomial(9, 0.75 if right else 0.45))
            rows.append(CalibrationRow([-(0.5**step)], None, None, bool(right)))
    return rows


# ---- the report ---------------------------------------------------------------------------------


def pools_of(asked: argparse.Namespace) -> dict[str, Measured]:
    """The pools to draw from. Raises Unmeasurable."""
    try:
        if asked.rows is not None:
            rows = read_rows(asked.rows, asked.seed, asked.tokens)
            say(f"{rows.read} rows, of {len(rows.kept)} groups: of each group one counts")
            return {"rows": measure_rows(rows.kept, asked.tokens)}
        found = {}
        for name in confidence_pools.there(asked.data):
            say(f"A classifier for {name}")
            found[name] = measure_rows(
                confidence_pools.answers(confidence_pools.read(name, asked.data, asked.seed), asked.seed)
            )
        return found | {name: measure_rows(simulated(name, asked.seed)) for name in SIMULATED}
    except FittingError as error:
        raise Unmeasurable(str(error)) from error


def sizes_of(name: str, pool: Measured, sizes: Sequence[int]) -> list[int]:
    """How many rows are drawn: from simulated pools the first size alone, and never over half as many as there are."""
    half = max(CALIBRATION_ROWS_MIN, len(pool.right) // 2)
    return [sizes[0]] if name in SIMULATED else [size for size in sizes if size <= half] or [half]


def of_the_adapter(pool: Measured, asked: argparse.Namespace) -> dict[str, Any]:
    """The curve and the certificates of a real adapter's rows, and the picture where one is asked for."""
    try:
        model = fit_measured(pool, asked.seed, asked.delta, asked.tokens)
    except FittingError as error:
        raise Unmeasurable(str(error)) from error
    certified = []
    for target in asked.targets:
        held = model.certificate(target)
        certified.append(
            {
                "target": target,
                "threshold": held and held.threshold,
                "kept": held and held.kept / held.rows,
                "general_share": 1 - held.kept / held.rows if held else 1.0,
                "error": held and held.wrong / held.rows,
                "error_max": held and held.wrong_share_max,
            }
        )
    curve = curve_of(model)
    if asked.plot is not None:
        try:
            asked.plot.write_text(picture(curve, certified, asked.rows.name), encoding="utf-8")
        except OSError as error:
            raise Unmeasurable(f"{asked.plot} can't be written ({error.strerror}): give another --plot.") from error
    return {"adapter_error": float((~pool.right).mean()), "certificates": certified, "curve": curve}


def score_us() -> float:
    """Microseconds to judge an answer of 200 tokens, the least of some rounds."""
    logprobs = (-np.random.default_rng(1).exponential(0.3, TIMED_TOKENS)).tolist()
    model = ConfidenceModel(
        (0.5, 0.2, 0.5, -0.1, 0.5, -1.0), 0.0, 0.5, calibrate(np.array([0.5]), np.array([True]), 0.1)
    )
    rounds = []
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(100):
            model.score(logprobs, 0.5, True)
        rounds.append((time.perf_counter() - began) * 1e4)
    return min(rounds)


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[Goal]]:
    """Draw from every pool. The goals are those that what was drawn can tell of."""
    began = time.monotonic()
    pools = pools_of(asked)
    adapter = of_the_adapter(pools["rows"], asked) if asked.rows is not None else {}
    found = [
        row
        for name, pool in pools.items()
        for size in sizes_of(name, pool, asked.sizes)
        for row in cells(name, pool, size, asked)
    ]
    worst = max(found, key=lambda row: row["violated"]["low"])
    figures: dict[str, Any] = {
        "violated": worst["violated"]["rate"],
        "violated_low": worst["violated"]["low"],
        "violated_high": worst["violated"]["high"],
        "naive_violated": max(row["naive_violated"] for row in found),
        "score_us": score_us(),
    }
    on_goals = [row["kept_of_oracle"] for row in found if on_goal(row) and row["kept_of_oracle"]["ratio"] is not None]
    if on_goals:
        least = min(on_goals, key=lambda ratio: ratio["ratio"])
        figures |= {KEPT: least["ratio"], f"{KEPT}_high": least["high"]}
    goals, dropped = goals_of(asked), {}
    if not on_goals:
        goals = [goal for goal in goals if goal.figure != f"{KEPT}_high"]
        dropped[f"{KEPT}_high"] = (
            f"nothing was drawn with {GOAL_SIZE:,} rows at {' or '.join(f'{one:.0%}' for one in GOAL_TARGETS)}, from "
            "public data or from --rows of twice as many: see --sizes and --targets"
        )
    return (
        {
            "seed": asked.seed,
            "splits": asked.splits,
            "delta": asked.delta,
            "pool_rows": {name: len(pool.right) for name, pool in pools.items()},
            "pool_right": {name: float(pool.right.mean()) for name, pool in pools.items()},
            "figures": figures,
            "cells": found,
            **adapter,
            "goals_dropped": dropped,
            "took_seconds": round(time.monotonic() - began, 1),
        },
        [],
        goals,
    )


def on_goal(row: Mapping[str, Any]) -> bool:
    """Whether the goal of what is kept stands on this row."""
    of_answers = row["pool"] not in SIMULATED
    return of_answers and row["rows"] == GOAL_SIZE and any(math.isclose(row["target"], one) for one in GOAL_TARGETS)


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    head = ["pool, rows drawn, target", "violated", "99% from", "to", "design", "rest", "any target"]
    head += ["kept", "oracle", "of oracle", "99% to", "split: violated", "of oracle", "naive: violated"]
    lines = [
        [
            f"{row['pool']}, {row['rows']}, {row['target']:.0%}",
            *(row["violated"][part] for part in ("rate", "low", "high")),
            *(row[part] for part in ("design", "violated_rest", "violated_any_target", "kept", "oracle")),
            *(row["kept_of_oracle"][part] for part in ("ratio", "high")),
            *(row[part] for part in ("split_violated", "split_of_oracle", "naive_violated")),
        ]
        for row in report["cells"]
    ]
    told = [table(head, lines), ""]
    if "certificates" in report:
        names = ("threshold", "general_share", "error", "error_max")
        told += [
            table(
                ["of all requests at most wrong", "threshold", "to general", "wrong", "surely at most"],
                [[f"{one['target']:.0%}", *(one[name] for name in names)] for one in report["certificates"]],
            ),
            f"The adapter alone is wrong in {report['adapter_error']:.1%}.",
            "",
        ]
    told += [f"No goal for {name}: {why}." for name, why in report["goals_dropped"].items()]
    told.append(
        f"{report['splits']} draws a row, delta {report['delta']:g}, seed {report['seed']}; an answer of "
        f"{TIMED_TOKENS} tokens is judged in {report['figures']['score_us']:.0f} µs; {report['took_seconds']:g} s."
    )
    return "\n".join(told)


def goals_of(asked: argparse.Namespace) -> list[Goal]:
    """All goals, whether or not what is drawn can tell of them."""
    return [Goal("violated_low", at_most=asked.delta + VIOLATED_SLACK), Goal(f"{KEPT}_high", at_least=KEPT_GOAL)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "confidence",
        "Thresholds on an adapter's confidence: how often they break their promise, and what they keep.",
        full=f"{SPLITS_FULL} draws of {', '.join(map(str, SIZES_FULL))} rows: 135 seconds of CPU time",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = FORM
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets (default benchmarks/data)")
    parser.add_argument("--rows", type=Path, help="answers of a real adapter instead, in the form below")
    parser.add_argument("--plot", type=Path, help="with --rows: write the curve to this SVG file")
    parser.add_argument("--tokens", type=int, help="with --rows: judge by the first so many tokens (default: all)")
    parser.add_argument("--splits", type=int, help=f"draws a row of the table, at least 20 (default {SPLITS})")
    parser.add_argument("--sizes", type=int, nargs="+", help=f"rows that are drawn (default {SIZES[0]} {SIZES[1]})")
    parser.add_argument("--targets", type=float, nargs="+", default=TARGETS, help="wrong of all requests, at most")
    parser.add_argument("--delta", type=float, default=0.1, help="how often the promise may fail (default 0.1)")
    asked = parser.parse_args(arguments)
    asked.splits = asked.splits or (SPLITS_FULL if asked.full else SPLITS)
    asked.sizes = asked.sizes or (SIZES_FULL if asked.full else SIZES)
    if asked.splits < 20:
        parser.error("--splits: at least 20, or no rate says anything")
    if min(asked.sizes) < CALIBRATION_ROWS_MIN:
        parser.error(f"--sizes: at least {CALIBRATION_ROWS_MIN}, which a calibration needs")
    if not all(0 < target < 1 for target in asked.targets) or not 0 < asked.delta <= DELTA_MAX:
        parser.error(f"--targets, --delta: shares above 0, delta at most {DELTA_MAX:g}")
    if asked.tokens is not None and asked.tokens < 1:
        parser.error("--tokens: at least 1")
    if asked.rows is None and (asked.plot is not None or asked.tokens is not None):
        parser.error("--plot, --tokens: only with --rows")
    with threadpool_limits(1):
        return conclude("confidence", lambda: measure(asked), goals_of(asked), None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
