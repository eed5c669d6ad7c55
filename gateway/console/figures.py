"""Filters for the console's templates that format figures: shares, money, times."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from markupsafe import Markup, escape

from monitoring.quality.phrases import format_evidence

NOTHING = "\N{EN DASH}"
SPANS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
SIZES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
COMMAND = re.compile("`([^`]+)`")
TONES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("healthy", "ready", "ok", "right", "promote", "passed", "up", "served", "done"), "good"),
        **dict.fromkeys(
            ("suspect", "staging", "loading", "hold", "unresolved", "truncated", "running", "cannot_tell"), "warn"
        ),
        **dict.fromkeys(("degraded", "failed", "error", "wrong", "roll_back", "down", "ghost", "quarantined"), "bad"),
    }
)
"""The tones of words for states. All other words have none."""


def read_moment(text: str) -> float:
    """The Unix seconds of a time, which is UTC unless it names another zone. Raises ValueError with a message."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("A time is written as 2026-12-01T09:30, in UTC.") from None
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def write_moment(seconds: float) -> str:
    """A UTC time in the form of a browser's field."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def format_share(value: float | None) -> str:
    """A share as a percentage with three digits. Only a whole share is shown as 100%."""
    if value is None:
        return NOTHING
    return "over 99.9%" if 0.9995 <= value < 1 else f"{_round(100 * value)}%"


def format_usd(value: float | None) -> str:
    """US dollars: with cents, or with three digits if the amount is small."""
    if value is None:
        return NOTHING
    size = abs(value)
    words = f"${size:,.2f}" if size == 0 or size >= 0.0995 else f"${_round(size)}"
    return f"\N{MINUS SIGN}{words}" if value < 0 else words


def format_figure(value: float | None) -> str:
    """A number with three significant digits, or all digits of its integer part."""
    return NOTHING if value is None else _round(value)


def format_size(value: float) -> str:
    """Bytes in their largest unit."""
    size, unit = next((each for each in SIZES if value >= each[0]), (1, "bytes"))
    return f"{_round(value / size)} {unit}"


def format_seconds(value: float | None) -> str:
    """A span of time in its largest unit. 59.97 seconds count as one minute."""
    if value is None:
        return NOTHING
    size, unit = next(((size, unit) for size, unit in SPANS if abs(value) >= 0.9995 * size), (0.001, "ms"))
    return f"{_round(value / size)} {unit}"


def format_span(value: float) -> str:
    """A span of time in whole minutes, hours or days, so that a live part does not change all the time."""
    size, unit = next(((size, unit) for size, unit in SPANS if value >= size), (1.0, "s"))
    return f"{value // size:,.0f} {unit}" if size > 1.0 else "under 1 min"


def format_moment(value: float | None, has_seconds: bool = False) -> str:
    """Unix seconds as a UTC date and time with its age, also in a form for machines."""
    if not value:
        return NOTHING
    at, seconds = datetime.fromtimestamp(value, UTC), time.time() - value
    age = f"{format_span(seconds)} ago" if seconds >= 0 else f"in {format_span(-seconds)}"
    words = at.strftime("%Y-%m-%d %H:%M:%S" if has_seconds else "%Y-%m-%d %H:%M")
    machine = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{}">{} UTC <small>{}</small></time>').format(machine, words, age)


def write_prose(text: str) -> str:
    """A sentence of the gateway, with its commands marked as code."""
    return Markup(COMMAND.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - it is escaped before


def _round(value: float) -> str:
    """A number with three digits, or all digits of its integer part; never as a power of ten."""
    size = abs(value)
    if size >= 999.5 or value == int(value):
        return f"{value:,.0f}"
    digits = 3 - 1 - math.floor(math.log10(float(f"{size:.2e}")))  # 9.996 counts as 10.0
    return f"{value:.{digits}f}".rstrip("0").rstrip(".")


def find_tone(word: object) -> str:
    """The tone for a state's word: good, warn, bad, or none."""
    return TONES.get(str(word), "")


def as_text(value: Any) -> str:
    """A message's content, or another value, as text for a person."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and "text" in part for part in value):
        return "\n".join(str(part["text"]) for part in value)
    return json.dumps(value, ensure_ascii=False, indent=2)


FILTERS: Mapping[str, Callable[..., str]] = MappingProxyType(
    {
        "share": format_share,
        "usd": format_usd,
        "evidence": format_evidence,
        "figure": format_figure,
        "seconds": format_seconds,
        "span": format_span,
        "size": format_size,
        "moment": format_moment,
        "prose": write_prose,
        "tone": find_tone,
        "text": as_text,
    }
)
