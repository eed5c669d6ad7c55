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
"""Its former name, which stays in Redis."""
SCANNED_AT_ONCE = 1000

TAKE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return {owner, redis.call('PTTL', KEYS[1])} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {owner, tonumber(ARGV[2])}
"""
"""The owner before, and for how many milliseconds whoever has the lease now has it."""
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) redis.call('PUBLISH', ARGV[2], ARGV[3]) end
"""
FOLDER_KEY = f"{KEY}datasets:"
"""Before the name of a folder: the key of the job that builds its data sets."""
Work = Callable[[], Awaitable[None]]


async def list_folder_holders(redis: Any) -> dict[str, str]:
    """The folders whose data sets a gateway builds now, each with that gateway's name. Raises RedisError."""
    keys = [key async for key in redis.scan_iter(match=f"{FOLDER_KEY}*", count=SCANNED_AT_ONCE)]
    owners = await redis.mget(keys) if keys else []
    return {
        key.decode().removeprefix(FOLDER_KEY): owner.decode()
        for key, owner in zip(keys, owners, strict=True)
        if owner is not None  # else it has run out since
    }


def announce_work(redis: Any, job: str) -> Any:
    """The command, also of a pipeline, that wakes the job at whichever gateway does it, where it waits for work."""
    return redis.publish(CHANGED_CHANNEL, KEY + job)


class JobPasses:
    """The passes of this gateway's jobs: which ones have begun and not come to their end, and since when."""

    def __init__(self) -> None:
        self._begun_at: dict[str, float | None] = {}

    def begin(self, job: str) -> None:
        """A pass begins, or begins again after a failure: then it lasts since the first try."""
        if self._begun_at.get(job) is None:
            self._begun_at[job] = time.monotonic()

    def end(self, job: str) -> None:
        """The pass has come to its end, or another gateway does the job."""
        self._begun_at[job] = None

    def read_seconds(self) -> dict[tuple[str, ...], float]:
        """Seconds that each job's present pass has lasted; 0 while it waits for the next one."""
        now = time.monotonic()
        return {(job,): 0.0 if at is None else now - at for job, at in self._begun_at.items()}


class JobLease:
    """The lease of one job, as one gateway takes it, renews it and gives it back."""

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
        """`owner` is this gateway's name; a gateway that is killed loses the lease after `lease_seconds`. `snapshot`
        hears when another one gives it back. `key_suffix` ends the key where each data folder has such a job."""
        self._snapshot, self._passes, self._job = snapshot, passes, job
        self._take_script = redis.register_script(TAKE)
        self._release = redis.register_script(RELEASE)
        self._key = KEY + job + key_suffix  # an earlier release sees it, where `job` has the same name there
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._held_generation = -1
        """The generation of the state at which this gateway last took or kept the lease; -1: another one has it."""
        self._ask_at = 0.0
        """When a third of the time is over for which this gateway has the lease, or all of it for which another one
        has: by time.monotonic."""
        self._ends_at = 0.0
        """When the lease runs out that this gateway has: by time.monotonic."""
        self.is_new = False
        """Set when the lease was taken, not only kept: another gateway may have had it before. Its user clears it."""

    async def repeat(
        self,
        work: Work,
        interval_seconds: float,
        *,
        wake: asyncio.Event | None = None,
        stop: Work | None = None,
        waits: bool = False,
    ) -> None:
        """Do the work again and again while no other gateway has the lease; else wait until that one gives it back, or
        it has run out. Runs until cancelled.

        `wake` ends the wait between two times early. `stop` ends what the work has left under way: it is called where
        another gateway has the lease, and before this one gives it back. With `waits` there is nothing to do before a
        new snapshot, `wake` or `announce_work`: the work is done then, `interval_seconds` after the last time at the
        soonest, and where the lease is renewed. Raises what `work` raises, and RedisError.
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
            with contextlib.suppress(RedisError, OSError):  # it expires by itself; the cancellation has to go on
                await self.give_back()

    async def do(self, work: Work) -> bool:
        """Do the work once if this gateway has the lease, and renew it meanwhile.

        The work is cancelled once another gateway has the lease, or may have it. Returns whether the work came to its
        end. Raises what `work` raises, and RedisError.
        """
        is_sure = self._held_generation == self._snapshot.current.generation and time.monotonic() < self._ask_at
        if not is_sure and not await self._take():
            return False
        loop = asyncio.get_running_loop()
        keeping: asyncio.Task[None] | None = None

        def begin_keeping() -> None:
            nonlocal keeping
            keeping = loop.create_task(self._keep(limit))

        renewal = loop.call_later(self._ask_at - time.monotonic(), begin_keeping)  # most work ends before
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
        """Let another gateway have the job, once this pass is over. Raises RedisError."""
        self._held_generation = -1
        await self._release(keys=[self._key], args=[self._owner, CHANGED_CHANNEL, self._key])

    async def _take(self) -> bool:
        """Take or keep the lease. False while another gateway has it. Raises RedisError."""
        now, generation = time.monotonic(), self._snapshot.current.generation
        before, left_ms = await self._take_script(keys=[self._key], args=[self._owner, int(1000 * self._lease_seconds)])
        self.is_new = self.is_new or before is None
        is_owner = before in (None, self._owner.encode())
        self._held_generation = generation if is_owner else -1
        self._ask_at = now + left_ms / (3000 if is_owner else 1000)
        self._ends_at = now + left_ms / 1000
        return is_owner

    async def _keep(self, limit: asyncio.Timeout) -> None:
        """Renew the lease; `limit` ends the work once another gateway has it. Raises RedisError, also where Redis does
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
