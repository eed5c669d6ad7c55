"""Lock files. The kernel releases a lock when its holder ends, even by a crash."""

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
async def hold_in_turn(path: Path, hint: Callable[[str], None]) -> AsyncIterator[None]:
    """Hold the lock file `path` during the block; wait for its release first."""
    with _open(path) as lock:
        while not _acquire(lock):
            hint("waiting for another process that does the same")
            await asyncio.sleep(POLL_SECONDS)
        yield


@contextmanager
def hold_or_refuse(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock file `path` during the block. Raises LaunchError(`refusal`) if another process holds it."""
    with _open(path) as lock:
        if not _acquire(lock):
            raise LaunchError(refusal)
        yield


def _open(path: Path) -> TextIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("a")


def _acquire(lock: TextIO) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
