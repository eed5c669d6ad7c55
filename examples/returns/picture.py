"""The demo's picture: the error of the latest answers, and who answered them, over time, as one SVG."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, RIGHT = 900, 520, 64, 20
ERROR_TOP, ERROR_BOTTOM, SHARE_TOP, SHARE_BOTTOM = 74, 268, 318, 470
LINE_HEIGHT = 18
SHADES = {"holiday": "#fdf1df", "regular": "#e9f0f7"}
COLOURS = ("#c0392b", "#1b6ca8", "#7f8c8d", "#8e44ad")
VERDICT_COLOURS = {"healthy": "#2e8b57", "suspect": "#d68910", "degraded": "#c0392b"}
ERROR_STEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MINUTE_STEPS = (0.5, 1, 2, 5, 10, 20, 60)


class Scale:
    """The place of a time in seconds and a share from 0 to `top` in one half of the picture."""

    def __init__(self, seconds: float, top: float, upper: int, lower: int) -> None:
        self.seconds, self.top = max(seconds, 1.0), top
        self._upper, self._lower = upper, lower

    def x(self, at: float) -> float:
        """The place of a moment."""
        return LEFT + at / self.seconds * (WIDTH - LEFT - RIGHT)

    def y(self, share: float) -> float:
        """The place of a share; more than the top lies at the top."""
        return self._lower - min(share / self.top, 1.0) * (self._lower - self._upper)


def picture(story: Mapping[str, Any]) -> str:
    """A story as `demo.py` writes it (`phases`, `points`, `verdicts`, `versions`), as SVG."""
    points, phases = story["points"], story["phases"]
    above, below = _halves(points, [phase["to"] for phase in phases])
    below_title = f"who answered the last {story['window']} requests (dashed: what {story['versions'][0]} keeps)"
    marks = [_kept(points, story["versions"][0], below), *_verdicts(story["verdicts"], above)]
    return _drawn(story, above, below, arms_of(story), _phases(phases, above), marks, below_title)


def loop_picture(story: Mapping[str, Any]) -> str:
    """A story as `loop.py` writes it (`points`, `events`), as SVG."""
    points = [
        point if point["answers"] >= story["window"] // 2 else {**point, "error": None} for point in story["points"]
    ]
    events = story["events"]
    above, below = _halves(points, [event["at"] for event in events])
    arms = arms_of({"versions": [], "points": points})
    below_title = f"who answered the last {story['window']} requests"
    list_height = LINE_HEIGHT * -(-len(events) // 2) + 10
    marks = [*_events(events, above), *_list_events(events)]
    return _drawn({**story, "points": points}, above, below, arms, [], marks, below_title, HEIGHT + list_height)


def _halves(points: Sequence[Mapping[str, Any]], ends: Sequence[float]) -> tuple[Scale, Scale]:
    """The scales of the errors above and of the shares below."""
    seconds = max([*ends, *(point["at"] for point in points), 1.0])
    errors = [point["error"] for point in points if point["error"] is not None]
    top = next((step for step in ERROR_STEPS if step >= max(errors, default=0.0) * 1.1), 1.0)
    return Scale(seconds, top, ERROR_TOP, ERROR_BOTTOM), Scale(seconds, 1.0, SHARE_TOP, SHARE_BOTTOM)


def _drawn(
    story: Mapping[str, Any], above: Scale, below: Scale, arms: Mapping[str, str], ground: Sequence[str],
    marks: Sequence[str], below_title: str, height: int = HEIGHT,
) -> str:  # fmt: skip
    points = story["points"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        *ground,
        *_axes(above, below),
        *_shares(points, arms, below),
        _line(points, above),
        *marks,
        *_legend(arms),
        _words(LEFT, 18, story["title"], "start", weight="bold"),
        _words(LEFT, ERROR_TOP - 8, f"wrong among the last {story['window']} answers", "start"),
        _words(LEFT, SHARE_TOP - 8, below_title, "start"),
        _words(WIDTH / 2, HEIGHT - 8, "minutes"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _events(events: Sequence[Mapping[str, Any]], scale: Scale) -> list[str]:
    """A line through both halves for each event, with its number."""
    parts = []
    for number, event in enumerate(events, 1):
        x, y = scale.x(event["at"]), ERROR_TOP + 10 + number % 2 * 20
        parts.append(f'<path d="M{x:.1f},{ERROR_TOP} V{SHARE_BOTTOM}" stroke="#888" stroke-dasharray="4 3"/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y}" r="9" fill="#1b6ca8"/>')
        parts.append(_words(x, y + 4, str(number), colour="#fff"))
    return parts


def _list_events(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """The events below the picture, in two columns."""
    rows = -(-len(events) // 2)
    parts = []
    for at, event in enumerate(events):
        x, y = LEFT + at // rows * (WIDTH - LEFT) / 2, HEIGHT + 10 + at % rows * LINE_HEIGHT
        minutes, seconds = divmod(round(event["at"]), 60)
        parts.append(_words(x, y, f"{at + 1}. {event['text']} ({minutes}:{seconds:02})", "start", "#1b6ca8"))
    return parts


def arms_of(story: Mapping[str, Any]) -> dict[str, str]:
    """Each arm with its colour: the task's versions first, the one that leads at the head."""
    known: Sequence[str] = story["versions"]
    others = sorted({arm for point in story["points"] for arm in point["shares"]} - set(known))
    return dict(zip([*known, *others], COLOURS, strict=False))


