"""Carrying out the monitor's actions: each once, with an audit entry and a message to the webhook.

One atomic step writes a task's quality, its actions, and the drafts of their audit entries. If the gateway is killed,
the next one with the job carries out the remaining actions. Each effect first checks whether it has happened already.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.features.quality.state import Quality
from gateway.features.quality.waiting_actions import WaitingAction
from gateway.features.retraining.requests_to_train import close_retraining, open_retraining
from gateway.state.outbox import Write
from monitoring.audit import AuditConflict
from monitoring.quality.verdicts.actions import mark_failed
from monitoring.quality.verdicts.quality import Action, TaskQuality
from serving.adapters.registry import RegistryError
from serving.object_store import UNREADABLE, Change, Stale

log = logging.getLogger(__name__)


class Responding:
    """Changes of tasks' quality, and the actions that belong to them. Every method raises RedisError."""

    def __init__(self, quality: Quality) -> None:
        self._quality = quality

    async def move(
        self,
        task: str,
        task_quality: TaskQuality,
        generation: int,
        actions: Sequence[Action],
        with_it: Sequence[Change] = (),
    ) -> int:
        """Set a task's quality and, in the same atomic step, the changes `with_it`. Then carry out its actions.

        Raises Stale if any of the objects has changed.
        """
        beside: list[Change] = [*with_it]
        for action in actions:
            again = {"again": action.again} if action.again else {}
            draft = self._quality.services.control.audit.draft(
                action.by,
                f"monitor.{action.kind}",
                action.version or task,
                before=action.before,
                after={**action.after, "because": action.because, "id": action.id, **again},
                evidence=action.evidence or None,
                generation=generation + 1,
            )
            beside += self._quality.outbox.changes(task, action, draft)
        moved = await self._quality.store.put(task, task_quality, generation, beside)
        if actions:
            await self._carry_out(task)
        return moved

    async def carry_out(self) -> None:
        """Carry out the waiting actions of all tasks. Enter into the audit those that no gateway will carry out."""
        await self._quality.outbox.enter_strays()
        await self._carry_out()

    async def _carry_out(self, task: str | None = None) -> None:
        """Carry out the waiting actions, each task's in order: an unfinished action delays later ones of its task only.
        A failed action is finished: the audit, the task's quality and the log have the reason."""
        blocked: set[str] = set()
        for entry in await self._quality.outbox.waiting(task):
            if entry.value.task not in blocked and not await self._settle(entry):
                blocked.add(entry.value.task)

    async def _settle(self, entry: WaitingAction) -> bool:
        """Carry one action out. False if it must be tried again, after a change of its objects or an unexpected fault.

        After a fault, the action is tried again once its claim has expired.
        """
        outbox = self._quality.outbox.actions
        if not await outbox.claim(entry.name, self._quality.services.name):
            return False
        try:
            await self._carry_out_one(entry)
        except RedisError:
            raise
        except Stale:
            await outbox.release(entry.name)
            return False
        except Exception:
            log.exception("an action is tried again: %s", entry.name)
            return False
        return True

    async def _carry_out_one(self, entry: WaitingAction) -> None:
        """Raises Stale."""
        quality = self._quality
        if entry.value.action.failed is None and not entry.value.effected:
            tried = await self._try(entry)
            if tried is None:
                return  # another gateway was first
            entry = tried
        task, action = entry.value.task, entry.value.action
        if action.failed is not None:
            await self._mark(task, action)
        is_news = action.failed is None or not action.again
        message: Sequence[Write] = ()
        if is_news:
            await quality.outbox.drafts.enter_left([entry.name])
            if quality.services.settings.monitor.webhook_url is not None:
                body = {"task": task, **msgspec.to_builtins(action), "id": _id(action)}
                message = await quality.webhooks.message(f"{task}-{_id(action)}", body)
        if await quality.outbox.finish(entry, message, unaudited=not is_news) and is_news:
            self._report(task, action)

    def _report(self, task: str, action: Action) -> None:
        if not action.again:
            self._quality.services.meters.monitor_actions.add(1, task, action.kind)
        if action.failed is not None:
            log.warning("%s of %s was not carried out: %s", action.kind, action.version or task, action.failed)
            return
        log.warning("%s: %s. %s", action.version or task, action.kind, action.because)

    async def _try(self, entry: WaitingAction) -> WaitingAction | None:
        """Do the action's effect, or note the reason why it failed. Return its entry after that.

        None if another gateway was first. Raises Stale.
        """
        task, action = entry.value.task, entry.value.action
        try:
            if task not in self._quality.services.settings.tasks:
                raise RegistryError(f"the configuration has no task {task!r} any more.")
            return await self._effect(entry)
        except (Stale, RedisError, AuditConflict):
            raise
        except Exception as fault:
            if not isinstance(fault, RegistryError) and not action.again:
                log.exception("%s of %s failed", action.kind, action.version)
            return await self._quality.outbox.fail(entry, str(fault) or type(fault).__name__)

    async def _mark(self, task: str, action: Action) -> None:
        """Mark in the task's quality that the action was not carried out, so that the monitor asks again if the action
        is still needed. Raises Stale."""
        try:
            task_quality, generation = await self._quality.store.of(task)
        except UNREADABLE:
            return  # unreadable quality is never overwritten
        marked = mark_failed(task_quality, action, action.failed or "")
        if marked != task_quality:
            await self._quality.store.put(task, marked, generation)

    async def _effect(self, entry: WaitingAction) -> WaitingAction:
        """Do an action's effect outside the task's quality. Raises Stale, RegistryError."""
        task, action = entry.value.task, entry.value.action
        match action.kind:
            case "pause_canary":
                return await self._set_canary(entry, action.version, 0.0)
            case "recover" if "share" in action.after:
                return await self._set_canary(entry, action.version, float(action.after["share"]))
            case "roll_back":
                return await self._roll_back(entry, action.version, action.after.get("leading"))
            case "retrain":
                await open_retraining(self._quality.retraining, task, action)
            case "pin" | "release" if action.before.get("verdict") == "degraded" != action.after.get("verdict"):
                await close_retraining(self._quality.retraining, task, action)
            case "undo" if "failed" not in action.evidence:
                return await self._undo(entry)
            case _:
                pass
        return entry

    async def _undo(self, entry: WaitingAction) -> WaitingAction:
        action = entry.value.action
        match action.evidence.get("undone"):
            case "pause_canary":
                return await self._set_canary(entry, action.version, float(action.after.get("share", 0.0)))
            case "roll_back":
                return await self._roll_back(entry, str(action.before.get("leading")), action.after.get("leading"))
            case "retrain":
                await close_retraining(self._quality.retraining, entry.value.task, action)
            case _:
                pass
        return entry

    async def _set_canary(self, entry: WaitingAction, version: str, share: float) -> WaitingAction:
        """Set a canary's share of requests once. Raises RegistryError if the version is no longer the canary.

        The same step notes the effect, so that a second try does not overwrite a share that an admin has set since.
        """
        registry, task = self._quality.services.control.registry, entry.value.task
        alias, generation = await registry.alias(task)
        canary = alias.canary if alias is not None else None
        if canary is None or canary.version != version:
            raise RegistryError(f"{version} is no longer the canary of {task}.")
        noted, effected = await self._quality.outbox.note_effect(entry)
        await registry.canary(task, version, share, canary.by, canary.plan, generation, noted)
        return effected

    async def _roll_back(self, entry: WaitingAction, leading: str, to: Any) -> WaitingAction:
        """Let another version lead the task, once. Raises RegistryError if `leading` no longer leads it."""
        alias, generation = await self._quality.services.control.registry.alias(entry.value.task)
        if alias is None or alias.leading != leading or not isinstance(to, str) or to == leading:
            raise RegistryError(f"{leading} no longer leads {entry.value.task}.")
        noted, effected = await self._quality.outbox.note_effect(entry)
        await self._quality.services.control.registry.roll_back(entry.value.task, to, generation, beside=noted)
        return effected


def _id(action: Action) -> str:
    """The id of an action's message. A repeated action has another id, since the first message reported its failure."""
    return f"{action.id}-{action.again}" if action.again else action.id
