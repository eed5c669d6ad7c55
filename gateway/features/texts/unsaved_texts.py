"""Requests whose texts are to be kept, on their way out of memory: nobody waits for that."""

from __future__ import annotations

import asyncio
import zlib
from collections import deque

from gateway.formats.conversation_texts import AnsweredRequest
from serving.wakeable import wait_for_event

QUEUE_MAX = 5_000
BYTES_MAX = 64 << 20


class TextQueue:
    """Bounded. The request path puts in, the job takes out once a text is stored."""

    def __init__(self) -> None:
        self._sent: deque[AnsweredRequest] = deque()
        self._bytes = 0
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._sent)

    def offer(self, sent: AnsweredRequest) -> bool:
        """Take a request in, without waiting; False where too many wait, or too much of them."""
        if self._bytes >= BYTES_MAX or len(self._sent) >= QUEUE_MAX:
            return False
        self._sent.append(sent)
        self._bytes += sent.size
        self._some.set()
        return True

    async def some(self, seconds_max: float) -> None:
        """Wait until there is a request, but no longer than that."""
        self._some.clear()
        if not self._sent:
            await wait_for_event(self._some, seconds_max)

    def first(self, count: int) -> list[AnsweredRequest]:
        """The oldest, which stay here until `forget` is told that they are stored."""
        return [self._sent[i] for i in range(min(count, len(self._sent)))]

    def forget(self, count: int) -> None:
        """Drop the oldest: they are stored."""
        for _ in range(count):
            self._bytes -= self._sent.popleft().size


def is_drawn(request_id: str, share: float) -> bool:
    """Return whether a request is of the random share; it follows from its id alone."""
    return zlib.crc32(request_id.encode()) < share * (1 << 32)
