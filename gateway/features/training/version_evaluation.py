"""The step from a training to the gate: stage and evaluate the version, and no more.

The gate uses that evaluation when a person asks for a canary or a promotion. This module asks for neither.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from gateway.features.evaluations.endpoints import list_told, make_intake, resolve_wanted
from gateway.features.evaluations.intake import open_rows
from gateway.features.evaluations.state import Evaluations
from monitoring.evaluation.suites import kinds_of
from serving.adapters.versions_and_aliases import PLACED, Version

GATE_ARMS = frozenset({"adapter", "leading", "best"})
"""Arms that the gate compares."""


async def stage_version(evaluations: Evaluations, version: Version) -> bool:
    """Stage a version, if necessary. Return whether it is placed. Raises RegistryError and RedisError."""
    if version.state == "verified":
        step = evaluations.services.begin_step("system")
        noted = step.noted("adapter.stage", version.name, lambda each: {"state": each.state})
        await evaluations.services.control.registry.move(version.name, "staging", noted=noted)
        await step.enter()
        await evaluations.services.snapshot.refresh()
    return version.state in PLACED


async def evaluate_version(evaluations: Evaluations, version: str, rows: Path, class_field: str = "") -> str:
    """Begin the evaluation that the gate reads. Return its id, which is the same if it is called again.

    The rows are the task's newest suite or, if it has none, those of the file `rows`. Raises Problem, DatasetError
    and OSError for unusable rows, and RedisError.
    """
    kinds = kinds_of(await evaluations.suites.all(version.partition("@")[0])).values()
    wanted = await resolve_wanted(evaluations, version, None, None, "newest" if "newest" in kinds else None, 1)
    wanted = replace(wanted, arms={name: arm for name, arm in wanted.arms.items() if name in GATE_ARMS})
    metric, suite = "", wanted.suite
    if suite is not None:
        metric, class_field = suite.metric, suite.class_field
    async with open_rows(make_intake(evaluations, wanted, metric, class_field)) as intake:
        data = await (intake.from_file(rows) if suite is None else intake.from_suite(suite))
        evaluation = wanted.evaluation(intake, data, "system", metric)
        if await evaluations.store.get(evaluation.id) is not None:
            return evaluation.id
        step = evaluations.services.begin_step("system")
        step.note("evaluation.begin", version, None, list_told(evaluation))
        await evaluations.store.begin(evaluation, intake.coming, True, step)
    return evaluation.id
