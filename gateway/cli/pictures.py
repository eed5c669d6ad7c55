"""Pictures of an error rate over time with its verdicts, for a terminal in block characters, and as SVG."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

HEIGHT = 8
EIGHTHS = " ▁▂▃▄▅▆▇█"
MARKS: Mapping[str, tuple[str, str, str]] = {
    "healthy": ("─", "green", "#2e7d32"),
    "suspect": ("?", "yellow", "#f9a825"),
    "degraded": ("!", "bold red", "#c62828"),
}
"""The mark of a verdict, its style on a terminal, and its colour in SVG."""
SVG_WIDTH, SVG_HEIGHT, SVG_MARGIN = 900, 300, 50


def draw_course(course: Sequence[Mapping[str, Any]], level: float | None) -> Iterator[Text]:
    """The lines of a picture: a bar for each part's share of wrong answers, and the verdict under it. `level` is the
    baseline, drawn as a dashed line (None: no line)."""
    top = _find_top(course, level)
    for row in reversed(range(HEIGHT)):
        line = Text(f"{100 * top * (row + 1) / HEIGHT:6.1f}% ", style="dim") if row % 2 else Text(" " * 8)
        is_level = level is not None and int(min(level / top, 0.999) * HEIGHT) == row
        for part in course:
            eighths = round(8 * HEIGHT * (part["wrong_share"] or 0.0) / top) - 8 * row
            bar = EIGHTHS[max(0, min(8, eighths))]
            is_dashed = is_level and bar == " "
            line.append("╌" if is_dashed else bar, style="dim" if is_dashed else MARKS[part["verdict"]][1])
        yield line
    verdicts = Text("verdict ", style="dim")
    for part in course:
        mark, style, _ = MARKS[part["verdict"]]
        verdicts.append(mark, style=style)
    yield verdicts


def draw_bar(length: float) -> str:
    """A horizontal bar of `length` characters."""
    whole = int(length)
    return "█" * whole + " ▏▎▍▌▋▊▉"[int(8 * (length - whole))].strip()


def make_svg(course: Sequence[Mapping[str, Any]], level: float | None, begins: str, ends: str) -> str:
    """The picture as an SVG document; `begins` and `ends` are the times at its left and right end."""
    top, step = _find_top(course, level), (SVG_WIDTH - 2 * SVG_MARGIN) / max(1, len(course))
    inner = SVG_HEIGHT - 2 * SVG_MARGIN
    floor = SVG_HEIGHT - SVG_MARGIN
    shapes = []
    for number, part in enumerate(course):
        x, high = SVG_MARGIN + number * step, inner * (part["wrong_share"] or 0.0) / top
        colour = MARKS[part["verdict"]][2]
        title = "no labels" if part["wrong_share"] is None else f"{part['wrong_share']:.1%} of {part['labels']}"
        shapes.append(
            f'<rect x="{x:.1f}" y="{floor - high:.1f}" width="{0.9 * step:.1f}" height="{high:.1f}" fill="{colour}">'
            f"<title>{title} wrong, {part['verdict']}</title></rect>"
            f'<rect x="{x:.1f}" y="{floor + 3}" width="{step:.1f}" height="6" fill="{colour}"/>'
        )
    if level is not None:
        y = floor - inner * min(1.0, level / top)
        shapes.append(
            f'<line x1="{SVG_MARGIN}" x2="{SVG_WIDTH - SVG_MARGIN}" y1="{y:.1f}" y2="{y:.1f}" stroke="#555" '
            f'stroke-dasharray="5 4"/><text x="{SVG_WIDTH - SVG_MARGIN + 3}" y="{y + 4:.1f}">{level:.1%}</text>'
        )
    labels = (
        f'<text x="5" y="{SVG_MARGIN}">{top:.0%}</text><text x="5" y="{floor}">0%</text>'
        f'<text x="{SVG_MARGIN}" y="{floor + 25}">{begins}</text>'
        f'<text x="{SVG_WIDTH - SVG_MARGIN}" y="{floor + 25}" text-anchor="end">{ends}</text>'
        f'<text x="{SVG_MARGIN}" y="20">Share of wrong answers; green: healthy, yellow: suspect, red: degraded</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(shapes)}{labels}</svg>\n'
    )


def _find_top(course: Sequence[Mapping[str, Any]], level: float | None) -> float:
    """The upper end of the scale: a little above the highest share and the baseline."""
    return min(1.0, max(0.01, 1.1 * max(part["wrong_share"] or 0.0 for part in course), 1.1 * (level or 0.0)))
