"""The evidence that a recovery needs, so that a version does not go back and forth between healthy and degraded.

A reverse test finds a false recovery at most once in BETWEEN labels on average, or in ten times the labels that
tell the rates apart: evidence for rates that lie close together varies more by chance, while the slip lasts. After a
recovery that did not hold it asks for four times as many, and so on, so that a long slip has few false ones. A recovery
has held once it has stood for as many labels as the next of a large slip is asked for, and for 30 days; then one of
them is forgiven. Each signal counts those that its own reverse test has shown. That an admin has overruled the verdict
is not a recovery.
"""

from __future__ import annotations

BETWEEN = 200.0
APART_TIMES = 10.0
"""Measured (`benchmarks/degradation_flaps.py`), not derived."""
HOLDS_SECONDS = 30 * 86_400.0
TIMES = 4.0
IN_A_ROW_MAX = 6
"""More recoveries in a row that did not hold ask for no more: over 800,000 labels lie between two by chance then."""


def count_asked(in_a_row: int, first: float = BETWEEN, apart: float = 0.0) -> float:
    """The least mean number of labels between two false recoveries, after `in_a_row` that have not held yet, where
    `apart` labels tell the rates apart (`count_apart`)."""
    return max(first, APART_TIMES * apart) * TIMES**in_a_row


def count_apart(variance: float, points: float) -> float:
    """The labels of this variance whose mean has the standard deviation `points`."""
    return variance / points**2 if points > 0.0 else 0.0


def add_recovery(in_a_row: int) -> int:
    """The count after a recovery."""
    return min(IN_A_ROW_MAX, in_a_row + 1)


def count_left(in_a_row: int, labels: float, seconds: float, first: float = BETWEEN) -> int:
    """The count when the version is degraded again, after these labels and seconds from the last recovery until then.

    Labels of while it was degraded do not count, though an admin has ended that.
    """
    has_held = labels >= count_asked(in_a_row, first) and seconds >= HOLDS_SECONDS
    return max(0, in_a_row - 1) if has_held else in_a_row
