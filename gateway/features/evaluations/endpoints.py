"""Admin endpoints for evaluations of a version on a data set: begin, read or end one."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from gateway.audit import enter_event
from gateway.callers import Caller
from gateway.endpoint_parts import Admin, Operator, find_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.evaluations.arms import ARMS, PROMPT_ARMS, find_leading, resolve_arms, resolve_prompt_arms
from gateway.features.evaluations.intake import Data, Intake, open_rows
from gateway.features.evaluations.job import tokens_of
from gateway.features.evaluations.judging import check_judge, digest_judge
from gateway.features.evaluations.preference_endpoints import find_evaluation
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import Evaluation, finish
from gateway.features.evaluations.suite_endpoints import ClassField, MetricName, find_metric, find_suite
from gateway.features.evaluations.texts import read_texts
from gateway.openapi_parts import DATA_ERRORS, LINES, with_answer, with_body, with_errors
from gateway.state.fitted_store import find_unused
from monitoring.evaluation.answer_metrics import choose_metric
from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.judge_trust import describe_trust
from monitoring.evaluation.preferences import count_preferences
from monitoring.evaluation.row_classes import ClassFinder
from monitoring.evaluation.suites import Suite
from router.fitted import CALIBRATION_ROWS_MIN
from router.policy import TaskPolicy
from serving.adapters.versions_and_aliases import PLACED, Version

ROWS_AT_ONCE_MAX = 100
REPEATS_MAX = 10
PROMPT_CHARACTERS_MAX = 8000
KEPT_TO = ("calibrate", "fit_gain", "suite", "again")
TOLD = ("id", "data_digest", "suite", "rows", "repeats", "arms", "metric", "calibrate", "fit_gain")
router = APIRouter(prefix="/admin/v1", tags=["admins"])


@dataclass(frozen=True)
class WantedEvaluation:
    """A requested evaluation: its version, its arms, and its suite, if it uses one."""

    task: TaskPolicy
    version: Version | None
    arms: dict[str, EvaluationArm]
    notes: Sequence[str]
    suite: Suite | None
    repeats: int

    @property
    def name(self) -> str:
        """The version's name; the task's name if only prompts are evaluated."""
        return self.version.name if self.version is not None else self.task.name

    def evaluation(self, intake: Intake, data: Data, by: str, metric: str) -> Evaluation:
        """The evaluation, once all its data are stored. `metric` is the requested one; "": none was requested."""
        assert intake.metric is not None, "there is a row"
        judge = digest_judge(intake.evaluations.services.settings, self.task.name, metric)
        compared = [metric, intake.classes.wanted, *filter(None, [judge])]
        return Evaluation(
            id=_identify(self, data.digest, compared),
            version=self.name,
            task=self.task.name,
            arms=self.arms,
            metric=str(intake.metric),
            judge=judge,
            classes=intake.classes.found(),
            data_digest=data.digest,
            rows=data.rows * self.repeats,
            repeats=self.repeats,
            suite=self.suite.kind if self.suite is not None else "",
            notes=(*self.notes, *data.notes),
            by=by,
            created_at=time.time(),
        )


def _identify(wanted: WantedEvaluation, data_digest: str, compared: list[str]) -> str:
    """The id of an evaluation. It follows from the arms, the data, and the comparison of answers."""
    repeats = [wanted.repeats] if wanted.repeats > 1 else []
    named = msgspec.json.encode([wanted.name, data_digest, wanted.arms, *compared, *repeats])
    return hashlib.sha256(named).hexdigest()[:16]


@router.get("/evaluations")
async def list_evaluations(request: Request, _: Operator) -> dict[str, Any]:
    """The newest 100 evaluations, the newest first."""
    evaluations = feature_of(request, Evaluations)
    listed = await evaluations.store.all(with_reports=False)
    return {"evaluations": [await _shown(evaluations, evaluation, whole=False) for evaluation in listed]}


@router.post(
    "/evaluations",
    status_code=201,
    responses=with_errors("not_found", "state_conflict", *DATA_ERRORS)
    | with_answer(200, "It was there already, or goes on."),
    openapi_extra=with_body(LINES, description="JSON lines; none for a suite."),
)
async def begin_evaluation(
    request: Request,
    response: Response,
    admin: Admin,
    version: Annotated[
        str, Query(max_length=80, description="A version, such as returns@v3; with a prompt also a task.")
    ],
    arms: Annotated[
        str | None,
        Query(
            max_length=80,
            description=f"Of {', '.join(ARMS)}, with commas between; unset: all there are. `leading` is the version "
            "that leads the task, `best` the best that has led it.",
        ),
    ] = None,
    against: Annotated[str | None, Query(max_length=80, description="Another version of the task, as an arm.")] = None,
    metric: MetricName = "",
    class_field: ClassField = "",
    suite: Annotated[
        str | None,
        Query(max_length=80, description="In place of a body: a suite of the task, by kind or start of digest."),
    ] = None,
    prompt: Annotated[
        str, Query(max_length=PROMPT_CHARACTERS_MAX, description="A system message for the arms base and general.")
    ] = "",
    repeats: Annotated[
        int, Query(ge=1, le=REPEATS_MAX, description="How often each row is asked, to see whether its answer flips.")
    ] = 1,
    calibrate: Annotated[bool, Query(description="Fit the version's confidence model from the rows.")] = False,
    fit_gain: Annotated[bool, Query(description="Fit the version's learned routing from the rows.")] = False,
    again: Annotated[bool, Query(description="Begin again, and take no result that there is.")] = False,
) -> dict[str, Any]:
    """Evaluate a version on a data set (JSON lines), or on a suite. The same evaluation again (200) continues where it
    stopped, or exists already.
    """
    evaluations = feature_of(request, Evaluations)
    wanted = await resolve_wanted(evaluations, version, arms, against, suite, repeats, prompt)
    if calibrate and "adapter" not in wanted.arms:
        raise Problem("invalid_value", "Calibrating needs the arm adapter.", "arms")
    if fit_gain and not {"adapter", "general"} <= set(wanted.arms):
        raise Problem("invalid_value", "Learning to route needs the arms adapter and general.", "arms")
    if wanted.suite is not None:
        metric, class_field = metric or wanted.suite.metric, class_field or wanted.suite.class_field
    if metric == "judge":
        check_judge(evaluations.services.settings, wanted.task)
    async with open_rows(make_intake(evaluations, wanted, metric, class_field)) as intake:
        data = await (intake.from_request(request) if wanted.suite is None else intake.from_suite(wanted.suite))
        if calibrate and data.groups < CALIBRATION_ROWS_MIN:
            needs = f"Calibrating needs {CALIBRATION_ROWS_MIN} different rows at least, and the data have {data.groups}"
            if data.groups < data.rows:
                needs += f" (of {data.rows}: of equal ones, and those of one group, one counts)"
            raise Problem("invalid_value", f"{needs}. Give more rows, or leave calibrate out.", "data")
        evaluation = wanted.evaluation(intake, data, admin.public, metric)
        evaluation = msgspec.structs.replace(evaluation, calibrate=calibrate, fit_gain=fit_gain, again=again)
        return await _begun(evaluations, response, admin, evaluation, intake.coming, again)


async def _begun(
    evaluations: Evaluations, response: Response, admin: Caller, wanted: Evaluation, coming: str, again: bool
) -> dict[str, Any]:
    """Begin the evaluation, unless it runs already or is done. Options of earlier calls stay in force."""
    store = evaluations.store
    before = None if again else await store.get(wanted.id)
    if before is not None:
        response.status_code = 200
        kept_to = {name: getattr(wanted, name) or getattr(before, name) for name in KEPT_TO}
        wanted = msgspec.structs.replace(wanted, **kept_to)
        same = all(getattr(before, name) or not value for name, value in kept_to.items())
        failed = before.status == "done" and await store.has_engine_faults(before)
        stale = before.status == "done" and wanted.calibrate and not await _is_calibrated_by(evaluations, before)
        if same and before.status in ("running", "done") and not failed and not stale:
            return await _shown(evaluations, before)
    step = evaluations.services.begin_step(admin.public)
    step.note("evaluation.begin", wanted.version, None, list_told(wanted) | {"again": again})
    await store.begin(wanted, coming, before is None, step)
    return await _shown(evaluations, wanted)


def list_told(evaluation: Evaluation) -> dict[str, Any]:
    """The fields of a new evaluation for its audit entry."""
    return {name: msgspec.to_builtins(getattr(evaluation, name)) for name in TOLD}


async def _is_calibrated_by(evaluations: Evaluations, evaluation: Evaluation) -> bool:
    """Return whether the active models are calibrated by this evaluation, or can't be, by the task's present rules."""
    task = evaluations.services.settings.tasks.get(evaluation.task)
    entries = await evaluations.services.control.fitted.of(evaluation.version)
    confidence = entries.get("confidence")
    if confidence is None or task is None:
        return bool(((evaluation.report or {}).get("calibration") or {}).get("error"))
    summary = confidence.summary
    ours = summary.get("evaluation") == evaluation.id and summary.get("tokens") == tokens_of(task)
    return ours and not find_unused(entries, task.selector)


@router.get("/evaluations/{evaluation}", responses=with_errors("not_found"))
async def read_evaluation(request: Request, evaluation: str, _: Operator) -> dict[str, Any]:
    """One evaluation: its progress, or its report."""
    evaluations = feature_of(request, Evaluations)
    return await _shown(evaluations, await find_evaluation(evaluations, evaluation))


@router.get("/evaluations/{evaluation}/rows", responses=with_errors("not_found"))
async def read_evaluation_rows(
    request: Request,
    evaluation: str,
    _: Operator,
    first: Annotated[int, Query(ge=0, le=2**31, description="The first row's number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=ROWS_AT_ONCE_MAX)] = ROWS_AT_ONCE_MAX,
) -> Any:
    """The results of each row. `next_first` is the `first` of the next page, null at the end. Requests and answers
    are not included.
    """
    evaluations = feature_of(request, Evaluations)
    evaluated = await find_evaluation(evaluations, evaluation)
    results = await evaluations.store.results(evaluated, first, limit)
    logprobs = {str(arm): await evaluations.store.logprobs(evaluated, arm, first, limit) for arm in evaluated.arms}
    scope = await evaluations.store.scope(evaluated)
    rows: list[dict[str, Any]] = []
    for at, number in enumerate(range(first, min(first + limit, evaluated.rows))):
        of_row = {
            arm: msgspec.json.decode(raw, type=dict[str, Any]) | {"logprobs": logprobs[arm][at]}
            for arm, arm_results in results.items()
            if (raw := arm_results[at]) is not None
        }
        first_result = next(iter(of_row.values()), None)
        rows.append(
            {
                "number": number,
                "id": None if first_result is None else first_result["id"],
                "scope": scope[number] if number < len(scope) else None,
                "arms": of_row,
            }
        )
    after = first + limit
    page = {"rows": rows, "next_first": after if after < evaluated.rows else None}
    return Response(msgspec.json.encode(page), media_type="application/json")


@router.get("/evaluations/{evaluation}/texts", responses=with_errors("not_found"))
async def read_evaluation_texts(
    request: Request,
    evaluation: str,
    admin: Admin,
    first: Annotated[int, Query(ge=0, le=2**31, description="The first row's number.")] = 0,
    wrong: Annotated[bool, Query(description="Only rows that an arm got wrong.")] = False,
) -> dict[str, Any]:
    """Rows with all answers, where the task has texts kept. `next_first` is the `first` of
    the next page, null at the end. The audit names the reader.
    """
    evaluations = feature_of(request, Evaluations)
    evaluated = await find_evaluation(evaluations, evaluation)
    if first == 0:
        await enter_event(evaluations.services, admin, "evaluation.give", evaluated.version, {"id": evaluated.id})
    results = await evaluations.store.results(evaluated, first, ROWS_AT_ONCE_MAX)
    rows: list[dict[str, Any]] = []
    for at, number in enumerate(range(first, min(first + ROWS_AT_ONCE_MAX, evaluated.rows))):
        right = {
            arm: bool(msgspec.json.decode(raw)["right"])
            for arm, arm_results in results.items()
            if (raw := arm_results[at]) is not None
        }
        if not (wrong and all(right.values())):
            texts = await read_texts(evaluations, evaluated, number)
            rows += [{"number": number, **texts, "right": right}] if texts is not None else []
    after = first + ROWS_AT_ONCE_MAX
    return {"rows": rows, "next_first": after if after < evaluated.rows else None}


@router.delete("/evaluations/{evaluation}", responses=with_errors("not_found", "state_conflict"))
async def end_evaluation(request: Request, evaluation: str, admin: Admin) -> dict[str, Any]:
    """Stop an evaluation that runs; forget one that does not."""
    evaluations = feature_of(request, Evaluations)
    ending = await find_evaluation(evaluations, evaluation)
    if ending.status == "running":
        after = finish(ending, "cancelled", f"It was stopped by {admin.public}.")
        audit = evaluations.services.control.audit
        entry = audit.draft(admin.public, "evaluation.cancel", ending.version, after={"evaluation": ending.id})
        if not await evaluations.store.move(ending, after, entry, None):
            raise Problem("state_conflict", "The evaluation has changed at this moment: look at it, then try again.")
        await evaluations.drafts.enter(ending.id)
        return await _shown(evaluations, after)
    step = evaluations.services.begin_step(admin.public)
    step.note("evaluation.forget", ending.version, {"evaluation": ending.id}, None)
    await evaluations.store.forget(ending, step)
    return {"id": ending.id, "status": "forgotten"}


def describe_last_evaluation(last: dict[str, Any] | None) -> list[str]:
    """A version's last evaluation as a sentence; empty if it has not been evaluated."""
    if last is None:
        return []
    accuracies = [
        f"{arm} was right on {100 * accuracy['share']:.1f}% of {accuracy['of']:,} rows "
        f"({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f})"
        for arm, accuracy in last["accuracy"].items()
        if accuracy["share"] is not None
    ]
    day = datetime.fromtimestamp(last["ended_at"], UTC).strftime("%Y-%m-%d")
    trust = describe_trust(last.get("judge"))
    return [f"Evaluated on {day} ({last['id']}){trust}: {', '.join(accuracies)}."] if accuracies else []


