"""Versions, aliases and replicas as commands show them: a line of a list, or all details."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from gateway.cli.admin_client import KeyNames
from gateway.cli.audit import make_entry_row
from gateway.cli.tables import Printer, Row, format_age, format_size, format_time, share, shares_of, tell_warnings
from gateway.cli.watch import describe_canary, make_evidence_table
from serving.adapters.versions_and_aliases import PLACED

GONE = ("ghost", "failed")
"""States of a placement in which the engine no longer answers with the version."""
NOTE_MAX = 60
"""Most letters of a note in a list; `why` shows all of it."""


def make_version_row(version: dict[str, Any]) -> Row:
    """The line of a version from the admin API."""
    placed = f"{len(version['ready'])}/{len(version['wanted'])}" if version["wanted"] or version["ready"] else "-"
    first = version["version"], version["state"], share(version["share"]), version["pool"], placed, version["rank"]
    return *first, format_size(version["size_bytes"]), format_age(version["created_at"]), _in_short(_note(version))


def make_care_cells(version: dict[str, Any]) -> list[tuple[str, str]]:
    """Until when a version's owner has to look at it, and since when its task's rules are others; "" for neither."""
    due, stale = version.get("review_due"), version.get("stale_from")
    late = " (overdue)" if due and due <= time.time() else ""
    return [
        ("review by", f"{version['review_by']}{late}" if due else ""),
        ("stale from", format_time(stale) if stale else ""),
    ]


def _note(version: dict[str, Any]) -> str:
    """Notes on a version: its own note, that it is stale or to be reviewed, or that replicas which are to
    have it are without it."""
    missing = [name for name in version["wanted"] if name not in version["ready"]]
    old = [f"{name} {text}" for name, text in make_care_cells(version) if text and (name != "review by" or "(" in text)]
    if version["note"] or version["state"] not in PLACED or (version["ready"] and not missing):
        return str(version["note"] or ("; ".join(old) if version["state"] in PLACED else ""))
    without = [item for item in version["placements"] if item["replica"] in missing]
    states = ", ".join(f"{item['replica']} is {item['state'] if item['up'] else 'down'}" for item in without)
    return f"ready on {len(version['ready'])} of {len(version['wanted'])} replicas{': ' if states else ''}{states}"


def _in_short(note: str) -> str:
    return note if len(note) <= NOTE_MAX else f"{note[: NOTE_MAX - 1].rstrip()}…"


def make_replica_row(replica: dict[str, Any]) -> Row:
    """The line of a replica from the admin API."""
    capacity = replica.get("capacity") if replica["up"] else None  # what its engine held is gone, or not known
    state = "cordoned" if replica.get("cordoned") else "up" if replica["up"] else "down"
    cells: list[Any] = ["-", None, None]
    if capacity:
        loaded = f"{capacity.get('registered', 0)} of {capacity.get('max_cpu_loras', '-')}"
        cells = [loaded, capacity.get("ghosts"), capacity.get("loads_left")]
    return replica["name"], replica["pool"], state, replica["in_flight"], *cells, ", ".join(_placed(replica)) or "-"


def _placed(replica: dict[str, Any]) -> Iterator[str]:
    """The versions on a replica, each with its state unless it is ready."""
    for placement in replica.get("placements") or []:
        version, state = placement["version"], placement["state"]
        yield version if state == "ready" else f"{version} ({state})"


def show_placements(out: Printer, answer: dict[str, Any]) -> None:
    """Print where a version is placed, and where it should be."""
    placements = {item["replica"]: item for item in answer["placements"]}
    missing = [{"replica": name, "state": "absent"} for name in answer["wanted"] if name not in placements]
    wanted = answer["wanted"]
    rows = [
        (
            item["replica"],
            item["state"],
            item["replica"] in wanted,
            format_age(item.get("since")),
            item.get("note") or "",
        )
        for item in [*placements.values(), *missing]
    ]
    if rows:
        out.say("")
        out.table(("replica", "placement", "wanted", "since", "note"), rows)


def show_alias(out: Printer, alias: dict[str, Any], names: KeyNames) -> None:
    """Print a task's alias: each version's share, and the canary."""
    out.pairs(
        [
            ("task", alias["task"]),
            ("versions", shares_of(alias["weights"])),
            ("shadow", shares_of(alias.get("shadow"))),
            ("before", ", ".join(alias.get("previous") or [])),
            ("generation", alias["generation"]),
        ]
    )
    if alias.get("canary"):
        out.say("")
        for line in describe_canary(alias):
            out.say(names.within(line))
        columns, rows = make_evidence_table(alias["canary"]["evidence"])
        if rows:
            out.table(columns, rows)


def tell_why(out: Printer, answer: dict[str, Any], names: KeyNames) -> None:
    """Print the reasons for a version's state, and its audit entries."""
    out.say(*(names.within(sentence) for sentence in answer["words"]))
    if answer["audit"]:
        out.say("")
        out.table(
            ("when", "who", "what", "became"), (make_entry_row(entry, names) for entry in answer["audit"]), cuts=True
        )


def tell_version(out: Printer, answer: dict[str, Any]) -> None:
    """Print a version's state after a change, and where it is still loaded."""
    if out.print_json(answer):
        return
    left = [f"{item['replica']} ({item['state']})" for item in answer["placements"] if item["state"] not in GONE]
    more = f", and still on {', '.join(left)}: its last answers go out" if left else ""
    out.say(f"{answer['version']} is {answer['state']}{more}.")
    tell_warnings(out, answer)


def tell_alias(out: Printer, answer: dict[str, Any]) -> None:
    """Print where a task's requests go from now on."""
    if out.print_json(answer):
        return
    copied = shares_of(answer.get("shadow"))
    more = f"; copied to {copied}" if copied else ""
    if answer.get("changed") is False:
        out.say(f"{', '.join(answer['weights'])} leads {answer['task']} already{more}: nothing was changed.")
    else:
        out.say(
            f"{answer['task']} is served by {shares_of(answer['weights'])}{more} (generation {answer['generation']})."
        )
    tell_warnings(out, answer)


def tell_if_stale(out: Printer, answer: dict[str, Any]) -> None:
    """Print a note if the gateway answers from its memory instead of Redis."""
    if answer.get("stale"):
        out.note("The gateway can't reach Redis: this is what it read last, and nothing can be changed now.")
