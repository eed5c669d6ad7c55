"""Entries of the audit that are written in the same step as what they tell of, and entered right after it.

Whoever has the monitor's duty enters those that a killed gateway has left.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable

import msgspec
from redis.asyncio import Redis
from redis.exceptions import DataError, RedisError

from monitoring.audit import Audit, Entry
from serving.shelf import Change, Shelf

log = logging.getLogger(__name__)


class Drafts:
    """The drafts of what is done: by admins, or of another kind. Every method but `change` raises RedisError."""

    def __init__(self, redis: Redis, audit: Audit, kind: str = "admins:audit") -> None:
        self._redis = redis
        self._audit = audit
        self._told: set[str] = set()
        """Those of which it was logged that they can't be entered."""
        self.shelf = Shelf(redis, kind)

    def change(self, draft: Entry, name: str | None = None) -> Change:
        """The draft as a part of a greater step, under a name of its own, or under this one."""
        return Change(self.shelf, name or secrets.token_hex(12), msgspec.to_builtins(draft))

    async def enter(self, name: str) -> None:
        """Enter a draft into the audit, once, however many try; its name is forgotten. Raises AuditConflict."""
        await self._audit.enter(self.shelf.values, name)
        await self._redis.hdel(self.shelf.generation_names, name)

    async def enter_left(self, names: Iterable[str] | None = None) -> None:
        """Enter what is left, or those of these names. One that can't be entered is logged once, stays for a gateway
        of another release, and keeps no other waiting."""
        for name in await self.shelf.written() if names is None else names:
            try:
                await self.enter(name)
                self._told.discard(name)
            except Exception as fault:
                if isinstance(fault, RedisError) and not isinstance(fault, DataError):
                    raise
                if name not in self._told:
                    self._told.add(name)
                    log.exception("a step can't be entered into the audit: %s of the %s", name, self.shelf.kind)
