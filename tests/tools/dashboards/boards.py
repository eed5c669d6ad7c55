"""The checked-in dashboards as tests read them: their panels, and their queries with variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tests.style.source import ROOT

Json = dict[str, Any]
FILES = sorted((ROOT / "monitoring" / "dashboards").glob("*.json"))
BOARDS: dict[str, Json] = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
RATE_INTERVAL_SECONDS = 120


def panels(board: Json) -> list[Json]:
    """All panels but the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def all_panels() -> Iterator[tuple[str, Json]]:
    """Each panel with its dashboard's name."""
    for name, board in BOARDS.items():
        for panel in panels(board):
            yield name, panel


def events() -> Iterator[tuple[str, Json]]:
    """Each query of events with its dashboard's name."""
    for name, board in BOARDS.items():
        for event in board["annotations"]["list"]:
            yield name, event


def filled(expr: str, range_seconds: int, interval_seconds: int = RATE_INTERVAL_SECONDS // 4) -> str:
    """A query as Grafana would send it: all tasks and versions, over a range of so many seconds.

    `interval_seconds` are those of a step, and of a scrape.
    """
    values = {
        "__rate_interval": f"{4 * interval_seconds}s",
        "__range_s": str(range_seconds),
        "__range": f"{range_seconds}s",
        "__interval": f"{interval_seconds}s",
        **dict.fromkeys(("task", "version", "model", "instance"), ".*"),
    }
    return re.sub(r"\$(\w+)", lambda found: values[found[1]], expr)
