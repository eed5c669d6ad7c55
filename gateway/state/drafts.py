"""Entries of the audit that are written in the same step as what they tell of, and entered right after it.

Whoever has the monitor's duty enters those that a killed gateway has left.
"""

from __future__ import annotations

import logging
import secrets

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from monitoring.audit import Audit, Entry
from serving.shelf import Change, Shelf

log = logging.getLogger(__name__)


class Drafts:
    """The drafts of what admins do. Every method but `change` raises RedisError."""

    def __init__(self, redis: Redis, audit: Audit) -> None:
        self._redis = redis
        self._audit = audit
        self._shelf = Shelf(redis, "admins:audit")

    def change(self, draft: Entry) -> Change:
        """The draft as a part of a greater step, under a name of its own."""
        return Change(self._shelf, secrets.token_hex(12), msgspec.to_builtins(draft))

    async def enter(self, name: str) -> None:
        """Enter a draft into the audit, once, however many try; its name is forgotten. Raises AuditConflict."""
        await self._audit.enter(self._shelf.values, name)
        await self._redis.hdel(self._shelf.generation_names, name)

    async def enter_left(self) -> None:
        """Enter what is left. One that can't be entered is logged, and keeps no other waiting."""
        for name in await self._shelf.written():
            try:
                await self.enter(name)
            except RedisError:
                raise
            except Exception:
                log.exception("an admin's step can't be entered into the audit: %s", name)
