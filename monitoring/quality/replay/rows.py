"""The rows of a file of labels for a replay: CSV or JSON lines, read whole, or refused with the line at fault.

CSV has a head and a row for each label, JSON lines an object for each, in the order in which the labels came:

outcome        0 or 1: 1 means wrong, unless the reader is told that it means right
right          the same as 0, 1, true or false: 1 means right. A file has either
time           the time of the label: Unix seconds, or ISO 8601 (UTC without an offset). Without it, rows are spread
               evenly over the days
asked          the time of the request (None: that of the label). After a recovery, labels of earlier requests are no
               evidence
caller, rater  who sent the request, and who judged the answer. No caller and no rater decides alone
class          the class of the request
change_point   the known changes of the version: 1 from the first label of a slip, 0 before it and after its end; or
               times of changes, first for the worse, then for the better, and so on. `change` is the same

A file is kept in arrays, about 50 bytes a row.
"""

from __future__ import annotations

import csv
import json
import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import TextIOWrapper
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from monitoring.evaluation.dataset import TEXT_LOOKED_AT_BYTES, find_separator, find_text_fault
from monitoring.quality.detectors.recent_values import DAY_SECONDS

OUTCOMES = ("outcome", "right")
CHANGE_NAMES = ("change_point", "change")
COLUMNS = ("time", *OUTCOMES, *CHANGE_NAMES, "class", "caller", "rater", "asked")
ROWS_MAX = 5_000_000
PROGRESS_EVERY = 250_000
PER_DAY = 500.0
BEGINS_AT = 1_767_225_600.0
"""The time of the first label where a file has no times: the beginning of 2026."""
TIME_MAX = 253_402_300_799.0
"""The end of the year 9999."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
NO, YES = ("0", "0.0"), ("1", "1.0")
"""0 and 1, as spreadsheets and data frames write them too."""
NOTHING, STEADY, CHANGED = 0, 1, 2

Direction = Literal["worse", "better"]
Fields = Mapping[str, str]
Progress = Callable[[str], None]
Check = Callable[[int, Sequence[str]], None]


class LabelFileError(ValueError):
    """A file that is no stream of labels. Its message names the line, and says what to do."""


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


class FileFormat(NamedTuple):
    """The form of a file's rows: the column of the outcome, the outcome that is right, whether rows have times, and
    the labels a day where they have none."""

    outcome: str
    right: str
    is_timed: bool
    per_day: float


@dataclass(slots=True)
class LabelRows:
    """All rows of a file, in the order in which the labels came.

    `marks` are the values of `change_point` that are 0 or 1, `named` those that are times. `names` are the classes,
    callers and raters; its first entry means none. `one_means` is the meaning of the outcome 1, `is_timed` whether
    the file has times.
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
    names: dict[str | None, int] = field(default_factory=lambda: {None: 0})
    one_means: Literal["right", "wrong"] = "wrong"
    is_timed: bool = True

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

    def add(self, row: LabelRow, change: bool | float | None) -> None:
        """Append a row. `change` is the known change: yes or no, or its time."""
        self.lines.append(row.line)
        self.times.append(row.at)
        self.asked.append(row.asked)
        self.wrong.append(row.wrong)
        for places, name in ((self.kinds, row.kind), (self.raters, row.rater), (self.callers, row.caller)):
            places.append(self.names.setdefault(name, len(self.names)))
        self.marks.append(CHANGED if change is True else STEADY if change is False else NOTHING)
        if isinstance(change, float):
            self.named.add(change)

    def classes(self) -> list[str]:
        """The classes, in the order of their first rows."""
        names, places = list(self.names), dict.fromkeys(self.kinds)
        return [name for place in places if (name := names[place]) is not None]

    def sort(self) -> None:
        """Put the rows in the order of their times."""
        order = sorted(range(len(self)), key=self.times.__getitem__)
        for places in ("lines", "kinds", "raters", "callers"):
            setattr(self, places, array("L", map(getattr(self, places).__getitem__, order)))
        self.asked = array("d", map(self.asked.__getitem__, order))
        self.wrong = bytearray(map(self.wrong.__getitem__, order))
        self.marks = bytearray(map(self.marks.__getitem__, order))
        self.times = array("d", map(self.times.__getitem__, order))

    def points(self) -> list[KnownChange]:
        """The known changes, in order: the first 1, the first 0 after it, and so on; or the times that are named, for
        the worse and for the better in turn."""
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
    right: str = "0",
    is_sorted: bool = False,
    per_day: float = PER_DAY,
    on_progress: Progress = lambda _: None,
) -> LabelRows:
    """Read all rows. `right` is the outcome that is right, "0" or "1".

    `is_sorted`: put them in the order of their times. `per_day` is the number of labels a day of a file without times.
    Raises LabelFileError with the line, and what to do, for anything that is no stream of labels.
    """
    rows = LabelRows()
    form: FileFormat | None = None
    for line, fields in read_fields(path, _check_columns):
        form = form or _find_format(line, fields, right, per_day)
        if len(rows) >= ROWS_MAX:
            raise LabelFileError(f"line {line}: more than {ROWS_MAX} rows. Replay a part of it.")
        rows.add(*_make_row(line, len(rows), fields, form))
        if len(rows) % PROGRESS_EVERY == 0:
            on_progress(f"Read {len(rows):,} rows")
    if form is None:
        raise LabelFileError(f"{path} has no row under its head: nothing to replay.")
    rows.one_means, rows.is_timed = "right" if form.right == "1" else "wrong", form.is_timed
    if rows.named and any(rows.marks):
        raise LabelFileError(f"{path} has both 0 or 1 and times under {CHANGE_NAMES[0]}: say it in one way.")
    if is_sorted:
        rows.sort()
    for number, (before, at) in enumerate(pairwise(rows.times)):
        if at < before:
            raise LabelFileError(
                f"line {rows.lines[number + 1]}: its time {format_time(at)} lies before that of line "
                f"{rows.lines[number]}, {format_time(before)}. Detectors see labels as they came: put the file in "
                "order, or say --sort."
            )
    return rows


