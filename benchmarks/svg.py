"""The frame of a picture."""

from __future__ import annotations

from collections.abc import Sequence


def draw_picture(width: float, height: float, font_size: int, marks: Sequence[str]) -> str:
    """An SVG of these marks on white, with a new line at its end."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    style = f'font-family="system-ui, sans-serif" font-size="{font_size}" fill="#222"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style} role="img">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *marks, "</svg>", ""])