async def resolve_wanted(
    evaluations: Evaluations,
    name: str,
    arms: str | None,
    against: str | None,
    suite: str | None,
    repeats: int,
    prompt: str = "",
) -> WantedEvaluation:
    """The requested evaluation, with its names looked up. Raises Problem (400, 404, 409)."""
    if "@" not in name:
        task = find_task(evaluations.services, name, param="version")
        if not prompt or against is not None:
            raise Problem("missing_field", f"{name} is a task: give a prompt to evaluate, or name a version.", "prompt")
        wanted_arms = resolve_prompt_arms(evaluations, task, None, arms, prompt)
        named = None if suite is None else await find_suite(evaluations, task.name, suite)
        return WantedEvaluation(task, None, wanted_arms, (), named, repeats)
    version = await _version(evaluations, name)
    other = await _version(evaluations, against) if against is not None else None
    if other is not None and (other.task != version.task or other.name == version.name):
        raise Problem("invalid_value", f"{other.name} is no other version of {version.task}.", "against")
    task = find_task(evaluations.services, version.task, param="version")
    with_prompt = [arm for arm in (arms or ",".join(PROMPT_ARMS)).split(",") if prompt and arm in PROMPT_ARMS]
    others = ",".join(arm for arm in arms.split(",") if arm not in with_prompt) if arms is not None else None
    alone = bool(with_prompt) and others == "" and other is None
    wanted_arms, notes = ({}, []) if alone else await resolve_arms(evaluations, task, version, others, other)
    if with_prompt:
        wanted_arms |= resolve_prompt_arms(evaluations, task, version, ",".join(with_prompt) if arms else None, prompt)
    named = None if suite is None else await find_suite(evaluations, task.name, suite)
    return WantedEvaluation(task, version, wanted_arms, notes, named, repeats)


