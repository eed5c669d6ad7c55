"""The monitor: a background job of one gateway that judges every version by records and feedback, and responds.

A child process reads and judges (monitoring/quality/signals/run.py), so that the event loop is not blocked. This module
publishes the judgements to all gateways, and carries out the responses
(monitoring/quality/verdicts/monitor_responses.py).
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping, Sequence, Set

import msgspec
from msgspec.structs import replace
from redis.exceptions import RedisError

from gateway.background.child_process import ChildProcess, run_child
from gateway.features.quality.budget_alerts import tell_budgets
from gateway.features.quality.responding import Responding
from gateway.features.quality.state import Quality
from gateway.request_labels import list_agreed_only
from gateway.state.snapshot import Snapshot
from monitoring.quality.signals.canaries import Canary
from monitoring.quality.signals.child_messages import Begin, JudgedStep, MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.verdicts.canary_verdict import CanaryPlan
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import Judgement, Summary, TaskQuality, VersionQuality
from monitoring.quality.verdicts.reviewing import compute_review_share, count_requests_per_week
from monitoring.quality.verdicts.shares import Roles
from monitoring.redis_time import read_redis_time
from serving.adapters.versions_and_aliases import PLACED, AliasEntry
from serving.object_store import UNREADABLE, Change, Stale, change_together

log = logging.getLogger(__name__)
COMMAND = (sys.executable, "-P", "-m", "monitoring.quality.signals.run")
ANSWER_SECONDS_MAX = 60.0
STEPS_A_BUDGET = 10
"""Budgets of keys are looked at once in this many intervals of the monitor."""
TOLD_SECONDS = 5.0
"""Time between two messages to all gateways that the monitor judges, though nothing is new."""
MOVED_AT_ONCE = 100
"""Tasks whose quality is set in one step."""


class MonitorFailed(OSError):
    """The child process failed at a step. Nothing is lost, and the job starts again."""


async def keep_monitoring(quality: Quality) -> None:
    """Judge while no other gateway does. Runs until cancelled. Raises the errors of `Monitoring.run`."""
    lease = quality.services.lease_job("monitor")
    await lease.repeat(lambda: Monitoring(quality).run(), quality.services.settings.monitor.interval_seconds)


class Monitoring:
    """One gateway's turn at the job. Owner of the child process, and of the last judgements."""

    def __init__(self, quality: Quality) -> None:
        self._quality = quality
        self._responding = Responding(quality)
        self._summary = Summary(at=0.0)
        self._judgements: dict[str, Judgement] = {}
        self._unreadable = self._unmatched = 0
        self._passed_over: set[str] = set()
        self._told_at = 0.0

    async def run(self) -> None:
        """Judge and respond, step after step, until cancelled. Raises an ExceptionGroup."""
        quality = self._quality
        await asyncio.sleep(quality.services.settings.monitor.interval_seconds)  # leave the cores to the first requests
        summary = await quality.store.summary()
        if summary is not None:
            self._summary, self._judgements = summary, dict(summary.judgements)
            self._unreadable, self._unmatched = summary.unreadable, summary.unmatched
        begin = Begin(
            redis_url=quality.services.settings.find_redis_address(),
            retention_seconds=quality.services.settings.records.retention_seconds,
        )
        async with run_child(COMMAND) as process, asyncio.TaskGroup() as group:
            group.create_task(self._keep_delivering())
            group.create_task(self._keep_telling_budgets())
            await process.give(msgspec.json.encode(begin) + b"\n")
            while True:
                if not await self.step(process):
                    await asyncio.sleep(quality.services.settings.monitor.interval_seconds)

    async def _keep_delivering(self) -> None:
        """Deliver the waiting webhook messages, beside the steps, so that a slow receiver delays no judgement."""
        quality = self._quality
        while True:
            await quality.webhooks.deliver(quality.services.settings.monitor)
            await asyncio.sleep(quality.services.settings.monitor.interval_seconds)

    async def _keep_telling_budgets(self) -> None:
        while True:
            await tell_budgets(self._quality)
            await asyncio.sleep(STEPS_A_BUDGET * self._quality.services.settings.monitor.interval_seconds)

    async def step(self, process: ChildProcess) -> bool:
        """One step: judge new records and feedback, and respond. Return whether there are more already."""
        quality = self._quality
        if await quality.services.redis.exists(*quality.outbox.keys, quality.releases.canary_verdicts.drafts_key):
            await self._responding.carry_out()
            await quality.releases.canary_verdicts.enter_left()
        now = await read_redis_time(quality.services.redis)
        snapshot = await quality.services.snapshot.refresh()
        agreed_only = await list_agreed_only(quality.services)
        judged = await _answered(process, step_of(quality, snapshot, now, agreed_only))
        if judged.error:
            await quality.services.redis.ping()  # an outage of Redis is raised and logged as such
            raise MonitorFailed(f"the monitor's process: {judged.error}")
        await self._tell(judged, snapshot)
        by_task: dict[str, dict[str, Judgement]] = {}
        for name, judgement in self._judgements.items():
            by_task.setdefault(judgement.task, {})[name] = judgement
        moves: list[Change] = []
        for task in quality.services.settings.tasks:
            try:
                moves += await self._respond(task, by_task.get(task, {}), snapshot, judged.at)
                await self._carry_out_canary(task, snapshot, judged)
            except (RedisError, OSError):
                raise
            except Exception as fault:
                self._pass_over(task, f"what follows for {task} can't be done: {fault!r}", exc_info=True)
        await self._move(moves)
        return judged.more

    async def _move(self, moves: Sequence[Change]) -> None:
        """Set the quality of tasks without actions, many in one step, since all gateways read again after each step.

        If one task has changed meanwhile, the next step repeats all of them.
        """
        for at in range(0, len(moves), MOVED_AT_ONCE):
            try:
                await change_together(self._quality.services.redis, moves[at : at + MOVED_AT_ONCE])
            except Stale as stale:
                log.info("the quality of %s is looked at again: %s", stale.name, stale)
        if moves:
            await self._quality.services.snapshot.refresh()

    async def _carry_out_canary(self, task: str, snapshot: Snapshot, judged: JudgedStep) -> None:
        """Carry out the verdict on a task's canary, if a plan judges it."""
        alias = snapshot.aliases.get(task)
        canary = alias.canary if alias is not None else None
        if canary is None or canary.plan is None:
            return
        verdict = judged.canaries.get(task)
        if verdict is None:
            self._pass_over(task, f"the canary {canary.version} can't be judged: see its plan, and the log")
            return
        await self._quality.releases.canary_verdicts.carry_out(task, canary, verdict)

    def _pass_over(self, task: str, why: str, exc_info: bool = False) -> None:
        """Skip a task for now. It is logged once, and does not delay other tasks."""
        if task not in self._passed_over:
            log.error(why, exc_info=exc_info)
        self._passed_over.add(task)

    async def _tell(self, judged: JudgedStep, snapshot: Snapshot) -> None:
        """Publish new judgements, and the time of judging, to all gateways."""
        self._unreadable += judged.unreadable
        self._unmatched += judged.unmatched
        self._quality.services.meters.monitor_unmatched.add(judged.unmatched)
        states = {name: version.state for name, version in snapshot.versions.items()}
        gone = [name for name in self._judgements if states.get(name, "retired") == "retired"]
        new = {
            name: judgement
            for name, judgement in judged.judgements.items()
            if name not in gone and judgement.is_news(self._judgements.get(name))
        }
        self._judgements = {
            name: judgement for name, judgement in {**self._judgements, **new}.items() if name not in gone
        }
        if not new and not gone and judged.at - self._told_at < TOLD_SECONDS:
            return
        self._told_at = judged.at
        writing = self._summary.writing + bool(new or gone)
        self._summary = Summary(
            at=judged.at,
            behind_seconds=judged.behind_seconds,
            writing=writing,
            unreadable=self._unreadable,
            unmatched=self._unmatched,
            unjudged=judged.unjudged,
        )
        await self._quality.store.tell(self._summary, new, gone)

    async def _respond(
        self, task: str, judgements: Mapping[str, Judgement], snapshot: Snapshot, now: float
    ) -> Sequence[Change]:
        """Respond to a task's judgements. If its quality has changed meanwhile, the next step tries again.

        Returns the change of its quality if there is no action with it.
        """
        quality = self._quality
        plan = quality.services.settings.plan(task)
        roles = roles_of(quality, task, snapshot)
        requests = count_requests_per_week(judgements.values())
        shares = compute_review_share(plan, requests, False), compute_review_share(plan, requests, True)
        before = snapshot.quality.get(task, TaskQuality())
        if respond(before, judgements, roles, plan, now, shares)[0] == before:
            return ()
        try:
            task_quality, generation = await quality.store.of(task)
        except UNREADABLE as error:
            self._pass_over(task, f"the quality of {task} can't be read, and nothing follows for it: {error}")
            return ()
        moved, actions = respond(task_quality, judgements, add_newer(roles, before, task_quality), plan, now, shares)
        changes: Sequence[Change] = ()
        if not actions and moved != task_quality:
            changes = (quality.store.change(task, moved, generation),)
        elif moved != task_quality:
            try:
                await self._responding.move(task, moved, generation, actions)
            except Stale as stale:
                log.info("the quality of %s is looked at again: %s", task, stale)
                return ()
            await quality.services.snapshot.refresh()
        self._passed_over.discard(task)
        return changes


