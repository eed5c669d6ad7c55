"""The rows of a stream of labels for `benchmarks.replay`: read from CSV, or refused with the line that can't be."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import Unmeasurable

REQUIRED = ("time", "outcome")
OPTIONAL = ("change_point", "class", "rater")
ROWS_MAX = 5_000_000
CLASSES_MAX = 100
YEAR_SECONDS_MAX = 253_402_300_799.0
"""The end of the year 9999."""


@dataclass(frozen=True, slots=True)
class Row:
    """One label: its line in the file, when it came (Unix seconds), and whether the answer was wrong.

    `change` is what stands under `change_point`: True or False for 1 and 0, else a time; None where there is nothing.
    """

    line: int
    at: float
    wrong: bool
    change: bool | float | None = None
    kind: str | None = None
    rater: str | None = None


def read(path: Path, good: str, ordered: bool) -> list[Row]:
    """All rows, in the order of their times if `ordered` says so. `good` is the outcome that is right, "0" or "1".

    Raises Unmeasurable with the line, and what to do, for anything that is no stream of labels.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(csv.reader(file, strict=True), good))
    except OSError as error:
        raise Unmeasurable(f"{path} can't be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise Unmeasurable(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from error
    except csv.Error as error:
        raise Unmeasurable(f"{path} is no CSV: {error}.") from error
    if not rows:
        raise Unmeasurable(f"{path} has no row under its head: nothing to replay.")
    if len({row.kind for row in rows}) > CLASSES_MAX:
        raise Unmeasurable(f"{path} has more than {CLASSES_MAX} classes: leave the column out, or name fewer.")
    if ordered:
        return sorted(rows, key=lambda row: row.at)
    for before, row in pairwise(rows):
        if row.at < before.at:
            raise Unmeasurable(
                f"line {row.line}: its time {told(row.at)} lies before that of line {before.line}, {told(before.at)}. "
                "Detectors see labels as they came: put the file in order, or say --sort."
            )
    return rows


def changes(rows: Sequence[Row]) -> list[int]:
    """Before how many rows each change point lies: where 1 begins, and at each time that is named. In order."""
    begins = {n for n, row in enumerate(rows) if row.change is True and (n == 0 or rows[n - 1].change is not True)}
    times = {row.change for row in rows if isinstance(row.change, float)}
    named = {next((n for n, row in enumerate(rows) if row.at >= time), len(rows)) for time in times}
    return sorted(begins | named)


def told(at: float) -> str:
    """A time for people: ISO 8601, UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _rows(lines: Iterator[list[str]], good: str) -> Iterator[Row]:
    head = [name.strip().lower() for name in next(lines, [])]
    _see_that_it_is_a_head(head)
    reader = enumerate(lines, 2)
    for count, (number, fields) in enumerate(reader, 1):
        line = getattr(lines, "line_num", number)
        if count > ROWS_MAX:
            raise Unmeasurable(f"line {line}: more than {ROWS_MAX} rows. Replay a part of it.")
        if not any(field.strip() for field in fields):
            raise Unmeasurable(f"line {line}: it is empty. Leave out what was not labelled.")
        if len(fields) != len(head):
            raise Unmeasurable(f"line {line}: {len(fields)} fields, and the head has {len(head)}.")
        yield _row(line, dict(zip(head, (field.strip() for field in fields), strict=True)), good)


def _see_that_it_is_a_head(head: Sequence[str]) -> None:
    missing = [name for name in REQUIRED if name not in head]
    if missing:
        raise Unmeasurable(f"line 1: no column {' and no column '.join(missing)}. The head names time and outcome.")
    unknown = [name for name in head if name not in (*REQUIRED, *OPTIONAL)]
    if unknown or len(set(head)) != len(head):
        raise Unmeasurable(
            f"line 1: the columns are {', '.join(head)}. Each of {', '.join((*REQUIRED, *OPTIONAL))} may be there once."
        )


def _row(line: int, fields: dict[str, str], good: str) -> Row:
    outcome = fields["outcome"]
    if outcome not in ("0", "1"):
        raise Unmeasurable(
            f"line {line}: its outcome is {outcome[:40]!r}. It must be 0 or 1; leave out what was not labelled."
        )
    return Row(
        line=line,
        at=_time(line, "time", fields["time"]),
        wrong=outcome != good,
        change=_change(line, fields.get("change_point", "")),
        kind=fields.get("class") or None,
        rater=fields.get("rater") or None,
    )


def _change(line: int, text: str) -> bool | float | None:
    if text in ("0", "1"):
        return text == "1"
    return _time(line, "change_point", text) if text else None


def _time(line: int, column: str, text: str) -> float:
    """Unix seconds, from a number or from ISO 8601; without an offset it is UTC."""
    try:
        at = float(text)
    except ValueError:
        try:
            read_as = datetime.fromisoformat(text)
        except ValueError:
            raise Unmeasurable(
                f"line {line}: its {column} is {text[:40]!r}. It must be Unix seconds, or ISO 8601 as in "
                "2026-01-31T12:00:00Z."
            ) from None
        at = (read_as if read_as.tzinfo else read_as.replace(tzinfo=UTC)).timestamp()
    if not (math.isfinite(at) and 0.0 <= at <= YEAR_SECONDS_MAX):
        raise Unmeasurable(f"line {line}: its {column} {text[:40]!r} is no time from 1970 to 9999, in Unix seconds.")
    return at
