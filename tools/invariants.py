"""List the invariants that tests check, from their markers: `python -m tools.invariants`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read_markers(path: Path) -> Iterator[tuple[str, str]]:
    """Each `@pytest.mark.invariant("…")` of a test file: the sentence, and the test or the file that it marks."""
    module = ast.parse(path.read_text(encoding="utf-8"))
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from ((sentence, node.name) for sentence in _sentences(node.decorator_list))
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark":
            yield from ((sentence, path.relative_to(ROOT).as_posix()) for sentence in _sentences([node.value]))


def _sentences(marks: list[ast.expr]) -> Iterator[str]:
    for mark in marks:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.invariant":
            yield ast.literal_eval(mark.args[0])


def list_invariants() -> dict[str, list[str]]:
    """The tests that check each invariant, by its sentence."""
    held_by: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for sentence, test in read_markers(path):
            held_by.setdefault(sentence, []).append(test)
    return held_by


if __name__ == "__main__":
    for sentence, tests in sorted(list_invariants().items()):
        sys.stdout.write(f"{sentence}\n    {', '.join(tests)}\n")
