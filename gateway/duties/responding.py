"""The monitor's actions are carried out: each once, with its entry in the audit and its message to the webhook.

A task's health, the drafts of the audit's entries and the list of what is to be carried out are written in one step.
Whoever has the duty next carries out what a killed gateway has left: each effect looks whether it is there already.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.duties.retraining import close_retraining, open_retraining
from gateway.house import House
from gateway.state.drafts import Drafts
from monitoring.degradation.verdicts.health import Action, TaskHealth
from serving.adapters.registry import RegistryError
from serving.shelf import Change, Shelf, Stale

log = logging.getLogger(__name__)
CLAIM_SECONDS = 30


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """An action that is yet to be carried out."""

    task: str
    action: Action


class Responding:
    """Moves the health of tasks, and carries out what goes with it. Every method raises RedisError."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._redis: Any = house.redis  # replies are bytes; redis-py's types say bytes or str
        self._left = Shelf(house.redis, "responses")
        self._drafts = Shelf(house.redis, "responses:audit")

    async def move(
        self,
        task: str,
        health: TaskHealth,
        generation: int,
        actions: Sequence[Action],
        with_it: Sequence[Change] = (),
    ) -> int:
        """Set a task's health, in the same step what goes `with_it`, and carry out the actions that led to it.

        Raises Stale where any of it has moved on.
        """
        beside: list[Change] = [*with_it]
        for action in actions:
            name = f"{task}:{action.id}"
            draft = self._house.audit.draft(
                action.by,
                f"monitor.{action.kind}",
                action.version or task,
                before=action.before,
                after={**action.after, "because": action.because, "id": action.id},
                evidence=action.evidence or None,
                generation=generation + 1,
            )
            beside.append(Change(self._drafts, name, msgspec.to_builtins(draft)))
            beside.append(Change(self._left, name, msgspec.to_builtins(Left(task=task, action=action))))
        moved = await self._house.health.put(task, health, generation, beside)
        if actions:
            await self.carry_out()
        return moved

    async def carry_out(self) -> None:
        """Carry out what is left, oldest first. One that fails keeps no other waiting: where something has moved at the
        same moment it is tried again, else the audit and the log have why it was not carried out."""
        await Drafts(self._house.redis, self._house.audit).enter_left()
        left: list[tuple[float, str, Left]] = []
        for name, raw in (await self._left.all()).items():
            try:
                one = msgspec.convert(raw, Left)
                left.append((one.action.at, name, one))
            except msgspec.ValidationError:
                log.exception("an action that is left can't be read, and is dropped: %s", name)
                await self._done(name)
        for _, name, one in sorted(left, key=lambda item: item[:2]):
            if await self._is_mine(name):
                await self._carry_out_one(name, one)

    async def _carry_out_one(self, name: str, one: Left) -> None:
        house, action = self._house, one.action
        try:
            if one.task not in house.settings.tasks:
                raise RegistryError(f"the configuration has no task {one.task!r} any more.")
            await self._effect(one.task, action)
        except Stale:
            await self._redis.delete(_claim(name))
            return
        except RedisError:
            raise
        except Exception as fault:
            if not isinstance(fault, RegistryError):
                log.exception("%s of %s failed", action.kind, action.version)
            log.warning("%s of %s was not carried out: %s", action.kind, action.version, fault)
            await self._note_failure(name, str(fault) or type(fault).__name__)
        await house.audit.enter(self._drafts.values, name)
        if house.settings.monitor.webhook_url is not None:
            await house.webhooks.add(f"{one.task}-{action.id}", {"task": one.task, **msgspec.to_builtins(action)})
        house.meters.monitor_actions.add(1, one.task, action.kind)
        log.warning("%s: %s. %s", action.version or one.task, action.kind, action.because)
        await self._done(name)

    async def _is_mine(self, name: str) -> bool:
        """Whether no other gateway carries it out at this moment; one that is killed lets it go after CLAIM_SECONDS."""
        return bool(await self._redis.set(_claim(name), self._house.name, nx=True, ex=CLAIM_SECONDS))

    async def _note_failure(self, name: str, why: str) -> None:
        """Have the audit's entry say that the action was not carried out."""
        draft = await self._drafts.get(name)
        if draft is not None:
            draft["after"] = {**(draft.get("after") or {}), "not_carried_out": why}
            await self._redis.hset(self._drafts.values, name, msgspec.json.encode(draft))

    async def _done(self, name: str) -> None:
        """Nothing is left of it. Its generations go too: no other action ever has its name."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._left.values, name)
            pipe.hdel(self._left.generation_names, name)
            pipe.hdel(self._drafts.generation_names, name)
            pipe.delete(_claim(name))
            await pipe.execute()

    async def _effect(self, task: str, action: Action) -> None:
        """What an action does beside the task's health. Raises Stale, RegistryError."""
        match action.kind:
            case "pause_canary":
                await self._set_canary(task, action.version, 0.0)
            case "recover" if "share" in action.after:
                await self._set_canary(task, action.version, float(action.after["share"]))
            case "roll_back":
                await self._roll_back(task, action.version, action.after.get("leading"))
            case "retrain":
                await open_retraining(self._house, task, action)
            case "undo":
                await self._undo(task, action)
            case _:
                pass

    async def _undo(self, task: str, action: Action) -> None:
        match action.evidence.get("undone"):
            case "pause_canary":
                await self._set_canary(task, action.version, float(action.after.get("share", 0.0)))
            case "roll_back":
                await self._roll_back(task, str(action.before.get("leading")), action.after.get("leading"))
            case "retrain":
                await close_retraining(self._house, task, action)
            case _:
                pass

    async def _set_canary(self, task: str, version: str, share: float) -> None:
        """A canary's share of the requests, by the plan that it has. Nothing where it is none any more."""
        registry = self._house.registry
        alias, generation = await registry.alias(task)
        begun = alias.rollout if alias is not None else None
        if begun is None or begun.version != version:
            return
        await registry.canary(task, version, share, begun.by, begun.plan, generation)

    async def _roll_back(self, task: str, leading: str, to: Any) -> None:
        """Have another version lead the task. Nothing where it is led by another one by now."""
        alias, generation = await self._house.registry.alias(task)
        if alias is None or alias.leading != leading or not isinstance(to, str):
            return
        await self._house.registry.roll_back(task, to, generation)


def _claim(name: str) -> str:
    return f"apprentice:responses:claim:{name}"
