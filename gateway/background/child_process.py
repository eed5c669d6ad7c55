"""A process beside the gateway, for work that would hold its event loop: begun, given its job, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager


@asynccontextmanager
async def child(command: Sequence[str]) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process for as long as the block is entered. What is left of it then is killed, and waited for.

    It is begun in a thread, since uvloop forks for it and so holds the loop for 4 ms and more; this does not.
    """
    beginning = asyncio.ensure_future(asyncio.to_thread(_begun, command))
    try:
        process = await asyncio.shield(beginning)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):  # the thread goes on: what it has begun by then is nobody's
            unwanted = await beginning
            unwanted.kill()
            await asyncio.to_thread(_let_go, unwanted)
        raise
    try:
        yield process
    finally:
        process.kill()  # where it still runs: the thread that reads from it ends then, too
        await asyncio.shield(asyncio.to_thread(_let_go, process))


async def give(process: subprocess.Popen[bytes], job: bytes) -> None:
    """Give it its job. Its input stays open: a child ends at once when that is closed, so with its gateway."""
    await asyncio.to_thread(_give, process, job)


def _begun(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the gateway, with which it ends
    )


def _give(process: subprocess.Popen[bytes], job: bytes) -> None:
    assert process.stdin is not None, "it is a pipe"
    with contextlib.suppress(BrokenPipeError):  # its end tells
        process.stdin.write(job)
        process.stdin.flush()


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Close its pipes and wait for its end, which has come or is near."""
    with contextlib.suppress(BrokenPipeError), process:
        pass
