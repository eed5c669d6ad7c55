"""The picture of the fleet benchmark: how costs grow with gateways, replicas and tasks, each alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.svg import draw_picture

FACTORS = ("gateways", "replicas", "tasks")
LINES: Mapping[str, tuple[str, str]] = {
    "cpu_ms_per_second": ("CPU of a gateway", "#1b6ca8"),
    "change_cpu_ms": ("CPU of a change", "#7a3e9d"),
    "engine_calls_per_second": ("calls to engines", "#c0392b"),
    "redis_kb_per_second": ("traffic of Redis", "#e08e0b"),
    "metrics_kb": ("size of /metrics", "#2e8b57"),
}
"""Figures that are drawn, each by the first point of its line."""
WIDE, HIGH, LEFT, TOP, GAP = 210, 200, 50, 50, 45


def points_of(points: Sequence[Mapping[str, Any]], factor: str) -> list[Mapping[str, Any]]:
    """The fleets that differ from the first in this factor alone, the smallest first."""
    others = [name for name in FACTORS if name != factor]
    line = [point for point in points if all(point[name] == points[0][name] for name in others)]
    return sorted(line, key=lambda point: int(point[factor]))


def draw(points: Sequence[Mapping[str, Any]]) -> str:
    """An SVG of three panels, on scales of tens: a line that rises as steeply as the dotted one grows in proportion."""
    width, height = LEFT + len(FACTORS) * (WIDE + GAP), TOP + HIGH + 90
    marks = [f'<text x="{LEFT}" y="20" font-weight="bold">Growth of each cost, by the smallest fleet</text>']
    for at, factor in enumerate(FACTORS):
        marks += _draw_panel(points_of(points, factor), factor, LEFT + at * (WIDE + GAP))
    for at, (name, colour) in enumerate(LINES.values()):
        across, down = LEFT + 245 * (at % 3), TOP + HIGH + 52 + 20 * (at // 3)
        marks.append(f'<rect x="{across}" y="{down - 6}" width="16" height="3" fill="{colour}"/>')
        marks.append(f'<text x="{across + 22}" y="{down}">{name}</text>')
    return draw_picture(width, height, 12, marks)


def _draw_panel(line: Sequence[Mapping[str, Any]], factor: str, left: int) -> list[str]:
    first, last = line[0][factor], line[-1][factor]
    most = max(10.0, last / first)

    def place(count: float, growth: float) -> str:
        across = left + WIDE * math.log(count / first) / math.log(most)
        down = TOP + HIGH - HIGH * math.log(min(max(growth, 1.0), most)) / math.log(most)
        return f"{across:.1f},{down:.1f}"

    bottom = TOP + HIGH
    marks = [
        f'<text x="{left}" y="{TOP - 12}">{factor}</text>',
        f'<path d="M{left} {TOP}V{bottom}H{left + WIDE}" fill="none" stroke="#888"/>',
        f'<polyline points="{place(first, 1)} {place(last, last / first)}" fill="none" stroke="#bbb" '
        'stroke-dasharray="3 3"/>',
    ]
    for power in range(int(math.log10(most)) + 1):
        down = place(first, 10.0**power).partition(",")[2]
        marks.append(f'<text x="{left - 5}" y="{down}" text-anchor="end" font-size="10">{10**power}&#215;</text>')
    for point in line:
        across = place(point[factor], 1).partition(",")[0]
        marks.append(f'<text x="{across}" y="{bottom + 15}" text-anchor="middle" font-size="10">{point[factor]}</text>')
    for figure, (_, colour) in LINES.items():
        begin = line[0]["figures"][figure]
        if begin > 0:
            path = " ".join(place(point[factor], point["figures"][figure] / begin) for point in line)
            marks.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return marks
