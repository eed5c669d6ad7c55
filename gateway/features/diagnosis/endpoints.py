"""Admin endpoint for diagnosis: the likely reason for a wrong answer."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from gateway.audit import enter_event
from gateway.background.job_process import make_command, run_process
from gateway.endpoint_parts import Admin
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.diagnosis.messages import LookedUp, LookupJob
from gateway.features.evaluations.row_asking import answer_once
from gateway.features.evaluations.state import Evaluations
from gateway.features.records.archiving import text_source_of
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.fields import Message
from gateway.formats.request_body import read_body
from gateway.formats.selectors import select_from_messages, select_from_text
from gateway.openapi_parts import with_errors
from gateway.path.own_requests import has_room
from gateway.request_labels import read_label
from gateway.services import Services
from monitoring.diagnosis.faults import ArmAnswer, ArmKind, Case, ServedScope, diagnose
from monitoring.evaluation.answer_forms import write_answer, write_demonstration
from monitoring.ids import strip_id
from monitoring.labels.request_label import RequestLabel
from monitoring.records import Record
from monitoring.texts import KeptText
from router.policy import TaskPolicy
from router.replica_choice import pick
from router.routing_data import Choice
from router.task_choice import DEFERRED_SHARE
from serving.adapters.versions_and_aliases import PLACED
from serving.fleet_view import VersionView

LOOKUP_SECONDS_MAX = 120.0
COMMAND = make_command("gateway.features.diagnosis.run")
router = APIRouter(prefix="/admin/v1", tags=["admins"])
EARLIER_MAX = 3


@router.post(
    "/diagnoses", responses=with_errors("request_not_found", "timeout", "invalid_json", "missing_field", "no_replica")
)
async def diagnose_request(
    request: Request,
    admin: Admin,
    request_id: Annotated[str, Query(alias="request", max_length=200, description="Its id, as in x-request-id.")],
) -> Any:
    """The likely fault of an answer: scope, data, training or base, or unknown. Engines are asked now."""
    evaluations = feature_of(request, Evaluations)
    services = evaluations.services
    name = strip_id(request_id)
    record, looked_up = await services.flow.find(name), await look_up(services, name)
    text = looked_up.text
    if record is None and text is None:
        raise Problem("request_not_found", f"Neither a record nor a text of {name[:80]!r} is kept.", "request")
    task, version = (record.task, record.version) if record is not None else (text.task, text.version)  # type: ignore[union-attr]
    label = await _label(services, name, task)
    answers = await _answers(evaluations, task, version, looked_up)
    shown, has_tools = None if label is None else label.demonstration, text is not None and bool(text.tools)
    case = Case(
        answer=None if text is None else write_answer(text),
        label=None if label is None else label.value,
        expected=None if shown is None else write_demonstration(shown, has_tools),
        neighbours=looked_up.neighbours,
        no_neighbours=looked_up.no_neighbours,
        far=looked_up.far,
        answers=answers,
        scope=await _find_scope(services, record, task, version, text),
    )
    diagnosis = diagnose(case)
    await enter_event(services, admin, "diagnosis.give", name, {"version": version, "likely": diagnosis.likely})
    content = {"request": name, "task": task, "version": version, "label": None if label is None else label.words}
    content |= {"diagnosis": diagnosis, "case": case}
    return Response(msgspec.json.encode(content), media_type="application/json")


async def look_up(services: Services, request_id: str) -> LookedUp:
    """The kept text of a request, and its nearest training rows. Raises Problem (500, 504) and RedisError."""
    record = await services.flow.find(request_id)
    folder = services.settings.dataset_folder
    versions = services.snapshot.current.versions.items()
    folders = {name: str(folder / version.dataset) for name, version in versions if version.dataset}
    job = LookupJob(text_source_of(services.settings), request_id, folders, record.version if record else None)
    return await run_process(COMMAND, job, LookedUp, LOOKUP_SECONDS_MAX)


async def _answers(
    evaluations: Evaluations, task: str | None, version: str | None, looked_up: LookedUp
) -> tuple[ArmAnswer, ...]:
    """The present answer of each arm; none if there is no text, or no version to compare."""
    view, policy = evaluations.services.fleet.view(), evaluations.services.snapshot.current.policy
    own = view.versions.get(version or "")
    if looked_up.text is None or own is None or task is None or task not in policy.tasks:
        return ()
    versions = [each for each in view.versions.values() if each.task == task]
    task_policy = policy.tasks[task]
    return await ask_arms(evaluations, task_policy, looked_up.text, list_arms(task_policy, own, versions))


async def _label(services: Services, request_id: str, task: str | None) -> RequestLabel | None:
    if task not in services.settings.tasks:
        return None
    return await read_label(services, task, request_id)


async def _find_scope(
    services: Services, record: Record | None, task: str | None, version: str | None, text: KeptText | None
) -> ServedScope | None:
    """The scope check's finding at the time of the request; else the present scope model's score, if there is one."""
    findings = record.findings if record is not None else []
    finding = next((each for each in findings if each.check == "out_of_scope" and each.score is not None), None)
    if finding is not None and finding.score is not None:
        return ServedScope(score=finding.score, threshold=finding.threshold, fired=finding.fired)
    settings = services.settings.tasks.get(task or "")
    fitted = services.snapshot.current.policy.fitted.get(version or "")
    model = fitted.scope_for(settings.selector) if fitted is not None and settings is not None else None
    if model is None or settings is None or text is None or not (text.messages or text.prompt):
        return None
    try:
        if text.messages:
            words = select_from_messages(settings.selector, msgspec.convert(text.messages, list[Message]))
        else:
            words = select_from_text(settings.selector, text.prompt_text)
    except msgspec.ValidationError:
        return None
    score = (await asyncio.to_thread(model.score, words)).score
    threshold = model.threshold(DEFERRED_SHARE)
    return ServedScope(score=score, threshold=threshold, fired=score < threshold)


@dataclass(frozen=True, slots=True)
class DiagnosedArm:
    """An arm to ask: a version, or the base of a pool with a version's general prompt."""

    name: str
    kind: ArmKind
    version: VersionView
    pool: str
    is_base: bool


