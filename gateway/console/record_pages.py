"""Pages of stored things: keys with limits and spend, data sets with their cards, trainings, and the audit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup
from starlette.responses import Response

from gateway.console.admin_api import fill_address
from gateway.console.signed_in_request import OF_PEOPLE, Visit
from gateway.console.task_pages import sum_counters
from monitoring.datasets.card_page import make_card
from monitoring.training.loss_plot import draw_losses

SPENT_MAX = 50
"""Most keys of a list whose spend is looked up."""
ENTRIES = 100


async def show_keys(visit: Visit) -> Response:
    """All keys, or those with a word in a name, owner, public part or model, with the limit of which most is spent."""
    callers = (await visit.api.get("/admin/v1/callers"))["callers"]
    find = visit.query("find").strip()
    callers = [caller for caller in callers if find.casefold() in _words_of(caller)]
    callers.sort(key=lambda caller: (caller["role"], caller["name"].casefold()))
    for caller in [caller for caller in callers if caller["limits"]][:SPENT_MAX]:
        answer = await visit.api.find(fill_address("/admin/v1/callers/{public}", public=caller["public"]))
        usage = answer["usage"].items() if answer else ()
        caller["fullest"] = max(usage, key=lambda named: named[1]["spent"] / named[1]["limit"], default=None)
    await _add_costs(visit, callers)
    return await visit.render("keys.html", callers=callers, find=find)


def _words_of(caller: Mapping[str, Any]) -> str:
    return "\n".join((caller["name"], caller["owner"], caller["public"], *caller["models"])).casefold()


async def show_key(visit: Visit) -> Response:
    """One key."""
    public = visit.request.path_params["public"]
    caller = await visit.api.get(fill_address("/admin/v1/callers/{public}", public=public))
    limits = {name: f"{value:.15g}" for name, value in caller["limits"].items()}
    await _add_costs(visit, [caller])
    return await visit.render("key.html", caller=caller, limits=limits)


async def _add_costs(visit: Visit, callers: Iterable[dict[str, Any]]) -> None:
    """Add the cost of each key's requests since the gateway's start, if it is known."""
    sums = await sum_counters(visit.console.services) or {}
    for caller in callers:
        caller["cost"] = sums.get(f"@{caller['public']}", {}).get("apprentice_caller_cost_usd_total")


async def show_datasets(visit: Visit) -> Response:
    """All data sets, the latest builds, and the trainings."""
    page = await visit.api.get("/admin/v1/datasets") | await visit.api.get("/admin/v1/trainings")
    names = await visit.name_people(each["by"] for each in (*page["builds"], *page["trainings"]))
    return await visit.render("datasets.html", **page, names=names)


async def show_dataset(visit: Visit) -> Response:
    """The card of a data set."""
    card = await visit.api.get(fill_address("/admin/v1/datasets/{digest}", digest=visit.request.path_params["digest"]))
    content = Markup(make_card(card))  # noqa: S704 - it escapes all texts
    return await visit.render("dataset.html", card=card, content=content)


async def show_audit(visit: Visit) -> Response:
    """The audit, the newest entries first."""
    filters = {name: visit.query(name) for name in ("action", "object", "actor")}
    query: dict[str, Any] = {**filters, "newest": "true", "limit": ENTRIES, "before": visit.query("before")}
    answer = await visit.api.get("/admin/v1/audit", **query)
    filled = {name: value for name, value in filters.items() if value}
    older = answer["next_before"] and urlencode(filled | {"before": answer["next_before"]})
    entries = answer["entries"]
    people = [entry["actor"] for entry in entries]
    people += [entry["object"] for entry in entries if entry["action"].startswith(OF_PEOPLE)]
    names = await visit.name_people(people)
    newest = urlencode(filled) if visit.query("before") else None
    shown: dict[str, Any] = {
        "names": names,
        "older": older,
        "newest": newest,
        "filters": filters,
        "keys": visit.list_keys(),
    }
    return await visit.render("audit.html", entries=entries, is_filtered=bool(filled), **shown)


async def show_training(visit: Visit) -> Response:
    """One training."""
    return await visit.render("training.html", **await load_training(visit))


async def load_training(visit: Visit) -> dict[str, Any]:
    """A training's data, with its losses as a picture."""
    name = visit.request.path_params["training"]
    training = await visit.api.get(fill_address("/admin/v1/trainings/{training}", training=name))
    progress, steps = training["progress"], training["parameters"]["steps"]
    heldout = progress["heldout"][-1] if progress["heldout"] else (None, None, None)
    each = progress["seconds_each"]
    is_running = training["status"] == "running"
    return {
        "training": training,
        "progress": progress,
        "heldout_loss": heldout[1],
        "heldout_right": heldout[2],
        "seconds_left": each * (steps - progress["step"]) if is_running and each else None,
        "picture": Markup(draw_losses("Loss by step", progress["losses"], progress["heldout"])),  # noqa: S704 - escaped
        "names": await visit.name_people([training["by"]]),
    }
