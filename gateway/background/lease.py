"""Which gateway has a job that one alone may do: a lease in Redis, renewed for as long as the work goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

LEASE_SECONDS = 10

RENEW = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 2 end
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1 end
return 0
"""
RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"


class JobLease:
    """Who of all gateways has a job: one at a time, for as long as it renews."""

    def __init__(self, redis: Redis, job: str, owner: str) -> None:
        self._renew = redis.register_script(RENEW)
        self._release = redis.register_script(RELEASE)
        self._key = f"apprentice:duty:{job}"  # as earlier releases name it: both see each other's lease
        self._owner = owner
        self.taken_anew = False
        """Set when the job was taken, not just kept: another gateway may have had it since. For its user to clear."""

    async def mine(self) -> bool:
        """Take the job or keep it. False while another gateway has it. Raises RedisError."""
        held = int(await self._renew(keys=[self._key], args=[self._owner, LEASE_SECONDS * 1000]))
        self.taken_anew = self.taken_anew or held == 2
        return held > 0

    async def do(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do some of the job if it is this gateway's; it is kept meanwhile, and the work is cancelled once another
        gateway has it. Whether it was done to its end. Raises what `work` raises, and RedisError."""
        if not await self.mine():
            return False
        tasks = working, _ = asyncio.ensure_future(work()), asyncio.ensure_future(self._keep())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
            return working.done()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _keep(self) -> None:
        """Renew it; returns once another gateway has it."""
        held = True
        while held:
            await asyncio.sleep(LEASE_SECONDS / 3)
            held = await self.mine()

    async def give_back(self) -> None:
        """Let another gateway have it at once. Raises RedisError."""
        await self._release(keys=[self._key], args=[self._owner])
