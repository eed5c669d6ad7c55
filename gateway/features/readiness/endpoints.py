"""The table URL → function for admins, readiness: whether a file of examples, or a task, is ready for fine-tuning."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from gateway.background.job_process import make_command, run_process
from gateway.endpoint_parts import Admin, require_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.datasets.state import Datasets
from gateway.features.evaluations.state import Evaluations
from gateway.features.readiness.messages import ReadinessJob, ReadinessResult
from gateway.features.readiness.state import Readiness
from gateway.features.readiness.tasks import add_task, read_newest_set
from gateway.openapi_parts import LINES, with_body, with_errors
from gateway.server.data_body import receive_data
from monitoring.readiness.break_even import Costs
from router.policy import AUTO_SELECTOR

ANSWER_SECONDS_MAX = 300.0
COMMAND = make_command("gateway.features.readiness.run")
USD_MAX = 1e9
router = APIRouter(prefix="/admin/v1", tags=["admins"])


async def read_costs(
    requests_per_month: Annotated[float | None, Query(ge=0, le=1e12, description="Requests a month.")] = None,
    general_usd: Annotated[
        float | None, Query(ge=0, le=USD_MAX, description="Cost of a request at general, in US dollars.")
    ] = None,
    small_usd: Annotated[
        float | None, Query(ge=0, le=USD_MAX, description="Cost of a request at the adapter, in US dollars.")
    ] = None,
    deferred: Annotated[
        float | None, Query(ge=0, le=1, description="Share of requests that goes to general all the same.")
    ] = None,
    tuning_usd: Annotated[float | None, Query(ge=0, le=USD_MAX, description="Cost of one training.")] = None,
    host_usd_per_month: Annotated[
        float | None, Query(ge=0, le=USD_MAX, description="Cost of the adapter's replicas in a month.")
    ] = None,
    labels_usd_per_month: Annotated[
        float | None, Query(ge=0, le=USD_MAX, description="Cost of people who label, in a month.")
    ] = None,
    lifetime_months: Annotated[
        float | None, Query(gt=0, le=1200, description="Months until the next training.")
    ] = None,
) -> Costs:
    """The costs in a query."""
    return Costs(
        requests_per_month=requests_per_month,
        general_usd=general_usd,
        small_usd=small_usd,
        deferred=deferred,
        tuning_usd=tuning_usd,
        host_usd_per_month=host_usd_per_month,
        labels_usd_per_month=labels_usd_per_month,
        lifetime_months=lifetime_months,
    )


@router.post(
    "/readiness",
    responses=with_errors(
        "not_found", "invalid_value", "body_too_large", "unsupported_media_type", "overload", "timeout"
    ),
    openapi_extra=with_body(LINES, description="JSON lines."),
)
async def answer_readiness(
    request: Request,
    _: Admin,
    costs: Annotated[Costs, Depends(read_costs)],
    class_field: Annotated[
        str, Query(max_length=200, description="A field of the expected answers, whose values are classes.")
    ] = "",
    goal: Annotated[float | None, Query(gt=0, le=1, description="Share of right answers that the task needs.")] = None,
    task: Annotated[
        str | None, Query(max_length=63, description="The task; unset: the data alone are looked at.")
    ] = None,
    seed: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> Any:
    """Decide whether fine-tuning is worth it, with the reasons."""
    readiness = feature_of(request, Readiness)
    limits = readiness.services.settings.evaluation
    data = bytearray()

    async def take(piece: bytes) -> None:
        data.extend(piece)

    if task is not None:
        require_task(readiness.services, task)
    if task is None or request.headers.get("content-length", "0") != "0":
        await receive_data(request, limits.bytes_max, take)
    if task is not None and not data:
        data.extend(await asyncio.to_thread(read_newest_set, feature_of(request, Datasets), task, limits.rows_max))
    job = ReadinessJob(
        bytes=len(data),
        rows_max=limits.rows_max,
        row_bytes_max=limits.row_bytes_max,
        selector=AUTO_SELECTOR,
        class_field=class_field,
        goal=goal,
        costs=costs,
        seed=seed,
    )
    if task is not None:
        evaluations = feature_of(request, Evaluations)
        job = await add_task(job, readiness.services, evaluations, task)
    result = await compute(readiness, job, bytes(data))
    if result.report is None:
        raise Problem("invalid_value", result.error, "data")
    return Response(msgspec.json.encode(result.report), media_type="application/json")


async def compute(readiness: Readiness, job: ReadinessJob, data: bytes) -> ReadinessResult:
    """The result of a process that does the job. Raises Problem (500, 503, 504)."""
    if readiness.places.locked():
        raise Problem("overload", "Other answers are being computed: try again in a minute.", retry_after_seconds=30.0)
    advice = "give fewer rows, or shorter ones"
    async with readiness.places, readiness.turn:  # its time begins with its turn
        return await run_process(COMMAND, job, ReadinessResult, ANSWER_SECONDS_MAX, data=data, advice=advice)
