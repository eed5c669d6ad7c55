"""The state of fitting: samples of training prompts that wait for it."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Set
from dataclasses import dataclass
from typing import Any

import msgspec
from redis.asyncio import Redis

from gateway.background.lease import announce_work
from gateway.services import Services
from gateway.state.audited_step import AuditedStep
from monitoring.evaluation.erasure import add_own_ids
from router.fitting_job import FittingLine

WAITING_KEY = "apprentice:prompts:waiting"
SAMPLE_KEY = "apprentice:prompts:sample:"

WAIT_SECONDS_MAX = 7 * 86_400

EXPIRED = """
local lost = {}
for _, version in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if redis.call('HEXISTS', KEYS[2] .. version, 'digest') == 0 then
    redis.call('ZREM', KEYS[1], version)
    redis.call('DEL', KEYS[2] .. version)
    lost[#lost + 1] = version
  end
end
return lost
"""
DROP = """
if redis.call('HGET', KEYS[2], 'digest') ~= ARGV[2] then return 0 end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
"""
REPACK = """
if redis.call('HGET', KEYS[1], 'digest') == ARGV[1] then redis.call('HSET', KEYS[1], 'packed', ARGV[2]) end
"""


class WaitingSample(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting sample: its packed rows, their digest, the key that sent it, and the counts of its rows."""

    version: str
    digest: str
    packed: bytes
    by: str
    counts: dict[str, Any]


class Samples:
    """The waiting samples, the oldest first. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._drop = redis.register_script(DROP)
        self._expired = redis.register_script(EXPIRED)
        self._repack = redis.register_script(REPACK)

    async def put(self, sample: WaitingSample, step: AuditedStep) -> None:
        """Queue this sample for its version; it replaces a sample that waits already. The entries noted with
        `step` are written in the same transaction."""
        values = {
            "digest": sample.digest,
            "packed": sample.packed,
            "by": sample.by,
            "counts": msgspec.json.encode(sample.counts),
        }
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(f"{SAMPLE_KEY}{sample.version}")
            pipe.hset(f"{SAMPLE_KEY}{sample.version}", mapping=values)
            pipe.expire(f"{SAMPLE_KEY}{sample.version}", WAIT_SECONDS_MAX)
            pipe.zadd(WAITING_KEY, {sample.version: time.time()})
            step.write_into(pipe)
            announce_work(pipe, "fitting")
            await pipe.execute()
        await step.enter()

    async def first(self) -> WaitingSample | None:
        """The sample that has waited longest; None if none waits."""
        return await anext(self.waiting(), None)

    async def waiting(self) -> AsyncIterator[WaitingSample]:
        """All waiting samples, the oldest first."""
        for raw in await self._redis.zrange(WAITING_KEY, 0, -1):
            version = raw.decode()
            digest, packed, by, counts = await self._redis.hmget(
                f"{SAMPLE_KEY}{version}", "digest", "packed", "by", "counts"
            )
            if digest is not None:
                yield WaitingSample(
                    version=version,
                    digest=digest.decode(),
                    packed=packed,
                    by=by.decode(),
                    counts=msgspec.json.decode(counts),
                )

    async def forget_requests(self, requests: Set[str]) -> None:
        """Delete the prompts that come from these requests, other wordings of them included."""
        async for sample in self.waiting():
            rest = await asyncio.to_thread(_leave_out, sample.packed, requests)
            if rest is not None:
                await self._repack(keys=[f"{SAMPLE_KEY}{sample.version}"], args=[sample.digest, rest])

    async def expired(self) -> list[str]:
        """The versions whose samples have expired since the last call."""
        return [version.decode() for version in await self._expired(keys=[WAITING_KEY, SAMPLE_KEY])]

    async def failed(self, version: str) -> int:
        """Count an unexpected failure of the version's fitting, and move it behind the others. Return the count."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(f"{SAMPLE_KEY}{version}", "failed", 1)
            pipe.zadd(WAITING_KEY, {version: time.time()}, xx=True)
            counts = await pipe.execute()
        return int(counts[0])

    async def begun(self, version: str) -> int:
        """Count a beginning of the version's fitting. Return the count."""
        return int(await self._redis.hincrby(f"{SAMPLE_KEY}{version}", "begun", 1))

    async def digest_of(self, version: str) -> str | None:
        """The digest of the version's waiting sample."""
        sample_digest = await self._redis.hget(f"{SAMPLE_KEY}{version}", "digest")
        return None if sample_digest is None else str(sample_digest.decode())

    async def drop(self, version: str, digest: str) -> bool:
        """Delete a sample; False if another has replaced it meanwhile."""
        return bool(await self._drop(keys=[WAITING_KEY, f"{SAMPLE_KEY}{version}"], args=[version, digest]))


def _leave_out(packed: bytes, requests: Set[str]) -> bytes | None:
    """The packed rows without those of these requests; None if there are none of these."""
    lines = gzip.decompress(packed).splitlines()
    rows = [msgspec.json.decode(line, type=FittingLine) for line in lines]
    names = [add_own_ids(row.id, row.group) for row in rows]
    rest = [line for line, of_row in zip(lines, names, strict=True) if requests.isdisjoint(of_row)]
    return None if len(rest) == len(lines) else gzip.compress(b"\n".join(rest), 6, mtime=0)


@dataclass(frozen=True)
class Fitting:
    """`samples` keeps training prompts in Redis until a model is fitted from them."""

    services: Services
    samples: Samples
