"""One part of `benchmarks.degradation`: streams that are compared with their own first labels, as classes are.

For each healthy error rate and each number of first labels, drawn anew for each run: how often the detector alarms
within so many labels while nothing changes; how many alarms there are on average where it is begun anew after each; and
the median of labels until a change is found that comes after 1,000 healthy labels. The baseline is the upper 99% bound
of the first labels of one caller (`monitoring/quality/signals/label_signal.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.canary import rate_of
from benchmarks.degradation_detectors import first_alarms
from benchmarks.degradation_figures import delays, median_of
from benchmarks.degradation_fleet import false_verdicts, own_bounds
from benchmarks.degradation_worlds import WORLDS, drawing, labels_of
from benchmarks.harness import say, table
from monitoring.quality.signals.version_watch import FIRST_OF_CLASS

FIRSTS = (FIRST_OF_CLASS // 2, FIRST_OF_CLASS)
POINTS = {0.10: 4_000, 0.20: 2_000}
"""Points of a change, and after how many labels it counts as not found."""


def own_first(
    baselines: Sequence[float], runs: int, delay_runs: int, labels: int, alpha: float, seed: int
) -> list[dict[str, Any]]:
    """A row for each error rate and number of first labels."""
    return [row_of(rate, first, (runs, delay_runs), labels, alpha, seed) for rate in baselines for first in FIRSTS]


def row_of(rate: float, first: int, runs: tuple[int, int], labels: int, alpha: float, seed: int) -> dict[str, Any]:
    """One row of it."""
    say(f"Held against its own first {first} labels, {rate:.0%} of which are wrong")
    bar, steady = labels / alpha, WORLDS[0]
    rates, draw = np.full(runs[0], rate), drawing(seed, "own", rate, first)
    bounds = own_bounds(first, rates, draw)
    alarms = first_alarms(labels_of(steady, draw, runs[0], labels, rate).bad, bounds, np.full(runs[0], bar))
    again = false_verdicts(np.full(runs[0], labels), rates, bounds, np.full(runs[0], bar), draw)
    points = {}
    for more, after in POINTS.items():
        came = labels_of(steady, draw, runs[1], steady.before + after, rate, more)
        held = own_bounds(first, np.full(runs[1], rate), draw)
        found = delays(first_alarms(came.bad, held, np.full(runs[1], bar)), came.changed)
        points[f"{100 * more:g}"] = {**median_of(found), "found": float(np.isfinite(found).mean())}
    return {
        "baseline": rate,
        "first": first,
        "bound_median": float(np.median(bounds)),
        "bound_too_low": float((bounds < rate).mean()),
        "false_alarms": rate_of(int(np.isfinite(alarms).sum()), runs[0]),
        "alarms_begun_anew": again / runs[0],
        "points": points,
    }


def show_own(rows: Sequence[Mapping[str, Any]], labels: int) -> str:
    """The table."""
    head = [
        f"compared with its own first labels, {labels} labels",
        *("bound", "false alarms", "99% from", "to", "begun anew"),
        *(f"+{name} {what}" for name in rows[0]["points"] for what in ("median", "found")),
    ]
    cells = [
        [
            f"{row['baseline']:.0%}, first {row['first']}",
            row["bound_median"],
            *(row["false_alarms"][part] for part in ("rate", "low", "high")),
            row["alarms_begun_anew"],
            *(one[what] for one in row["points"].values() for what in ("median", "found")),
        ]
        for row in rows
    ]
    return table(head, cells)