def _phases(phases: Sequence[Mapping[str, Any]], scale: Scale) -> list[str]:
    parts = []
    for phase in phases:
        x, width = scale.x(phase["from"]), scale.x(phase["to"]) - scale.x(phase["from"])
        for upper, lower in ((ERROR_TOP, ERROR_BOTTOM), (SHARE_TOP, SHARE_BOTTOM)):
            parts.append(
                f'<rect x="{x:.1f}" y="{upper}" width="{width:.1f}" height="{lower - upper}" '
                f'fill="{SHADES.get(phase["season"], "#f4f4f4")}"/>'
            )
        parts.append(_words(x + width / 2, ERROR_TOP - 26, phase["name"], colour="#666"))
    return parts


def _axes(above: Scale, below: Scale) -> list[str]:
    parts = []
    seconds, top = above.seconds, above.top
    for scale, most, count in ((above, top, round(top / 0.1)), (below, 1.0, 4)):
        for tick in range(count + 1):
            share = tick * most / count
            y = scale.y(share)
            parts.append(f'<path d="M{LEFT},{y:.1f} H{WIDTH - RIGHT}" stroke="#000" stroke-opacity="0.12"/>')
            parts.append(_words(LEFT - 8, y + 4, f"{100 * share:.0f}%", "end"))
    step = next((step for step in MINUTE_STEPS if seconds / 60 <= step * 12), MINUTE_STEPS[-1])
    ticks = [tick * step for tick in range(int(seconds / 60 / step) + 1)]
    return parts + [_words(above.x(minutes * 60), SHARE_BOTTOM + 18, f"{minutes:g}") for minutes in ticks]


def _shares(points: Sequence[Mapping[str, Any]], arms: Mapping[str, str], scale: Scale) -> list[str]:
    """One area for each arm, stacked: the leading version lies at the bottom."""
    floor = [0.0] * len(points)
    parts = []
    for arm, colour in arms.items():
        ceiling = [low + point["shares"].get(arm, 0.0) for low, point in zip(floor, points, strict=True)]
        edge = [(point["at"], high) for point, high in zip(points, ceiling, strict=True)]
        edge += [(point["at"], low) for point, low in zip(points[::-1], floor[::-1], strict=True)]
        place = " ".join(f"{scale.x(at):.1f},{scale.y(share):.1f}" for at, share in edge)
        parts.append(f'<polygon fill="{colour}" fill-opacity="0.8" points="{place}"/>')
        floor = ceiling
    return parts


def _line(points: Sequence[Mapping[str, Any]], scale: Scale) -> str:
    known = [(point["at"], point["error"]) for point in points if point["error"] is not None]
    place = " ".join(f"{scale.x(at):.1f},{scale.y(error):.1f}" for at, error in known)
    return f'<polyline fill="none" stroke="#222" stroke-width="2" points="{place}"/>'


def _kept(points: Sequence[Mapping[str, Any]], version: str, scale: Scale) -> str:
    """The share of its requests that the leading version keeps, in steps."""
    known = [(point["at"], point["health"][version]["kept"]) for point in points if version in point["health"]]
    place = ""
    for at, kept in known:
        place += f" H{scale.x(at):.1f} V{scale.y(kept):.1f}" if place else f"M{scale.x(at):.1f},{scale.y(kept):.1f}"
    return f'<path fill="none" stroke="#222" stroke-width="1.5" stroke-dasharray="5 3" d="{place}"/>'


def _verdicts(verdicts: Sequence[Mapping[str, Any]], scale: Scale) -> list[str]:
    """A line through both halves where a verdict moved, with its words; those of the leading version higher up."""
    parts = []
    for number, one in enumerate(verdicts):
        x, colour = scale.x(one["at"]), VERDICT_COLOURS.get(one["verdict"], "#666")
        y = ERROR_TOP + 14 + number % 5 * 15
        parts.append(f'<path d="M{x:.1f},{ERROR_TOP} V{SHARE_BOTTOM}" stroke="{colour}" stroke-dasharray="4 3"/>')
        right = x > WIDTH * 0.8
        text = f"{one['version']} {one['verdict']}"
        parts.append(_words(x - 5 if right else x + 5, y, text, "end" if right else "start", colour))
    return parts


def _legend(arms: Mapping[str, str]) -> list[str]:
    parts = []
    for number, (arm, colour) in enumerate(arms.items()):
        x = WIDTH - RIGHT - 130 * (len(arms) - number)
        parts.append(f'<rect x="{x}" y="{SHARE_TOP - 19}" width="12" height="12" fill="{colour}" fill-opacity="0.8"/>')
        parts.append(_words(x + 17, SHARE_TOP - 8, arm, "start"))
    return parts


def _words(
    x: float, y: float, text: str, anchor: str = "middle", colour: str = "#222", weight: str = "normal"
) -> str:  # fmt: skip
    style = f'text-anchor="{anchor}" fill="{colour}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text, quote=False)}</text>'


def written(story: Mapping[str, Any]) -> str:
    """A story as JSON, a point or a verdict a line."""
    lists = {name: value for name, value in story.items() if isinstance(value, list) and value}
    rest = {name: value for name, value in story.items() if name not in lists}
    lines = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in rest.items()]
    for name, values in lists.items():
        lines.append(f" {json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(one)}" for one in values) + "\n ]")
    return "{\n" + ",\n".join(lines) + "\n}\n"
