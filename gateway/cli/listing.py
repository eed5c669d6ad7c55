"""A line of a list: what is to be known of a version, or of a replica, at one look."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from gateway.cli.tables import Row, moment, share, since, size
from serving.adapters.entries import PLACED

NOTE_MAX = 60
"""Letters of a note in a list; `why` has all of it."""


def version_row(told: dict[str, Any]) -> Row:
    """A version as the admin API tells it."""
    placed = f"{len(told['ready'])}/{len(told['wanted'])}" if told["wanted"] or told["ready"] else "-"
    return (
        told["version"],
        told["state"],
        share(told["share"]),
        told["pool"],
        placed,
        told["rank"],
        size(told["size_bytes"]),
        since(told["created_at"]),
        _in_short(_note(told)),
    )


def care_cells(told: dict[str, Any]) -> list[tuple[str, str]]:
    """Until when a version's owner has to look at it, and since when its task's rules are others; "" for neither."""
    due, stale = told.get("review_due"), told.get("stale_from")
    late = " (overdue)" if due and due <= time.time() else ""
    return [
        ("review by", f"{told['review_by']}{late}" if due else ""),
        ("stale from", moment(stale) if stale else ""),
    ]


def _note(told: dict[str, Any]) -> str:
    """What is to be known of a version: its own note, that it is stale or to be reviewed, or that replicas which are to
    have it are without it."""
    missing = [name for name in told["wanted"] if name not in told["ready"]]
    old = [f"{name} {text}" for name, text in care_cells(told) if text and (name != "review by" or "(" in text)]
    if told["note"] or told["state"] not in PLACED or (told["ready"] and not missing):
        return str(told["note"] or ("; ".join(old) if told["state"] in PLACED else ""))
    without = [one for one in told["placements"] if one["replica"] in missing]
    states = ", ".join(f"{one['replica']} is {one['state'] if one['up'] else 'down'}" for one in without)
    return f"ready on {len(told['ready'])} of {len(told['wanted'])} replicas{': ' if states else ''}{states}"


def _in_short(note: str) -> str:
    return note if len(note) <= NOTE_MAX else f"{note[: NOTE_MAX - 1].rstrip()}…"


def replica_row(told: dict[str, Any]) -> Row:
    """A replica as the admin API tells it."""
    capacity = told.get("capacity") or {}
    state = "cordoned" if told.get("cordoned") else "up" if told["up"] else "down"
    if not told["up"]:
        capacity = {}  # what its engine held is gone, or not known
    held = f"{capacity.get('registered', 0)} of {capacity.get('max_cpu_loras', '-')}"
    return (
        told["name"],
        told["pool"],
        state,
        told["in_flight"],
        held if capacity else "-",
        capacity.get("ghosts") if capacity else None,
        capacity.get("loads_left") if capacity else None,
        ", ".join(_placed(told)) or "-",
    )


def _placed(told: dict[str, Any]) -> Iterator[str]:
    """The versions on a replica, each with its state where it is not ready."""
    for one in told.get("placements") or []:
        yield one["version"] if one["state"] == "ready" else f"{one['version']} ({one['state']})"
