"""One part of `benchmarks.degradation`: a degradation that lasts, and how often a recovery is found of it that is none.

A version is healthy for 400 labels, the first 200 of which are its baseline, is wrong more often for many labels, and
then healthy again. `asks_more` goes by `monitoring/quality/detectors/recoveries.py`, as the monitor does;
`asks_the_same` forgets each recovery, so that every one has to show what the first has. The labels are the same.

`back and forth` is a version that degrades and recovers again and again: changes of its verdict for each real change,
and labels until a degradation and a recovery are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from benchmarks.degradation_figures import median_of
from benchmarks.degradation_worlds import drawing
from benchmarks.harness import say, table
from monitoring.quality.replay.rows import LabelRow
from monitoring.quality.replay.version import Claim, VersionReplay
from monitoring.quality.signals.version_watch import FIRST_FEEDBACK, FIRST_OF_CLASS
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

HEALTHY_BEFORE, HEALTHY_AFTER = 400, 2_000
RATES = ((0.04, 0.14), (0.04, 0.20), (0.15, 0.40))
"""How often it is wrong while it is healthy, and while it has degraded."""
TURNS, PART_LABELS, PARTS = (0.05, 0.20), 1_000, 7
"""How often it is wrong while it is healthy and degraded, in turn, for so many labels each."""
EVERY_SECONDS = 900.0
KINDS = ("asks_more", "asks_the_same")


def lasting(runs: int, labels: int, alpha: float, seed: int) -> list[dict[str, Any]]:
    """A row for each pair of rates: false recoveries of a degradation of so many labels, and labels to the real one."""
    return [row_of(healthy, degraded, runs, labels, alpha, seed) for healthy, degraded in RATES]


def row_of(healthy: float, degraded: float, runs: int, labels: int, alpha: float, seed: int) -> dict[str, Any]:
    """One row of it."""
    say(f"A degradation from {healthy:.0%} to {degraded:.0%} that lasts for {labels} labels")
    parts = (HEALTHY_BEFORE, labels, HEALTHY_AFTER)
    rates = np.repeat([healthy, degraded, healthy], parts)
    found: dict[str, Any] = {"healthy": healthy, "degraded": degraded, "labels": labels, "runs": runs}
    streams = [drawing(seed, "lasting", healthy, degraded, run).random(len(rates)) < rates for run in range(runs)]
    for kind in KINDS:
        ends = [_run(wrong, labels, Claim(10_000, alpha, MonitorPlan().labels_min), kind) for wrong in streams]
        found[kind] = {
            "false_recoveries_a_run": float(np.mean([count for count, _ in ends])),
            "false_recoveries_most": max(count for count, _ in ends),
            "labels_to_recover": median_of(np.array([later for _, later in ends])),
        }
    return found


def _run(wrong: np.ndarray, labels: int, claim: Claim, kind: str) -> tuple[int, float]:
    """How many recoveries were found while it was degraded, and how many healthy labels the last one took; infinite
    where that was not found, 0 where the version was held to be healthy at the time."""
    version = VersionReplay([], FIRST_FEEDBACK, FIRST_OF_CLASS, None, claim)
    false, ends = 0, HEALTHY_BEFORE + labels
    for number, bad in enumerate(wrong):
        if number == ends and version.verdict == "healthy":
            return false, 0.0
        turn = version.observe(number, LabelRow(number, EVERY_SECONDS * number, EVERY_SECONDS * number, bool(bad)))
        if turn is None:
            continue
        if turn.after == "healthy" and number >= ends:
            return false, float(number - ends + 1)
        false += turn.after == "healthy"
        if kind == "asks_the_same":
            for one in version.signals.values():
                one.track = msgspec.structs.replace(one.track, recoveries=0)
    return false, float("inf")


def turn_back_and_forth(runs: int, alpha: float, seed: int) -> dict[str, Any]:
    """Changes of the verdict for each real change, and the labels after which these are found."""
    say("A version that degrades and recovers again and again")
    changes, delays = 0, dict[str, list[float]](degraded=[], healthy=[])
    for run in range(runs):
        version = VersionReplay(
            [], FIRST_FEEDBACK, FIRST_OF_CLASS, None, Claim(10_000, alpha, MonitorPlan().labels_min)
        )
        rates = np.repeat([TURNS[part % 2] for part in range(PARTS)], PART_LABELS)
        wrong, found = drawing(seed, "back and forth", run).random(len(rates)) < rates, dict[int, int]()
        for number, bad in enumerate(wrong):
            row = LabelRow(number, EVERY_SECONDS * number, EVERY_SECONDS * number, bool(bad))
            turn = version.observe(number, row)
            if turn is not None:
                changes += 1
                part = number // PART_LABELS
                if part and turn.after == ("degraded" if part % 2 else "healthy"):
                    found.setdefault(part, number - part * PART_LABELS)
        for part in range(1, PARTS):
            delays["degraded" if part % 2 else "healthy"].append(float(found.get(part, np.inf)))
    return {
        "changes_for_each": changes / (runs * (PARTS - 1)),
        **{f"labels_to_{name}": median_of(np.array(values)) for name, values in delays.items()},
    }


def show_lasting(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table."""
    head = [
        f"a degradation that lasts {rows[0]['labels']} labels, {rows[0]['runs']} runs",
        *(f"{kind.replace('_', ' ')}: {what}" for kind in KINDS for what in ("false a run", "most", "labels back")),
    ]
    return table(
        head,
        [
            [
                f"{row['healthy']:.0%} to {row['degraded']:.0%}",
                *(
                    value
                    for kind in KINDS
                    for value in (
                        row[kind]["false_recoveries_a_run"],
                        row[kind]["false_recoveries_most"],
                        row[kind]["labels_to_recover"]["median"],
                    )
                ),
            ]
            for row in rows
        ],
    )