def make_intake(evaluations: Evaluations, wanted: WantedEvaluation, metric: str, class_field: str) -> Intake:
    """The intake for the evaluation's rows. Raises Problem (400).

    Answers to a prompt alone are judged by the leading version's contract, so that they compare with its own.
    """
    version = wanted.version or find_leading(evaluations, wanted.task)
    contract = version.view().contract if version is not None else None
    finder, choose = ClassFinder(class_field), partial(choose_metric, contract)
    return Intake(evaluations, wanted.task, wanted.name, finder, find_metric(metric), choose, wanted.repeats)


async def _version(evaluations: Evaluations, name: str) -> Version:
    version = (await evaluations.services.snapshot.refresh()).versions.get(name)
    if version is None:
        raise Problem("not_found", f"There is no version {name[:80]!r}.", "version")
    if version.state not in PLACED:
        raise Problem("state_conflict", f"{version.name} is {version.state}: stage it first.")
    return version


async def _shown(evaluations: Evaluations, evaluation: Evaluation, whole: bool = True) -> dict[str, Any]:
    """An evaluation as the API shows it, without the parts that only its run needs."""
    store, classes = evaluations.store, evaluation.classes
    fields: dict[str, Any] = msgspec.to_builtins(evaluation)
    fields["arms"], fields["asked"] = list(evaluation.arms), fields["arms"]
    fields["classes"] = {"source": classes.source, "field": classes.field, "count": len(classes.names)}
    if whole:
        fields["preferences"] = count_preferences(await store.preferences(evaluation))
    else:
        del fields["report"]
    waits = await store.waiting(evaluation) if evaluation.status == "running" else ""
    return fields | {"progress": await store.progress(evaluation), "waits_for": waits or None}
