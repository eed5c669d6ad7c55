"""Baselines from the gate: a version's evaluation before it is live becomes the baseline of its reviewed labels.

An evaluation may use any rows, such as the requests that its version answered wrong. Therefore an evaluation never
becomes the baseline of a version that is live already, unless an admin says so.
"""

from __future__ import annotations

import contextlib
import logging

import msgspec

from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import Evaluation, Gate
from monitoring.evaluation.gate import WHOLE
from monitoring.evaluation.unleaked_rows import count_unleaked
from monitoring.quality.detectors.baselines import Baseline, measure_counts
from monitoring.redis_time import read_redis_time
from serving.adapters.versions_and_aliases import VersionState
from serving.object_store import UNREADABLE, Change, Stale

log = logging.getLogger(__name__)
SIGNAL = "reviewed"
LIVE: frozenset[VersionState] = frozenset({"canary", "active", "previous_version"})
"""States of a version that answers its task's requests, or has led the task."""


def counts_of(evaluation: Evaluation) -> tuple[float, float] | None:
    """The numbers of rows that the version answered wrong, and of all that it answered, without its training rows.
    Related rows count less, by the report's `spread`. None before the end, or if the version was not asked."""
    report = evaluation.report or {}
    rows = count_unleaked(report, "adapter")
    if rows is None or evaluation.status != "done":
        return None
    spread, answered = report["arms"]["adapter"].get("spread") or 1.0, rows.of - rows.failed
    return (answered - rows.right) / spread, answered / spread


async def gate_of(evaluations: Evaluations, evaluation: Evaluation) -> Gate | None:
    """The gate from an ended evaluation; None if its version was not asked. Raises RedisError."""
    counts = counts_of(evaluation)
    if counts is None:
        return None
    if evaluation.metric == "judge":
        return Gate(taken=False, because="A model judged these answers: they are not a baseline of people's labels.")
    try:
        baseline = measure_counts("gate", *counts, 0.0, "system", "")
    except ValueError as error:
        return Gate(taken=False, because=f"It is not a baseline: {error}")
    why_not = await _why_not(evaluations, evaluation)
    if why_not is not None:
        command = (
            f"apprentice tasks baseline {evaluation.task} {evaluation.version} {SIGNAL} --evaluation {evaluation.id}"
        )
        return Gate(taken=False, because=f"{why_not} `{command}` makes it one.")
    most = f"at most {100 * baseline.upper:.1f}% may be wrong"
    return Gate(taken=True, because=f"It is the baseline of {evaluation.version}'s {SIGNAL} labels: {most}.")


async def _why_not(evaluations: Evaluations, evaluation: Evaluation) -> str | None:
    """The reason why this evaluation may not become the version's baseline without an admin. Raises RedisError."""
    snapshot = await evaluations.services.snapshot.refresh()
    version, alias = snapshot.versions.get(evaluation.version), snapshot.aliases.get(evaluation.task)
    baselines = await _read_baselines(evaluations, evaluation.version)
    if version is None or baselines is None:
        return f"It is not a baseline: {evaluation.version}, or what is set for it, can't be read."
    if evaluation.suite not in WHOLE:
        return (
            f"It is not a baseline: its suite is {evaluation.suite}, and not a sample of what the version is asked now."
        )
    if SIGNAL in baselines:
        return f"It is not a baseline: {evaluation.version} has one already ({baselines[SIGNAL].source})."
    judged = (await evaluations.quality_store.judgements()).get(evaluation.version)
    has_led = alias is not None and evaluation.version in alias.previous
    if version.state in LIVE or has_led or (judged is not None and judged.requests + judged.labels > 0):
        live = f"{evaluation.version} was live by then, and might have been judged by what it got wrong"
        return f"It is not a baseline: {live}."
    verdict = snapshot.get_quality(evaluation.task, evaluation.version).verdict
    return None if verdict == "healthy" else f"It is not a baseline: {evaluation.version} is {verdict}."


async def take_gate(evaluations: Evaluations, evaluation: str) -> None:
    """Make this evaluation the baseline of its version's reviewed labels, if it is the gate and there is none yet.

    May be repeated. Raises RedisError; then the next gateway that runs evaluations does it.
    """
    ended = await evaluations.store.get(evaluation)
    counts = counts_of(ended) if ended is not None and ended.gate is not None and ended.gate.taken else None
    if ended is None or counts is None:
        return
    while True:
        generation = await evaluations.services.objects.baselines.generation(ended.version)
        baselines = await _read_baselines(evaluations, ended.version)
        if baselines is None or SIGNAL in baselines:
            return
        baseline = measure_counts(
            "gate", *counts, await read_redis_time(evaluations.services.redis), "system", f"evaluation {ended.id}"
        )
        after = msgspec.to_builtins({**baselines, SIGNAL: baseline})
        audited_fields = {"signal": SIGNAL, **after[SIGNAL]}
        step = evaluations.services.begin_step("system")
        step.note("monitor.baseline", ended.version, after=audited_fields, generation=generation + 1)
        with contextlib.suppress(Stale):  # an admin has set one at this moment: read it again
            await step.take([Change(evaluations.services.objects.baselines, ended.version, after, generation)])
            return


async def _read_baselines(evaluations: Evaluations, version: str) -> dict[str, Baseline] | None:
    """The baselines that are set for a version, by signal; None if they can't be read."""
    try:
        return msgspec.convert(await evaluations.services.objects.baselines.get(version) or {}, dict[str, Baseline])
    except UNREADABLE as error:
        log.warning("what is set for %s can't be read, and no gate is taken: %s", version, error)
        return None
