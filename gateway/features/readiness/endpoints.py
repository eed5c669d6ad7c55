"""Endpoint for readiness: whether a file of examples, or a task, is ready for fine-tuning; and its state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from gateway.background.job_process import make_command, run_process
from gateway.configuration.monitor import TaskMonitorSettings
from gateway.configuration.sections import EvaluationSettings
from gateway.endpoint_parts import Admin, require_task
from gateway.errors import Problem
from gateway.feature import Feature, feature_of
from gateway.features.datasets.state import Datasets
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import Evaluation
from gateway.features.readiness.messages import ReadinessJob, ReadinessResult
from gateway.openapi_parts import LINES, with_body, with_errors
from gateway.request_labels import read_agreement_of_reviewers
from gateway.server.data_body import receive_data
from gateway.services import Services
from monitoring.datasets.folder import HELDOUT_FILE, TRAIN_FILE
from monitoring.evaluation.gate import WHOLE, is_judge_trusted
from monitoring.evaluation.unleaked_rows import count_unleaked
from monitoring.intervals import find_share_interval
from monitoring.labels.messages import Agreement
from monitoring.readiness.break_even import Costs
from monitoring.readiness.evidence import ArchivedTask, Interval, LiveVersion
from monitoring.readiness.rules import Prompted
from router.policy import AUTO_SELECTOR

PLACES = 4
"""Answers at the same time, each with its data in memory: one is computed, the others wait."""
ANSWER_SECONDS_MAX = 300.0
COMMAND = make_command("gateway.features.readiness.run")
USD_MAX = 1e9
LIFETIME_MONTHS = 3.0
"""The default lifetime, as `monitor.tuning_usd` is spread over 90 days of net saving."""


@dataclass(frozen=True)
class Readiness:
    """`turn` is held while a process computes, so that only one does at a time."""

    services: Services
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PLACES))


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
        float | None, Query(ge=0, le=1, description="Share of requests that goes to general anyway.")
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
    data, unread = bytearray(), 0

    async def take(piece: bytes) -> None:
        data.extend(piece)

    if task is not None:
        require_task(readiness.services, task)
    has_body = "transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0"
    if task is None or has_body:
        await receive_data(request, limits.bytes_max, take)
    if task is not None and not data:
        rows, unread = await asyncio.to_thread(read_newest_set, feature_of(request, Datasets), task, limits)
        data.extend(rows)
    job = ReadinessJob(
        bytes=len(data),
        rows_max=limits.rows_max,
        row_bytes_max=limits.row_bytes_max,
        selector=AUTO_SELECTOR,
        class_field=class_field,
        goal=goal,
        costs=costs,
        seed=seed,
        unread=unread,
    )
    if task is not None:
        evaluations = feature_of(request, Evaluations)
        job = await add_task(job, readiness.services, evaluations, task)
    result = await compute(readiness, job, bytes(data))
    if result.report is None:
        raise Problem("invalid_value", result.error, "data")
    return Response(msgspec.json.encode(result.report), media_type="application/json")


async def compute(readiness: Readiness, job: ReadinessJob, data: bytes) -> ReadinessResult:
    """The result of a process for the job. Raises Problem (500, 503, 504)."""
    if readiness.places.locked():
        raise Problem("overload", "Other answers are being computed: try again in a minute.", retry_after_seconds=30.0)
    advice = "give fewer rows, or shorter ones"
    async with readiness.places, readiness.turn:  # its time limit begins with its turn
        return await run_process(COMMAND, job, ReadinessResult, ANSWER_SECONDS_MAX, data=data, advice=advice)


WEEKS_PER_MONTH, HOURS_PER_MONTH = 4.348, 730.5


async def add_task(job: ReadinessJob, services: Services, evaluations: Evaluations, task: str) -> ReadinessJob:
    """The job, with the facts on the task. Raises RedisError; Problem (404) for a task that a reload removed."""
    snapshot, settings = await services.snapshot.refresh(), services.settings
    config = settings.tasks[require_task(services, task)]
    alias, leading = snapshot.aliases.get(task), None
    version = snapshot.versions.get(alias.leading) if alias is not None else None
    if version is not None:
        quality = snapshot.get_quality(task, version.name)
        leading = LiveVersion(name=version.name, verdict=quality.verdict, because=quality.because)
    return msgspec.structs.replace(
        job,
        selector=config.selector,
        archived=ArchivedTask(
            settings.find_redis_address(), str(settings.archive), settings.archive_bucket, task, time.time()
        ),
        leading=leading,
        reviewed=_as_interval(await read_agreement_of_reviewers(services, task)),
        prompted=await find_prompted(evaluations, task),
        costs=_with_settings(services, job.costs, config.monitor, None if version is None else version.pool),
    )


def read_newest_set(datasets: Datasets, task: str, limits: EvaluationSettings) -> tuple[bytes, int]:
    """The rows of the task's newest data set, as JSON lines; empty if there is none. Of a larger set those that the
    limits allow, spread over all of it, and the number of others. Raises OSError."""
    card = next((card for card in datasets.cards() if card["task"] == task), None)
    if card is None:
        return b"", 0
    files = [datasets.folder / card["digest"] / name for name in (TRAIN_FILE, HELDOUT_FILE)]
    lengths = [len(line) for line in _list_lines(files)]
    fitting = limits.bytes_max * len(lengths) // max(1, sum(lengths))
    count, kept, unread = min(limits.rows_max, fitting, len(lengths)), bytearray(), 0
    for at, line in enumerate(_list_lines(files)):
        is_drawn = (at + 1) * count // len(lengths) > at * count // len(lengths)
        if is_drawn and len(line) <= limits.row_bytes_max and len(kept) + len(line) <= limits.bytes_max:
            kept += line
        else:
            unread += 1
    return bytes(kept), unread


def _list_lines(files: Iterable[Path]) -> Iterator[bytes]:
    for path in files:
        with path.open("rb") as lines:
            yield from lines


async def find_prompted(evaluations: Evaluations, task: str) -> Prompted | None:
    """The best prompted arm of the task's last evaluation that has one, and the version's result, without training
    rows. None if the suite or the judge can't be trusted. Raises RedisError."""

    def is_prompted(each: Evaluation) -> bool:
        is_of_all = each.task == task and each.suite in WHOLE
        return is_of_all and any(arm.version is None for arm in each.arms.values())

    for listed in await evaluations.store.all(with_reports=False, is_wanted=is_prompted):
        evaluation = await evaluations.store.get(listed.id) or listed
        report = evaluation.report or {}
        report = report if is_judge_trusted(report.get("judge")) else {}
        prompted = {
            name: accuracy
            for name, arm in evaluation.arms.items()
            if arm.version is None and (accuracy := _accuracy(report, name)) is not None
        }
        if prompted:
            best = max(prompted, key=lambda name: prompted[name].value)
            tuned = _accuracy(report, "adapter")
            return Prompted(
                evaluation=evaluation.id, arm=best, right=prompted[best], version=evaluation.version, tuned=tuned
            )
    return None


