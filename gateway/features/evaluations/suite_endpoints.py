"""Admin endpoints for suites: the data sets on which a task's versions are evaluated.

A suite may consist of hard cases from production: a process reads kept texts and their labels, and writes the rows.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from gateway.background.job_process import make_command, run_process
from gateway.endpoint_parts import Admin, Operator, When, find_task, see_that_list_has_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.evaluations.intake import Data, Intake, open_rows
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.suites import SUITES_MAX, NoSuite
from gateway.features.records.archiving import find_kept_source
from gateway.openapi_parts import DATA_ERRORS, LINES, with_answer, with_body, with_errors
from gateway.state.private_files import make_private_folder
from monitoring.datasets.build_job import HardCasesJob, HardCasesResult
from monitoring.datasets.folder import FILES_FOLDER, PARTIAL
from monitoring.evaluation.answer_metrics import ComparisonMetric, MetricError, metric_of
from monitoring.evaluation.dataset import DatasetError
from monitoring.evaluation.row_classes import ClassFinder, SliceCounts
from monitoring.evaluation.suites import Suite, SuiteKind, kinds_of
from monitoring.synced_files import lock_folder

MetricName = Annotated[
    str, Query(max_length=1000, description="exact, normal, fields:a,b, overlap:0.5 or judge; unset: by the contract.")
]
ClassField = Annotated[
    str, Query(max_length=200, description="A field of the expected answers, whose values are classes.")
]
router = APIRouter(prefix="/admin/v1", tags=["admins"])
RUN_SECONDS_MAX = 600.0
LOOK_INTERVAL_SECONDS = 0.2
COMMAND = make_command("monitoring.datasets.hard_run")


@router.get("/suites", responses=with_errors("not_found"))
async def list_suites(
    request: Request, _: Operator, task: Annotated[str | None, Query(max_length=63, description="Of this task.")] = None
) -> dict[str, Any]:
    """The suites, the newest first. A task's earlier suites of the kind `newest` have the kind `older`."""
    evaluations = feature_of(request, Evaluations)
    suites = await evaluations.suites.all(task)
    see_that_list_has_task(evaluations.services, task, suites)
    return {"suites": [_shown(suite, [other for other in suites if other.task == suite.task]) for suite in suites]}


@router.post(
    "/suites",
    status_code=201,
    responses=with_errors("not_found", "state_conflict", "timeout", *DATA_ERRORS)
    | with_answer(200, "It was there already."),
    openapi_extra=with_body(LINES, description="JSON lines; none with `since`."),
)
async def add_suite(
    request: Request,
    response: Response,
    admin: Admin,
    task: Annotated[str, Query(max_length=63, description="The task whose versions are evaluated on it.")],
    kind: Annotated[
        SuiteKind | None,
        Query(
            description="newest: the task itself, as it is now; general: other skills; hard: hard cases, and no other "
            "with `since`. Unset: hard with `since`, else newest."
        ),
    ] = None,
    metric: MetricName = "",
    class_field: ClassField = "",
    since: Annotated[
        When | None, Query(description="In place of a body: hard cases of production from then on, of texts kept.")
    ] = None,
) -> dict[str, Any]:
    """Add a suite to a task (JSON lines). The same rows again (200) are the same suite; an older one becomes newest.

    With `since` its rows are requests with a wrong label and an agreed right answer.
    """
    kind = kind or ("newest" if since is None else "hard")
    if since is not None and kind != "hard":
        raise Problem("invalid_value", "What production found are hard cases: the kind is hard.", "kind")
    evaluations = feature_of(request, Evaluations)
    policy = find_task(evaluations.services, task)
    intake = Intake(evaluations, policy, task, ClassFinder(class_field), find_metric(metric))
    async with nullcontext() if since is None else hold_off_erasures(evaluations), open_rows(intake):
        data = await (intake.from_request(request) if since is None else _from_production(intake, since))
        others = await evaluations.suites.all(task)
        same, kinds = next((suite for suite in others if suite.digest == data.digest), None), kinds_of(others)
        wanted = (kind, metric, class_field)  # an older suite that is sent again becomes the newest
        if same is not None and (kinds[same.digest], same.metric, same.class_field) == wanted:
            response.status_code = 200
            return _shown(same, others)
        if same is None and len(others) >= SUITES_MAX:
            raise Problem("state_conflict", f"{task} has {SUITES_MAX} suites already: remove one first.")
        suite = Suite(
            task=task,
            digest=data.digest,
            kind=kind,
            metric=metric,
            class_field=class_field,
            notes=data.notes,
            by=admin.public,
            created_at=time.time(),
            erased=data.erased,
            **await _describe_rows(evaluations, intake),
        )
        step = evaluations.services.begin_step(admin.public)
        step.note("suite.add", task, None if same is None else _audited(same), _audited(suite))
        await evaluations.suites.add(suite, intake.coming, step)
    return _shown(suite, [suite, *(other for other in others if other is not same)])


