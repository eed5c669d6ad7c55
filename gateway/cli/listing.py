"""Versions, aliases and replicas as commands show them: a line of a list, or all that is known."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from gateway.cli.audit import entry_row
from gateway.cli.key_names import KeyNames
from gateway.cli.tables import Printer, Row, moment, share, since, size, tell_warnings
from gateway.cli.watch import canary_lines, evidence_table
from serving.adapters.entries import PLACED

GONE = ("ghost", "failed")
"""Placements in which an engine no longer answers with a version."""
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


def show_placements(out: Printer, told: dict[str, Any]) -> None:
    """Where a version is, and where it is to be."""
    placements = {one["replica"]: one for one in told["placements"]}
    missing = [{"replica": name, "state": "absent"} for name in told["wanted"] if name not in placements]
    rows = [
        (
            one["replica"],
            one["state"],
            "yes" if one["replica"] in told["wanted"] else "no",
            since(one.get("since")),
            one.get("note") or "",
        )
        for one in [*placements.values(), *missing]
    ]
    if rows:
        out.say("")
        out.table(("replica", "placement", "wanted", "since", "note"), rows)


def show_alias(out: Printer, alias: dict[str, Any], names: KeyNames) -> None:
    """A task's alias: who gets which share, and its canary."""
    out.pairs(
        [
            ("task", alias["task"]),
            ("versions", ", ".join(f"{name} {share(part)}" for name, part in alias["weights"].items())),
            ("shadow", ", ".join(f"{name} {share(part)}" for name, part in (alias.get("shadow") or {}).items())),
            ("before", ", ".join(alias.get("previous") or [])),
            ("generation", alias["generation"]),
        ]
    )
    if alias.get("rollout"):
        out.say("")
        for line in canary_lines(alias):
            out.say(names.within(line))
        columns, rows = evidence_table(alias["rollout"]["evidence"])
        if rows:
            out.table(columns, rows)


def tell_why(out: Printer, told: dict[str, Any], names: KeyNames) -> None:
    """Why a version is in its state, and what the audit has of it."""
    for sentence in told["words"]:
        out.say(names.within(sentence))
    if told["audit"]:
        out.say("")
        out.table(("when", "who", "what", "became"), (entry_row(entry, names) for entry in told["audit"]))


def tell_version(out: Printer, told: dict[str, Any]) -> None:
    """The state of a version after a change, and where it still is."""
    if out.answer(told):
        return
    left = [f"{one['replica']} ({one['state']})" for one in told["placements"] if one["state"] not in GONE]
    more = f", and still on {', '.join(left)}: its last answers go out" if left else ""
    out.say(f"{told['version']} is {told['state']}{more}.")
    tell_warnings(out, told)


def tell_alias(out: Printer, told: dict[str, Any]) -> None:
    """What the requests of a task do from now on."""
    if out.answer(told):
        return
    parts = [f"{name} {share(part)}" for name, part in told["weights"].items()]
    copied = [f"{name} {share(part)}" for name, part in (told.get("shadow") or {}).items()]
    more = f"; copied to {', '.join(copied)}" if copied else ""
    if told.get("changed") is False:
        out.say(f"{', '.join(told['weights'])} leads {told['task']} already: nothing was changed.")
    else:
        out.say(f"{told['task']} is served by {', '.join(parts)}{more} (generation {told['generation']}).")
    for warned in told.get("warnings", ()):
        out.note(f"Warning: {warned}")


def tell_if_stale(out: Printer, told: dict[str, Any]) -> None:
    """A note where the gateway reads its memory in the place of Redis."""
    if told.get("stale"):
        out.note("The gateway can't reach Redis: this is what it read last, and nothing can be changed now.")
