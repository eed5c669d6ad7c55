"""Queue in memory of answered requests that were drawn for review and are not in Redis yet. No caller waits for it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from gateway.formats.conversation_texts import AnsweredRequest

QUEUE_MAX = 500
BYTES_MAX = 64 << 20


@dataclass(frozen=True, slots=True)
class Drawn:
    """A drawn request, and the fields in its task's contract."""

    sent: AnsweredRequest
    fields: tuple[str, ...]


class ReviewQueue:
    """Bounded queue of drawn requests on their way to Redis. It also knows spent budgets and the waiting reviews.

    While a task's budget is spent, nothing is drawn, and records have no probability.
    """

    def __init__(self) -> None:
        self._drawn: asyncio.Queue[Drawn] = asyncio.Queue(QUEUE_MAX)
        self._bytes = 0
        self._spent_until: dict[str, float] = {}
        self.waiting: dict[str, int] = {}
        """Reviews that wait in Redis, by task, as last counted."""

    def offer(self, drawn: Drawn) -> bool:
        """Queue a drawn request; False if too many requests or bytes wait already. Its own size does not matter."""
        if self._bytes >= BYTES_MAX:
            return False
        try:
            self._drawn.put_nowait(drawn)
        except asyncio.QueueFull:
            return False
        self._bytes += drawn.sent.size
        return True

    async def next(self) -> Drawn:
        """The request that has waited longest."""
        drawn = await self._drawn.get()
        self._bytes -= drawn.sent.size
        return drawn

    def done(self) -> None:
        """Note that a request from `next` is in Redis, or dropped."""
        self._drawn.task_done()

    async def join(self) -> None:
        """Wait until all requests are in Redis, or dropped."""
        await self._drawn.join()

    def spent(self, task: str, seconds: float) -> None:
        """Note that the task's budget is spent for `seconds`."""
        self._spent_until[task] = time.monotonic() + seconds

    def open(self, task: str) -> bool:
        """Return whether requests of the task are drawn, since no spent budget is noted."""
        until = self._spent_until.get(task)
        if until is None:
            return True
        if time.monotonic() < until:
            return False
        del self._spent_until[task]
        return True
