"""Ratings: values that raters gave to items, in arrays for counting, and read from a file.

A rater file is CSV. Its header names its columns: `item`, `rater` and `label`, a row for each rating; or `item`, and a
column for each rater. `class` and `gold` (the known value) are optional. An empty cell is a gap: nobody has rated.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monitoring.datasets.row_files import find_separator
from monitoring.labels.messages import Rating

RATINGS_MAX = 1_000_000
CELL_CHARACTERS_MAX = 1000
COUNTS_MAX = 10_000_000
"""The most items times different labels: the counts of each label of each item are in memory several times."""
OTHER_COLUMNS = ("item", "class", "gold")
ERRORS_TOLD_MAX = 20
Numbers = np.ndarray[Any, np.dtype[Any]]


class RatingsError(ValueError):
    """A file of ratings can't be read; the message names its lines."""


@dataclass(frozen=True)
class Ratings:
    """Ratings by number: the row `at` says that `raters[rater[at]]` gave `values[value[at]]` to `items[item[at]]`.

    `classes` and `gold` have an item's class and known value, if there is one.
    """

    items: tuple[str, ...]
    raters: tuple[str, ...]
    values: tuple[str, ...]
    item: Numbers
    rater: Numbers
    value: Numbers
    classes: Mapping[str, str] = field(default_factory=dict)
    gold: Mapping[str, str] = field(default_factory=dict)

    def count_values(self) -> Numbers:
        """The number of ratings with each value (column) for each item (row)."""
        counts = np.zeros((len(self.items), len(self.values)))
        np.add.at(counts, (self.item, self.value), 1.0)
        return counts

    def select_items(self, names: Iterable[str]) -> Ratings:
        """The ratings of these items alone."""
        chosen = set(names)
        mask = np.isin(self.item, [at for at, name in enumerate(self.items) if name in chosen])
        places = zip(self.item[mask], self.rater[mask], self.value[mask], strict=True)
        rows = [Rating(self.items[item], self.raters[rater], self.values[value]) for item, rater, value in places]
        return collect_ratings(rows, self.gold)


def collect_ratings(ratings: Iterable[Rating], gold: Mapping[str, str] | None = None) -> Ratings:
    """Ratings by number. If a rater rated an item several times, the last rating counts."""
    latest: dict[tuple[str, str], str] = {}
    classes: dict[str, str] = {}
    for rating in ratings:
        latest[rating.item, rating.rater] = rating.value
        if rating.class_name:
            classes[rating.item] = rating.class_name
    names = [tuple(sorted(set(column))) for column in (*zip(*latest, strict=True), latest.values())]
    items, raters, values = names if latest else ((), (), ())
    numbers = [{name: at for at, name in enumerate(column)} for column in (items, raters, values)]
    table = np.array(
        [(numbers[0][item], numbers[1][rater], numbers[2][value]) for (item, rater), value in latest.items()], dtype=int
    ).reshape(-1, 3)
    return Ratings(items, raters, values, table[:, 0], table[:, 1], table[:, 2], classes, dict(gold or {}))


def read_rater_file(text: str) -> Ratings:
    """The ratings of a rater file. Raises RatingsError, which names the first 20 bad lines."""
    text = text.removeprefix("\ufeff")
    separator = find_separator(text.partition("\n")[0])
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    ratings: list[Rating] = []
    gold: dict[str, str] = {}
    faults: list[str] = []
    try:
        header = [name.strip() for name in next(rows, [])]
        _check_header(header)
        for cells in rows:
            fault = _take_row(dict(zip(header, map(str.strip, cells), strict=False)), len(cells), header, ratings, gold)
            if fault and any(cells):
                faults.append(f"Line {rows.line_num}: {fault}.")
            if len(ratings) > RATINGS_MAX:
                raise RatingsError(f"Line {rows.line_num}: there are more than {RATINGS_MAX:,} ratings.")
    except csv.Error as error:
        raise RatingsError(f"Line {rows.line_num}: this is not CSV ({error}).") from error
    if faults:
        more = f" There are {len(faults) - ERRORS_TOLD_MAX} more." if len(faults) > ERRORS_TOLD_MAX else ""
        raise RatingsError(" ".join(faults[:ERRORS_TOLD_MAX]) + more)
    if not ratings:
        raise RatingsError("There is no rating in it: every cell is empty.")
    collected = collect_ratings(ratings, gold)
    if len(collected.items) * len(collected.values) > COUNTS_MAX:
        counts = f"{len(collected.items):,} items have {len(collected.values):,} different labels"
        raise RatingsError(f"{counts}: give labels that are classes, such as right and wrong, or fewer items.")
    return collected


def _check_header(header: list[str]) -> None:
    if len(set(header)) < len(header) or "" in header:
        raise RatingsError("Line 1: every column needs a name of its own.")
    is_long = "rater" in header or "label" in header
    missing = {"item", "rater", "label"} - set(header) if is_long else {"item"} - set(header)
    if missing:
        names = " and no ".join(sorted(missing))
        raise RatingsError(f"Line 1: it has no {names}. Name the columns item, rater and label, or item and raters.")
    if not is_long and not _raters(header):
        raise RatingsError("Line 1: there is no column of a rater beside item.")


def _raters(header: list[str]) -> list[str]:
    return [name for name in header if name not in OTHER_COLUMNS]


def _take_row(
    row: Mapping[str, str], cells: int, header: list[str], ratings: list[Rating], gold: dict[str, str]
) -> str | None:
    """Take in a row; returns the reason if this is not possible, else None."""
    if cells != len(header):
        return f"it has {cells} cells, and the header {len(header)}"
    if any(len(cell) > CELL_CHARACTERS_MAX for cell in row.values()):
        return f"a cell is longer than {CELL_CHARACTERS_MAX} characters"
    item, gold_value = row["item"], row.get("gold", "")
    if not item:
        return "item is empty"
    if gold_value and gold.setdefault(item, gold_value) != gold_value:
        return f"gold is {gold_value!r}, and it was {gold[item]!r} for this item before"
    if "rater" in row and row["label"] and not row["rater"]:
        return "rater is empty"
    ratings += _ratings_in(row, header)
    return None


def _ratings_in(row: Mapping[str, str], header: list[str]) -> Iterator[Rating]:
    labels = {row["rater"]: row["label"]} if "rater" in row else {name: row[name] for name in _raters(header)}
    for rater, value in labels.items():
        if value:
            yield Rating(row["item"], rater, value, row.get("class") or None)
