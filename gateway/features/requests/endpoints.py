"""`GET /v1/requests/{id}` and `GET /v1/usage`: a caller's own requests and limits."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from gateway.audit import enter_event
from gateway.callers import Caller
from gateway.endpoint_parts import Identified, services_of
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.records.kept_texts import fetch_kept_texts
from gateway.features.requests.explanation import explain, redact_record
from gateway.features.requests.search import Searches
from gateway.features.reviews.state import Reviews
from gateway.openapi_parts import OK, SPENT_ERRORS, with_errors
from gateway.request_labels import read_rules
from gateway.services import Services
from monitoring.feedback import handle_of
from monitoring.ids import read_time, strip_id
from monitoring.labels.request_label import find_label
from monitoring.records import Record

YOUNG_SECONDS = 60.0
RECORD_WAIT_SECONDS = 1.0
router = APIRouter()


@router.get("/v1/usage", tags=["callers"])
async def read_usage(request: Request, caller: Identified) -> dict[str, Any]:
    """The key's own limits, and what is spent of them."""
    return {"public": caller.public, "name": caller.name, "usage": await services_of(request).limits.usage(caller)}


@router.get(
    "/v1/requests/{request_id}",
    tags=["callers"],
    responses=with_errors("request_not_found", "timeout", *SPENT_ERRORS) | OK,
)
async def read_request(
    request: Request,
    request_id: str,
    caller: Identified,
    texts: Annotated[bool, Query(description="With its kept text.")] = False,
) -> Response:
    """A request's record, explanation and feedback. Scores, thresholds and neighbours of checks are for operators
    and admins only; admins get `review_kept` too: whether a review keeps its texts. It counts as a request against
    the key's limits. The audit names readers of others' texts.
    """
    services = services_of(request)
    async with services.limits.spending(caller) as headers:
        record = await find_record(services, await resolve_id(services, caller, request_id), caller)
        feedback = await services.feedback.of(record.id)
        label = find_label(feedback, await read_rules(services, record.task))
    if label is not None and label.is_waiting and caller.role != "admin":  # reviewers don't see each other's answers
        feedback = [each for each in feedback if not each.reviewed or each.caller == caller.public]
        label = msgspec.structs.replace(label, right=0, wrong=0)
    in_full = caller.judges == "*"
    visible = record if in_full else redact_record(record)
    explanation = [*explain(record, in_full), *([f"Its label is {label.value}: {label.words}."] if label else [])]
    body: dict[str, Any] = {"record": visible, "explanation": explanation, "label": label, "feedback": feedback}
    if caller.role == "admin":
        body["review_kept"] = await feature_of(request, Reviews).store.has_texts(record.id)
    if texts:
        turn = feature_of(request, Searches).turns.turn(caller)
        body["text"] = text = (await fetch_kept_texts(services.settings, [record.id], turn)).get(record.id)
        if in_full and text is not None:
            await enter_event(services, caller, "texts.give", record.task or "*", {"requests": [record.id]})
    return Response(msgspec.json.encode(body), headers=headers, media_type="application/json")


async def find_record(services: Services, request_id: str, caller: Caller) -> Record:
    """A record that this caller may read. It waits for a very new record. Raises Problem (404, 503)."""
    until = time.monotonic() + RECORD_WAIT_SECONDS
    young_seconds = YOUNG_SECONDS + services.settings.limits.request_timeout_seconds + services.flow.oldest_seconds()
    young = services.ids.genuine(request_id, caller.judges) and time.time() - read_time(request_id) < young_seconds
    while True:
        record = await services.flow.find(request_id)
        if record is not None and caller.judges in ("*", record.caller):
            return record
        if record is not None or not young or time.monotonic() > until:
            text = f"There is no request {request_id[:80]!r} that this key may see: give the x-request-id of an answer."
            raise Problem("request_not_found", text, "request_id")
        await asyncio.sleep(0.05)


async def resolve_id(services: Services, caller: Caller, given_id: str) -> str:
    """Our id, from the caller's: our id, an answer's id with ours in it, or the engine's own id."""
    request_id = strip_id(given_id)
    if request_id != given_id or services.ids.genuine(given_id):
        return request_id
    handle = handle_of(services.digest_secret, caller.public, "answer", given_id)
    return await services.flow.find_latest(handle) or given_id
