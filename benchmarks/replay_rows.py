"""The rows of a stream of labels for `benchmarks.replay`: read from CSV, or refused with the line that can't be.

All of a file is kept in arrays, some 40 bytes a row.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.harness import Unmeasurable, say

REQUIRED = ("time", "outcome")
CHANGE_NAMES = ("change_point", "change")
OPTIONAL = (*CHANGE_NAMES, "class", "rater", "asked")
ROWS_MAX = 5_000_000
TOLD_EVERY = 250_000
YEAR_SECONDS_MAX = 253_402_300_799.0
"""The end of the year 9999."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NO, YES = ("0", "0.0"), ("1", "1.0")
"""0 and 1, as spreadsheets and data frames write them too."""
OTHER_SEPARATORS = (";", "\t", "|")
NOTHING, STEADY, CHANGED = 0, 1, 2

Direction = Literal["worse", "better"]


class Row(NamedTuple):
    """One label: its line in the file, when it and its request came (Unix seconds), and whether it was wrong."""

    line: int
    at: float
    asked: float
    wrong: bool
    kind: str | None = None
    rater: str | None = None


class Point(NamedTuple):
    """A change that is known: before how many rows it lies, and which way the error goes there."""

    after: int
    direction: Direction


@dataclass(slots=True)
class Rows:
    """All rows of a file, in the order in which the labels came.

    `marks` is what stands under `change_point` where that is 0 or 1, `named` the times that stand there. `names` are
    the classes and raters; the first of them is that there is none.
    """

    lines: array[int] = field(default_factory=lambda: array("L"))
    times: array[float] = field(default_factory=lambda: array("d"))
    asked: array[float] = field(default_factory=lambda: array("d"))
    wrong: bytearray = field(default_factory=bytearray)
    marks: bytearray = field(default_factory=bytearray)
    named: set[float] = field(default_factory=set)
    kinds: array[int] = field(default_factory=lambda: array("L"))
    raters: array[int] = field(default_factory=lambda: array("L"))
    names: dict[str | None, int] = field(default_factory=lambda: {None: 0})

    def __len__(self) -> int:
        return len(self.lines)

    def __iter__(self) -> Iterator[Row]:
        names = list(self.names)
        for number, line in enumerate(self.lines):
            yield Row(
                line,
                self.times[number],
                self.asked[number],
                bool(self.wrong[number]),
                names[self.kinds[number]],
                names[self.raters[number]],
            )

    def add(self, row: Row, change: bool | float | None) -> None:
        """Put a row behind the others. `change` is what is known of a change: yes or no, or its time."""
        self.lines.append(row.line)
        self.times.append(row.at)
        self.asked.append(row.asked)
        self.wrong.append(row.wrong)
        self.kinds.append(self.names.setdefault(row.kind, len(self.names)))
        self.raters.append(self.names.setdefault(row.rater, len(self.names)))
        self.marks.append(CHANGED if change is True else STEADY if change is False else NOTHING)
        if isinstance(change, float):
            self.named.add(change)

    def classes(self) -> list[str]:
        """The classes, in the order in which they come first."""
        names, seen = list(self.names), dict.fromkeys(self.kinds)
        return [name for place in seen if (name := names[place]) is not None]

    def in_order(self) -> Rows:
        """The same rows in the order of their times."""
        order = sorted(range(len(self)), key=self.times.__getitem__)
        return Rows(
            lines=array("L", map(self.lines.__getitem__, order)),
            times=array("d", map(self.times.__getitem__, order)),
            asked=array("d", map(self.asked.__getitem__, order)),
            wrong=bytearray(map(self.wrong.__getitem__, order)),
            marks=bytearray(map(self.marks.__getitem__, order)),
            named=self.named,
            kinds=array("L", map(self.kinds.__getitem__, order)),
            raters=array("L", map(self.raters.__getitem__, order)),
            names=self.names,
        )

    def points(self) -> list[Point]:
        """The changes that are known, in order: where 1 begins and where it ends; or at each time that is named, the
        first of them for the worse, the next one for the better, and so on."""
        if self.named:
            ways: tuple[Direction, Direction] = ("worse", "better")
            return [Point(bisect_left(self.times, time), ways[n % 2]) for n, time in enumerate(sorted(self.named))]
        found, known = list[Point](), STEADY
        for number, mark in enumerate(self.marks):
            if mark not in (NOTHING, known):
                known = mark
                found.append(Point(number, "worse" if mark == CHANGED else "better"))
        return found


