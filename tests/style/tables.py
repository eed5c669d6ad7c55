"""Tables in the documents, read as rows."""

from __future__ import annotations

import re

from tests.style.source import ROOT

Row = tuple[str, ...]


def table(document: str, *header: str) -> list[Row]:
    """The rows of the one table in docs/ (or at the root) that has this header."""
    found = [rows for rows in tables(document) if rows[0] == header]
    assert len(found) == 1, f"{document} has {len(found)} tables with the columns {header}"
    return found[0][1:]


def tables(document: str) -> list[list[Row]]:
    """All tables of a document, each with its header row first."""
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = re.findall(r"(?m)(?:^\|.*\|\n)+", text)
    return [[cells(line) for line in block.splitlines() if not re.fullmatch(r"[|\s:-]+", line)] for block in blocks]


def cells(line: str) -> Row:
    return tuple(cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1])


def code(cell: str) -> str:
    """A cell's content where it is one piece of code."""
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match, f"{cell} should be written as `code`"
    return match[1]
