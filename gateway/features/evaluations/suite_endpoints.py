"""The table URL → function for admins, suites: the data sets that a task's versions are evaluated on."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from gateway.endpoint_parts import Admin, Operator, When, find_task, see_that_list_has_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.evaluations.hard_cases import find_hard_cases, hold_off_erasures
from gateway.features.evaluations.intake import Data, Intake, open_rows
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.suites import SUITES_MAX, NoSuite
from gateway.openapi_parts import DATA_ERRORS, LINES, with_answer, with_body, with_errors
from monitoring.evaluation.answer_metrics import ComparisonMetric, MetricError, metric_of
from monitoring.evaluation.dataset import DatasetError
from monitoring.evaluation.row_classes import ClassFinder
from monitoring.evaluation.slices import SliceCounts
from monitoring.evaluation.suites import Suite, SuiteKind, kinds_of

MetricName = Annotated[
    str, Query(max_length=1000, description="exact, normal, fields:a,b, overlap:0.5 or judge; unset: by the contract.")
]
ClassField = Annotated[
    str, Query(max_length=200, description="A field of the expected answers, whose values are classes.")
]
router = APIRouter(prefix="/admin/v1", tags=["admins"])


@router.get("/suites", responses=with_errors("not_found"))
async def list_suites(
    request: Request, _: Operator, task: Annotated[str | None, Query(max_length=63, description="Of this task.")] = None
) -> dict[str, Any]:
    """The suites, the newest first. A task's earlier suites of the kind `newest` are told as `older`."""
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
    """Add a suite to a task (JSON lines). The same rows again (200) are the same suite; an older one is newest again.

    With `since` its rows are requests whose label is wrong, and whose right answer is agreed.
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
        wanted = (kind, metric, class_field)  # an older one that is given again is the newest from now on
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
    """A task's suite by its kind or the beginning of its digest. Raises Problem (404)."""
    try:
        return await evaluations.suites.find(task, name)
    except NoSuite as error:
        raise Problem("not_found", str(error), "suite") from None


def find_metric(name: str) -> ComparisonMetric | None:
    """The metric of this name; None for an empty one. Raises Problem (400)."""
    try:
        return metric_of(name) if name else None
    except MetricError as error:
        raise Problem("invalid_value", str(error), "metric") from None


async def _from_production(intake: Intake, since: float) -> Data:
    """Take in hard cases of production. Raises Problem and RedisError."""
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
