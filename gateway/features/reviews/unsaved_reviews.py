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
    """A drawn request, and which fields its task's contract names."""

    sent: AnsweredRequest
    fields: tuple[str, ...]


class ReviewQueue:
    """Bounded. Owner of what waits to be written to Redis, and of what is known of spent budgets and waiting reviews.

    Where a task's budget is spent, nothing more is drawn: a probability is then 0, and said to be none.
    """

    def __init__(self) -> None:
        self._drawn: asyncio.Queue[Drawn] = asyncio.Queue(QUEUE_MAX)
        self._bytes = 0
        self._spent_until: dict[str, float] = {}
        self.waiting: dict[str, int] = {}
        """Reviews that wait in Redis, by task, as last counted."""

    def offer(self, drawn: Drawn) -> bool:
        """Have it kept for review; False where too many wait, or too much of them: whatever its own size is."""
        if self._bytes >= BYTES_MAX:
            return False
        try:
            self._drawn.put_nowait(drawn)
        except asyncio.QueueFull:
            return False
        self._bytes += drawn.sent.size
        return True

    async def next(self) -> Drawn:
        """The one that has waited the longest."""
        drawn = await self._drawn.get()
        self._bytes -= drawn.sent.size
        return drawn

    def done(self) -> None:
        """One that `next` gave is in Redis, or dropped."""
        self._drawn.task_done()

    async def join(self) -> None:
        """Wait until each is in Redis, or dropped."""
        await self._drawn.join()

    def spent(self, task: str, seconds: float) -> None:
        """The task's budget is spent, and stays so for `seconds`."""
        self._spent_until[task] = time.monotonic() + seconds

    def open(self, task: str) -> bool:
        """Return whether requests of the task are drawn: its budget is not known to be spent."""
        until = self._spent_until.get(task)
        if until is None:
            return True
        if time.monotonic() < until:
            return False
        del self._spent_until[task]
        return True
