"""The numbers of a data set's rows by slice: class, source, language and length."""

from __future__ import annotations

from collections import Counter

from monitoring.evaluation.dataset import Row
from monitoring.evaluation.row_classes import Classes

VALUES_MAX = 200
"""More values of one slice are not counted each."""


class SliceCounts:
    """Counts rows by slice and its value."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._counters: dict[str, Counter[str]] = {"class": Counter()}

    def add(self, row: Row) -> None:
        """Count one row."""
        for name, value in {**row.slices, "class": self._classes.of_row(row) or ""}.items():
            self._counters.setdefault(name, Counter())[value] += bool(value)

    def list_all(self) -> dict[str, dict[str, int]]:
        """The numbers by slice and value, the most frequent values first."""
        return {name: dict(counts.most_common(VALUES_MAX)) for name, counts in self._counters.items() if counts.total()}
