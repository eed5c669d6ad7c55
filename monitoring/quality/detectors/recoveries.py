"""The evidence that a recovery needs, so that a version does not alternate between healthy and degraded.

A reverse test finds a false recovery at most once in BETWEEN labels on average. Ten times the labels that tell the
rates apart count instead, if they are more. Evidence for rates that lie close together varies more by chance while the
degradation lasts. After a recovery that did not hold, the test asks for four times as many labels, and so on: a long
degradation then has few false recoveries. A recovery holds if it lasts for 30 days, and for the labels that the next
recovery from a large degradation would need. Then the count of recoveries in a row decreases by one. Each signal counts
those that its own reverse test has shown. An admin who overrules the verdict makes no recovery."""

from __future__ import annotations

BETWEEN = 200.0
APART_TIMES = 10.0
"""Measured (`benchmarks/degradation_flaps.py`), not derived."""
HOLDS_SECONDS = 30 * 86_400.0
TIMES = 4.0
IN_A_ROW_MAX = 6
"""More failed recoveries in a row ask for no more labels: between two by chance there are then over 800,000."""


def count_asked(in_a_row: int, first: float = BETWEEN, apart: float = 0.0) -> float:
    """The least mean number of labels between two false recoveries, after `in_a_row` that have not held yet. `apart`
    labels tell the rates apart (`count_apart`)."""
    return max(first, APART_TIMES * apart) * TIMES**in_a_row


def count_apart(variance: float, points: float) -> float:
    """The number of labels of this variance whose mean has the standard deviation `points`."""
    return variance / points**2 if points > 0.0 else 0.0


def add_recovery(in_a_row: int) -> int:
    """The number of recoveries in a row after another one."""
    return min(IN_A_ROW_MAX, in_a_row + 1)


def count_left(in_a_row: int, labels: float, seconds: float, first: float = BETWEEN) -> int:
    """The recoveries in a row when the version is degraded again, these labels and seconds after the last one.

    Labels from a degraded time do not count, even if an admin ended it.
    """
    has_held = labels >= count_asked(in_a_row, first) and seconds >= HOLDS_SECONDS
    return max(0, in_a_row - 1) if has_held else in_a_row
