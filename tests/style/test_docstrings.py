"""A docstring begins with a noun phrase or an imperative: then a list of first lines reads as a list of things."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.style.source import ROOMS, files, shown, tree

QUESTIONS = frozenset({"how", "what", "which", "who", "whether"})
FOLDERS = (*ROOMS, "tests", "examples")


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Every docstring of a file, those of fields and constants too, with its line."""
    for node in ast.walk(tree(path)):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, value.value.strip()


def test_docstrings_begin_with_a_noun_phrase_or_an_imperative() -> None:
    bad = [
        f"{shown(path, line)} {text.splitlines()[0]}"
        for path in files(*FOLDERS)
        for line, text in docstrings(path)
        if text and text.split()[0].strip(",:").lower() in QUESTIONS
    ]
    assert not bad, f"name the thing, or say what to do: {bad}"
