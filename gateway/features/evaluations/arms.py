"""The arms that an evaluation can have: the version, general, and the versions that it may have to replace."""

from __future__ import annotations

from gateway.errors import Problem
from gateway.features.evaluations.evaluations import Evaluations
from monitoring.evaluation.arms import EvaluationArm
from router.policy import TaskPolicy
from serving.adapters.entries import PLACED, AliasEntry, Version

ARMS = ("adapter", "general", "leading", "best")


async def resolve_arms(
    evaluations: Evaluations, task: TaskPolicy, version: Version, named: str | None, against: Version | None
) -> tuple[dict[str, EvaluationArm], list[str]]:
    """The arms that are `named` (None: all there are) with what each asks, and notes on those that are left out.

    Raises Problem (400).
    """
    names = ARMS if named is None else tuple(name for name in ARMS if name in named.split(","))
    unknown = [name for name in (named or "").split(",") if name and name not in ARMS]
    if unknown or not names:
        raise Problem("invalid_value", f"Arms are {', '.join(ARMS)}: one or more, with commas between.", "arms")
    asked = {"adapter": arm_of(version)} if "adapter" in names else {}
    if "general" in names:
        if task.fallback_pool is not None and task.reaches(task.fallback_pool):
            asked["general"] = EvaluationArm(pool=task.fallback_pool)
        elif named is not None:
            text = f"The task {task.name!r} has no fallback pool that could be the arm general."
            raise Problem("invalid_value", text, "arms")
    references, notes = await _references(evaluations, version)
    asked |= {name: arm for name, arm in references.items() if name in names}
    if against is not None:
        asked["against"] = arm_of(against)
    if not asked:
        text = f"No other version leads {task.name}, or has led it: name the arm adapter or general, too."
        raise Problem("invalid_value", text, "arms")
    return asked, notes if "best" in names else []


def arm_of(version: Version) -> EvaluationArm:
    """The arm that asks a version."""
    return EvaluationArm(version.name, version.digest, version.manifest_digest)


async def find_best(evaluations: Evaluations, alias: AliasEntry, without: str) -> str | None:
    """The version that was most often right by its last evaluation, of those that lead the task or have led it; of
    equal ones the newest. None where none was evaluated. Raises RedisError."""
    versions = evaluations.services.snapshot.current.versions
    rated = []
    for name in {alias.leading, *alias.previous} - {without}:
        version, last = versions.get(name), await evaluations.store.latest(name)
        accuracy = ((last or {}).get("accuracy") or {}).get("adapter") or {}
        if version is None or version.state in ("quarantined", "draining", "retired"):
            continue  # it can not come back
        if accuracy.get("share") is not None:
            rated.append((accuracy["share"], version.number, name))
    return max(rated)[2] if rated else None


async def _references(evaluations: Evaluations, version: Version) -> tuple[dict[str, EvaluationArm], list[str]]:
    """The arms `leading` and `best`, as far as each is a version of its own that can be asked."""
    snapshot = evaluations.services.snapshot.current
    alias = snapshot.aliases.get(version.task)
    if alias is None:
        return {}, []
    arms, notes = {}, []
    if alias.leading != version.name and alias.leading in snapshot.versions:
        arms["leading"] = arm_of(snapshot.versions[alias.leading])
    best = await find_best(evaluations, alias, version.name)
    if best is not None and best != alias.leading:
        if snapshot.versions[best].state in PLACED:
            arms["best"] = arm_of(snapshot.versions[best])
        else:
            state = snapshot.versions[best].state
            notes.append(f"{best}, the best so far, is {state} and was not asked: stage it, then evaluate again.")
    return arms, notes
