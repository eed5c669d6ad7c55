"""Rows of a real adapter for the confidence benchmark: how they are read, and their curve as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Unmeasurable
from router.confidence_model import ConfidenceFeatures, ConfidenceModel
from router.fitting.confidence import CalibrationRow, draw_one_of_each

POINTS_MAX = 200
LINE_BYTES_MAX = 1 << 24
STEPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
TICKS_MAX = 6
SURENESS = ("minimum", "quantile_10", "mean", "length")
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 440, 70, 30, 20, 60
FORM = """\
form of --rows FILE: JSON lines, one held-out answer of the adapter each, at least 100 of them:
  {"logprobs": [-0.02, -1.3], "coverage": 0.8, "contract_kept": true, "right": true, "group": "a"}
  logprobs       of the tokens of the answer as it was sent, in order, natural logarithms, finite
  sureness       instead, or where the last logprobs are left out: {"minimum", "quantile_10", "mean", "length"} of them
                 all; without --tokens it goes before `logprobs`
  coverage       the request's coverage score, higher is more in scope; null or left out: not known
  contract_kept  whether the answer keeps its contract; null or left out: there is none
  right          whether the answer is right
  group          rows of one group say as much as one, so one of them is drawn: copies, paraphrases, rows of one
                 parent; null or left out: it is a group by itself
Other fields are ignored. Nothing may have been trained on these requests."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a file that count, and how many it has in all."""

    kept: list[CalibrationRow]
    read: int


def read_rows(path: Path, seed: int = 0, tokens: int | None = None) -> Rows:
    """The rows of a file, of each group one. Raises Unmeasurable, with the line and what it should be."""
    try:
        with path.open("rb") as lines:
            rows = [
                (_row(line, f"{path}, line {number}", tokens), _group(line, number))
                for number, line in enumerate(lines, 1)
                if line.strip()
            ]
    except OSError as error:
        raise Unmeasurable(f"{path} can't be read ({error.strerror}): give a file of JSON lines.") from error
    if not rows:
        raise Unmeasurable(f"{path} has no rows: give one JSON object on each line, see --help.")
    return Rows([rows[at][0] for at in draw_one_of_each([group for _, group in rows], seed)], len(rows))


def curve_of(model: ConfidenceModel) -> list[dict[str, float]]:
    """From keeping all to keeping none: general's share, and what of all requests is kept and wrong, with its bound."""
    points = model.curve()[::-1]
    step = max(1, -(-len(points) // POINTS_MAX))
    return [
        {
            "general_share": 1 - point.kept / point.rows,
            "error": point.wrong / point.rows,
            "error_max": point.wrong_share_max,
            "threshold": point.threshold,
        }
        for point in [*points[:-1:step], points[-1]]
    ]


def picture(curve: Sequence[Mapping[str, float]], targets: Sequence[Mapping[str, Any]], title: str) -> str:
    """The curve as SVG: general's share to the right, errors upwards, a dot where each target's threshold lies."""
    top = max(0.01, *(point["error_max"] for point in curve)) * 1.05

    def place(share: float, error: float) -> str:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return f"{LEFT + share * across:.1f},{HEIGHT - BOTTOM - min(1.0, error / top) * up:.1f}"

    def line(name: str, style: str) -> str:
        points = " ".join(place(point["general_share"], point[name]) for point in curve)
        return f'<polyline fill="none" {style} points="{points}"/>'

    def words(x: float, y: float, text: str, anchor: str = "middle") -> str:
        safe = text.replace("&", "&amp;").replace("<", "&lt;")
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{safe}</text>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<path d="M{place(0, top)} L{place(0, 0)} L{place(1, 0)}" fill="none" stroke="#444"/>',
    ]
    for tick in range(6):
        x, _, _ = place(tick / 5, 0).partition(",")
        parts.append(words(float(x), HEIGHT - BOTTOM + 18, f"{tick * 20}%"))
    step = next((step for step in STEPS if top <= step * TICKS_MAX), STEPS[-1])
    for tick in range(int(top / step) + 1):
        _, _, y = place(0, tick * step).partition(",")
        parts.append(words(LEFT - 8, float(y) + 4, f"{100 * tick * step:g}%", "end"))
    parts += [
        line("error_max", 'stroke="#999" stroke-dasharray="4 3"'),
        line("error", 'stroke="#1b6ca8" stroke-width="2"'),
    ]
    for target in targets:
        if target["threshold"] is not None:
            x, _, y = place(1 - target["kept"], target["error"]).partition(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#c0392b"/>')
            parts.append(words(float(x) + 8, float(y) - 6, f"at most {100 * target['target']:g}%", "start"))
    parts += [
        words(WIDTH / 2, HEIGHT - 14, "share of requests that go to general"),
        words(LEFT, 18, f"{title}: kept and wrong, of all requests (dashed: its upper bound)", "start"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _group(line: bytes, number: int) -> str:
    """The row's group, which others may be of too, or one of its own."""
    named = json.loads(line).get("group")
    return f"line {number}" if named is None else json.dumps(["named", named], sort_keys=True)


def _row(line: bytes, where: str, tokens: int | None) -> CalibrationRow:
    try:
        held = json.loads(line) if len(line) <= LINE_BYTES_MAX else None
    except (ValueError, RecursionError):
        held = None
    if not isinstance(held, dict):
        raise Unmeasurable(
            f"{where}: not one JSON object of at most {LINE_BYTES_MAX >> 20} MB; see --help for the form."
        )
    seen, right = held.get("sureness"), held.get("right")
    logprobs = held.get("logprobs", None if seen is None else [])
    coverage, kept = held.get("coverage"), held.get("contract_kept")
    if not isinstance(logprobs, list) or not all(_is_number(value) for value in logprobs):
        raise Unmeasurable(f"{where}: `logprobs` must be a list of numbers.")
    if not isinstance(right, bool):
        raise Unmeasurable(f"{where}: `right` must be true or false.")
    if not (coverage is None or _is_number(coverage)):
        raise Unmeasurable(f"{where}: `coverage` must be a number or null.")
    if not (kept is None or isinstance(kept, bool)):
        raise Unmeasurable(f"{where}: `contract_kept` must be true, false or null.")
    if seen is None:
        return CalibrationRow(logprobs, coverage, kept, right)
    if not isinstance(seen, dict) or not all(_is_number(seen.get(name)) for name in SURENESS):
        raise Unmeasurable(f"{where}: `sureness` must have the numbers {', '.join(SURENESS)}.")
    if tokens is not None and len(logprobs) < min(tokens, seen["length"]):
        raise Unmeasurable(f"{where}: it has {len(logprobs)} logprobs of {tokens} first tokens: give fewer --tokens.")
    minimum, tenth, mean, length = (seen[name] for name in SURENESS)
    return CalibrationRow(
        logprobs, coverage, kept, right, ConfidenceFeatures(minimum, tenth, mean, int(length), coverage, kept)
    )


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
