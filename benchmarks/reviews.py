"""Reviews, simulated: `python -m benchmarks.reviews [--json]`.

How much so many reviews a week find: weeks from the moment on at which a version errs more often until its reviewed
labels alarm (monitoring/quality/detectors/rising_errors.py), beside what planning.py reckons with. The baseline is the
upper 95% bound from the gate's rows; the fleet has one false alarm a month in equal parts over its streams.

How right their mean is: requests come by day and night, and err more by night. They are drawn with the probability that
monitoring/quality/verdicts/reviewing.py gives, within a budget that is cut hard over the last seven days, as the
store of reviews cuts it. The mean over a year of the labels is compared with the truth, and so is that of callers who
complain about half of the wrong answers and praise one in twenty of the others.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import Goal, conclude, median, options, table
from monitoring import intervals
from monitoring.quality.detectors import detection_delay, rising_errors
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.reviewing import compute_review_share

PER_WEEK = (20, 50, 100, 250)
POINTS = (0.05, 0.10, 0.20)
MONTH_WEEKS = 365.25 / 12 / 7
ALPHA = 0.05
LABELS_MAX = 20_000
HOURS = 168
YEAR_WEEKS = 52
NIGHT_TIMES = 2.0
"""How many times as often a request errs by night."""
COMPLAIN, PRAISE = 0.5, 0.05
COVERAGE_LEAST = 0.93


# ---- how much they find --------------------------------------------------------------------------------


def time_cut(expected: float, budget: int) -> float:
    """The share of time in which a budget over the last seven days is spent, where so many draws a week are expected.

    Erlang's loss formula (Erlang 1917): each draw holds a place of the budget for seven days, whatever comes meanwhile.
    """
    lost = 1.0
    for place in range(1, budget + 1):
        lost = expected * lost / (place + expected * lost)
    return lost


def between(per_week: int, streams: int) -> float:
    """Labels between two false alarms of one stream."""
    return detection_delay.find_labels_between(1.0, streams, per_week * MONTH_WEEKS / detection_delay.MONTH_DAYS)


def labels_until_found(baseline: float, error: float, labels: float, chance: random.Random) -> int:
    """Labels from the change on until one version's detector alarms; LABELS_MAX where it does not."""
    state, threshold = rising_errors.start(baseline), rising_errors.find_threshold(labels, ALPHA)
    while rising_errors.log_e(state) < threshold and state.observed < LABELS_MAX:
        state = rising_errors.observe(state, float(chance.random() < error))
    return state.observed


