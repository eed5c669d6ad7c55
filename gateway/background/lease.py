"""A job's lease in Redis: one gateway at a time does the job, and renews the lease while the work goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as TimedOut

from gateway.state.snapshot import SnapshotKeeper
from serving.object_store import CHANGED_CHANNEL
from serving.wakeable import wait_for_event

LEASE_SECONDS = 10.0
KEY = "apprentice:duty:"
"""Prefix of leases. "duty" is the former word for a job, which stays in Redis."""
SCANNED_AT_ONCE = 1000

TAKE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return {owner, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {owner, tonumber(ARGV[2])}
"""
"""Returns the owner before, and the milliseconds until the present owner's lease runs out."""
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) redis.call('PUBLISH', ARGV[2], ARGV[3]) end
"""
FOLDER_KEY = f"{KEY}datasets:"
"""Prefix of the lease key of a folder's job that builds data sets; the folder's name follows."""
Work = Callable[[], Awaitable[None]]


async def list_folder_holders(redis: Any) -> dict[str, str]:
    """The folders for which a gateway holds the lease to build data sets, with its name. Raises RedisError."""
    keys = [key async for key in redis.scan_iter(match=f"{FOLDER_KEY}*", count=SCANNED_AT_ONCE)]
    owners = await redis.mget(keys) if keys else []
    return {
        key.decode().removeprefix(FOLDER_KEY): owner.decode()
        for key, owner in zip(keys, owners, strict=True)
        if owner is not None  # None: the lease has run out since
    }


def announce_work(redis: Any, job: str) -> Any:
    """The command that wakes a job that waits for work, at the gateway with its lease. `redis` may be a pipeline."""
    return redis.publish(CHANGED_CHANNEL, KEY + job)


class JobPasses:
    """The passes of this gateway's jobs that are under way, with the times of their beginnings."""

    def __init__(self) -> None:
        self._begun_at: dict[str, float | None] = {}

    def begin(self, job: str) -> None:
        """Note that a pass begins. If it begins again after a failure, the time of the first try counts."""
        if self._begun_at.get(job) is None:
            self._begun_at[job] = time.monotonic()

    def end(self, job: str) -> None:
        """Note that the pass has ended, or that another gateway does the job."""
        self._begun_at[job] = None

    def read_seconds(self) -> dict[tuple[str, ...], float]:
        """Seconds since the beginning of each job's present pass; 0 between two passes."""
        now = time.monotonic()
        return {(job,): 0.0 if at is None else now - at for job, at in self._begun_at.items()}


