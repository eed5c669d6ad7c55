"""An event that one task waits for. Callbacks of the event loop wake it, faster than an asyncio.Event."""

from __future__ import annotations

import asyncio
import contextlib


async def wait_for_event(event: asyncio.Event, seconds: float) -> None:
    """Wait until the event is set, but no longer than `seconds`."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


class Wakeable:
    """Base of objects for which at most one task at a time waits."""

    __slots__ = ("_waiter", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        """The running loop, stored: asking asyncio for it is a system call each time (before Python 3.12)."""
        self._waiter: asyncio.Future[None] | None = None

    async def _wait(self) -> None:
        """Wait until `_wake` is called. The task then checks whether there is something."""
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    @property
    def _is_awaited(self) -> bool:
        """True if a task waits and has not been woken or cancelled."""
        return self._waiter is not None and not self._waiter.done()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
