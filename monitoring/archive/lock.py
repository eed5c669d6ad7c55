"""The lock of an archive in a bucket, for one writer or many readers. It is in Redis, since buckets have no locks."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from redis.exceptions import RedisError

from monitoring.helper_process import JobError

KEY = "apprentice:archive:lock"
LOCK_SECONDS = 60.0
"""Time after which the lock of a killed holder expires."""
RENEW_SECONDS = 5.0
WAIT_SECONDS = 0.05
BAR_SECONDS = 10.0
"""The most time for which a waiting writer holds off new readers: one reader may take minutes, and all would wait."""
BAR_LEFT_SECONDS = 1.0
"""Time for which a killed writer still holds off new readers."""

TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if ARGV[3] == 'renew' then
  if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
else
  for _, holder in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    local kind = string.sub(holder, 1, 4)
    if ARGV[3] == 'write' and kind ~= 'bars' or ARGV[3] == 'read' and kind ~= 'read' then
      if ARGV[3] == 'write' then redis.call('ZADD', KEYS[1], now + ARGV[4], 'bars:' .. ARGV[1]) end
      return 0
    end
  end
  redis.call('ZREM', KEYS[1], 'bars:' .. ARGV[1])
end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
"""


class LockLost(JobError):
    """Redis was away, or this process paused, for so long that others may write. It must not begin to change a file.
    One request that is under way may still take effect."""


class ArchiveLock:
    """The lock while its block runs; a thread renews it. Waits until it is free. Raises RedisError."""

    def __init__(self, redis: Any, shared: bool) -> None:
        self._redis = redis
        self._kind: Literal["read", "write"] = "read" if shared else "write"
        self._name = f"{self._kind}:{os.urandom(8).hex()}"
        self._held_until = 0.0
        self._bars_until = time.monotonic() + BAR_SECONDS
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        while not self._take(self._kind):
            self._is_over.wait(WAIT_SECONDS)
        threading.Thread(target=self._keep, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        with suppress(RedisError):  # else it expires
            self._redis.zrem(KEY, self._name)

    def see_that_it_is_held(self) -> None:
        """Raise LockLost if others may hold the lock by now."""
        if time.monotonic() > self._held_until:
            raise LockLost("The lock of the archive was lost: Redis was away for too long. It is done again.")

    def _take(self, how: Literal["read", "write", "renew"]) -> bool:
        asked_at = time.monotonic()
        bar = int(1000 * BAR_LEFT_SECONDS) if asked_at < self._bars_until else 0
        taken = bool(self._redis.eval(TAKE, 1, KEY, self._name, int(1000 * LOCK_SECONDS), how, bar))
        self._held_until = asked_at + LOCK_SECONDS if taken else 0.0
        return taken

    def _keep(self) -> None:
        is_held = True
        while is_held and not self._is_over.wait(RENEW_SECONDS):
            with suppress(RedisError):
                is_held = self._take("renew")
