"""Plots of the console as SVG, without scripts or styles of their own. The page's classes give the colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from monitoring.quality.phrases import format_evidence

WIDTH, ROW_HEIGHT, NAME_WIDTH, FIGURE_WIDTH = 400, 30, 140, 108
NAME_MAX = 18
SPLIT_HEIGHT = 14
TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)
TICKS_WITHOUT_WORDS = (0.25, 0.75)
"""Their words would touch those beside them."""


def draw_split(weights: Mapping[str, float], of: str = "Traffic") -> Markup:
    """A bar of shares of a whole, such as of the versions of a task's requests, with their names as its description."""
    parts, x = [], 0.0
    for number, (name, share) in enumerate(sorted(weights.items(), key=lambda item: -item[1])):
        ends = f'x="{100 * x:.2f}%" width="{100 * share:.2f}%"'
        parts.append(
            f'<rect class="arm{number % 4}" {ends} y="0" height="{SPLIT_HEIGHT}">'
            f"<title>{escape(name)}: {share:.1%}</title></rect>"
        )
        x += share
    words = ", ".join(f"{name} {share:.1%}" for name, share in weights.items()) or "no version"
    return _picture("split", f"{of}: {words}", 100, SPLIT_HEIGHT, parts, stretched=True)


def draw_intervals(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Estimates with their intervals, each against its baseline: `name`, `estimate`, `low`, `high`, `baseline`, `tone`.

    All are shares on one scale from 0; or differences of shares, on one that has both sides of 0."""
    values = [row[name] for row in rows for name in ("estimate", "low", "high", "baseline") if row[name] is not None]
    top, bottom = min(1.0, 1.15 * max(values, default=0.0)), max(-1.0, 1.15 * min(values, default=0.0))
    top, bottom = max(top, 0.0), min(bottom, 0.0)
    top = top if top > bottom else 0.01
    span, height = WIDTH - NAME_WIDTH - FIGURE_WIDTH, ROW_HEIGHT * len(rows) + 22

    def x_of(value: float) -> float:
        return NAME_WIDTH + span * max(0.0, min(1.0, (value - bottom) / (top - bottom)))

    parts = list(_grid(bottom, top, height, span))
    for number, row in enumerate(rows):
        y = ROW_HEIGHT * number + ROW_HEIGHT / 2
        parts.append(_write_name(row["name"], y + 4))
        if row["low"] is not None and row["high"] is not None:
            ends = f'x1="{x_of(row["low"]):.1f}" x2="{x_of(row["high"]):.1f}"'
            parts.append(f'<line class="range {row["tone"]}" {ends} y1="{y}" y2="{y}"/>')
        if row["baseline"] is not None:
            x = x_of(row["baseline"])
            parts.append(f'<line class="baseline" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 9}" y2="{y + 9}"/>')
        if row["estimate"] is not None:
            parts.append(f'<circle class="dot {row["tone"]}" cx="{x_of(row["estimate"]):.1f}" cy="{y}" r="5"/>')
            parts.append(f'<text x="{WIDTH}" y="{y + 4:.0f}" text-anchor="end">{row["estimate"]:.1%}</text>')
    words = "; ".join(_describe_interval(row) for row in rows if row["estimate"] is not None)
    return _picture("intervals", words or "nothing is measured yet", WIDTH, height, parts)


def _describe_interval(row: Mapping[str, Any]) -> str:
    """A row of estimates in words, for people who can't see the picture."""
    words = f"{row['name']}: {row['estimate']:.1%}"
    if row["low"] is not None and row["high"] is not None:
        words += f", 95% interval {row['low']:.1%} to {row['high']:.1%}"
    return words if row["baseline"] is None else f"{words}, baseline {row['baseline']:.1%}"


def draw_evidence(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Bars of evidence up to its threshold, on a logarithmic scale: `name`, `value`, `threshold`, `tone`."""
    parts, span = [], WIDTH - NAME_WIDTH - FIGURE_WIDTH
    for number, row in enumerate(rows):
        y = ROW_HEIGHT * number + 8
        part = _find_part(row["value"], row["threshold"])
        words = _describe_part(row)
        parts.append(
            f"{_write_name(row['name'], y + 11)}"
            f'<rect class="track" x="{NAME_WIDTH}" y="{y}" width="{span}" height="14" rx="7"/>'
            f'<rect class="grown {row["tone"]}" x="{NAME_WIDTH}" y="{y}" width="{span * part:.1f}" height="14" rx="7"/>'
            f'<text x="{WIDTH}" y="{y + 11}" text-anchor="end">{words}</text>'
        )
    words = "; ".join(f"{row['name']}: {_describe_part(row)}" for row in rows)
    return _picture("evidence", words or "no evidence yet", WIDTH, ROW_HEIGHT * len(rows) or 1, parts)


def _write_name(name: str, y: float) -> str:
    """A row's name, cut to the room; the tooltip shows all of it."""
    shown = name if len(name) <= NAME_MAX else f"{name[: NAME_MAX - 1]}…"
    return f'<text x="0" y="{y:.0f}">{escape(shown)}<title>{escape(name)}</title></text>'


def _describe_part(row: Mapping[str, Any]) -> str:
    return f"{format_evidence(row['value'])} of {format_evidence(row['threshold'])}"


def _find_part(value: float, threshold: float) -> float:
    """The length of a bar of evidence, 0.01 to 1: log(value) / log(threshold). No evidence is the value 1."""
    if value <= 1.0 or threshold <= 1.0:
        return 0.01
    return min(1.0, max(0.01, math.log(value) / math.log(threshold)))


def _grid(bottom: float, top: float, height: float, span: float) -> Iterator[str]:
    for tick in TICKS:
        x, share = NAME_WIDTH + span * tick, bottom + (top - bottom) * tick
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height - 18}"/>'
        if tick not in TICKS_WITHOUT_WORDS:
            yield f'<text class="dim" x="{x:.1f}" y="{height - 4}" text-anchor="middle">{share:.1%}</text>'


def _picture(
    kind: str, words: str, width: float, height: float, parts: Sequence[str], stretched: bool = False
) -> Markup:
    size = f'width="100%" height="{height}"' if stretched else f'viewBox="0 0 {width} {height}"'
    picture = f'<svg class="plot {kind}" role="img" aria-label="{escape(words)}" {size}>{"".join(parts)}</svg>'
    return Markup(picture)  # noqa: S704 - each name in it is escaped where it is written
