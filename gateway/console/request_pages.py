"""Pages of requests: a list with filters, and one request with its explanation, its checks and its attempts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from starlette.responses import Response

from gateway.console.admin_api import Declined, fill_address
from gateway.console.figures import read_moment, write_moment
from gateway.console.signed_in_request import Visit
from monitoring.records import OUTCOMES
from router.routing_data import REASONS

FILTERS = ("task", "version", "outcome", "reason", "label", "caller", "text")
LABELS = ("right", "wrong", "unresolved", "none")
PAGE = 50


async def show_requests(visit: Visit) -> Response:
    """Requests, the newest first, by task, version, outcome, reason, label, caller, text and time."""
    filters = {name: visit.query(name) for name in (*FILTERS, "since", "until", "before")}
    fault = ""
    answer: dict[str, Any] = {"requests": [], "next_before": None}
    try:
        query = {name: filters[name] for name in (*FILTERS, "before")}
        times = {name: read_moment(filters[name]) for name in ("since", "until") if filters[name]}
        filters |= {name: write_moment(value) for name, value in times.items()}  # as the form has it: without a zone
        answer = await visit.api.get("/v1/requests", **query, **times, limit=PAGE)
    except Declined as refused:
        fault = refused.text
    except ValueError as error:
        fault = str(error)
    filled = {name: value for name, value in filters.items() if value}
    at_newest = {name: value for name, value in filled.items() if name != "before"}
    older = answer["next_before"] and urlencode(filled | {"before": answer["next_before"]})
    tasks = [row["task"] for row in (await visit.api.get("/admin/v1/quality"))["tasks"]]
    hour = (datetime.now(UTC) - timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M")
    return await visit.render(
        "request_rows.html" if visit.is_partial else "requests.html",
        requests=answer["requests"],
        older=older,
        newest=urlencode(at_newest) if filters["before"] else None,
        filters=filters,
        keys=visit.list_keys(),
        fault=fault,
        failed_lately=urlencode({"outcome": "failed", "since": hour}),
        choices={"task": tasks, "outcome": OUTCOMES, "reason": REASONS, "label": LABELS},
    )


async def show_request(visit: Visit) -> Response:
    """One request: the reason for its route, its checks, its attempts, and its feedback; on demand also its
    kept text."""
    address = fill_address("/v1/requests/{request}", request=visit.request.path_params["request"])
    answer = await visit.api.get(address, texts=visit.query("texts"))
    people = [answer["record"]["caller"], *(each["caller"] for each in answer["feedback"])]
    return await visit.render("request.html", **answer, names=await visit.name_people(people))