def _as_interval(agreement: Agreement | None) -> Interval | None:
    if agreement is None or agreement.alpha is None or agreement.low is None or agreement.high is None:
        return None
    return Interval(agreement.alpha, agreement.low, agreement.high, agreement.items)


def _accuracy(report: Mapping[str, Any], arm: str) -> Interval | None:
    rows = count_unleaked(report, arm)
    if rows is None or not rows.of:
        return None
    share = rows.right / rows.of
    return Interval(share, *find_share_interval(share, rows.of), rows.of)


def _with_settings(services: Services, costs: Costs, monitor: TaskMonitorSettings, pool: str | None) -> Costs:
    """The costs, with unknown ones taken from the settings."""
    defaults: dict[str, float | None] = {"lifetime_months": LIFETIME_MONTHS, "tuning_usd": monitor.tuning_usd or None}
    defaults["labels_usd_per_month"] = (
        monitor.reviews.per_week * monitor.reviews.usd_each * WEEKS_PER_MONTH
        if monitor.reviews.usd_each or not monitor.reviews.per_week
        else None
    )
    price = services.prices.by_pool.get(pool) if pool is not None else None
    if pool is not None and price is not None:
        by_hour = price.replica_usd_per_hour
        replicas = sum(replica.config.pool == pool for replica in services.fleet.replicas.values())
        defaults["host_usd_per_month"] = 0.0 if by_hour is None else by_hour * HOURS_PER_MONTH * replicas
        if by_hour is not None:
            defaults["small_usd"] = 0.0  # the replica's hours are in the host's cost
    return msgspec.structs.replace(
        costs, **{name: value for name, value in defaults.items() if getattr(costs, name) is None}
    )


READINESS = Feature(Readiness, lambda services, _: Readiness(services), (router,))
