"""A few threads for work that would block the event loop, mainly on long texts. Callers take turns."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, Self, TypeVar

from gateway.limits.fair_queue import FairQueue, Wanted

THREADS_MAX = 2
WAITING_CHARACTERS_MAX = 1 << 25
"""Most characters that may wait for one caller, in about 32 to 128 MiB of memory."""
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(eq=False, slots=True)
class ThreadTurn:
    """One call that waits for a thread."""

    caller: str
    wanted: Wanted = None
    in_line: bool = False
    called: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Threads:
    """Owner of the threads. A caller may use all threads but one, so that its flood leaves one for others.

    Work that has begun runs to its end even if its caller is gone. Only then is its thread free.
    """

    def __init__(self, threads_max: int = THREADS_MAX, waiting_characters_max: int = WAITING_CHARACTERS_MAX) -> None:
        self._executor = ThreadPoolExecutor(threads_max, "long-text")
        self._free = threads_max
        self._share_max = max(1, threads_max - 1)
        self._waiting_characters_max = waiting_characters_max
        self._running: Counter[str] = Counter()
        self._characters: Counter[str] = Counter()
        """Characters that wait, by caller."""
        self._line: FairQueue[ThreadTurn] = FairQueue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    def has_room(self, caller: str, characters: int) -> bool:
        """True if this number of a caller's characters may wait too. Always True if none of the caller's wait yet."""
        waiting = self._characters[caller]
        return not waiting or waiting + characters <= self._waiting_characters_max

    async def run(self, caller: str, characters: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `work`, called in a thread when it is the caller's turn. Raises what it raises."""
        loop = asyncio.get_running_loop()
        await self._turn(caller, characters)
        done = self._executor.submit(work, *args, **kwargs)
        done.add_done_callback(lambda _: self._tell(loop, caller))
        return await asyncio.wrap_future(done)

    async def _turn(self, caller: str, characters: int) -> None:
        if self._free > 0 and not self._has_its_share(caller):
            self._begin(caller)
            return
        characters = max(1, characters)
        turn = ThreadTurn(caller)
        self._line.add(turn)
        self._characters[caller] += characters
        try:
            await turn.called
        except asyncio.CancelledError:
            if turn.in_line:
                self._line.remove(turn)
            elif not turn.called.cancelled():
                self._ended(caller)
            raise
        finally:
            self._characters[caller] -= characters
            if not self._characters[caller]:
                del self._characters[caller]

    def _has_its_share(self, caller: str) -> bool:
        return self._running[caller] >= self._share_max

    def _begin(self, caller: str) -> None:
        self._free -= 1
        self._running[caller] += 1

    def _tell(self, loop: asyncio.AbstractEventLoop, caller: str) -> None:
        """Report the end of the work to the event loop, from the thread. A closed loop is ignored."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._ended, caller)

    def _ended(self, caller: str) -> None:
        self._free += 1
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        while (turn := self._line.next(lambda _: True, self._has_its_share, beyond_share=False)) is not None:
            if not turn.called.done():  # else the turn was just cancelled
                self._begin(turn.caller)
                turn.called.set_result(None)
                return