def roles_of(quality: Quality, task: str, snapshot: Snapshot) -> Roles:
    """The present roles of the task's versions."""
    alias = snapshot.aliases.get(task)
    general = quality.services.settings.tasks[task].fallback_pool is not None
    there = tuple(version.name for version in snapshot.versions_by_task.get(task, ()) if version.state != "retired")
    unknown = (name for name in snapshot.unreadable if name not in snapshot.versions)
    there += tuple(name for name in unknown if name.partition("@")[0] == task)
    if alias is None:
        return Roles(general=general, there=there)
    canary = alias.canary
    placed = [
        name for name in alias.previous[:1] if name in snapshot.versions and snapshot.versions[name].state in PLACED
    ]
    return Roles(
        active=alias.leading,
        previous_version=placed[0] if placed else None,
        canary=canary.version if canary is not None else None,
        canary_share=alias.weights.get(canary.version, 0.0) if canary is not None else 0.0,
        general=general,
        there=there,
    )


def add_newer(roles: Roles, before: TaskQuality, task_quality: TaskQuality) -> Roles:
    """The roles, with versions whose quality was set after `before`, the snapshot's quality. The snapshot may be older
    than these versions; they still exist."""
    newer = task_quality.versions.keys() - before.versions.keys()
    return replace(roles, there=(*roles.there, *sorted(newer))) if roles.there else roles


