"""The arms of an evaluation: the version, general, and the versions that the version may replace."""

from __future__ import annotations

from gateway.errors import Problem
from gateway.features.evaluations.state import Evaluations
from gateway.release_gate import arm_of, find_references
from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.gate import ROLE_WORDS
from router.policy import TaskPolicy
from serving.adapters.versions_and_aliases import Version

ARMS = ("adapter", "general", "leading", "best")
PROMPT_ARMS = ("base", "general")


async def resolve_arms(
    evaluations: Evaluations, task: TaskPolicy, version: Version, named: str | None, against: Version | None
) -> tuple[dict[str, EvaluationArm], list[str]]:
    """The arms that are `named` (None: all possible ones), and notes on those that are left out.

    Raises Problem (400).
    """
    names = ARMS if named is None else tuple(name for name in ARMS if name in named.split(","))
    unknown = [name for name in (named or "").split(",") if name and name not in ARMS]
    if unknown or not (names or against):
        raise Problem("invalid_value", f"Arms are {', '.join(ARMS)}: one or more, with commas between.", "arms")
    arms = {"adapter": arm_of(version)} if "adapter" in names else {}
    if "general" in names:
        if task.fallback_pool is not None and task.reaches(task.fallback_pool):
            arms["general"] = EvaluationArm(pool=task.fallback_pool)
        elif named is not None:
            text = f"The task {task.name!r} has no fallback pool that could be the arm general."
            raise Problem("invalid_value", text, "arms")
    references, notes = await _references(evaluations, version)
    arms |= {name: arm for name, arm in references.items() if name in names}
    if against is not None:
        arms["against"] = arm_of(against)
    if not arms:
        text = f"No other version leads {task.name}, or has led it: name the arm adapter or general, too."
        raise Problem("invalid_value", text, "arms")
    return arms, notes if {"leading", "best"} & {*names} else []


def resolve_prompt_arms(
    evaluations: Evaluations, task: TaskPolicy, version: Version | None, named: str | None, prompt: str
) -> dict[str, EvaluationArm]:
    """The arms that answer by a prompt: `base`, the pool's model without an adapter, and `general`. Only those that are
    `named`; None: all possible ones. Raises Problem (400)."""
    pools = {"base": version.pool if version is not None else _base_pool(evaluations, task), "general": None}
    if task.fallback_pool is not None and task.reaches(task.fallback_pool):
        pools["general"] = task.fallback_pool
    names = PROMPT_ARMS if named is None else [name for name in named.split(",") if name]
    if not names or not {*names} <= {*PROMPT_ARMS}:
        raise Problem("invalid_value", f"A prompt has the arms {' and '.join(PROMPT_ARMS)}: name one or both.", "arms")
    arms = {arm: EvaluationArm(pool=pool, prompt=prompt) for arm, pool in pools.items() if arm in names and pool}
    missing = next((arm for arm in PROMPT_ARMS if named is not None and arm in names and arm not in arms), None)
    if missing is not None or not arms:
        text = f"{task.name} has no pool that could be the arm {missing or 'base'}: name another, or see pools_allowed."
        raise Problem("invalid_value", text, "arms")
    return arms


def find_leading(evaluations: Evaluations, task: TaskPolicy) -> Version | None:
    """The version that leads a task; None if none does."""
    snapshot = evaluations.services.snapshot.current
    alias = snapshot.aliases.get(task.name)
    return snapshot.versions.get(alias.leading) if alias is not None else None


def _base_pool(evaluations: Evaluations, task: TaskPolicy) -> str | None:
    """The pool of a task's adapters: the leading version's pool, else the only possible one; None if neither exists."""
    services, leading = evaluations.services, find_leading(evaluations, task)
    if leading is not None:
        return leading.pool
    pools = [
        name for name, pool in services.settings.pools.items() if pool.base_folder is not None and task.reaches(name)
    ]
    return pools[0] if len(pools) == 1 else None


async def _references(evaluations: Evaluations, version: Version) -> tuple[dict[str, EvaluationArm], list[str]]:
    """The arms `leading` and `best`, if they are placed versions, and notes on those that are not placed."""
    arms: dict[str, EvaluationArm] = {}
    notes = []
    for reference in (await find_references(evaluations.services, version)).ranked:
        if reference.placed:
            arms[reference.role] = reference.asked
        else:
            named = f"{reference.asked.version}, {ROLE_WORDS[reference.role]}, is not loaded"
            notes.append(f"{named} and was not asked: stage it, then evaluate again.")
    return arms, notes
