"""Outbox in Redis of actions of the monitor and of admins, with the drafts of their audit entries.

One atomic step writes an action, its draft, and the quality from which they follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.state.audited_step import Drafts
from gateway.state.outbox import Outbox, WaitingEntry, Write
from monitoring.audit import Audit, AuditEntry
from monitoring.quality.verdicts.quality import ACTION_KINDS, Action
from serving.object_store import UNREADABLE, Change, Stale


class PendingAction(msgspec.Struct, frozen=True, kw_only=True):
    """An action of a task. `effected`, or failed: only its audit entry and its message are still to be done."""

    task: str
    action: Action
    effected: bool = False


WaitingAction = WaitingEntry[PendingAction]


class ActionOutbox:
    """The outboxes `responses` and `responses:audit`. Every method but `changes` raises RedisError."""

    def __init__(self, redis: Redis, audit: Audit) -> None:
        self.actions = Outbox(redis, "responses", _read)
        self.drafts = Drafts(redis, audit, "responses:audit")
        self.by_admins = Drafts(redis, audit)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of Redis of which one is there where anything is left to do."""
        return self.actions.values, self.drafts.values, self.by_admins.values

    def changes(self, task: str, action: Action, draft: AuditEntry) -> list[Change]:
        """An action that is to be carried out and its draft, as parts of a greater step.

        One that is tried again has another name than before.
        """
        name = f"{task}:{action.id}" + (f":{action.again}" if action.again else "")
        return [self.drafts.change(draft, name), self.actions.change(PendingAction(task=task, action=action), name)]

    async def waiting(self, task: str | None = None) -> list[WaitingAction]:
        """The actions that wait (of one task), the oldest first, without those that can't be understood here."""
        entries = [entry for entry in await self.actions.waiting() if task in (None, entry.value.task)]
        return sorted(entries, key=lambda entry: (entry.value.action.at, entry.name))

    async def enter_strays(self) -> None:
        """Enter into the audit what admins did, and the drafts of actions that nobody here can carry out."""
        await self.by_admins.enter_left()
        drafts = await self.drafts.written()  # read first: what is carried out meanwhile is entered by then
        if drafts:
            names = {entry.name for entry in await self.waiting()}
            await self.drafts.enter_left([name for name in drafts if name not in names])

    async def note_effect(self, entry: WaitingAction) -> tuple[Change, WaitingAction]:
        """An action's note that it had its effect, as a part of the step that is the effect, and the entry after it.

        Raises Stale where another gateway was first.
        """
        generation = await self.actions.generation(entry.name)
        if not generation:
            raise Stale(entry.name, generation)
        after = replace(entry.value, effected=True)
        change = Change(self.actions, entry.name, msgspec.to_builtins(after), generation)
        return change, WaitingEntry(entry.field, msgspec.json.encode(after), after)

    async def fail(self, entry: WaitingAction, why: str) -> WaitingAction | None:
        """Note with an action, and in its draft, that it was not carried out; None where another gateway was first."""
        after = replace(entry.value, action=replace(entry.value.action, failed=why))
        try:
            draft = await self.drafts.get(entry.name)
            noted = draft and {**draft, "after": {**(draft.get("after") or {}), "not_carried_out": why}}
        except (*UNREADABLE, TypeError):
            noted = None
        beside = [Write("HSET", self.drafts.values, entry.field, msgspec.json.encode(noted))] if noted else []
        return await self.actions.replace(entry, after, *beside)

    async def finish(self, entry: WaitingAction, message: Sequence[Write], unaudited: bool) -> bool:
        """Remove an action, and have its message wait; `unaudited`: its draft goes, too.

        False where another gateway was first.
        """
        claim = Write("DEL", self.actions.claim_key(entry.name))
        keys = (self.drafts.generation_names, self.drafts.values) if unaudited else (self.drafts.generation_names,)
        return await self.actions.finish(entry, claim, *(Write("HDEL", key, entry.field) for key in keys), *message)


def _read(written: bytes) -> PendingAction:
    """An action of a kind that this release knows. Raises what UNREADABLE names."""
    pending = msgspec.json.decode(written, type=PendingAction)
    action = pending.action
    undone = action.evidence.get("undone") if action.kind == "undo" else action.kind
    if action.kind not in ACTION_KINDS or not isinstance(undone, str) or undone not in ACTION_KINDS:
        raise msgspec.ValidationError(f"its kind is {action.kind!r}")
    return pending
