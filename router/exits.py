"""Where a request goes that its adapter may not or cannot answer: the task's exits for that reason, in order."""

from __future__ import annotations

from dataclasses import replace

from router.decision import ADAPTER_STANDS_IN, OUT_OF_SERVICE, Choice, Moment, Reason, Refusal
from router.policy import Policy, TaskPolicy
from router.replicas import Lack, pick
from serving.view import FleetView, VersionView


def exit_of(
    task: TaskPolicy,
    version: VersionView | None,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    session: str | None,
    override_id: str | None = None,
    avoid: frozenset[str] = frozenset(),
    spare_open: bool = False,
) -> Choice | Refusal:
    """The first exit that can take the request which `version` may not answer; refused where none can.

    One that is full is waited for, rather than that a person is asked.
    """
    key = session or (version.name if version else None)
    capped = False
    lack: Refusal | None = None
    for exit_ in task.exits_for(reason):
        if exit_ == "needs_human":
            if lack is None or lack.code != "overload":
                return _to_a_person(task, reason)
            continue
        if exit_ == "general" and task.name in moment.exits_closed:
            capped = True
            continue
        if exit_ == "general":
            found = _general(task, version, view, moment, reason, key, override_id, avoid, spare_open)
        else:
            found = _standby(task, version, policy, view, moment, reason, key, override_id, avoid)
        if isinstance(found, Choice):
            return replace(found, exit_capped=True) if capped else found
        lack = lack or found
    if capped:
        return _instead_of_exit(task, version, view, moment, reason, key)
    return lack or Refusal("no_replica", f"The task {task.name!r} has no replica that can answer, and no exit.")


def general_instead(
    choice: Choice, policy: Policy, view: FleetView, moment: Moment, reason: Reason, avoid: frozenset[str] = frozenset()
) -> Choice | Refusal:
    """The task's exit after its adapter could not answer; refused where the exit has nobody to answer either."""
    if choice.task is None:
        return Refusal("no_replica", f"No replica of the pool {choice.pool.name!r} can answer. Try again later.")
    version = choice.version or choice.blueprint_of
    return exit_of(choice.task, version, policy, view, moment, reason, choice.key, choice.override_id, avoid)


def lacking(lack: Lack, pool: str) -> Refusal:
    """The refusal where no replica of a pool could be picked."""
    if lack == "overload":
        return Refusal("overload", f"Every replica of the pool {pool!r} is full. Try again in a moment.")
    return Refusal("no_replica", f"No replica of the pool {pool!r} can answer now. Try again later.")


def _general(
    task: TaskPolicy,
    version: VersionView | None,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    key: str | None,
    override_id: str | None,
    avoid: frozenset[str],
    spare_open: bool,
) -> Choice | Refusal | None:
    pool = view.pools.get(task.exit_pool or "")
    if pool is None or not task.reaches(pool.name):
        return None
    replica = pick(pool, None, view.in_flight, moment.now, moment.draw, avoid, key, spare_open)
    if isinstance(replica, str):
        return lacking(replica, pool.name)
    return Choice(task, None, pool, replica, reason, version, 1.0, override_id, key)


def _standby(
    task: TaskPolicy,
    version: VersionView | None,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    key: str | None,
    override_id: str | None,
    avoid: frozenset[str],
) -> Choice | Refusal | None:
    alias = policy.aliases.get(task.name)
    standby = view.versions.get(alias.standby or "") if alias is not None else None
    if standby is None or standby.state in OUT_OF_SERVICE or (version is not None and standby.name == version.name):
        return None
    pool = view.pools.get(standby.pool)
    if pool is None or not task.reaches(pool.name):
        return None
    replica = pick(pool, standby.name, view.in_flight, moment.now, moment.draw, avoid, key)
    if isinstance(replica, str):
        return lacking(replica, pool.name)
    return Choice(task, standby, pool, replica, reason, None, 1.0, override_id, key)


def _to_a_person(task: TaskPolicy, reason: Reason) -> Refusal:
    text = f"A person has to answer this request of the task {task.name!r}: its adapter may not ({reason})."
    return Refusal("needs_human", text, reason)


def _instead_of_exit(
    task: TaskPolicy,
    version: VersionView | None,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    key: str | None,
) -> Choice | Refusal:
    """Past the exit's cap: the adapter where the reason allows it, else nobody."""
    pool = view.pools.get(version.pool) if version and reason in ADAPTER_STANDS_IN else None
    if version is not None and pool is not None and version.state not in OUT_OF_SERVICE and task.reaches(pool.name):
        replica = pick(pool, version.name, view.in_flight, moment.now, moment.draw, key=key)
        if not isinstance(replica, str):
            return Choice(task, version, pool, replica, reason, key=key, exit_capped=True)
    text = f"The task {task.name!r} has sent as much to {task.exit_pool} as it may. Try again later."
    return Refusal("exit_capped", text, reason)
