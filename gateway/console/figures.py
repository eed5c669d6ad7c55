"""Figures as the console's pages show them: shares, money, times. All are filters of the templates."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

NOTHING = "\N{EN DASH}"
SPANS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
TONES: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("healthy", "ready", "ok", "right", "promote", "passed", "up", "served", "done"), "good"),
        **dict.fromkeys(
            ("suspect", "staging", "loading", "hold", "unresolved", "truncated", "running", "cannot_tell"), "warn"
        ),
        **dict.fromkeys(("degraded", "failed", "error", "wrong", "roll_back", "down", "ghost", "quarantined"), "bad"),
    }
)
"""The tones of words of state; of all others there is none."""


def read_moment(text: str) -> float:
    """The Unix seconds of a time, of UTC where it names no other zone. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def format_share(value: float | None, digits: int = 3) -> str:
    """A share as percent."""
    return NOTHING if value is None else f"{100 * value:.{digits}g}%".replace("1e+02%", "100%")


def format_usd(value: float | None) -> str:
    """US dollars: cents, or as many digits as a small amount needs."""
    if value is None:
        return NOTHING
    return f"${value:,.2f}" if value == 0 or abs(value) >= 0.1 else f"${value:.3g}"


def format_figure(value: float | None) -> str:
    """A number with at most three digits after what matters."""
    if value is None:
        return NOTHING
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"


def format_seconds(value: float | None) -> str:
    """A span of time in its largest unit."""
    if value is None:
        return NOTHING
    size, unit = next(((size, unit) for size, unit in SPANS if abs(value) >= size), (0.001, "ms"))
    return f"{value / size:.3g} {unit}"


def format_moment(value: float | None) -> str:
    """Unix seconds as a date and a time of UTC, to be read by a machine too."""
    if not value:
        return NOTHING
    at = datetime.fromtimestamp(value, UTC)
    ago = format_seconds(max(0.0, time.time() - value))
    title = f"{ago} ago" if value <= time.time() else "to come"
    machine, words = at.strftime("%Y-%m-%dT%H:%M:%SZ"), at.strftime("%Y-%m-%d %H:%M")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(machine, title, words)


def find_tone(word: object) -> str:
    """The tone in which a word of state is shown: good, warn, bad, or none."""
    return TONES.get(str(word), "")


def as_text(value: Any) -> str:
    """A message's content, or another value, as text that a person reads."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) and "text" in part for part in value):
        return "\n".join(str(part["text"]) for part in value)
    return json.dumps(value, ensure_ascii=False, indent=2)


FILTERS: Mapping[str, Callable[..., str]] = MappingProxyType(
    {
        "share": format_share,
        "usd": format_usd,
        "figure": format_figure,
        "seconds": format_seconds,
        "moment": format_moment,
        "tone": find_tone,
        "text": as_text,
    }
)
