"""The gate, if `release.gate` is `warn` or `enforce`. Before a version begins to answer requests, evidence has to show
that it is no worse than its task's leading version. It may not be worse than the best former leader either.

A version that leads or has led is never blocked, since it is a way back. A task's first version has to beat the floor
until a version has led. The leaders of a removed alias are remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import msgspec
from pydantic import Field

from gateway.callers import Caller
from gateway.endpoint_parts import Reason
from gateway.errors import Problem
from gateway.services import Services
from gateway.state.gate_store import Forced, GateStore
from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.best import rank_leaders
from monitoring.evaluation.gate import FLOOR, ROLE_WORDS, GateBounds, GateReference, GateReport, Role, decide_gate
from monitoring.redis_time import read_redis_time
from router.routing_data import OUT_OF_SERVICE
from serving.adapters.versions_and_aliases import PLACED, AliasEntry, Version
from serving.object_store import Change

PastGate = Annotated[Reason | None, Field(description="The reason to pass the gate by force, which is kept.")]


@dataclass
class GatePass:
    """The gate's part in a step: warnings for people, evidence for the audit, and changes to write in the same step.

    `judged_for` are the alias's versions for which the verdict is valid, the leading one first; None: any."""

    warnings: list[str] = field(default_factory=list)
    evidence: list[dict[str, Any]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    judged_for: list[str] | None = None


def arm_of(version: Version) -> EvaluationArm:
    """The arm of an evaluation for a version."""
    return EvaluationArm(version.name, version.digest, version.manifest_digest)


async def leaders_of(services: Services, task: str) -> list[str]:
    """The version that leads a task, then its former leaders, the newest first, then the leaders of its removed aliases
    that are not retired. Raises RedisError."""
    snapshot = services.snapshot.current
    alias, versions = snapshot.aliases.get(task), snapshot.versions
    led = [] if alias is None else [alias.leading, *alias.previous]
    former = await GateStore(services.redis).former_leaders(task)
    there = [name for name in former if name in versions and versions[name].state != "retired"]
    return list(dict.fromkeys(led + there))


async def keep_leaders(services: Services, task: str) -> Callable[[AliasEntry], Change]:
    """Read the leaders of removed aliases. The result makes the change that remembers the leaders of one more: the
    task's next version is then not its first, and the best one stays known. Raises RedisError."""
    versions, store = services.snapshot.current.versions, GateStore(services.redis)
    former = [name for name in await store.former_leaders(task) if name in versions]

    def keep(removed: AliasEntry) -> Change:
        return store.change_leaders(task, list(dict.fromkeys([removed.leading, *removed.previous, *former])))

    return keep


class GateReferences(NamedTuple):
    """The bar for a version, and the leaders that can't be ranked: they may have been better."""

    ranked: list[GateReference]
    unranked: list[str]


async def find_references(services: Services, version: Version) -> GateReferences:
    """The bar for a version: its task's leading version, and the best present or former leader on the same rows.
    Raises RedisError."""
    versions, leaders = services.snapshot.current.versions, await leaders_of(services, version.task)
    references: dict[str, Role] = {}
    if leaders and leaders[0] != version.name:
        references[leaders[0]] = "leading"
    others = (versions[name] for name in leaders if name != version.name and name in versions)
    able = {other.name: other for other in others if other.state not in OUT_OF_SERVICE}
    ranking = rank_leaders(list(map(arm_of, able.values())), await GateStore(services.redis).evidence([*able]))
    if ranking.best is not None:
        references.setdefault(ranking.best, "best")
    ranked = [
        GateReference(role, arm_of(versions[name]), versions[name].state in PLACED)
        if name in versions
        else GateReference(role, EvaluationArm(name), False)
        for name, role in references.items()
    ]
    return GateReferences(ranked, [name for name in ranking.unranked if name not in references])


async def judge_release(services: Services, version: Version) -> GateReport:
    """The gate's present verdict on a version, with any setting of `release.gate`. Raises RedisError."""
    if version.name in await leaders_of(services, version.task):
        because = "It leads its task, or has led it: a way back is never blocked."
        return GateReport(version=version.name, verdict="passed", because=because)
    return await judge_evidence(services, version)


async def judge_release_in_full(services: Services, version: Version, forced: Forced | None) -> GateReport:
    """The verdict of `judge_release`. For a version let past by force, its text adds the comparisons' verdict. If that
    version leads now, only the comparisons count: they show whether to go back. Raises RedisError."""
    report, alias = await judge_release(services, version), services.snapshot.current.aliases.get(version.task)
    evidence = report if forced is None else await judge_evidence(services, version)
    if evidence.verdict == report.verdict or (alias is not None and alias.leading == version.name):
        return evidence
    alone = f"{report.because} By comparisons alone it is: {evidence.verdict.replace('_', ' ')}."
    because, summary = (f"{alone} {text}".rstrip() for text in (evidence.because, evidence.summary))
    return msgspec.structs.replace(evidence, verdict=report.verdict, because=because, summary=summary)


async def judge_evidence(services: Services, version: Version) -> GateReport:
    """The gate's verdict by comparisons alone, also for a version that leads its task. Raises RedisError."""
    bounds = msgspec.convert(services.settings.release, GateBounds, from_attributes=True)
    comparisons = await GateStore(services.redis).comparisons_now(version.name)
    references = await find_references(services, version)
    ranked = references.ranked or await _first_references(services, version)
    return decide_gate(arm_of(version), ranked, comparisons, bounds, references.unranked)


async def _first_references(services: Services, version: Version) -> list[GateReference]:
    """The bar for a task's first version: the floor, and the general model, which answers now. Raises RedisError."""
    if services.settings.release.floor == "off":
        return []
    task = services.snapshot.current.policy.tasks.get(version.task)
    pool = task.fallback_pool if task is not None else None
    general = [GateReference("general", EvaluationArm(pool=pool))] if pool and task and task.reaches(pool) else []
    evaluated = await GateStore(services.redis).find_evaluation(version.name)
    return [GateReference("floor", FLOOR, evaluated=evaluated), *general]


async def pass_gate(
    services: Services,
    admin: Caller,
    versions: Sequence[Version],
    reason: str | None,
    rules: Mapping[str, str] = MappingProxyType({}),
) -> GatePass:
    """Check that the gate lets versions through, or that an admin has a `reason` to pass it by force. If rules and not
    an alias will send requests to them, `rules` has the rules' names by version.

    Raises Problem (409) if it does not let one through, and RedisError.
    """
    mode, passed = services.settings.release.gate, GatePass()
    if mode != "off":
        await services.snapshot.refresh()
    for version in versions if mode != "off" else ():
        report = await judge_release(services, version)
        shown: dict[str, Any] = {"version": version.name, "verdict": report.verdict, "because": report.because}
        is_forced = mode == "enforce" and report.verdict != "passed"
        shown |= {"evaluations": list(report.evaluations), "forced": reason if is_forced else None}
        passed.evidence.append(shown)
        if report.verdict == "passed":
            continue
        see = f"See `apprentice gate {version.task} {version.name}`"
        if mode == "warn":
            passed.warnings.append(f"The gate would not let {version.name} through. {report.because} {see}.")
        elif reason is None:
            text = f"The gate does not let {version.name} through. {report.because}"
            raise Problem("gate_not_passed", f"{text} {see}; `past_gate` with a reason passes it.")
        else:
            passed.warnings.append(f"{version.name} was let past the gate by force. {report.because}")
            at, rule = await read_redis_time(services.redis), rules.get(version.name, "")
            store = GateStore(services.redis)
            forced = Forced(reason=reason, by=admin.public, at=at, because=report.because, rule=rule)
            before = await store.forced(version.name) if rule else None
            if before is None or before.rule:  # a permission for all requests is not reduced to one rule
                passed.changes.append(store.change(version.name, forced))
    return passed


async def find_obstacle(services: Services, name: str) -> str | None:
    """The reason why the gate stops a canary's automatic promotion; None if it does not stop it, or if an admin let the
    canary past the gate. Raises RedisError."""
    snapshot = await services.snapshot.refresh()
    version = snapshot.versions.get(name)
    if services.settings.release.gate != "enforce" or version is None:
        return None
    report = await judge_release(services, version)
    forced = await GateStore(services.redis).forced(name)
    if report.verdict == "passed" or (forced is not None and not forced.rule):
        return None
    return f"The gate does not let it through: {report.because}"


def to_json(report: GateReport, mode: str, forced: Forced | None) -> dict[str, Any]:
    """A report as JSON for people."""
    fields: dict[str, Any] = msgspec.to_builtins(report)
    return {**fields, "mode": mode, "forced": None if forced is None else msgspec.to_builtins(forced)}


def describe_references(report: GateReport) -> list[str]:
    """A sentence with the versions against which a version is judged; empty if there are none."""
    named = [f"{name}, {ROLE_WORDS[role]}" for role, name in report.held_against.items()]
    return [f"The gate holds it against {', and '.join(named)}."] if named else []


def describe_forced(version: str, forced: Forced | None) -> list[str]:
    """A sentence on a version's step past the gate; empty if it took none."""
    if forced is None:
        return []
    day = datetime.fromtimestamp(forced.at, UTC).strftime("%Y-%m-%d")
    where = f" for the rule {forced.rule}" if forced.rule else ""
    text = f"{version} was let past the gate by force{where} on {day} by {forced.by}: {forced.reason.rstrip('.')}."
    return [f"{text} {forced.because}"]
