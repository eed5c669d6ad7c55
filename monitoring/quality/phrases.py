"""Formats of numbers, times and spans for the monitor's plain words."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from monitoring.time_units import DAY_SECONDS, YEAR_10000

NOBODY_WOKEN = "monitor.webhook_url is not set: nobody is woken, unless Prometheus's alerts do it."
SPANS = (
    (DAY_SECONDS, "day", "days"),
    (3_600.0, "hour", "hours"),
    (60.0, "minute", "minutes"),
    (1.0, "second", "seconds"),
)


def format_moment(unix_seconds: float) -> str:
    """A time in UTC, to the minute."""
    if not 0 <= unix_seconds < YEAR_10000:
        return "an unknown time"
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_day(unix_seconds: float) -> str:
    """A day in UTC."""
    return format_moment(unix_seconds)[:10]


def format_span(seconds: float) -> str:
    """A length of time in its largest unit, to two digits."""
    for length, singular, several in SPANS:
        if seconds >= 0.95 * length:
            digits = format_digits(seconds / length)
            return f"{digits} {singular if digits == '1' else several}"
    return "less than a second"


def format_digits(value: float) -> str:
    """A number to two digits, or to all digits before its point."""
    if not math.isfinite(value):
        return "infinitely many"
    if value == 0:
        return "0"
    if abs(value) >= 9.5:
        return f"{value:,.0f}"
    text = f"{value:.2g}"
    return f"{value:.6f}".rstrip("0").rstrip(".") if "e" in text else text


def format_count(number: float, singular: str, several: str) -> str:
    """A number of things: `1 label`, `1,204 labels`."""
    digits = f"{number:,.0f}" if float(number).is_integer() else format_digits(number)
    return f"{digits} {singular if digits == '1' else several}"


def is_short(since: float | None, now: float) -> bool:
    """Return whether the time since `since` (Unix seconds; None: not known) is too short for a daily rate."""
    return since is not None and now - since < DAY_SECONDS


def format_pace(number: float, words: tuple[str, str], per_day: float, since: float | None, now: float) -> str:
    """The number so far and its daily rate: `431 labels, about 43 a day`; `30 labels in 3 minutes so far`."""
    count = format_count(number, *words)
    if since is not None and is_short(since, now):
        return f"{count} in {format_span(max(0.0, now - since))} so far"
    return f"{count}, about {format_digits(per_day)} a day"


def format_percent(share: float) -> str:
    """A share, to a tenth of a per cent."""
    return f"{100 * share:.1f}%"


def format_part(share: float) -> str:
    """A share from settings, in its shortest form."""
    return f"{100 * share:g}%"


def format_evidence(value: float) -> str:
    """An e-value or a threshold, to three digits."""
    if not math.isfinite(value):
        return "infinite" if value > 0 else "0"
    if 0 < value < 0.001:
        return "under 0.001"
    if value >= 1e6:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def format_dollars(usd: float) -> str:
    """An amount of US dollars: to the cent; less than ten cents to two digits."""
    return f"{usd:,.2f}" if abs(usd) >= 0.095 else format_digits(usd)


def join_words(words: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
