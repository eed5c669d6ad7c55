"""A sample of the prompts that an example adapter was trained on, from the data beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAMPLE_ROWS = 1000
"""Some seconds of fitting, niced, beside the engines."""


def sample_beside(adapter: Path, to: Path) -> Path | None:
    """Rows of `data/train.jsonl` beside the adapter's folder, evenly taken, in the file `to`; None: there is no such.

    Raises OSError.
    """
    data = adapter.parent / "data" / "train.jsonl"
    if not data.is_file():
        return None
    lines = data.read_bytes().splitlines(keepends=True)
    count = min(SAMPLE_ROWS, len(lines))
    to.write_bytes(b"".join(lines[at * len(lines) // count] for at in range(count)))
    return to.absolute()


def lacks_coverage(version: Mapping[str, Any]) -> bool:
    """Whether a version, as the gateway shows it, has no coverage model, nor one that waits or is being fitted."""
    found = version["fitted"].get("coverage")
    return found is None or (found["model"] is None and found["state"] == "failed")
