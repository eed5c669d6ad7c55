"""Markdown for the reference."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 120
Row = Sequence[str]


def table(header: Row, rows: Iterable[Row]) -> str:
    """A table. A `|` inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("|" + "|".join(cell.replace("|", "\\|") for cell in line) + "|" for line in lines)


def page(title: str, *parts: str) -> str:
    """A whole page: its title, and its parts with a blank line between them. Prose is wrapped again."""
    return "\n\n".join([f"# {title}", *(wrapped(part) for part in parts)]) + "\n"


def wrapped(text: str) -> str:
    """Prose in lines of at most 120 characters; tables and headings stay."""
    blocks = text.strip().split("\n\n")
    return "\n\n".join(block if block.startswith(("|", "#", "```")) else _filled(block) for block in blocks)


def _filled(block: str) -> str:
    items = re.split(r"\n(?=- )", block)
    return "\n".join(
        textwrap.fill(
            " ".join(item.split()),
            WIDTH,
            subsequent_indent="  " if item.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for item in items
    )


def code(text: str) -> str:
    """A piece of code."""
    return f"`{text}`"


def codes(texts: Iterable[str], separator: str = ", ") -> str:
    """Pieces of code in a row."""
    return separator.join(map(code, texts))


def sentence(text: str) -> str:
    """The first sentence of a docstring, in one line."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]
