"""The buildings of data sets, as they stand in Redis: one object each, its progress apart."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from gateway.state.audited_step import AuditedStep
from monitoring.datasets.build import DatasetOptions
from monitoring.datasets.reading import SourceFile
from monitoring.helper_process import ProgressStep
from serving.object_store import Change, LenientReader, ObjectStore, change_together

BUILDS_MAX = 100
PROGRESS_SECONDS = 60
State = Literal["running", "done", "failed"]


class Build(msgspec.Struct, frozen=True, kw_only=True):
    """One building. Times are Unix seconds; `digest` is there once it is done, `error` where it failed, and `faults`
    are the first rows that could not be read. `since` and `until` bound the requests whose texts go in."""

    id: str
    task: str
    files: list[SourceFile]
    options: DatasetOptions
    since: float | None
    until: float
    by: str
    created_at: float
    state: State = "running"
    ended_at: float | None = None
    digest: str = ""
    error: str = ""
    faults: list[str] = []


class BuildStore:
    """Keeps buildings. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._object_store = ObjectStore(redis, "dataset_builds")
        self._reader = LenientReader()

    async def all(self) -> list[Build]:
        """All that are kept and can be read, the newest first."""
        return await self._reader.read_all(self._object_store, "the building", Build)

    async def get(self, name: str) -> Build | None:
        """One building, or None."""
        raw = await self._object_store.get(name)
        return None if raw is None else msgspec.convert(raw, Build)

    async def next(self) -> Build | None:
        """The oldest that is to be done; None where none is."""
        return next((build for build in reversed(await self.all()) if build.state == "running"), None)

    async def begin(self, build: Build, step: AuditedStep) -> None:
        """Enter a new one, with the entries noted by `step`, and forget the oldest of more than are kept."""
        await step.take([Change(self._object_store, build.id, msgspec.to_builtins(build), 0)])
        await self._object_store.forget([old.id for old in (await self.all())[BUILDS_MAX:] if old.state != "running"])

    async def end(self, build: Build, entry: Change) -> None:
        """Note the end of one that runs together with its entry. Raises Stale where it has ended before."""
        ended = Change(self._object_store, build.id, msgspec.to_builtins(build), 1)
        await change_together(self._redis, [ended, entry])

    async def tell(self, name: str, progress: ProgressStep) -> None:
        """Note the progress of a building; it is forgotten by itself."""
        await self._redis.set(_progress_key(name), msgspec.json.encode(progress), ex=PROGRESS_SECONDS)

    async def progress(self, name: str) -> ProgressStep:
        """The progress of a building."""
        raw = await self._redis.get(_progress_key(name))
        return ProgressStep("waiting", 0.0) if raw is None else msgspec.json.decode(raw, type=ProgressStep)


def _progress_key(name: str) -> str:
    return f"apprentice:dataset_builds:progress:{name}"
