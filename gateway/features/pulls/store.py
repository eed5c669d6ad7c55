"""The pulls of adapters, as they stand in Redis: one object each, its progress apart."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from gateway.state.audited_step import AuditedStep
from monitoring.helper_process import ProgressStep
from serving.object_store import Change, LenientReader, ObjectStore, change_together

PULLS_MAX = 100
PROGRESS_SECONDS = 60


class Pull(msgspec.Struct, frozen=True, kw_only=True):
    """One pull. Times are Unix seconds. `digest` is the expected one of the adapter (empty: any), `manifest` takes the
    place of the source's. At the end `source` is the immutable address, and `version` or `error` are there."""

    id: str
    address: str
    task: str
    pool: str | None
    digest: str
    manifest: dict[str, Any] | None
    by: str
    owner: str | None
    created_at: float
    state: Literal["running", "done", "failed"] = "running"
    ended_at: float | None = None
    source: str = ""
    version: str = ""
    created: bool = False
    left_out: tuple[str, ...] = ()
    error: str = ""


class PullStore:
    """Keeps pulls. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._object_store = ObjectStore(redis, "pulls")
        self._reader = LenientReader()

    async def all(self) -> list[Pull]:
        """All that are kept and can be read, the newest first."""
        return await self._reader.read_all(self._object_store, "the pull", Pull)

    async def get(self, name: str) -> Pull | None:
        """One pull, or None."""
        raw = await self._object_store.get(name)
        return None if raw is None else msgspec.convert(raw, Pull)

    async def begin(self, pull: Pull, step: AuditedStep) -> None:
        """Enter a new one, with the entries noted by `step`, and forget the oldest of more than are kept."""
        await step.take([Change(self._object_store, pull.id, msgspec.to_builtins(pull), 0)])
        await self._object_store.forget([old.id for old in (await self.all())[PULLS_MAX:] if old.state != "running"])

    async def end(self, pull: Pull, entry: Change) -> None:
        """Note the end of one that runs together with its entry. Raises Stale where it has ended before."""
        await change_together(self._redis, [Change(self._object_store, pull.id, msgspec.to_builtins(pull), 1), entry])

    async def tell(self, name: str, progress: ProgressStep) -> None:
        """Note the progress of a pull; it is forgotten by itself."""
        await self._redis.set(_progress_key(name), msgspec.json.encode(progress), ex=PROGRESS_SECONDS)

    async def progress(self, name: str) -> ProgressStep:
        """The progress of a pull."""
        raw = await self._redis.get(_progress_key(name))
        return ProgressStep("waiting", 0.0) if raw is None else msgspec.json.decode(raw, type=ProgressStep)


def _progress_key(name: str) -> str:
    return f"apprentice:pulls:progress:{name}"