def read_fields(path: Path, check: Check) -> Iterator[tuple[int, Fields]]:
    """Read the rows of CSV or JSON lines, each with its line in the file. Values are texts: true is "1", null is "".

    `check` takes a line and its columns, and raises LabelFileError. Raises LabelFileError for what can't be read.
    """
    try:
        with (
            path.open("rb") as opened,
            TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            beginning = opened.peek(TEXT_LOOKED_AT_BYTES)
            fault = find_text_fault(beginning) if beginning else "are missing: the file is empty."
            if fault:
                raise LabelFileError(f"The labels in {path} {fault}")
            lines = _decode(file)
            first = next(lines, "")
            if first.lstrip().startswith("["):
                raise LabelFileError("line 1: it is a list in JSON. Write an object in each line, without brackets.")
            read = _read_objects if first.lstrip().startswith("{") else _read_csv
            yield from read(chain([first], lines), check)
    except OSError as error:
        raise LabelFileError(f"{path} can't be read: {error.strerror or error}.") from error


def format_time(at: float) -> str:
    """A time for people: ISO 8601, UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _decode(lines: Iterable[str]) -> Iterator[str]:
    """The lines. Raises LabelFileError for one that is not UTF-8."""
    for number, line in enumerate(lines, 1):
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise LabelFileError(f"line {number}: it is not UTF-8.") from error
        yield line


def _read_csv(lines: Iterator[str], check: Check) -> Iterator[tuple[int, Fields]]:
    """The rows of CSV, each with its line."""
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), strict=True, delimiter=find_separator(first))
    head = [name.strip().lower() for name in _next(reader) or []]
    check(1, head)
    empty = None
    while (fields := _next(reader)) is not None:
        line = reader.line_num
        if not any(text.strip() for text in fields):
            empty = empty or line
            continue
        if empty is not None:
            raise LabelFileError(f"line {empty}: it is empty. Leave out what was not labelled.")
        if len(fields) != len(head):
            raise LabelFileError(f"line {line}: {len(fields)} fields, and the head has {len(head)}.")
        yield line, dict(zip(head, (text.strip() for text in fields), strict=True))


def _next(reader: Any) -> list[str] | None:
    """The next row; None at the end. Raises LabelFileError with the line at which one begins that is none."""
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise LabelFileError(f"line {line}: what begins there is no CSV: {error}.") from error


def _read_objects(lines: Iterator[str], check: Check) -> Iterator[tuple[int, Fields]]:
    """The objects of JSON lines, each with its line; values as CSV has them."""
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LabelFileError(f"line {line}: it is no JSON: {error}.") from error
        if not isinstance(entry, dict):
            raise LabelFileError(f'line {line}: it is no object, as in {{"right": true}}.')
        check(line, list(entry))
        yield line, {name: _as_text(line, name, value) for name, value in entry.items()}


def _as_text(line: int, name: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else str(int(value))
    if isinstance(value, str | int | float):
        return str(value).strip()
    raise LabelFileError(f"line {line}: its {name} is neither a text nor a number.")


def _check_columns(line: int, names: Sequence[str]) -> None:
    outcomes = [name for name in OUTCOMES if name in names]
    if not outcomes:
        raise LabelFileError(
            f"line {line}: no column outcome, and no column right. Name the columns in the first line, parted by "
            "commas, or the fields of each object."
        )
    if len(outcomes) > 1:
        raise LabelFileError(f"line {line}: both outcome and right: leave one out.")
    unknown = [name for name in dict.fromkeys(names) if name not in COLUMNS]
    if unknown or len(set(names)) != len(names):
        fault = f"leave out {', '.join(map(repr, unknown))}" if unknown else "a column is there twice"
        raise LabelFileError(f"line {line}: {fault}. Each of {', '.join(COLUMNS)} may be there once.")
    if set(CHANGE_NAMES) <= set(names):
        raise LabelFileError(f"line {line}: {' and '.join(CHANGE_NAMES)} are two names of one column: leave one out.")


def _find_format(line: int, fields: Fields, right: str, per_day: float) -> FileFormat:
    """The form of all rows, by the first one."""
    outcome, is_timed = next(name for name in OUTCOMES if name in fields), "time" in fields
    if not is_timed and "asked" in fields:
        raise LabelFileError(f"line {line}: asked without time: give the time of each label too.")
    return FileFormat(outcome, right if outcome == "outcome" else "1", is_timed, per_day)


def _make_row(line: int, number: int, fields: Fields, form: FileFormat) -> tuple[LabelRow, bool | float | None]:
    outcome = fields.get(form.outcome, "")
    if form.outcome == "right":
        outcome = {"true": "1", "false": "0"}.get(outcome.lower(), outcome)
    if outcome not in (*NO, *YES):
        raise LabelFileError(
            f"line {line}: its {form.outcome} is {outcome[:40]!r}. It must be 0 or 1; leave out what was not labelled."
        )
    if form.is_timed:
        at = _read_time(line, "time", fields.get("time", ""))
    else:
        at = BEGINS_AT + DAY_SECONDS * number / form.per_day
    asked_at = _read_time(line, "asked", fields["asked"]) if fields.get("asked") else at
    if asked_at > at:
        raise LabelFileError(
            f"line {line}: it was asked at {format_time(asked_at)}, after its label came at {format_time(at)}."
        )
    change = next((name for name in CHANGE_NAMES if name in fields), "")
    row = LabelRow(
        line,
        at,
        asked_at,
        (outcome in YES) != (form.right == "1"),
        fields.get("class") or None,
        fields.get("rater") or None,
        fields.get("caller") or None,
    )
    return row, _read_change(line, change, fields.get(change, ""))


def _read_change(line: int, name: str, text: str) -> bool | float | None:
    if text in (*NO, *YES):
        return text in YES
    return _read_time(line, name, text) if text else None


def _read_time(line: int, column: str, text: str) -> float:
    """Unix seconds, from a number or from ISO 8601; without an offset it is UTC."""
    at = float(text) if NUMBER.fullmatch(text) else _read_moment(text)
    if at is None:
        raise LabelFileError(
            f"line {line}: its {column} is {text[:40]!r}. It must be Unix seconds, or ISO 8601 as in "
            "2026-01-31T12:00:00Z."
        )
    if not (math.isfinite(at) and 0.0 <= at <= TIME_MAX):
        hint = " Are these milliseconds? Divide by 1000." if TIME_MAX < at <= 1000.0 * TIME_MAX else ""
        raise LabelFileError(
            f"line {line}: its {column} {text[:40]!r} is no time from 1970 to 9999, in Unix seconds.{hint}"
        )
    return at


def _read_moment(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
