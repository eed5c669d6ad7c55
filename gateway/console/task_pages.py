"""Pages of tasks and versions: shares of traffic, quality, a canary's evidence, and the gate's decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from gateway.console.admin_api import Declined, fill_address
from gateway.console.signed_in_request import Visit
from gateway.release_gate import to_json
from gateway.services import Services
from monitoring.evaluation.gate import GateReport
from monitoring.quality.signal_table import get_measure

COUNTERS = ("apprentice_requests_total", "apprentice_cost_usd_total", "apprentice_saving_usd_total")
SIGNALS_MAX = 12
"""Signals of a version that are drawn, those with most evidence first."""
WORST_FIRST = ("degraded", "suspect")


async def show_overview(visit: Visit) -> Response:
    """All tasks, the worst verdicts first: leading version, verdict, traffic split, cost and saving."""
    return await visit.render("overview.html", **await load_overview(visit))


async def load_overview(visit: Visit) -> dict[str, Any]:
    """The overview's data."""
    quality = await visit.api.get("/admin/v1/quality")
    aliases = (await visit.api.get("/admin/v1/aliases"))["aliases"]
    money = await sum_counters(visit.console.services)
    fleet = (await visit.api.get("/admin/v1/replicas"))["replicas"]
    none = dict.fromkeys(COUNTERS, None if money is None else 0.0)
    money = money or {}
    tasks = [
        {
            **row,
            "alias": aliases.get(row["task"]),
            "split": _split(aliases.get(row["task"]), row["version"], row),
            "totals": none | money.get(row["task"], {}),
        }
        for row in quality["tasks"]
    ]
    tasks.sort(key=lambda row: WORST_FIRST.index(row["verdict"]) if row["verdict"] in WORST_FIRST else len(WORST_FIRST))
    totals = {name: sum(each.get(name, 0.0) for each in money.values()) if money else none[name] for name in COUNTERS}
    shown = {name: quality[name] for name in ("behind_seconds", "caveats")}
    return {"tasks": tasks, "totals": totals, "replicas": fleet, **shown}


async def show_task(visit: Visit) -> Response:
    """One task: its versions, its canary's evidence, its signals, and the monitor's actions."""
    return await visit.render("task.html", **await load_task(visit))


async def load_task(visit: Visit) -> dict[str, Any]:
    """A task's data."""
    task = visit.request.path_params["task"]
    quality = await visit.api.get(fill_address("/admin/v1/tasks/{task}/quality", task=task))
    alias = await visit.api.get(fill_address("/admin/v1/aliases/{task}", task=task))
    versions = (await visit.api.get("/admin/v1/adapters", task=task))["adapters"]
    roles = quality["roles"]
    actions = quality["quality"]["actions"][::-1]
    people = [action[part] for action in actions for part in ("by", "undone_by")]
    judged = {name: quality["judgements"][name] for name in _names(roles) if name in quality["judgements"]}
    return {
        "task": task,
        "quality": quality,
        "report": quality["report"],
        "alias": alias,
        "split_of": _split(alias, roles["active"], quality["quality"]["versions"].get(roles["active"])),
        "versions": versions,
        "canary_signals": list(_canary_rows(alias["canary"])),
        "signals": {name: list(_signal_rows(judgement)) for name, judgement in judged.items()},
        "judgements": judged,
        "verdicts": quality["quality"]["versions"],
        "actions": actions,
        "names": await visit.name_people(people),
    }


async def show_version(visit: Visit) -> Response:
    """One version: its placements, its state, the gate's verdict, and its last evaluation."""
    version = visit.request.path_params["version"]
    adapter = await visit.api.get(fill_address("/admin/v1/adapters/{version}", version=version))
    why = await visit.api.get(fill_address("/admin/v1/adapters/{version}/why", version=version))
    try:
        gate = await visit.api.get(fill_address("/admin/v1/adapters/{version}/gate", version=version))
    except Declined as refused:
        unread = GateReport(version=version, verdict="cannot_tell", because=refused.text)
        gate = {**to_json(unread, "", None), "running": []}
    alias = await visit.api.find(fill_address("/admin/v1/aliases/{task}", task=adapter["task"]))
    shown = {
        "why": why,
        "gate": gate,
        "manifest": adapter["manifest"],
        "generation": (alias or {}).get("generation", ""),
        "names": await visit.name_people([adapter["created_by"], *(entry["actor"] for entry in why["audit"])]),
    }
    return await visit.render("version.html", version=adapter, **shown)


def _names(roles: Mapping[str, Any]) -> Iterator[str]:
    return (roles[role] for role in ("active", "canary", "previous_version") if roles[role] is not None)


def _split(alias: Mapping[str, Any] | None, leading: str | None, quality: Mapping[str, Any] | None) -> dict[str, float]:
    """The shares of a task's requests by arm: the alias's weights, after the monitor's shift of traffic."""
    shares = dict(alias["weights"]) if alias is not None else {}
    if quality is not None and quality["to"] is not None and quality["kept"] < 1.0 and leading in shares:
        to = quality.get("to_version") or quality["to"].replace("_", " ")
        shares[to] = shares.get(to, 0.0) + shares[leading] * (1.0 - quality["kept"])
        shares[leading] *= quality["kept"]
    return shares


def _canary_rows(canary: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    """The evidence on a canary, one row for each signal: that the canary does harm, and that it is no worse."""
    signals = ((canary or {}).get("evidence") or {}).get("signals") or {}
    for name, signal in signals.items():
        if not signal["pairs"] and not signal["required"]:
            continue
        harm, no_worse = signal["harm"], signal["no_worse"]
        worse = {"name": name, "value": harm["e_value_max"], "threshold": harm["threshold"] or 0.0}
        fine = {"name": name, "value": no_worse["e_value"], "threshold": no_worse["threshold"]}
        yield {
            "harm": {**worse, "tone": "bad" if harm["shown"] else "warn"},
            "no_worse": {**fine, "tone": "good" if no_worse["shown"] else "plain"},
        }


def _signal_rows(judgement: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The signals of a version for a plot and a table; those with most labels come first."""
    reports: Iterable[Mapping[str, Any]] = judgement["reports"]
    for each in sorted(reports, key=lambda report: (-report["labelled"], -report["observed"]))[:SIGNALS_MAX]:
        of_class = f" ({each['of_class']})" if each["of_class"] else ""
        tone = "bad" if each["alarming"] else "warn" if each["doubt"] else "plain"
        yield {
            **each,
            "name": each["signal"] + of_class,
            "tone": tone,
            "baseline": _baseline_share(each["baseline"]),
            "value": each["e_value"],
            "measure": get_measure(each["signal"]),
        }


def _baseline_share(baseline: Mapping[str, Any]) -> float | None:
    if baseline.get("of"):
        return float(baseline["wrong"]) / float(baseline["of"])
    mean = baseline.get("mean")
    return float(mean) if isinstance(mean, int | float) else None


async def sum_counters(services: Services) -> dict[str, dict[str, float]] | None:
    """Requests, cost and saving of each task and key since the gateway's start, summed over all its processes. None if
    the parent process does not give the others' figures."""
    sums, others = services.meters.totals(), await services.control.siblings.ask("totals")
    if not others and services.control.siblings.count > 1:
        return None
    for raw in others:
        for task, row in msgspec.msgpack.decode(raw, type=dict[str, dict[str, float]]).items():
            counters = sums.setdefault(task, {})
            counters |= {name: counters.get(name, 0.0) + value for name, value in row.items()}
    return sums
