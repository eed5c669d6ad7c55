"""Audit entries that are drafted in the same atomic step as their change, and appended to the chain right after it.

The gateway with the monitor's job appends the entries that a killed gateway has left.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import DataError, RedisError

from gateway.state.outbox import Outbox
from monitoring.audit import Audit, AuditEntry
from serving.adapters.registry import Noted
from serving.object_store import Change, Unchanged, change_together

log = logging.getLogger(__name__)


class Drafts(Outbox[AuditEntry]):
    """The outbox of drafted audit entries: of admins' steps, or of another kind."""

    def __init__(self, redis: Redis, audit: Audit, kind: str = "admins:audit") -> None:
        super().__init__(redis, kind, msgspec.json.Decoder(AuditEntry).decode)
        self._audit = audit
        self._failed: set[str] = set()
        """The drafts that can't be entered and were logged."""

    def draft(self, actor: str, action: str, name: str, **entry: Any) -> Change:
        """The draft of an entry, as a part of a larger step. `entry` has further arguments of the audit's `draft`."""
        return self.change(self._audit.draft(actor, action, name, **entry))

    async def enter(self, name: str) -> None:
        """Enter a draft into the audit, once even if several gateways try. Raises AuditConflict."""
        await self._audit.enter(self.values, name)
        await self._redis.hdel(self.generation_names, name)

    async def enter_left(self, names: Iterable[str] | None = None) -> None:
        """Enter all drafts, or those with these names. A draft that can't be entered is logged once, and stays."""
        for name in await self.written() if names is None else names:
            try:
                await self.enter(name)
                self._failed.discard(name)
            except Exception as fault:
                if isinstance(fault, RedisError) and not isinstance(fault, DataError):
                    raise
                if name not in self._failed:
                    self._failed.add(name)
                    log.exception("a step can't be entered into the audit: %s of the %s", name, self.kind)


class AuditedStep:
    """One actor's change and its audit entries. The entries are drafted first, written in the same atomic step as the
    change, and then appended to the chain. No change is made through it without an entry."""

    def __init__(self, redis: Redis, audit: Audit, actor: str) -> None:
        """`actor` is a caller's public id, or `system`."""
        self._redis = redis
        self._drafts = Drafts(redis, audit)
        self._actor = actor
        self._noted: list[Change] = []

    def note(
        self,
        action: str,
        name: str,
        before: Any = None,
        after: Any = None,
        evidence: Any = None,
        generation: int | None = None,
    ) -> list[Change]:
        """Draft an entry, as a part of the atomic step. Only entries written in that step are entered.

        Raises ValueError for values that are not JSON.
        """
        entry = {"before": before, "after": after, "evidence": evidence, "generation": generation}
        noted = self._drafts.draft(self._actor, action, name, **entry)
        self._noted.append(noted)
        return [noted]

    def noted(
        self, action: str, name: str, shown: Callable[[Any], Any] = msgspec.to_builtins, evidence: Any = None
    ) -> Noted:
        """The function with which the registry notes its change. `shown` returns an object's value for the audit."""

        def note(before: Any, after: Any, generation: int) -> list[Change]:
            was, now = (None if value is None else shown(value) for value in (before, after))
            return self.note(action, name, was, now, evidence, generation)

        return note

    async def take(self, changes: Sequence[Change | Unchanged]) -> int:
        """Make the changes together with all entries noted so far. Returns the new generation of the first object.

        Raises Stale, Unreadable and RedisError: then nothing has changed, unless the connection was lost. Raises
        AuditConflict if the chain accepts no entry: then the change is made, and its draft waits in Redis.
        """
        assert self._noted, "a change has an entry"
        generation = await change_together(self._redis, [*changes, *self._noted])
        await self.enter()
        return generation

    def write_into(self, pipe: Any) -> None:
        """Add the drafts to the Redis transaction that makes the change."""
        assert self._noted, "a change has an entry"
        for noted in self._noted:
            pipe.hset(noted.object_store.values, noted.name, msgspec.json.encode(noted.value))

    async def enter(self) -> None:
        """Append the drafted entries to the chain, after their step. Raises AuditConflict and RedisError."""
        for noted in self._noted:
            await self._drafts.enter(noted.name)
        self._noted.clear()