def read(path: Path, good: str, ordered: bool) -> Rows:
    """All rows, in the order of their times if `ordered` says so. `good` is the outcome that is right, "0" or "1".

    Raises Unmeasurable with the line, and what to do, for anything that is no stream of labels.
    """
    rows = Rows()
    with _told(path), path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for row, change in _rows(_decoded(file), good):
            rows.add(row, change)
            if len(rows) % TOLD_EVERY == 0:
                say(f"Read {len(rows):,} rows")
    if not len(rows):
        raise Unmeasurable(f"{path} has no row under its head: nothing to replay.")
    if rows.named and any(rows.marks):
        raise Unmeasurable(f"{path} has both 0 or 1 and times under {CHANGE_NAMES[0]}: say it in one way.")
    if ordered:
        return rows.in_order()
    for number, (before, at) in enumerate(pairwise(rows.times)):
        if at < before:
            raise Unmeasurable(
                f"line {rows.lines[number + 1]}: its time {told(at)} lies before that of line {rows.lines[number]}, "
                f"{told(before)}. Detectors see labels as they came: put the file in order, or say --sort."
            )
    return rows


def told(at: float) -> str:
    """A time for people: ISO 8601, UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unmeasurable(f"{path} can't be read: {error.strerror or error}.") from error


def _decoded(lines: Iterable[str]) -> Iterator[str]:
    """The lines. Raises Unmeasurable for one that is not UTF-8."""
    for number, line in enumerate(lines, 1):
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise Unmeasurable(f"line {number}: it is not UTF-8.") from error
        yield line


def _rows(lines: Iterator[str], good: str) -> Iterator[tuple[Row, bool | float | None]]:
    reader = csv.reader(lines, strict=True)
    head = [name.strip().lower() for name in _next(reader) or []]
    _see_that_it_is_a_head(head)
    empty, count = None, 0
    while (fields := _next(reader)) is not None:
        line = reader.line_num
        if not any(field.strip() for field in fields):
            empty = empty or line
            continue
        if empty is not None:
            raise Unmeasurable(f"line {empty}: it is empty. Leave out what was not labelled.")
        if len(fields) != len(head):
            raise Unmeasurable(f"line {line}: {len(fields)} fields, and the head has {len(head)}.")
        count += 1
        if count > ROWS_MAX:
            raise Unmeasurable(f"line {line}: more than {ROWS_MAX} rows. Replay a part of it.")
        yield _row(line, dict(zip(head, (field.strip() for field in fields), strict=True)), good)


def _next(reader: csv._reader) -> list[str] | None:
    """The next row; None at the end. Raises Unmeasurable with the line at which one begins that is none."""
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise Unmeasurable(f"line {line}: what begins there is no CSV: {error}.") from error


def _see_that_it_is_a_head(head: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in head]
    other = next((one for one in OTHER_SEPARATORS if len(head) == 1 and one in head[0]), None)
    if other is not None:
        raise Unmeasurable(f"line 1: are its columns parted by {other!r}? It has to be commas.")
    if missing:
        raise Unmeasurable(
            f"line 1: no column {' and no column '.join(missing)}. The head names time and outcome, parted by commas."
        )
    unknown = [name for name in head if name not in (*REQUIRED, *OPTIONAL)]
    if unknown or len(set(head)) != len(head):
        raise Unmeasurable(
            f"line 1: the columns are {', '.join(head)}. Each of {', '.join((*REQUIRED, *OPTIONAL))} may be there once."
        )
    if set(CHANGE_NAMES) <= set(head):
        raise Unmeasurable(f"line 1: {' and '.join(CHANGE_NAMES)} are two names of one column: leave one out.")


def _row(line: int, fields: dict[str, str], good: str) -> tuple[Row, bool | float | None]:
    outcome = fields["outcome"]
    if outcome not in (*NO, *YES):
        raise Unmeasurable(
            f"line {line}: its outcome is {outcome[:40]!r}. It must be 0 or 1; leave out what was not labelled."
        )
    at = _time(line, "time", fields["time"])
    asked = _time(line, "asked", fields["asked"]) if fields.get("asked") else at
    if asked > at:
        raise Unmeasurable(f"line {line}: it was asked at {told(asked)}, after its label came at {told(at)}.")
    name = next((name for name in CHANGE_NAMES if name in fields), "")
    row = Row(
        line, at, asked, (outcome in YES) != (good in YES), fields.get("class") or None, fields.get("rater") or None
    )
    return row, _change(line, name, fields.get(name, ""))


def _change(line: int, name: str, text: str) -> bool | float | None:
    if text in (*NO, *YES):
        return text in YES
    return _time(line, name, text) if text else None


def _time(line: int, column: str, text: str) -> float:
    """Unix seconds, from a number or from ISO 8601; without an offset it is UTC."""
    at = float(text) if NUMBER.fullmatch(text) else _moment(text)
    if at is None:
        raise Unmeasurable(
            f"line {line}: its {column} is {text[:40]!r}. It must be Unix seconds, or ISO 8601 as in "
            "2026-01-31T12:00:00Z."
        )
    if not (math.isfinite(at) and 0.0 <= at <= YEAR_SECONDS_MAX):
        raise Unmeasurable(f"line {line}: its {column} {text[:40]!r} is no time from 1970 to 9999, in Unix seconds.")
    return at


def _moment(text: str) -> float | None:
    try:
        read_as = datetime.fromisoformat(text)
        return (read_as if read_as.tzinfo else read_as.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
