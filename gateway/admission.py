"""Who gets in: a bound on the requests under way, and none while the gateway drains."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import Problem


class Admission:
    """Counts the requests under way in this gateway. Its owner is the House; the walk takes and gives back."""

    def __init__(self, in_flight_max: int) -> None:
        self.in_flight = 0
        self.draining = False
        self._in_flight_max = in_flight_max
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """A place for one request. Raises Problem (503) when there is none."""
        if self.draining:
            raise Problem("draining", "The gateway is shutting down. Try again: another one will answer.")
        if self.in_flight >= self._in_flight_max:
            raise Problem("overload", "The gateway is full. Try again in a moment.")
        self.in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._empty.set()

    async def drained(self) -> None:
        """Let nobody in from now on, and return once the last request has left."""
        self.draining = True
        await self._empty.wait()
