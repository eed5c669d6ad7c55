"""One process at a time, held by the kernel: given back whatever way its holder ends."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TextIO

from tools.engines.errors import LaunchError

POLL_SECONDS = 0.5


@asynccontextmanager
async def in_turn(path: Path, hint: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the lock file `path` during the block, after whoever holds it now."""
    with _opened(path) as lock:
        while not _taken(lock):
            hint("another process is at it: waiting for its end")
            await asyncio.sleep(POLL_SECONDS)
        yield


@contextmanager
def alone(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path` during the block. Raises LaunchError(`refusal`) where it is held already."""
    with _opened(path) as lock:
        if not _taken(lock):
            raise LaunchError(refusal)
        yield


def _opened(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _taken(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
