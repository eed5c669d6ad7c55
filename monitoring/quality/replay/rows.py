"""The rows of a file of labels for a replay, read whole, or refused with the line at fault.

`label_columns.py` finds the columns. Their meanings:

outcome        whether the answer is right. A row without it was not labelled, and is left out
time           the time of the label. Without it, rows are spread evenly over the days
asked          the time of the request (None: that of the label). After a recovery, labels of earlier requests are not
               evidence
caller, rater  who sent the request, and who judged the answer. No caller and no rater decides alone
class          the class of the request
request        its id. The first label of a request counts, as in the monitor
change         the known changes of the version: 1 from a degradation's first label, 0 before it and after its end; or
               times of changes, first for the worse, then for the better, and so on

A file is kept in arrays, about 50 bytes a row.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from monitoring.evaluation.dataset import DatasetError
from monitoring.quality.replay.label_columns import (
    BY_NAME,
    NAMES_SHOWN_MAX,
    ColumnChoice,
    LabelColumns,
    Meaning,
    find_columns,
    list_unread,
)
from monitoring.quality.replay.label_files import Fields, read_fields
from monitoring.quality.replay.label_times import Clock, format_time
from monitoring.time_units import DAY_SECONDS

ROWS_MAX = 5_000_000
ROWS_LOOKED_AT = 1_000
"""The number of first rows that are used to find the columns."""
PROGRESS_EVERY = 250_000
PER_DAY = 500.0
BEGINS_AT = 1_767_225_600.0
"""The time of the first label in a file without times: the beginning of 2026."""
NO, YES = ("0", "0.0"), ("1", "1.0")
NOTHING, STEADY, CHANGED = 0, 1, 2
UNTIMED = "the file has no times: the times shown here spread its labels evenly over the days (--per-day)"

Direction = Literal["worse", "better"]
Progress = Callable[[str], None]


class LabelRow(NamedTuple):
    """One label: its line in the file, the times of the label and of its request (Unix seconds), and its outcome."""

    line: int
    at: float
    asked: float
    wrong: bool
    kind: str | None = None
    rater: str | None = None
    caller: str | None = None


class KnownChange(NamedTuple):
    """A known change: the number of rows before it, and the direction of the error."""

    after: int
    direction: Direction


@dataclass(slots=True)
class LabelRows:
    """All rows of a file, in the order in which the labels came.

    `marks` are known changes given as 0 or 1, `named` those given as times. `requests` are hashes of ids, 0 for none.
    `names` are the classes, callers and raters; its first entry means none. `columns` are the file's columns by our
    names, and `one_means` is the meaning of the outcome 1. `notes` say what was changed or left out.
    """

    lines: array[int] = field(default_factory=lambda: array("L"))
    times: array[float] = field(default_factory=lambda: array("d"))
    asked: array[float] = field(default_factory=lambda: array("d"))
    wrong: bytearray = field(default_factory=bytearray)
    marks: bytearray = field(default_factory=bytearray)
    named: set[float] = field(default_factory=set)
    kinds: array[int] = field(default_factory=lambda: array("L"))
    raters: array[int] = field(default_factory=lambda: array("L"))
    callers: array[int] = field(default_factory=lambda: array("L"))
    requests: array[int] = field(default_factory=lambda: array("q"))
    names: dict[str | None, int] = field(default_factory=lambda: {None: 0})
    one_means: Meaning = "wrong"
    columns: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[LabelRow]:
        names = list(self.names)
        for number, line in enumerate(self.lines):
            yield LabelRow(
                line,
                self.times[number],
                self.asked[number],
                bool(self.wrong[number]),
                names[self.kinds[number]],
                names[self.raters[number]],
                names[self.callers[number]],
            )

    def add(self, row: LabelRow, change: bool | float | None, request: str = "") -> None:
        """Append a row. `change` is the known change: yes or no, or its time. `request` is the id of its request."""
        self.lines.append(row.line)
        self.times.append(row.at)
        self.asked.append(row.asked)
        self.wrong.append(row.wrong)
        for places, name in ((self.kinds, row.kind), (self.raters, row.rater), (self.callers, row.caller)):
            places.append(self.names.setdefault(name, len(self.names)))
        self.requests.append(hash(request) if request else 0)
        self.marks.append(CHANGED if change is True else STEADY if change is False else NOTHING)
        if isinstance(change, float):
            self.named.add(change)

    def classes(self) -> list[str]:
        """The classes, in the order of their first rows."""
        names, places = list(self.names), dict.fromkeys(self.kinds)
        return [name for place in places if (name := names[place]) is not None]

    def sort(self) -> None:
        """Put the rows in the order of their times."""
        self._put(sorted(range(len(self)), key=self.times.__getitem__))

    def reverse(self) -> None:
        """Put the last row first."""
        self._put(range(len(self) - 1, -1, -1))

    def drop_repeats(self) -> int:
        """Drop all labels of a request but the first. Returns the number of dropped labels."""
        seen, order = set[int](), list[int]()
        for number, request in enumerate(self.requests):
            if not request or request not in seen:
                seen.add(request)
                order.append(number)
        dropped = len(self) - len(order)
        if dropped:
            self._put(order)
        return dropped

    def _put(self, order: Sequence[int]) -> None:
        for name in ("lines", "times", "asked", "kinds", "raters", "callers", "requests"):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, map(column.__getitem__, order)))
        self.wrong = bytearray(map(self.wrong.__getitem__, order))
        self.marks = bytearray(map(self.marks.__getitem__, order))

    def points(self) -> list[KnownChange]:
        """The known changes, in order: the first 1, the first 0 after it, and so on; or the given times, for the worse
        and for the better in turn."""
        if self.named:
            ways: tuple[Direction, Direction] = ("worse", "better")
            return [
                KnownChange(bisect_left(self.times, time), ways[n % 2]) for n, time in enumerate(sorted(self.named))
            ]
        points, last = list[KnownChange](), STEADY
        for number, mark in enumerate(self.marks):
            if mark not in (NOTHING, last):
                last = mark
                points.append(KnownChange(number, "worse" if mark == CHANGED else "better"))
        return points


def read_rows(
    path: Path,
    choice: ColumnChoice = BY_NAME,
    is_sorted: bool = False,
    per_day: float = PER_DAY,
    on_progress: Progress = lambda _: None,
) -> LabelRows:
    """Read all rows. `choice` has the columns that the user named.

    `is_sorted`: put them in the order of their times. `per_day` is the number of labels a day in a file without times.
    Raises DatasetError with the line, and what to do, for anything that is not a stream of labels.
    """
    read = read_fields(path)
    sample = list(islice(read, ROWS_LOOKED_AT))
    if not sample:
        raise DatasetError(f"{path} has no row under its head: nothing to replay.")
    columns = find_columns(sample, choice)
    rows = LabelRows(one_means=columns.one_means, columns=columns.describe())
    reader = RowReader(columns, choice.is_day_first, per_day)
    for line, fields in chain(sample, read):
        if len(rows) >= ROWS_MAX:
            raise DatasetError(f"Line {line}: more than {ROWS_MAX} rows. Replay a part of it.")
        wrong = columns.read_outcome(line, fields.get(columns.outcome, ""))
        if wrong is None:
            reader.unlabelled += 1
            continue
        rows.add(*reader.read(line, len(rows), fields, wrong), fields.get(columns.request or "", ""))
        if len(rows) % PROGRESS_EVERY == 0:
            on_progress(f"Read {len(rows):,} rows")
    if not len(rows):
        raise DatasetError(f"no row has a label under {columns.outcome!r}. Is it another column (--right COLUMN)?")
    rows.notes = list(_list_notes(columns, reader.unlabelled, list_unread(columns, [row for _, row in sample])))
    if rows.named and any(rows.marks):
        raise DatasetError(f"{path} has both 0 or 1 and times under {columns.change}: say it in one way.")
    _put_in_order(rows, is_sorted)
    if columns.request and (repeats := rows.drop_repeats()):
        rows.notes.append(f"further labels of a request, which were left out: {repeats}")
    return rows


class RowReader:
    """The reader of a file's rows, given its columns. `unlabelled` counts rows without a label."""

    def __init__(self, columns: LabelColumns, is_day_first: bool | None, per_day: float) -> None:
        self.unlabelled = 0
        self._columns, self._is_day_first, self._per_day = columns, is_day_first, per_day
        self._clocks: dict[str, Clock] = {}

    def read(self, line: int, number: int, fields: Fields, wrong: bool) -> tuple[LabelRow, bool | float | None]:
        """The row, and its known change: yes or no, or its time. Raises DatasetError."""
        columns = self._columns
        if columns.time:
            at = self._read_time(line, " and ".join(columns.time), columns.join_time(fields))
        elif columns.asked:
            raise DatasetError(f"Line {line}: {columns.asked} without time: give the time of each label too.")
        else:
            at = BEGINS_AT + DAY_SECONDS * number / self._per_day
        asked = fields.get(columns.asked or "", "")
        asked_at = self._read_time(line, columns.asked or "", asked) if asked else at
        if asked_at > at:
            raise DatasetError(
                f"Line {line}: it was asked at {format_time(asked_at)}, after its label came at {format_time(at)}."
            )
        kind, rater, caller = (
            fields.get(name) or None if name else None for name in (columns.kind, columns.rater, columns.caller)
        )
        row = LabelRow(line, at, asked_at, wrong, kind, rater, caller)
        return row, self._read_change(line, columns.change or "", fields.get(columns.change or "", ""))

    def _read_change(self, line: int, name: str, text: str) -> bool | float | None:
        if text in (*NO, *YES):
            return text in YES
        return self._read_time(line, name, text) if text else None

    def _read_time(self, line: int, column: str, text: str) -> float:
        if column not in self._clocks:
            self._clocks[column] = Clock(column, text, self._is_day_first)
        return self._clocks[column].read(line, text)


def _list_notes(columns: LabelColumns, unlabelled: int, unread: Sequence[str]) -> Iterator[str]:
    if columns.is_vague:
        yield f"of {columns.outcome} 1 was taken for right: say --wrong {columns.outcome} where it means wrong"
    if unlabelled:
        yield f"rows without a label, which were left out: {unlabelled}"
    if unread:
        yield f"columns that were not read: {', '.join(unread)[:NAMES_SHOWN_MAX]}"
    if not columns.time:
        yield UNTIMED


def _put_in_order(rows: LabelRows, is_sorted: bool) -> None:
    """Reverse a file with the newest label first. Raises DatasetError for any other that is not in order."""
    if is_sorted:
        rows.sort()
    elif rows.times[0] > rows.times[-1] and all(at <= before for before, at in pairwise(rows.times)):
        rows.reverse()
        rows.notes.append("the newest label comes first: the file was replayed from its end")
    for number, (before, at) in enumerate(pairwise(rows.times)):
        if at < before:
            raise DatasetError(
                f"Line {rows.lines[number + 1]}: its time {format_time(at)} lies before that of line "
                f"{rows.lines[number]}, {format_time(before)}. Detectors see labels as they came: put the file in "
                "order, or say --sort."
            )