def step_of(quality: Quality, snapshot: Snapshot, known_at: float, agreed_only: Set[str] = frozenset()) -> MonitorStep:
    """The facts on tasks, versions and metrics that the child process needs for a step. For tasks in `agreed_only`,
    only agreed labels count."""
    tasks: dict[str, WatchedTask] = {}
    previous: dict[str, str | None] = {}
    for task in quality.services.settings.tasks:
        roles = roles_of(quality, task, snapshot)
        alias = snapshot.aliases.get(task)
        tasks[task] = WatchedTask(
            plan=replace(quality.services.settings.plan(task), agreed_only=task in agreed_only),
            previous_version=roles.previous_version,
            canary=_canary_of(alias) if alias is not None else None,
        )
        if alias is not None and alias.previous:
            previous[alias.leading] = alias.previous[0]
        if roles.canary is not None:
            previous[roles.canary] = roles.active
    judged = {name: verdict for each in snapshot.quality.values() for name, verdict in each.versions.items()}
    unjudged = VersionQuality()
    versions = {
        name: WatchedVersion(
            task=version.task,
            state=version.state,
            phase=judged.get(name, unjudged).phase,
            since=judged.get(name, unjudged).since,
            stepped_at=judged.get(name, unjudged).stepped_at,
            previous=previous.get(name),
        )
        for name, version in snapshot.versions.items()
    }
    metrics = quality.services.settings.judged_metrics()
    return MonitorStep(tasks=tasks, versions=versions, metrics=metrics, known_at=known_at)


def _canary_of(alias: AliasEntry) -> Canary | None:
    """The alias's canary, if a readable plan judges it; else None."""
    canary = alias.canary
    if canary is None or canary.plan is None:
        return None
    try:
        plan = msgspec.convert(canary.plan, CanaryPlan)
    except msgspec.ValidationError:
        return None
    return Canary(version=canary.version, active=alias.leading, started_at=canary.started_at, plan=plan)


async def _answered(process: ChildProcess, step: MonitorStep) -> JudgedStep:
    """The child process's answer. Raises MonitorFailed if the process does not answer, or exits."""
    await process.give(msgspec.json.encode(step) + b"\n")
    try:
        async with asyncio.timeout(ANSWER_SECONDS_MAX):
            line = await process.read_line()
    except TimeoutError:
        raise MonitorFailed(f"the monitor's process did not answer within {ANSWER_SECONDS_MAX:g} s") from None
    if not line:
        raise MonitorFailed(f"the monitor's process ended with exit code {await process.wait()}: see the log")
    return msgspec.json.decode(line, type=JudgedStep)
