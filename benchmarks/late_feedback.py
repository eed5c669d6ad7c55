"""Late feedback, simulated: `python -m benchmarks.late_feedback [--json]`.

Wrong answers bring a complaint after hours, right ones now and then a word of praise after a day. Held against each
other are the complaints detector (monitoring/quality/detectors/complaints.py), which learns its own reference
first, and the detector of labels (rising_errors.py) on complaints and praise in the order in which they come, whose
baseline is the upper 95% bound from 1,000 labels of steady traffic.

false alarms   versions that do not change, for 30 days: after its reference period, or for the labels from the
               tenth day on (cold start and new version: from the first label on)
    steady       the same number of requests in every hour
    new version  the same from its first request on, with the delays of the version before it
    cold start   a tenth for two days, then all, with nothing known: the first labels are of young requests
    growth       twice as many requests after every 8 days
    day/night    19 times as many requests at noon as at midnight, and who would complain at night does so by day
    outage       of the feedback for 24 hours, every 8 days: what was said meanwhile comes within the hour after it
    office hours    requests from 9 to 17 o'clock, 5% of them at other times; who would complain when the office is
                    closed does so within two hours after it opens
    quiet weekends  the same, closed on Saturdays and Sundays too
    ready by day    on some days callers are readier to complain than on others: lognormal, sd 20%
    ten callers     of different readiness (lognormal, 0.8 nepers), whose parts of the requests are drawn anew each day
    pairs, fives    complaints come in clusters of two or of five within an hour, and are as many in all
    --worlds FILE   others instead: a JSON object of names, each with the fields of `World` that differ
doubled error  versions of which each request is twice as likely to be answered wrong from one moment on: the hours
               until the alarm, by how many complain and how late, and in some of the worlds above

An interval is exact (Clopper-Pearson for rates, order statistics for medians) at 99%. A goal stands on the lower end of
its figure's interval, so that it is missed only where the figure is shown to be over it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.canary import median_of, rate_of
from benchmarks.complaint_runs import Events, Many, Numbers, first_alarms, in_order_of_arrival, join, through
from benchmarks.complaint_worlds import (
    DOUBLED,
    FIRST_TICK,
    OPENS,
    STILL,
    TICKS_PER_DAY,
    TICKS_PER_HOUR,
    Drawn,
    World,
    describe,
    drawn,
    is_open,
    read_worlds,
)
from benchmarks.harness import Goal, conclude, options, say, table
from monitoring import intervals
from monitoring.quality.detectors import complaints, rising_errors
from monitoring.quality.detectors.complaint_delays import Delays
from monitoring.quality.detectors.complaint_learning import learn
from monitoring.time_units import DAY_SECONDS

MONTH_DAYS = 30
LEARNING_DAYS = 8
CHANGE_SLACK = 1.3
SEEN_DAYS = 7
CHANGE_HOUR = 8
BASELINE_LABELS = 1_000
ALPHA = 0.01
FALSE_GOAL = 0.05
HOURS_GOAL = 14.0
HOURS_GOAL_OF_ALL = 24.0
OF_THE_GOAL = ("per_hour", "error", "complain", "delay_hours", "ready_sd", "ready_days", "callers", "cluster")


# ---- the two detectors ---------------------------------------------------------------------------------


def planned(events: Events, ticks: int) -> float:
    """The complaints that the median version of a world gets in its last 30 days: what its N is planned with."""
    first = ticks - MONTH_DAYS * TICKS_PER_DAY
    count = sum(len(version) for at, rounds in events.rounds.items() if at >= first for version, _ in rounds)
    return max(1.0, float(count / events.requests.shape[1]))


@dataclass(kw_only=True)
class Row:
    """Versions in one world: what comes, and at which tick each has learned, and first alarms."""

    name: str
    world: World
    events: Events
    feedback: tuple[Drawn, Drawn]
    labels: float
    known: Delays | None = None
    change: int = 0
    learned: Numbers = field(default_factory=lambda: np.zeros(0))
    alarmed: Numbers = field(default_factory=lambda: np.zeros(0))


def run(rows: Sequence[Row], versions: int, alpha: float) -> None:
    """Take all through the complaints detector, side by side."""
    say(f"{versions} versions of each: {'; '.join(row.name for row in rows)}")
    many = Many(FIRST_TICK, [row.known for row in rows for _ in range(versions)])
    bars = np.repeat([rising_errors.find_threshold(row.labels, alpha) for row in rows], versions)
    alarmed = first_alarms(many, join([row.events for row in rows]), bars)
    for row, alarms, learned in zip(
        rows, np.split(alarmed, len(rows)), np.split(many.learned_at - FIRST_TICK, len(rows)), strict=True
    ):
        row.alarmed, row.learned = alarms, learned


def taught(world: World, seed: int) -> Delays:
    """The delays that a version before it has learned, in steady traffic."""
    steady = replace(world, shape="steady")
    days = change_day(world)
    events, _, _ = drawn(steady, days * TICKS_PER_DAY, 1, seed + 1)
    many = Many(FIRST_TICK, [None])
    for _ in through(many, events):
        pass
    return learn(many.reference(0))


def change_day(world: World) -> int:
    """A working day by which about every version has learned its delays."""
    seen = math.ceil(CHANGE_SLACK * complaints.REFERENCE_SEEN / (24 * world.complaint_rate * world.per_hour))
    day = 1 + max(seen, round(complaints.REFERENCE_SECONDS_MIN / DAY_SECONDS))
    return next(at for at in count(day) if is_open(world, np.array([at * TICKS_PER_DAY + OPENS * TICKS_PER_HOUR]))[0])


def by_arrival(
    world: World, feedback: tuple[Drawn, Drawn], ticks: tuple[int, int], versions: int, alpha: float, seed: int
) -> tuple[Numbers, float]:
    """At which tick the detector of labels first alarms for each version, with its N from the labels of a month.

    `ticks` are those from which on and until which labels are looked at; `feedback` are complaints and praise.
    """
    bad, good = feedback
    draw = np.random.default_rng((seed, 7))
    of = world.error * world.complain
    share = of / (of + (1 - world.error) * world.praise)
    known = draw.binomial(BASELINE_LABELS, share, versions)
    bounds = np.array([intervals.find_upper_bound(float(wrong), BASELINE_LABELS) for wrong in known])
    version, when = np.r_[bad.version, good.version], np.r_[bad.comes, good.comes]
    is_bad = np.r_[np.ones(len(bad.comes)), np.zeros(len(good.comes))]
    inside = (when >= ticks[0]) & (when < ticks[1])
    order = np.lexsort((draw.random(len(when)), when, version))
    order = order[inside[order]]
    cuts = np.searchsorted(version[order], np.arange(1, versions))
    rows, comes = np.split(is_bad[order], cuts), np.split(when[order], cuts)
    month = MONTH_DAYS * TICKS_PER_DAY / (ticks[1] - ticks[0])
    labels = max(1.0, float(np.median([len(row) for row in rows])) * month)
    found = in_order_of_arrival(rows, bounds, np.full(versions, rising_errors.find_threshold(labels, alpha)))
    at = [times[int(n) - 1] if n < math.inf else math.inf for n, times in zip(found, comes, strict=True)]
    return np.array(at, float), labels


# ---- the measurements ------------------------------------------------------------------------------------


def still_row(name: str, world: World, versions: int, seed: int) -> Row:
    """Versions that do not change, for a month after they have learned."""
    is_known = world.shape == "new version"
    ticks = (MONTH_DAYS + (0 if is_known else LEARNING_DAYS)) * TICKS_PER_DAY
    events, *feedback = drawn(world, ticks, versions, seed)
    return Row(
        name=name,
        world=world,
        events=events,
        feedback=(feedback[0], feedback[1]),
        labels=planned(events, ticks),
        known=taught(world, seed) if is_known else None,
    )


def false_alarms(row: Row, versions: int, alpha: float, seed: int) -> dict[str, Any]:
    """How many of them alarm."""
    month, ticks = MONTH_DAYS * TICKS_PER_DAY, len(row.events.requests)
    first = 0 if row.world.shape in ("new version", "cold start") else ticks - month
    naive, naive_labels = by_arrival(row.world, row.feedback, (first, first + month), versions, alpha, seed)
    return {
        **rate_of(int(np.sum(row.alarmed <= row.learned + month)), versions),
        "complaints_a_month": row.labels,
        "reference_days": float(np.median(row.learned)) / TICKS_PER_DAY,
        "learned": float(np.mean(np.isfinite(row.learned))),
        "arrival_order": rate_of(int(np.sum(np.isfinite(naive))), versions),
        "arrival_order_labels": naive_labels,
    }


def doubled_row(world: World, versions: int, seed: int) -> Row:
    """Versions whose errors double once their reference has ended. N is the complaints of a month."""
    change = round((change_day(world) + CHANGE_HOUR / 24) * TICKS_PER_DAY)
    events, *feedback = drawn(replace(world, doubled_from=change), change + SEEN_DAYS * TICKS_PER_DAY, versions, seed)
    return Row(
        name=describe(world),
        world=world,
        events=events,
        feedback=(feedback[0], feedback[1]),
        labels=max(1.0, world.complaint_rate * world.per_hour * 24 * MONTH_DAYS),
        change=change,
    )


def doubled(row: Row, versions: int, alpha: float, seed: int) -> dict[str, Any]:
    """Hours until it is seen. Versions that alarm before the change are left out of the hours, and counted."""
    warm = row.change // 2
    naive, _ = by_arrival(row.world, row.feedback, (warm, len(row.events.requests)), versions, alpha, seed)
    ready = row.learned < row.change
    return {
        "world": row.name,
        "ready": int(ready.sum()),
        "alarmed_before": int(np.sum(row.alarmed < row.change)),
        "hours": hours_after(row.alarmed[ready], row.change),
        "arrival_order_before": int(np.sum(naive < row.change)),
        "arrival_order_hours": hours_after(naive, row.change),
    }


def hours_after(alarmed: Numbers, change: int) -> dict[str, float | None]:
    """The median with its interval, and what nine in ten need, of those that alarm after the change."""
    hours = np.sort((alarmed[alarmed >= change] - change) / TICKS_PER_HOUR)
    if len(hours) < 2:
        return {"median": None, "low": None, "high": None, "nine_in_ten": None}
    most = float(hours[int(0.9 * len(hours))])
    return {**median_of(hours.tolist()), "nine_in_ten": most if math.isfinite(most) else None}


# ---- the report ------------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Simulate everything."""
    began = time.process_time()
    world = World(
        per_hour=asked.per_hour,
        error=asked.error,
        complain=asked.complain,
        delay_hours=asked.delay_hours,
        delay_sigma=asked.delay_sigma,
        ready_sd=asked.ready_sd,
        ready_days=asked.ready_days,
        callers=asked.callers,
        cluster=asked.cluster,
    )
    worlds = STILL if asked.worlds is None else read_worlds(asked.worlds)
    twice = DOUBLED if asked.worlds is None else ({}, *worlds.values())
    rows = [still_row(name, replace(world, **other), asked.runs, asked.seed) for name, other in worlds.items()]
    run(rows, asked.runs, asked.alpha)
    still = {row.name: false_alarms(row, asked.runs, asked.alpha, asked.seed) for row in rows}
    rows = [doubled_row(replace(world, **other), asked.runs, asked.seed) for other in twice]
    run(rows, asked.runs, asked.alpha)
    seen = [doubled(row, asked.runs, asked.alpha, asked.seed) for row in rows]
    alike = [one["rate"] for name, one in still.items() if set(worlds[name]) == {"shape"} or asked.worlds]
    slowest = seen[4:-1] if asked.worlds is None else seen[1:]
    whole = rate_of(round(sum(alike) * asked.runs), asked.runs * len(alike))
    worst = max(still.values(), key=lambda one: one["low"])
    return {
        "seed": asked.seed,
        "runs": asked.runs,
        "alpha": asked.alpha,
        "world": {
            name: getattr(world, name) for name in ("per_hour", "error", "complain", "delay_hours", "delay_sigma")
        },
        "figures": {
            "false_alarms_a_month": whole["rate"],
            "false_alarms_a_month_low": whole["low"],
            "false_alarms_a_month_high": whole["high"],
            "worst_world_low": worst["low"],
            "arrival_order_false_alarms_most": max(one["arrival_order"]["rate"] for one in still.values()),
            "doubled_hours": seen[0]["hours"]["median"],
            "doubled_hours_low": seen[0]["hours"]["low"],
            "doubled_hours_high": seen[0]["hours"]["high"],
            "doubled_hours_slowest_low": max(one["hours"]["low"] or 24.0 * SEEN_DAYS for one in slowest),
        },
        "still": still,
        "doubled": seen,
        "cpu_seconds": round(time.process_time() - began, 1),
    }, []


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    still = [
        [
            name,
            *(one[part] for part in ("rate", "low", "high", "complaints_a_month", "reference_days")),
            *(one["arrival_order"][part] for part in ("rate", "low", "high")),
        ]
        for name, one in report["still"].items()
    ]
    seen = [
        [
            one["world"],
            one["ready"],
            one["alarmed_before"],
            *(one["hours"][part] for part in ("median", "low", "high", "nine_in_ten")),
            one["arrival_order_before"],
            one["arrival_order_hours"]["median"],
        ]
        for one in report["doubled"]
    ]
    head = [
        "no change, false alarms in 30 days",
        "complaints",
        "99% from",
        "to",
        "complaints a month",
        "reference days",
    ]
    return "\n".join(
        [
            table([*head, "arrival order", "99% from", "to"], still),
            "",
            table(
                [
                    *("hours until a doubled error is seen", "versions", "before", "median", "99% from", "to"),
                    *("nine in ten", "arrival order: before", "median"),
                ],
                seen,
            ),
            "",
            f"alpha {report['alpha']:g}, {report['runs']} versions a row, seed {report['seed']}, "
            f"{report['cpu_seconds']:g} s of CPU time. {report['world']}",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "late_feedback",
        "Complaints that come late: false alarms and the time to see a doubled error. All is simulated: --seed sets "
        "every draw.",
        full="100 versions a row: 170 s of CPU time",
    )
    world = World()
    parser.add_argument("--runs", type=int, help="simulated versions a row, at least 2 (default 20)")
    parser.add_argument("--alpha", type=float, default=ALPHA, help="false alarms a month (default 0.01)")
    parser.add_argument("--per-hour", type=float, default=world.per_hour, help="requests an hour (default 100)")
    parser.add_argument("--error", type=float, default=world.error, help="share that is wrong (default 0.1)")
    parser.add_argument(
        "--complain", type=float, default=world.complain, help="of these, with a complaint (default 0.5)"
    )
    parser.add_argument("--delay-hours", type=float, default=world.delay_hours, help="median delay (default 2)")
    parser.add_argument("--ready-sd", type=float, default=world.ready_sd, help="of a day's readiness (default 0)")
    parser.add_argument("--ready-days", type=int, default=world.ready_days, help="that it lasts (default 1)")
    parser.add_argument("--callers", type=int, default=world.callers, help="of different readiness (default 1)")
    parser.add_argument("--cluster", type=int, default=world.cluster, help="complaints at a time (default 1)")
    parser.add_argument("--delay-sigma", type=float, default=world.delay_sigma, help="in nepers (default 1.5)")
    parser.add_argument("--worlds", type=Path, help="worlds as JSON, by name, instead of the benchmark's own")
    asked = parser.parse_args(arguments)
    asked.runs = asked.runs or (100 if asked.full else 20)
    if asked.runs < 2 or not 0 < asked.alpha < 1:
        parser.error("--runs, --alpha: at least 2 versions, and a probability")
    if not (0 < asked.error <= 0.5 and 0 < asked.complain <= 1):
        parser.error("--error, --complain: above 0; errors at most 0.5, or they can't double")
    counts = (asked.ready_days, asked.callers, asked.cluster)
    if not 0 <= asked.ready_sd <= 1 or any(not 1 <= n <= most for n, most in zip(counts, (100, 100, 20), strict=True)):
        parser.error("--ready-sd, --ready-days, --callers, --cluster: at most 1, 100, 100 and 20")
    if not (1 <= asked.per_hour <= 10_000 and 0 < asked.delay_hours <= 240 and 0 < asked.delay_sigma <= 3):
        parser.error("--per-hour, --delay-hours, --delay-sigma: 1 to 10,000, 240 and 3 at most")
    goals = [
        Goal("false_alarms_a_month_low", at_most=asked.alpha),
        Goal("worst_world_low", at_most=max(asked.alpha, FALSE_GOAL)),
    ]
    if asked.alpha == ALPHA and all(getattr(asked, name) == getattr(world, name) for name in OF_THE_GOAL):
        goals.append(Goal("doubled_hours_low", at_most=HOURS_GOAL))
        goals.append(Goal("doubled_hours_slowest_low", at_most=HOURS_GOAL_OF_ALL))
    return conclude("late_feedback", lambda: measure(asked), goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
