"""`python -m tools.reference` writes docs/reference/; with `--check` it compares, and ends with 1 on a difference."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.reference.pages import made

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "reference"


def main(arguments: list[str]) -> int:
    """Write the pages, or compare them. Returns the exit code."""
    pages = made()
    stale = [name for name, text in pages.items() if _written(name) != text]
    stray = [path.name for path in FOLDER.glob("*.md") if path.name not in pages]
    if "--check" in arguments:
        for name in (*stale, *stray):
            sys.stderr.write(f"docs/reference/{name} differs from the code: run python -m tools.reference\n")
        return 1 if stale or stray else 0
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).write_text(pages[name], encoding="utf-8")
    for name in stray:
        (FOLDER / name).unlink()
    return 0


def _written(name: str) -> str | None:
    path = FOLDER / name
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
