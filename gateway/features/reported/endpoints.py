"""`POST /v1/records`: reports of traffic that another gateway served, to judge it without moving it here.

The record of a reported request has the purpose `reported`. Counts, bills and releases of the requests served here
ignore it. Each report counts as a request against the key's limits, and so does a refused body.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from msgspec import Raw

from gateway.callers import Caller
from gateway.endpoint_parts import Identified, services_of
from gateway.errors import Problem
from gateway.features.reported.judged_reports import Due, due_of, records_of
from gateway.features.reported.reports import REPORTED, batch_of, read_report
from gateway.openapi_parts import JSON_ERRORS, MODEL_ERRORS, SPENT_ERRORS, STORED, WAIT_ERRORS, with_body, with_errors
from gateway.path.side_requests import answer_in_time, wait_in_turn
from gateway.server.exchange import Exchange
from gateway.services import Services
from gateway.state.durability import NotSettled, explain_not_settled
from monitoring.records import Record

router = APIRouter()
ANSWERS = STORED | with_errors(
    *(*JSON_ERRORS, "unsupported_media_type", "record_conflict", *MODEL_ERRORS, *WAIT_ERRORS, *SPENT_ERRORS)
)

AT_ONCE = 25
"""Records that are read, judged and stored in one go."""
Result = dict[str, Any]


@router.post(
    "/v1/records",
    tags=["callers"],
    responses=ANSWERS,
    openapi_extra=with_body({"application/json": {"schema": REPORTED}}),
)
async def report_records(request: Request, caller: Identified) -> Response:
    """Take in requests that another gateway served. Each counts as a request against the key's limits, and as
    nothing that was served; a refused body counts as one request. 201 stored, 200 the same again; for a batch 200
    and a result for each.
    """
    services = services_of(request)
    return await answer_in_time(services, request, lambda exchange: _reported(services, exchange, caller))


async def _reported(services: Services, exchange: Exchange, caller: Caller) -> Response:
    try:
        raw = await exchange.body(services.settings.limits.body_bytes_max)
        entries = batch_of(raw)
    except Problem:
        async with services.limits.spending(caller):
            raise
    mark = services.durability.mark()
    async with services.limits.spending(caller, 1 if entries is None else len(entries)) as headers:
        async with wait_in_turn(services, exchange, caller):
            results = await _taken_in(services, caller, [raw] if entries is None else entries)
        if entries is None and isinstance(results[0], Problem):
            raise results[0]
        try:
            await services.durability.settle(mark)
        except NotSettled as error:
            raise explain_not_settled(error, " Sent again, it is stored once.") from error
    content = [_result(result) for result in results]
    if entries is None:
        return JSONResponse(content[0], content[0].pop("status"), headers)
    return JSONResponse({"results": content}, headers=headers)


def _result(result: Result | Problem) -> Result:
    return {"status": result.status, "error": result.content()} if isinstance(result, Problem) else result


async def _taken_in(services: Services, caller: Caller, entries: Sequence[bytes | Raw]) -> list[Result | Problem]:
    """Judge and store reports in batches. Return for each its result or its fault. Raises RedisError."""
    results: list[Result | Problem] = []
    for start in range(0, len(entries), AT_ONCE):
        reports: list[Due | Problem] = []
        part = entries[start : start + AT_ONCE]
        for raw in part:
            try:
                reports.append(due_of(services, caller, read_report(raw)))
            except Problem as problem:
                reports.append(problem)
            await asyncio.sleep(0)
        results += await _stored(services, caller, reports, sum(memoryview(raw).nbytes for raw in part))
    return results


async def _stored(
    services: Services, caller: Caller, reports: Sequence[Due | Problem], length: int
) -> list[Result | Problem]:
    """Judge and store the valid reports, of `length` bytes in all.

    Raises RedisError; then some may be stored, and all may be sent again.
    """
    due = [due_report for due_report in reports if isinstance(due_report, Due)]
    moment = services.moment(time.monotonic())
    records: list[Record] = []
    if due:
        records = await services.threads.run(caller.public, length, records_of, services, caller, due, moment)
    named = [
        (due_report.source, record.id, due_report.report_digest)
        for due_report, record in zip(due, records, strict=True)
    ]
    claimed = await services.flow.stream.claim(named)
    answers: list[Result | Problem] = []
    to_store: list[Record] = []
    for due_report, record, had in zip(due, records, claimed, strict=True):
        if had is not None and had[1] != due_report.report_digest:
            text = f"The source_id {due_report.report.source_id[:80]!r} was used for another report."
            answers.append(Problem("record_conflict", text, "source_id"))
            continue
        record.id = record.id if had is None else had[0]
        to_store.append(record)  # again too: the first time may have come no further than its name
        answers.append(
            {"status": 201 if had is None else 200, "request_id": record.id, "source_id": due_report.report.source_id}
        )
    if to_store:
        await services.flow.stream.append(to_store)
    for due_report, result in zip(due, answers, strict=True):
        outcome = "conflict" if isinstance(result, Problem) else "created" if result["status"] == 201 else "same"
        services.meters.reported_records.add(1, due_report.task.name, due_report.report.version or "", outcome)
    services.meters.reported_records.add(len(reports) - len(due), "", "", "refused")
    results = iter(answers)
    return [due_report if isinstance(due_report, Problem) else next(results) for due_report in reports]
