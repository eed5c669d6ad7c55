"""The losses of a training by step, as an SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 36, 40
TRAINING_COLOUR, HELDOUT_COLOUR = "#4269d0", "#ff725c"
TICKS = 4


def draw_losses(title: str, losses: Sequence[Sequence[float]], heldout: Sequence[Sequence[float]]) -> str:
    """A plot of training losses (step, loss) and of losses on held-out rows (step, loss, share right)."""
    points = [*losses, *heldout]
    last = max((point[0] for point in points), default=1.0) or 1.0
    top = max((point[1] for point in points), default=1.0) or 1.0

    def place(step: float, loss: float) -> str:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * loss / top
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(title)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12" fill="currentColor">',
        f'<text x="{LEFT}" y="20">{escape(title)}</text>',
    ]
    for tick in range(TICKS + 1):
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * tick / TICKS
        x = LEFT + (WIDTH - LEFT - RIGHT) * tick / TICKS
        parts += [
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity="0.2"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * tick / TICKS:.3g}</text>',
            f'<text x="{x:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{last * tick / TICKS:.0f}</text>',
        ]
    rows = ((losses, TRAINING_COLOUR, "training loss"), (heldout, HELDOUT_COLOUR, "held-out loss"))
    for at, (curve, colour, name) in enumerate(rows):
        line = " ".join(place(point[0], point[1]) for point in curve)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>')
        x = WIDTH - 240 + 120 * at
        parts.append(f'<line x1="{x}" x2="{x + 16}" y1="16" y2="16" stroke="{colour}" stroke-width="3"/>')
        parts.append(f'<text x="{x + 22}" y="20">{name}</text>')
    return "".join([*parts, f'<text x="{WIDTH / 2}" y="{HEIGHT - 5}" text-anchor="middle">step</text></svg>'])