def list_arms(task: TaskPolicy, own: VersionView, versions: list[VersionView]) -> list[DiagnosedArm]:
    """The arms for a version of the task. They include the newest earlier versions that are placed on the same base."""
    arms = [DiagnosedArm(own.name, "own", own, own.pool, False)] if own.state in PLACED else []
    earlier = [each for each in versions if number_of(each) < number_of(own) and each.state in PLACED]
    earlier = sorted((each for each in earlier if each.pool == own.pool), key=number_of, reverse=True)
    arms += [DiagnosedArm(each.name, "earlier", each, each.pool, False) for each in earlier[:EARLIER_MAX]]
    arms.append(DiagnosedArm(f"the base of {own.pool}", "base", own, own.pool, True))
    if task.fallback_pool is not None and task.fallback_pool != own.pool:
        arms.append(DiagnosedArm("general", "general", own, task.fallback_pool, True))
    return [arm for arm in arms if task.reaches(arm.pool)]


async def ask_arms(
    evaluations: Evaluations, task: TaskPolicy, text: KeptText, arms: list[DiagnosedArm]
) -> tuple[ArmAnswer, ...]:
    """The answer of each arm. An arm that fails, or has no room beside callers, has a `fault` instead."""
    return tuple(await asyncio.gather(*(_ask(evaluations, task, text, arm) for arm in arms)))


def number_of(version: VersionView) -> int:
    """The number in a version's name: 3 in returns@v3."""
    return int(version.name.rpartition("@v")[2])


async def _ask(evaluations: Evaluations, task: TaskPolicy, text: KeptText, arm: DiagnosedArm) -> ArmAnswer:
    choice = _choose(evaluations, task, arm)
    if isinstance(choice, str):
        return ArmAnswer(arm=arm.name, kind=arm.kind, fault=choice)
    wire_format = CHAT if text.messages else COMPLETIONS
    prompt = text.as_asked()
    if not prompt:
        return ArmAnswer(arm=arm.name, kind=arm.kind, fault="a part of the text is not kept")
    try:
        body = read_body(wire_format, msgspec.json.encode({"model": arm.version.name, "temperature": 0, **prompt}))
    except Problem as problem:
        return ArmAnswer(arm=arm.name, kind=arm.kind, fault=problem.message)
    reply = await answer_once(evaluations.services, choice, body)
    return ArmAnswer(arm=arm.name, kind=arm.kind, text=reply.text, fault=reply.fault)


def _choose(evaluations: Evaluations, task: TaskPolicy, arm: DiagnosedArm) -> Choice | str:
    """A choice of a replica with room beside callers, or the reason why there is none."""
    services = evaluations.services
    view, now = services.fleet.view(), time.monotonic()
    pool = view.pools.get(arm.pool)
    if pool is None:
        return f"there is no pool {arm.pool!r}"
    name = None if arm.is_base else arm.version.name
    replica = pick(pool, name, view.in_flight, now, services.moment(now).draw, spare_open=True)
    if isinstance(replica, str):
        return f"no replica of {arm.pool} can answer now ({replica})"
    if not has_room(services, view, replica):
        return f"{arm.pool} has no room beside its callers"
    version, prompted = (None, arm.version) if arm.is_base else (arm.version, None)
    return Choice(task, version, pool, replica, "pinned", prompted)