@router.get("/suites/{task}/{suite}", responses=with_errors("not_found"))
async def read_suite(request: Request, task: str, suite: str, _: Operator) -> dict[str, Any]:
    """A suite, by its kind or the beginning of its digest."""
    evaluations = feature_of(request, Evaluations)
    return _shown(await find_suite(evaluations, task, suite), await evaluations.suites.all(task))


@router.delete("/suites/{task}/{suite}", responses=with_errors("not_found"))
async def remove_suite(request: Request, task: str, suite: str, admin: Admin) -> dict[str, Any]:
    """Forget a suite. Reports of evaluations on it stay."""
    evaluations = feature_of(request, Evaluations)
    removed = await find_suite(evaluations, task, suite)
    shown = _shown(removed, await evaluations.suites.all(task))
    step = evaluations.services.begin_step(admin.public)
    step.note("suite.remove", task, _audited(removed), None)
    await evaluations.suites.remove(removed, step)
    return shown


async def find_suite(evaluations: Evaluations, task: str, name: str) -> Suite:
    """A task's suite, by its kind or the first digits of its digest. Raises Problem (404)."""
    try:
        return await evaluations.suites.find(task, name)
    except NoSuite as error:
        raise Problem("not_found", str(error), "suite") from None


def find_metric(name: str) -> ComparisonMetric | None:
    """The metric with this name; None for an empty name. Raises Problem (400)."""
    try:
        return metric_of(name) if name else None
    except MetricError as error:
        raise Problem("invalid_value", str(error), "metric") from None


async def _from_production(intake: Intake, since: float) -> Data:
    """Store hard cases from production as rows. Raises Problem and RedisError."""
    async with find_hard_cases(intake.evaluations, intake.model, since) as path:
        try:
            return await intake.from_file(path)
        except DatasetError as error:
            raise Problem("invalid_value", str(error), "since") from None


async def _describe_rows(evaluations: Evaluations, intake: Intake) -> dict[str, Any]:
    """The numbers of rows and groups, and of rows by slice and its value, the most frequent ones first."""
    counts, groups, rows = SliceCounts(intake.classes.found()), set[int](), 0
    async for row in evaluations.store.coming(intake.coming):
        counts.add(row)
        groups.add(row.group)
        rows += 1
    return {"rows": rows, "groups": len(groups), "counts": counts.list_all()}


def _shown(suite: Suite, of_task: list[Suite]) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(suite)
    return fields | {"kind": kinds_of(of_task)[suite.digest]}


def _audited(suite: Suite) -> dict[str, Any]:
    return {name: getattr(suite, name) for name in ("digest", "kind", "rows", "metric", "class_field")}


@asynccontextmanager
async def hold_off_erasures(evaluations: Evaluations) -> AsyncIterator[None]:
    """Hold the lock of the data sets, like a build. An erasure then comes before texts are read, or finds the suite.

    Raises Problem (504) if an erasure takes too long.
    """
    folder = evaluations.services.settings.dataset_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        try:
            async with asyncio.timeout(RUN_SECONDS_MAX):
                while True:
                    with suppress(BlockingIOError):
                        stack.enter_context(lock_folder(folder, shared=True, wait=False))
                        break
                    await asyncio.sleep(LOOK_INTERVAL_SECONDS)
        except TimeoutError:
            raise Problem("timeout", "An erasure of texts goes on: add the suite once it is done.") from None
        yield


@asynccontextmanager
async def find_hard_cases(evaluations: Evaluations, task: str, since: float) -> AsyncIterator[Path]:
    """A file of rows: requests since that time with a wrong answer and an agreed right one. Raises Problem."""
    settings, now = evaluations.services.settings, time.time()
    files = settings.dataset_folder / FILES_FOLDER  # erasures also search here for files that a killed gateway has left
    make_private_folder(files)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=files) as folder:
        path = Path(folder) / "rows.jsonl"
        source = await find_kept_source(evaluations.services, task, since, since, now)
        job = HardCasesJob(task, source, str(path), settings.evaluation.rows_max)
        result = await run_process(COMMAND, job, HardCasesResult, RUN_SECONDS_MAX, advice="name a later `since`")
        if result.error:
            raise Problem("invalid_value", result.error, "since")
        if not result.rows:
            counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(result.counts.items()))
            text = "No kept text since then has a wrong answer whose right one is agreed"
            raise Problem("invalid_value", f"{text} ({counts or 'no text is kept'}): have requests labelled.", "since")
        yield path