def found(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each number of reviews a week and each change."""
    baseline = intervals.find_upper_bound(asked.error * asked.gate_rows, asked.gate_rows)
    rows = []
    for per_week in PER_WEEK:
        labels = between(per_week, asked.streams) * ALPHA
        for points in POINTS:
            chance = random.Random(f"{asked.seed} {per_week} {points}")
            runs = [labels_until_found(baseline, asked.error + points, labels, chance) for _ in range(asked.runs)]
            planned = detection_delay.find_labels_to_detect(baseline, points, labels, ALPHA, rate=asked.error)
            rows.append(
                {
                    "per_week": per_week,
                    "points": points,
                    "weeks": (median(runs) or math.inf) / per_week,
                    "weeks_nine_in_ten": sorted(runs)[math.ceil(0.9 * len(runs)) - 1] / per_week,
                    "weeks_planned": None if planned is None else planned / per_week,
                }
            )
    return rows


# ---- how right they are --------------------------------------------------------------------------------


class Year:
    """A year of one task: what was drawn, within a budget of seven days by whole hours, and what was said of it."""

    def __init__(self, budget: int, per_week: float, error: float, chance: random.Random) -> None:
        self.share = compute_review_share(MonitorPlan(reviews_per_week=budget), per_week, suspect=False)
        self.wrong = self.labels = self.complaints = self.feedback = 0
        self.true = self.requests = 0.0
        self.in_week_max = 0
        self.hours_spent = 0
        spent: deque[tuple[int, int]] = deque()
        for hour in range(YEAR_WEEKS * HOURS):
            while spent and spent[0][0] < hour - HOURS:
                spent.popleft()
            left = budget - sum(count for _, count in spent)
            night = math.cos(2 * math.pi * hour / 24)
            requests = per_week / HOURS * (1 - 0.9 * night)
            rate = error * (NIGHT_TIMES if night > 0 else 1.0)
            self._hour(requests, rate, left, chance)
            self.hours_spent += left <= 0
            drawn = min(left, _poisson(requests * self.share, chance))
            if drawn > 0:
                spent.append((hour, drawn))
                self.labels += drawn
                self.wrong += sum(chance.random() < rate for _ in range(drawn))
            self.in_week_max = max(self.in_week_max, sum(count for at, count in spent if at > hour - HOURS))

    def _hour(self, requests: float, rate: float, left: int, chance: random.Random) -> None:
        self.requests += requests
        self.true += requests * rate
        wrong = _poisson(requests * rate * COMPLAIN, chance)
        self.complaints += wrong
        self.feedback += wrong + _poisson(requests * (1 - rate) * PRAISE, chance)

    @property
    def error(self) -> float:
        """By how much the mean of the reviewed labels is off the truth."""
        return self.wrong / self.labels - self.true / self.requests

    @property
    def covers(self) -> bool:
        """Whether its 95% interval (Wald) has the truth in it."""
        mean = self.wrong / self.labels
        return abs(self.error) <= 1.96 * math.sqrt(mean * (1 - mean) / self.labels)


def _poisson(mean: float, chance: random.Random) -> int:
    """A Poisson number, by the time between events."""
    count, at = 0, chance.expovariate(1.0)
    while at < mean:
        count += 1
        at += chance.expovariate(1.0)
    return count


def right(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each budget."""
    rows = []
    for budget in (20, 100):
        chance = random.Random(f"{asked.seed} {budget}")
        years = [Year(budget, asked.requests_per_week, asked.error, chance) for _ in range(asked.years)]
        share = years[0].share
        rows.append(
            {
                "budget": budget,
                "used": sum(year.labels for year in years) / (len(years) * YEAR_WEEKS * budget),
                "in_week_max": max(year.in_week_max for year in years),
                "time_spent": sum(year.hours_spent for year in years) / (len(years) * YEAR_WEEKS * HOURS),
                "time_spent_planned": time_cut(share * asked.requests_per_week, budget),
                "bias_points": 100 * sum(year.error for year in years) / len(years),
                "rmse_points": 100 * math.sqrt(sum(year.error**2 for year in years) / len(years)),
                "coverage": sum(year.covers for year in years) / len(years),
                "feedback_bias_points": 100
                * sum(year.complaints / year.feedback - year.true / year.requests for year in years)
                / len(years),
            }
        )
    return rows


# ---- the report ----------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Both tables, and the figures that goals stand on."""
    finds, means = found(asked), right(asked)
    figures = {
        "budget_overrun_max": max(row["in_week_max"] - row["budget"] for row in means),
        "bias_points_max": max(abs(row["bias_points"]) for row in means),
        "coverage_least": min(row["coverage"] for row in means),
    }
    world = {name: getattr(asked, name) for name in ("error", "gate_rows", "streams", "requests_per_week", "seed")}
    return {"figures": figures, "found": finds, "right": means, "world": world}, []


def show(report: Mapping[str, Any]) -> str:
    """Both tables."""

    def short(value: Any) -> Any:
        return f"{value:.3g}" if isinstance(value, float) else value

    return "\n\n".join(
        table(list(rows[0]), [[short(value) for value in row.values()] for row in rows])
        for rows in (report["found"], report["right"])
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "reviews",
        "What reviews of uniform draws find, and how right their mean is. All is simulated: --seed sets every draw.",
        full="400 versions a row and 200 years: about 50 s on a busy core, 20 s of CPU time",
    )
    parser.add_argument(
        "--error", type=float, default=0.05, help="share that is wrong before the change (default 0.05)"
    )
    parser.add_argument("--gate-rows", type=int, default=1000, help="rows of the gate's evaluation (default 1000)")
    parser.add_argument("--streams", type=int, default=10, help="streams that share a false alarm a month (default 10)")
    parser.add_argument("--requests-per-week", type=float, default=2000.0, help="of the task (default 2000)")
    asked = parser.parse_args(arguments)
    if not (0 < asked.error <= 0.5 and asked.gate_rows >= 10 and asked.streams >= 1):
        parser.error("--error: above 0 and at most 0.5; at least 10 --gate-rows and one of --streams")
    if not 100 <= asked.requests_per_week <= 100_000:
        parser.error("--requests-per-week: 100 to 100,000")
    asked.runs, asked.years = (400, 200) if asked.full else (100, 60)
    goals = [
        Goal("budget_overrun_max", at_most=0),
        Goal("bias_points_max", at_most=0.5),
        Goal("coverage_least", at_least=COVERAGE_LEAST if asked.full else 0.85),
    ]
    return conclude("reviews", lambda: measure(asked), goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
