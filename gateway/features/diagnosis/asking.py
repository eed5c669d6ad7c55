"""The arms that a diagnosis asks now: the version, earlier versions, their base alone, and general."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from gateway.errors import Problem
from gateway.features.evaluations.row_asking import answer_once
from gateway.features.evaluations.state import Evaluations
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.request_body import read_body
from gateway.path.own_requests import has_room
from monitoring.diagnosis.faults import ArmAnswer, ArmKind
from monitoring.texts import KeptText
from router.policy import TaskPolicy
from router.replica_choice import pick
from router.routing_data import Choice
from serving.adapters.versions_and_aliases import PLACED
from serving.fleet_view import VersionView

EARLIER_MAX = 3


@dataclass(frozen=True, slots=True)
class DiagnosedArm:
    """An arm to ask: a version, or the base of a pool with a version's general prompt."""

    name: str
    kind: ArmKind
    version: VersionView
    pool: str
    is_base: bool


def list_arms(task: TaskPolicy, own: VersionView, versions: list[VersionView]) -> list[DiagnosedArm]:
    """The arms for a version of the task: of earlier versions the newest that can be asked, on the same base."""
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
    """The answer of each arm. One that fails, or has no room beside callers, says so."""
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
    """A replica with room beside callers, or what is missing."""
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
