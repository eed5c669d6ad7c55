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
    """An action of a task. If it is `effected` or failed, only its audit entry and its message are left to do."""

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
        """The Redis keys of the outboxes. If none of them exists, there is nothing left to do."""
        return self.actions.values, self.drafts.values, self.by_admins.values

    def changes(self, task: str, action: Action, draft: AuditEntry) -> list[Change]:
        """The changes that queue an action and its draft, as parts of a larger step.

        A repeated action has another name than before.
        """
        name = f"{task}:{action.id}" + (f":{action.again}" if action.again else "")
        return [self.drafts.change(draft, name), self.actions.change(PendingAction(task=task, action=action), name)]

    async def waiting(self, task: str | None = None) -> list[WaitingAction]:
        """The waiting actions (of one task), the oldest first, without those of a kind that this release lacks."""
        entries = [entry for entry in await self.actions.waiting() if task in (None, entry.value.task)]
        return sorted(entries, key=lambda entry: (entry.value.action.at, entry.name))

    async def enter_strays(self) -> None:
        """Enter into the audit the drafts of admins' steps, and of actions that this gateway can't carry out."""
        await self.by_admins.enter_left()
        drafts = await self.drafts.written()  # read before the actions: one that ends meanwhile has entered its draft
        if drafts:
            names = {entry.name for entry in await self.waiting()}
            await self.drafts.enter_left([name for name in drafts if name not in names])

    async def note_effect(self, entry: WaitingAction) -> tuple[Change, WaitingAction]:
        """The change that marks an action as `effected`, as a part of the effect's own step, and the entry after it.

        Raises Stale if another gateway was first.
        """
        generation = await self.actions.generation(entry.name)
        if not generation:
            raise Stale(entry.name, generation)
        after = replace(entry.value, effected=True)
        change = Change(self.actions, entry.name, msgspec.to_builtins(after), generation)
        return change, WaitingEntry(entry.field, msgspec.json.encode(after), after)

    async def fail(self, entry: WaitingAction, why: str) -> WaitingAction | None:
        """Note in an action, and in its draft, that it was not carried out; None if another gateway was first."""
        after = replace(entry.value, action=replace(entry.value.action, failed=why))
        try:
            draft = await self.drafts.get(entry.name)
            noted = draft and {**draft, "after": {**(draft.get("after") or {}), "not_carried_out": why}}
        except (*UNREADABLE, TypeError):
            noted = None
        beside = [Write("HSET", self.drafts.values, entry.field, msgspec.json.encode(noted))] if noted else []
        return await self.actions.replace(entry, after, *beside)

    async def finish(self, entry: WaitingAction, message: Sequence[Write], unaudited: bool) -> bool:
        """Remove an action, and queue its message; with `unaudited`, remove its draft, too.

        False if another gateway was first.
        """
        claim = Write("DEL", self.actions.claim_key(entry.name))
        keys = (self.drafts.generation_names, self.drafts.values) if unaudited else (self.drafts.generation_names,)
        return await self.actions.finish(entry, claim, *(Write("HDEL", key, entry.field) for key in keys), *message)


def _read(written: bytes) -> PendingAction:
    """Read an action. Raises the errors in UNREADABLE, also for a kind that this release lacks."""
    pending = msgspec.json.decode(written, type=PendingAction)
    action = pending.action
    undone = action.evidence.get("undone") if action.kind == "undo" else action.kind
    if action.kind not in ACTION_KINDS or not isinstance(undone, str) or undone not in ACTION_KINDS:
        raise msgspec.ValidationError(f"its kind is {action.kind!r}")
    return pending
