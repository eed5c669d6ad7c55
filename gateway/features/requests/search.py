"""`GET /v1/requests`: a search for requests, the newest first, in a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from weakref import WeakValueDictionary

import msgspec
from fastapi import APIRouter, Query, Request, Response

from gateway.audit import enter_event
from gateway.background.job_process import make_command, run_process
from gateway.callers import Caller
from gateway.endpoint_parts import Identified, require_task
from gateway.errors import Problem
from gateway.feature import Feature, feature_of
from gateway.features.records.archiving import text_source_of
from gateway.openapi_parts import OK, SPENT_ERRORS, with_errors
from gateway.request_labels import read_all_rules
from gateway.services import Services
from monitoring.ids import SHAPE
from monitoring.records import OUTCOMES
from router.routing_data import REASONS

SEARCHES_MAX = 3
CALLERS_SEARCHES_MAX = SEARCHES_MAX - 1
"""Searches of callers; the rest is kept for operators."""
SEARCH_SECONDS_MAX = 60.0
COMMAND = make_command("monitoring.request_search")
Name = Annotated[str | None, Query(max_length=100)]
Moment = Annotated[float | None, Query(ge=0, lt=253_402_300_800, description="Unix seconds.")]
router = APIRouter(tags=["callers"])


class _FoundRequest(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    """The part of a page that the gateway decodes; it skips the texts, which are long."""

    requests: list[_FoundRequest]


_PAGE = msgspec.json.Decoder(_Page)


class SearchTurns:
    """Turns to search: a few at a time, since each search is a process, and only one for each key."""

    def __init__(self) -> None:
        self._all = asyncio.Semaphore(SEARCHES_MAX)
        self._callers = asyncio.Semaphore(CALLERS_SEARCHES_MAX)
        self._own: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """The locks of keys that search or wait."""

    @asynccontextmanager
    async def turn(self, caller: Caller) -> AsyncIterator[None]:
        """Wait for a turn, and hold it during the block."""
        own = self._own.setdefault(caller.public, asyncio.Lock())
        async with own, nullcontext() if caller.judges == "*" else self._callers, self._all:
            yield


@dataclass(frozen=True)
class Searches:
    """The searches of this gateway."""

    services: Services
    turns: SearchTurns = field(default_factory=SearchTurns)


@router.get("/v1/requests", responses=with_errors("timeout", "not_found", "invalid_value", *SPENT_ERRORS) | OK)
async def list_requests(
    request: Request,
    caller: Identified,
    task: Name = None,
    version: Name = None,
    outcome: Name = None,
    reason: Name = None,
    label: Annotated[Literal["right", "wrong", "unresolved", "none"] | None, Query()] = None,
    of: Annotated[str | None, Query(alias="caller", max_length=63, description="A key's public part.")] = None,
    since: Moment = None,
    until: Moment = None,
    text: Annotated[str | None, Query(min_length=2, max_length=200, description="Part of a kept text.")] = None,
    texts: Annotated[bool, Query(description="With kept texts.")] = False,
    before: Annotated[str | None, Query(pattern=f"^{SHAPE.pattern}$", description="Only older than this id.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Requests with their labels, the newest first; of callers, their own. `next_before` is the `before` of the next
    page, null at the end: a page of long texts ends early. `damaged` names unreadable files of the archive. The audit
    names readers of others' texts.
    """
    searches = feature_of(request, Searches)
    for name, value, there in (("outcome", outcome, OUTCOMES), ("reason", reason, REASONS)):
        if value is not None and value not in there:
            raise Problem("invalid_value", f"There is no {name} {value!r}. There are: {', '.join(there)}.", name)
    query = {
        "task": task,
        "version": version,
        "outcome": outcome,
        "reason": reason,
        "label": label,
        "caller": of if caller.judges == "*" else caller.public,
        "since": since,
        "until": until,
        "text": text,
        "with_texts": texts,
        "before": before,
        "limit": limit,
    }
    async with searches.services.limits.spending(caller) as headers:
        page = await _search(searches, caller, query)
    ids = [found.id for found in _PAGE.decode(page).requests]
    if task is not None and not ids:  # the requests of a removed task can still be searched
        _see_that_task_is_known(searches.services, caller, task)
    if caller.judges == "*" and (texts or text is not None):
        await _enter(searches, caller, query, ids)
    return Response(page, headers=headers, media_type="application/json")


def _see_that_task_is_known(services: Services, caller: Caller, task: str) -> None:
    """Raises Problem (404), with the tasks that the caller may know of."""
    if caller.judges == "*":
        require_task(services, task)
    elif task not in services.settings.tasks:
        text = f"There is no task {task!r}: GET /v1/models lists those that this key may use."
        raise Problem("not_found", text, "task")


async def _search(searches: Searches, caller: Caller, query: dict[str, Any]) -> bytes:
    """The result of monitoring/request_search.py. Raises Problem (504, 500)."""
    services = searches.services
    source, rules = text_source_of(services.settings), await read_all_rules(services)
    job = {"source": source, "query": query, "rules": rules}
    advice = "name a task, or a shorter time"
    turn = searches.turns.turn(caller)
    return bytes(await run_process(COMMAND, job, msgspec.Raw, SEARCH_SECONDS_MAX, advice=advice, turn=turn))


async def _enter(searches: Searches, caller: Caller, query: dict[str, Any], ids: Sequence[str]) -> None:
    """Enter into the audit whose texts are handed out. The searched words are left out."""
    filters = {name: value for name, value in query.items() if value is not None and name != "text"}
    await enter_event(searches.services, caller, "texts.give", query["task"] or "*", filters | {"requests": ids})


SEARCHES = Feature(Searches, lambda services, _: Searches(services), (router,))
