"""Trainings in Redis: one object for each training, and its progress under another key."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from gateway.configuration.training import RunnerName
from serving.object_store import Change, StructStore

Status = Literal["running", "done", "failed", "cancelled"]
TRAININGS_MAX = 200
PROGRESS_SECONDS = 366 * 86_400
POINTS_MAX = 300
"""Most points of a loss that the API shows."""
POINTS_KEPT_MAX = 4_000
"""Most points of all losses of a training that are stored. Above it, every second one is deleted."""


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """A training. Times are Unix seconds.

    `place` is the data folder with its files. `heldout` is the digest of separate held-out rows; empty: they are a part
    of the data. `begin` is the version from which it continues, `manifest` is the new version's. With `stage` the new
    version is loaded at once. `request` is the body from a client of OpenAI's API. `note` is the reason of a failure,
    `result` has the figures, and `version` is the new version.
    """

    id: str
    task: str
    pool: str
    data: str
    runner: RunnerName
    place: str
    parameters: dict[str, Any]
    manifest: dict[str, Any]
    heldout: str = ""
    begin: str | None = None
    stage: bool = False
    request: dict[str, Any] = {}
    base: str = ""
    by: str = ""
    owner: str | None = None
    code: str = ""
    created_at: float = 0.0
    begun_at: float = 0.0
    ended_at: float | None = None
    status: Status = "running"
    note: str = ""
    result: dict[str, Any] = {}
    version: str | None = None


def id_of(
    task: str,
    pool: str,
    data: str,
    begin: str | None,
    parameters: dict[str, Any],
    base: str,
    manifest: Mapping[str, Any] | None,
    heldout: str = "",
) -> str:
    """The id of a training. An equal request gives the same id, and so the same training. `manifest` is the requested
    one, if any."""
    asked = [task, pool, data, begin, sorted(parameters.items()), base, manifest, *([heldout] if heldout else [])]
    written = msgspec.json.encode(asked, order="sorted")
    return hashlib.blake2b(written, digest_size=10).hexdigest()


class TrainingStore(StructStore[Training]):
    """The object store `trainings`, and each one's progress. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "trainings", Training, "the training")

    async def all(self) -> list[Training]:
        """All readable trainings, the newest first."""
        return sorted(await super().all(), key=lambda each: -each.created_at)

    async def names(self) -> set[str]:
        """The ids of all stored trainings, unreadable ones included."""
        return set(await self.object_store.written())

    def change(self, training: Training, expected_generation: int | None) -> Change:
        """The change that stores a training, as a part of a larger step."""
        return Change(self.object_store, training.id, msgspec.to_builtins(training), expected_generation)

    def forgetting(self, name: str, expected_generation: int) -> Change:
        """The change that deletes a training's object, as a part of a larger step."""
        return Change(self.object_store, name, None, expected_generation)

    async def note_progress(self, name: str, message: dict[str, Any]) -> None:
        """Store a message of the trainer. A second message on the same step replaces the first."""
        kind = str(message.get("kind"))[:20]
        is_point = kind in ("step", "heldout")
        field = f"{kind}:{int(message['step'])}" if is_point else kind
        message = message | {"at": time.time()} if is_point else message
        await self._redis.hset(_key(name), field, msgspec.json.encode(message))
        await self._redis.expire(_key(name), PROGRESS_SECONDS)
        if await self._redis.hlen(_key(name)) > POINTS_KEPT_MAX:
            await self._thin_out(name)

    async def launched(self, name: str) -> str | None:
        """The name of the job elsewhere that was launched last; None if there was none."""
        raw = await self._redis.hget(_key(name), "launched")
        return None if raw is None else str(msgspec.json.decode(raw)["name"])

    async def _thin_out(self, name: str) -> None:
        """Delete every second point of each loss; the newest stays."""
        fields = [field.decode() for field in await self._redis.hkeys(_key(name))]
        for kind in ("step", "heldout"):
            steps = sorted(int(field.partition(":")[2]) for field in fields if field.startswith(f"{kind}:"))
            if len(steps) > 1:
                await self._redis.hdel(_key(name), *(f"{kind}:{step}" for step in steps[-2::-2]))

    async def progress(self, name: str) -> dict[str, Any]:
        """The trainer's messages: those of its start, and the losses by step, the oldest first."""
        raw = await self._redis.hgetall(_key(name))
        fields = {field.decode(): msgspec.json.decode(value) for field, value in raw.items()}
        points = {kind: _points(fields, kind) for kind in ("step", "heldout")}
        every = max(1, -(-len(points["step"]) // POINTS_MAX))
        thinned = points["step"][::-1][::every][::-1]
        last = thinned[-1] if thinned else {}
        return {
            "started": fields.get("started"),
            "prepared": fields.get("prepared"),
            "ended": fields.get("ended"),
            "step": last.get("step", 0),
            "loss": last.get("loss"),
            "seconds_each": last.get("seconds_each"),
            "losses": [[point["step"], point["loss"]] for point in thinned],
            "heldout": [[point["step"], point["loss"], point["right"]] for point in points["heldout"]],
        }

    async def points(self, name: str) -> list[dict[str, Any]]:
        """The reported losses, the oldest first. `at` is the time in Unix seconds; points from an earlier release have
        none."""
        raw = await self._redis.hgetall(_key(name))
        fields = {field.decode(): msgspec.json.decode(value) for field, value in raw.items() if b":" in field}
        return sorted(fields.values(), key=lambda point: (point["step"], point["kind"] == "heldout"))

    async def forget_progress(self, name: str) -> None:
        """Delete the messages of a training that begins again."""
        await self._redis.delete(_key(name))

    async def tidy(self) -> None:
        """Delete the oldest trainings over the limit, but none that runs."""
        over = [each.id for each in (await self.all())[TRAININGS_MAX:] if each.status != "running"]
        await self.object_store.forget(over)
        for name in over:
            await self.forget_progress(name)


def _points(fields: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return sorted((value for field, value in fields.items() if field.startswith(f"{kind}:")), key=lambda p: p["step"])


def _key(name: str) -> str:
    return f"apprentice:training:{name}:progress"
