"""The report on readiness as one HTML file: the answer, the rules, and the learning curve as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from monitoring.web_page import make_web_page, wrap_wide

WIDTH, HEIGHT, MARGIN = 760, 320, 55
KINDS: Mapping[str, str] = {"for": "good", "against": "bad", "never": "bad", "unknown": "dim"}
ANSWERS: Mapping[str, str] = {"fine_tune": "Fine-tune", "not_yet": "Not yet", "never": "Never", "retire": "Retire"}
STATES: Mapping[str, str] = {"for": "yes", "against": "no", "never": "never", "unknown": "unknown"}


def make_page(name: str, report: Mapping[str, Any]) -> str:
    """The page of a report on the data of this name. All texts are escaped."""
    rows = "".join(
        f"<tr><td>{escape(rule['question'])}</td><td class='{KINDS[rule['state']]}'><b>"
        f"{STATES[rule['state']]}</b></td><td>{escape(rule['evidence'])} <i>{escape(rule['next'])}</i></td></tr>"
        for rule in report["rules"]
    )
    curve = (report.get("facts") or {}).get("curve")
    picture = "" if curve is None else f"<h2>Learning curve</h2>{wrap_wide(draw_curve(curve))}"
    table = wrap_wide(f"<table><tr><th>Rule</th><th>Answer</th><th>Evidence</th></tr>{rows}</table>")
    head = f"<h1>{ANSWERS[report['answer']]}</h1><p>{escape(name)}: {escape(report['because'])}</p>"
    return make_web_page(f"Readiness of {name}", f"{head}{table}{picture}")


def draw_curve(curve: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The learning curve as SVG: measured points, and the extrapolation with its 95% interval."""
    measured, beyond = curve["measured"], curve["extrapolated"]
    first, last = math.log(measured[0]["rows"]), math.log(beyond[-1]["rows"])
    least = min(measured[0]["right"], *(point["low"] for point in beyond))

    def place(rows: float, right: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (math.log(rows) - first) / (last - first)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (right - least) / max(1e-9, 1 - least)
        return f"{x:.1f},{y:.1f}"

    band = [place(point["rows"], point["high"]) for point in beyond]
    band += [place(point["rows"], point["low"]) for point in reversed(beyond)]
    line = " ".join(place(point["rows"], point["right"]) for point in (*measured, *beyond))
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="4" fill="#1e88e5"><title>{point["rows"]:,} rows: {point["right"]:.1%}</title>'
        "</circle>"
        for point in measured
        for x, y in [place(point["rows"], point["right"]).split(",")]
    )
    ticks = "".join(
        f'<text x="{x}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{point["rows"]:,}</text>'
        for point in (*measured[::2], *beyond[::2])
        for x, _ in [place(point["rows"], least).split(",")]
    )
    ends = "".join(
        f'<text x="5" y="{place(measured[0]["rows"], right).split(",")[1]}">{right:.0%}</text>' for right in (least, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><polygon points="{" ".join(band)}" fill="#1e88e5" opacity="0.25"/>'
        f'<polyline points="{line}" fill="none" stroke="#1e88e5"/>{dots}{ticks}{ends}'
        f'<text x="{MARGIN}" y="20">Right answers of a cheap model by training rows; band: 95% interval</text></svg>'
    )
