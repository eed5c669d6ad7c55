"""The place of an evaluation's row, or of a question to its judge: an engine with room beside callers."""

from __future__ import annotations

import time
from dataclasses import replace

from gateway.features.evaluations.store import Evaluation
from gateway.services import Services
from router.policy import TaskPolicy
from router.replica_choice import pick
from router.routing_data import OUT_OF_SERVICE, Choice
from serving.adapters.versions_and_aliases import GIVEN_UP, PLACED
from serving.fleet_view import FleetView, VersionView


class Impossible(Exception):
    """The evaluation can't go on; the message is a sentence that says why and what to do."""


def place_row(services: Services, evaluation: Evaluation, arm: str) -> Choice | str:
    """The place for a row, or the reason why it waits. Raises Impossible where waiting is of no use."""
    view, task = services.fleet.view(), services.snapshot.current.policy.tasks.get(evaluation.task)
    spec = evaluation.arms[arm]
    name = spec.version or evaluation.version
    version = view.versions.get(name)
    if task is not None and spec.prompt is not None:
        placed = _place(services, task, None, spec.pool or "", None, view)
        return placed if isinstance(placed, str) else replace(placed, system=spec.prompt)
    if task is None or version is None:
        raise Impossible(f"The configuration has no task {evaluation.task!r} any more, or there is no {name}.")
    if spec.version is None:
        return _place(services, task, None, spec.pool or task.fallback_pool or "", version, view)
    if version.state in OUT_OF_SERVICE or version.state not in PLACED | {"staging"}:
        todo = "stage it, and run the evaluation again: it goes on from here"
        if version.state in GIVEN_UP:
            todo = "evaluate without it"
        raise Impossible(f"{name} is {version.state}: {todo}.")
    return _place(services, task, version, version.pool, None, view)


def place_judge(services: Services, evaluation: Evaluation, pool: str) -> Choice | str:
    """The place for a question to the model that judges, or the reason why it waits. Raises Impossible."""
    task = services.snapshot.current.policy.tasks.get(evaluation.task)
    if task is None:
        raise Impossible(f"The configuration has no task {evaluation.task!r} any more.")
    return _place(services, task, None, pool, None, services.fleet.view())


def _place(
    services: Services,
    task: TaskPolicy,
    version: VersionView | None,
    pool_name: str,
    general_prompt_of: VersionView | None,
    view: FleetView,
) -> Choice | str:
    """A replica with room to spare, or what is missing."""
    now = time.monotonic()
    pool = view.pools.get(pool_name)
    if pool is None or not task.reaches(pool.name):
        raise Impossible(
            f"The task {task.name!r} may not reach the pool {pool_name!r}: see fallback_pool, pools_allowed."
        )
    if services.admission.waiting:
        return "callers wait for a place, and go first"
    if services.admission.stage != "open":
        return "the gateway is shutting down"
    name = version.name if version else None
    replica = pick(pool, name, view.in_flight, now, services.moment(now).draw, spare_open=True)
    if replica == "no_replica":
        return f"no replica of the pool {pool.name!r} can answer" + (f" with {name}" if name else "")
    if isinstance(replica, str):
        return f"every replica of the pool {pool.name!r} is full"
    load_max = services.settings.evaluation.load_share_max * replica.in_flight_max
    if view.in_flight.get(replica.name, 0) + 1 > max(1.0, load_max):
        return f"the pool {pool.name!r} has no room beside its callers"
    return Choice(task, version, pool, replica, "pinned", general_prompt_of)