class JobLease:
    """One gateway's side of the lease of a job: take it, renew it, give it back."""

    def __init__(
        self,
        redis: Redis,
        snapshot: SnapshotKeeper,
        passes: JobPasses,
        job: str,
        owner: str,
        lease_seconds: float = LEASE_SECONDS,
        key_suffix: str = "",
    ) -> None:
        """`owner` is this gateway's name. A killed gateway loses the lease after `lease_seconds`. `snapshot` is told
        when another gateway gives the lease back. `key_suffix` ends the key if each data folder has its own job."""
        self._snapshot, self._passes, self._job = snapshot, passes, job
        self._take_script = redis.register_script(TAKE)
        self._release = redis.register_script(RELEASE)
        self._key = KEY + job + key_suffix  # a gateway of an earlier release uses the same key
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._held_generation = -1
        """The state's generation when this gateway last took or renewed the lease; -1: another gateway has it."""
        self._ask_at = 0.0
        """Time of the next attempt, by time.monotonic: after a third of this gateway's own lease, or at the end of
        another gateway's."""
        self._ends_at = 0.0
        """The time when the lease runs out, by time.monotonic."""
        self.is_new = False
        """True if the lease was taken and not only renewed: another gateway may have had it. Its reader clears it."""

    async def repeat(
        self,
        work: Work,
        interval_seconds: float,
        *,
        wake: asyncio.Event | None = None,
        stop: Work | None = None,
        waits: bool = False,
    ) -> None:
        """Repeat the work while no other gateway has the lease. If another has it, wait until it gives the lease back,
        or the lease runs out. Runs until cancelled.

        `wake` ends the wait between two passes early. `stop` ends things that the work has left running; it is called
        when another gateway has the lease, and before this one gives it back. With `waits`, a pass needs a new
        snapshot, `wake`, `announce_work` or a renewal of the lease. It begins at least
        `interval_seconds` after the last one. Raises the errors of `work`, and RedisError.
        """
        wake = self._snapshot.given_back[self._key.encode()] = wake or asyncio.Event()
        woken = self._snapshot.woken if waits else set[asyncio.Event]()
        try:
            while True:
                wake.clear()
                woken.add(wake)
                self._passes.begin(self._job)
                is_owner = await self.do(work)
                if not is_owner:
                    woken.discard(wake)
                    if stop is not None:
                        await stop()
                self._passes.end(self._job)
                soonest = time.monotonic() + interval_seconds
                until = soonest if is_owner and not waits else max(soonest, self._ask_at)
                await wait_for_event(wake, until - time.monotonic())
                if is_owner and waits:
                    await asyncio.sleep(soonest - time.monotonic())
        finally:
            woken.discard(wake)
            if stop is not None:
                await stop()
            with contextlib.suppress(RedisError, OSError):  # the lease expires anyway; the cancellation must continue
                await self.give_back()

    async def do(self, work: Work) -> bool:
        """Do the work once if this gateway has the lease, and renew the lease meanwhile.

        The work is cancelled once another gateway has the lease, or may have it. Returns whether the work was
        completed. Raises the errors of `work`, and RedisError.
        """
        is_sure = self._held_generation == self._snapshot.current.generation and time.monotonic() < self._ask_at
        if not is_sure and not await self._take():
            return False
        loop = asyncio.get_running_loop()
        keeping: asyncio.Task[None] | None = None

        def begin_keeping() -> None:
            nonlocal keeping
            keeping = loop.create_task(self._keep(limit))

        renewal = loop.call_later(self._ask_at - time.monotonic(), begin_keeping)  # most work ends earlier
        try:
            async with asyncio.timeout(None) as limit:
                await work()
        except TimeoutError:
            if keeping is None or not limit.expired():
                raise
            keeping.result()
            return False
        finally:
            renewal.cancel()
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        return True

    async def give_back(self) -> None:
        """Give the lease back, so that another gateway can do the job after this pass. Raises RedisError."""
        self._held_generation = -1
        await self._release(keys=[self._key], args=[self._owner, CHANGED_CHANNEL, self._key])

    async def _take(self) -> bool:
        """Take or renew the lease. False while another gateway has it. Raises RedisError."""
        now, generation = time.monotonic(), self._snapshot.current.generation
        before, left_ms = await self._take_script(keys=[self._key], args=[self._owner, int(1000 * self._lease_seconds)])
        self.is_new = self.is_new or before is None
        is_owner = before in (None, self._owner.encode())
        self._held_generation = generation if is_owner else -1
        self._ask_at = now + left_ms / (3000 if is_owner else 1000)
        self._ends_at = now + left_ms / 1000
        return is_owner

    async def _keep(self, limit: asyncio.Timeout) -> None:
        """Renew the lease; `limit` ends the work once another gateway has it. Raises RedisError, also if Redis does
        not answer before the lease runs out."""
        is_owner = True
        try:
            while is_owner:
                await asyncio.sleep(self._ask_at - time.monotonic())
                try:
                    async with asyncio.timeout(self._ends_at - time.monotonic()):
                        is_owner = await self._take()
                except TimeoutError as error:
                    raise TimedOut("Redis did not renew the job's lease in time") from error
        except Exception:
            limit.reschedule(0.0)
            raise
        limit.reschedule(0.0)
