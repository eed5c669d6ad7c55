"""The times of labels, in the forms that programs and spreadsheets write."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

from monitoring.evaluation.dataset import DatasetError

TIME_MAX = 253_402_300_799.0
"""The end of the year 9999."""
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
COMPACT = re.compile(r"(19[789]|20[0-9])[0-9](0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
"""A date as in 20260301."""
CLOCK = re.compile(r"\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AP]M)?", re.IGNORECASE)
MOMENT = re.compile(
    r"(?:(?P<year>\d{4})[-/.](?P<month>\d{1,2})[-/.](?P<day>\d{1,2})|(?P<first>\d{1,2})[-/.](?P<second>\d{1,2})[-/.]"
    r"(?P<last>\d{4}))(?:,?[ T]+(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<seconds>\d{2}(?:[.,]\d+)?))?"
    r"(?: ?(?P<half>[AP]M))?)?(?: ?(?P<sign>[+-])(?P<zone_hours>\d{2}):?(?P<zone_minutes>\d{2})?)?(?: ?(?:Z|UTC|GMT))?",
    re.IGNORECASE,
)
UNITS = ((1e17, 1e-9), (1e14, 1e-6), (1e11, 1e-3))
"""Numbers from here on are nanoseconds, microseconds, milliseconds."""


class Clock:
    """The form of a column's times. The first time decides the unit of numbers.

    `is_day_first`: whether 03/01/2026 is in January (None: refused; 03.01.2026 is).
    """

    def __init__(self, column: str, first: str, is_day_first: bool | None) -> None:
        self.column = column
        self._is_day_first = is_day_first
        self._is_compact = COMPACT.fullmatch(first) is not None
        size = float(first) if NUMBER.fullmatch(first) else 0.0
        self._unit = next((unit for least, unit in UNITS if size >= least), 1.0)

    def read(self, line: int, text: str) -> float:
        """The time in Unix seconds; UTC without a zone. Raises DatasetError."""
        if self._is_compact and COMPACT.fullmatch(text):
            at = _read_date(text)
        elif NUMBER.fullmatch(text):
            at = float(text) * self._unit
        else:
            at = read_moment(text, self._is_day_first)
            if at is None and read_moment(text, True) is not None:
                raise DatasetError(
                    f"Line {line}: its {self.column} is {text[:40]!r}. Say whether the day or the month comes first: "
                    "--day-first or --month-first."
                )
        if at is None:
            raise DatasetError(
                f"Line {line}: its {self.column} is {text[:40]!r}. It must be Unix seconds or milliseconds, or as in "
                "2026-01-31T12:00:00Z. Is it another column (--time COLUMN)?"
            )
        if not (math.isfinite(at) and 0.0 <= at <= TIME_MAX):
            raise DatasetError(f"Line {line}: its {self.column} {text[:40]!r} is not a time from 1970 to 9999.")
        return at


def format_time(at: float) -> str:
    """A time for people: ISO 8601, UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def read_moment(text: str, is_day_first: bool | None) -> float | None:
    """Unix seconds of a date with or without a time of day; None for other or unclear texts."""
    match = MOMENT.fullmatch(text)
    try:
        moment = _read_other(text) if match is None else _read_match(match, is_day_first)
        return None if moment is None else (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _read_match(match: re.Match[str], is_day_first: bool | None) -> datetime | None:
    part = match.groupdict()
    year, month, day = part["year"], part["month"], part["day"]
    if year is None:
        if is_day_first is None and match[0][match.end("first")] != ".":
            return None
        year, day, month = part["last"], *((part["first"], part["second"])[:: -1 if is_day_first is False else 1])
    hour = int(part["hour"] or 0)
    if part["half"]:
        hour = hour % 12 + 12 * (part["half"].lower() == "pm")
    seconds = float((part["seconds"] or "0").replace(",", "."))
    offset = timedelta(hours=int(part["zone_hours"] or 0), minutes=int(part["zone_minutes"] or 0))
    zone = timezone(-offset if part["sign"] == "-" else offset)
    start = datetime(int(year), int(month), int(day), hour, int(part["minute"] or 0), tzinfo=zone)
    return start + timedelta(seconds=seconds) if seconds < 60 else None


def _read_other(text: str) -> datetime:
    """Full ISO 8601, or a time as in mail. Raises ValueError."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return parsedate_to_datetime(text)


def _read_date(text: str) -> float | None:
    try:
        return datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
