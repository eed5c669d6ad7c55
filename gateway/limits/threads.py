"""Threads for what would hold the event loop, long texts above all: a few, which callers share in turn."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

THREADS_MAX = 2
WAITING_CHARACTERS_MAX = 1 << 25
"""Of all that waits for one caller; memory is then some 32 to 128 MiB."""
P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Owner of the threads. A caller has all of them but one at most, so that its flood leaves one to others.

    Work that has begun goes on to its end, whoever is gone, and its thread is free only then.
    """

    def __init__(self, threads_max: int = THREADS_MAX, waiting_characters_max: int = WAITING_CHARACTERS_MAX) -> None:
        self._executor = ThreadPoolExecutor(threads_max, "long-text")
        self._free = threads_max
        self._share_max = max(1, threads_max - 1)
        self._waiting_characters_max = waiting_characters_max
        self._running: dict[str, int] = {}
        self._characters: dict[str, int] = {}
        """Of what waits, by caller."""
        self._turns: dict[str, deque[asyncio.Future[None]]] = {}
        """Who waits, by caller: that which stands first has the next turn, and goes to the end with it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def has_room(self, caller: str, characters: int) -> bool:
        """Whether so much more of a caller's may wait; where nothing of it waits, always."""
        waiting = self._characters.get(caller, 0)
        return not waiting or waiting + characters <= self._waiting_characters_max

    async def run(self, caller: str, characters: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work` returns, called in a thread when it is the caller's turn. Raises what it raises."""
        loop = asyncio.get_running_loop()
        await self._turn(caller, characters)
        done = self._executor.submit(work, *args, **kwargs)
        done.add_done_callback(lambda _: self._tell(loop, caller))
        return await asyncio.wrap_future(done)

    async def _turn(self, caller: str, characters: int) -> None:
        if self._may_begin(caller):
            self._begin(caller)
            return
        characters = max(1, characters)
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns.setdefault(caller, deque()).append(called)
        self._characters[caller] = self._characters.get(caller, 0) + characters
        try:
            await called
        except asyncio.CancelledError:
            if called.cancelled():
                self._leave(caller, called)
            else:
                self._ended(caller)
            raise
        finally:
            self._characters[caller] -= characters
            if not self._characters[caller]:
                del self._characters[caller]

    def _may_begin(self, caller: str) -> bool:
        return self._free > 0 and self._running.get(caller, 0) < self._share_max

    def _begin(self, caller: str) -> None:
        self._free -= 1
        self._running[caller] = self._running.get(caller, 0) + 1

    def _leave(self, caller: str, called: asyncio.Future[None]) -> None:
        line = self._turns[caller]
        line.remove(called)
        if not line:
            del self._turns[caller]

    def _tell(self, loop: asyncio.AbstractEventLoop, caller: str) -> None:
        """In the thread: the work is done. A loop that is closed need not know."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._ended, caller)

    def _ended(self, caller: str) -> None:
        self._free += 1
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        following = next((one for one in self._turns if self._may_begin(one)), None)
        if following is None:
            return
        line = self._turns.pop(following)
        called = line.popleft()
        if line:
            self._turns[following] = line
        self._begin(following)
        called.set_result(None)
