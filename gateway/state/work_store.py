"""Pieces of work in Redis. A background job does each once. Each is one object; its progress is stored separately."""

from __future__ import annotations

import logging
import re
from typing import Any, Generic, Literal, TypeVar

import msgspec
from redis.asyncio import Redis

from gateway.state.audited_step import AuditedStep, Drafts
from monitoring.helper_process import ProgressStep
from serving.object_store import Change, LenientReader, ObjectStore, Stale, Unchanged, change_together

log = logging.getLogger(__name__)
KEPT_MAX = 100
PROGRESS_SECONDS = 60
WORK_ID = re.compile(r"[A-Za-z0-9.-]{1,100}")


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of work, for a task. Times are Unix seconds. `error` is set if it failed."""

    id: str
    task: str
    by: str
    created_at: float
    state: Literal["running", "done", "failed"] = "running"
    ended_at: float | None = None
    error: str = ""


W = TypeVar("W", bound=Work)


class WorkStore(Generic[W]):
    """Keeps work of one kind. Every method raises RedisError."""

    def __init__(self, redis: Redis, name: str, kind: type[W], words: str, drafts: Drafts) -> None:
        """`name` is the name of the objects in Redis, `words` the name of one in logs. `drafts` keeps the audit entries
        of work that has ended."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._object_store = ObjectStore(redis, name)
        self._reader = LenientReader()
        self._name, self._kind, self._words = name, kind, words
        self.drafts = drafts

    async def all(self) -> list[W]:
        """All stored pieces of work that can be read, the newest first."""
        return await self._reader.read_all(self._object_store, self._words, self._kind)

    async def get(self, work_id: str) -> W | None:
        """The piece of work with this id, which may be any text; None if it does not exist. Raises Unreadable."""
        if not WORK_ID.fullmatch(work_id):
            return None
        work, _ = await self._object_store.fetch(work_id, lambda raw: msgspec.convert(raw, self._kind))
        return work

    async def next(self) -> W | None:
        """The oldest piece of work that is not done yet, or None."""
        return next((work for work in reversed(await self.all()) if work.state == "running"), None)

    async def begin(self, work: W, step: AuditedStep) -> None:
        """Store new work, with the entries noted by `step`. Above KEPT_MAX, the oldest ended work is deleted."""
        await step.take([Change(self._object_store, work.id, msgspec.to_builtins(work), 0)])
        await self._object_store.forget([old.id for old in (await self.all())[KEPT_MAX:] if old.state != "running"])

    async def end(self, work: W, action: str, after: dict[str, Any]) -> None:
        """Store the end of running work together with its audit entry. Nothing changes if it has ended already."""
        entry = self.drafts.draft(work.by, action, work.task, after=after)
        ended = Change(self._object_store, work.id, msgspec.to_builtins(work), 1)
        try:
            await change_together(self._redis, [ended, entry])
        except Stale:
            log.warning("another gateway has ended %s %s", self._words, work.id)
        await self.drafts.enter_left()

    def running(self, work: W) -> Unchanged:
        """The condition for another step that the work still runs."""
        return Unchanged(self._object_store, work.id, 1)

    async def cancel(self, work: W, step: AuditedStep) -> None:
        """End running work, with the entries noted by `step`. Raises Stale if it has ended already."""
        await step.take([Change(self._object_store, work.id, msgspec.to_builtins(work), 1)])

    async def tell(self, work_id: str, progress: ProgressStep) -> None:
        """Store the progress of a piece of work. It expires without further action."""
        await self._redis.set(self._progress_key(work_id), msgspec.json.encode(progress), ex=PROGRESS_SECONDS)

    async def progress(self, work: W) -> ProgressStep | None:
        """The progress of a piece of work; None if it does not run."""
        if work.state != "running":
            return None
        key = self._progress_key(work.id)
        return self._reader.read(key, await self._redis.get(key), ProgressStep) or ProgressStep("waiting", 0.0)

    def _progress_key(self, work_id: str) -> str:
        return f"apprentice:{self._name}:progress:{work_id}"
