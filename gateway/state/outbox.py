"""What the monitor or an admin has decided and is yet to be carried out, as it stands in Redis, with its audit drafts.

An action and its draft are written in one step with the health that they follow from. What can't be read here stays for
a gateway of another release: it is logged once, and keeps nothing else waiting. What became of an action is written
only where nobody else has done so meanwhile.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from redis.asyncio import Redis

from gateway.state.audited_step import Drafts
from monitoring.audit import Audit, AuditEntry
from monitoring.quality.verdicts.quality import ACTION_KINDS, Action
from serving.object_store import UNREADABLE, Change, ObjectStore, Stale

log = logging.getLogger(__name__)
CLAIM_SECONDS = 30

FAILED = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
if ARGV[5] ~= '' and redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[4] then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[5])
end
return 1
"""
"""KEYS: what is left, the drafts. ARGV: the name, the action as it was read and as it is from now on, the draft
likewise (empty: it stays)."""
FINISHED = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
if ARGV[3] == '1' then redis.call('HDEL', KEYS[4], ARGV[1]) end
redis.call('DEL', KEYS[5])
if ARGV[5] ~= '' then redis.call('HSETNX', KEYS[6], ARGV[4], ARGV[5]) end
return 1
"""
"""KEYS: what is left, its generations, those of the drafts, the drafts, the claim, the messages. ARGV: the name, the
action as it was read, 1 where its draft goes too, and the message's id and text (empty: there is none)."""


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """An action that is yet to be carried out, or that has `failed` or is `effected` and is yet to be told of."""

    task: str
    action: Action
    effected: bool = False


class WaitingAction(msgspec.Struct, frozen=True):
    """What is left under a name, and how that was written."""

    name: str
    written: bytes
    left: Left


class LeftStore:
    """The object stores `responses` and `responses:audit`. Every method but `changes` raises RedisError."""

    def __init__(self, redis: Redis, audit: Audit) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._failed = redis.register_script(FAILED)
        self._finished = redis.register_script(FINISHED)
        self._told: set[str] = set()
        self.actions = ObjectStore(redis, "responses")
        self.drafts = Drafts(redis, audit, "responses:audit")
        self.by_admins = Drafts(redis, audit)

    def changes(self, task: str, action: Action, draft: AuditEntry) -> list[Change]:
        """An action that is to be carried out and its draft, as parts of a greater step. One that is asked for again
        has another name than before."""
        name = f"{task}:{action.id}" + (f":{action.again}" if action.again else "")
        left = msgspec.to_builtins(Left(task=task, action=action))
        return [self.drafts.change(draft, name), Change(self.actions, name, left)]

    async def waiting(self, task: str | None = None) -> list[WaitingAction]:
        """What is left (of one task), the oldest first, without what can't be understood here."""
        found: list[WaitingAction] = []
        for name, written in (await self.actions.written()).items():
            if task is not None and not name.startswith(f"{task}:"):
                continue
            try:
                one = WaitingAction(name, written, msgspec.json.decode(written, type=Left))
                why = None if _is_known(one.left.action) else f"its kind is {one.left.action.kind!r}"
            except UNREADABLE as error:
                why = str(error)
            if why is None:
                found.append(one)
            elif name not in self._told:
                self._told.add(name)
                log.error("what is to be done can't be understood, and is left for another release: %s: %s", name, why)
        return sorted(found, key=lambda one: (one.left.action.at, one.name))

    async def enter_strays(self) -> None:
        """Enter into the audit what admins did, and what is left for nobody here to carry out."""
        await self.by_admins.enter_left()
        drafts = (
            await self.drafts.object_store.written()
        )  # read first: what is carried out meanwhile is entered by then
        if drafts:
            known = {one.name for one in await self.waiting()}
            await self.drafts.enter_left([name for name in drafts if name not in known])

    async def claim(self, name: str, by: str) -> bool:
        """Whether no other gateway carries it out at this moment; one that is killed lets it go after CLAIM_SECONDS."""
        return bool(await self._redis.set(_claim(name), by, nx=True, ex=CLAIM_SECONDS))

    async def let_go(self, name: str) -> None:
        """Have it carried out by whoever comes next."""
        await self._redis.delete(_claim(name))

    async def effected(self, one: WaitingAction) -> tuple[Change, WaitingAction]:
        """That an action has had its effect, as a part of the step that this is; and as it is left then. Raises Stale
        where another gateway was first."""
        generation = await self.actions.generation(one.name)
        if not generation:
            raise Stale(one.name, generation)
        after = msgspec.structs.replace(one.left, effected=True)
        change = Change(self.actions, one.name, msgspec.to_builtins(after), generation)
        return change, WaitingAction(one.name, msgspec.json.encode(after), after)

    async def failed(self, one: WaitingAction, why: str) -> WaitingAction | None:
        """Note with an action, and in its draft, that it was not carried out; None where another gateway was first."""
        after = msgspec.structs.replace(one.left, action=msgspec.structs.replace(one.left.action, failed=why))
        written = msgspec.json.encode(after)
        draft = await self._redis.hget(self.drafts.object_store.values, one.name) or b""
        keys = [self.actions.values, self.drafts.object_store.values]
        args = [one.name, one.written, written, draft, _noted(draft, why)]
        return WaitingAction(one.name, written, after) if await self._failed(keys=keys, args=args) else None

    async def finished(
        self, one: WaitingAction, messages: str, message_id: str, message: bytes, unaudited: bool
    ) -> bool:
        """Nothing is left of it, and its message (empty: none) waits under `messages`; `unaudited`: its draft goes.
        False where another gateway was first. No other action ever has its name, so its generations go too."""
        drafts = self.drafts.object_store
        keys = [self.actions.values, self.actions.generation_names, drafts.generation_names, drafts.values]
        args: list[str | bytes | int] = [one.name, one.written, int(unaudited), message_id, message]
        return bool(await self._finished(keys=[*keys, _claim(one.name), messages], args=args))


def _is_known(action: Action) -> bool:
    """Whether this release knows what an action does."""
    undone = action.evidence.get("undone") if action.kind == "undo" else action.kind
    return action.kind in ACTION_KINDS and isinstance(undone, str) and undone in ACTION_KINDS


def _noted(draft: bytes, why: str) -> bytes:
    """The draft of an action that was not carried out; empty where it can't be read."""
    try:
        told = msgspec.json.decode(draft, type=dict[str, Any])
        told["after"] = {**(told.get("after") or {}), "not_carried_out": why}
    except (*UNREADABLE, TypeError):
        return b""
    return msgspec.json.encode(told)


def _claim(name: str) -> str:
    return f"apprentice:responses:claim:{name}"
