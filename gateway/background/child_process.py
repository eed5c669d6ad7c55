"""A process beside the gateway, for work that would hold its event loop: begun, given its job, heard, and ended."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec


class NotDone(Exception):
    """A process that did not do its job; the message is a clause that says why."""


async def run_child(command: Sequence[str], job: object, seconds_max: float | None = None) -> bytes:
    """What a process said that was given a job, and came to its end in time. Raises NotDone."""
    try:
        async with asyncio.timeout(seconds_max), child(command) as process:
            code, output = await hear(process, msgspec.json.encode(job) + b"\n")
    except TimeoutError:
        raise NotDone(f"it took longer than {seconds_max:g} s") from None
    if code != 0:
        raise NotDone(f"its process ended with exit code {code}, and the gateway's log says why")
    return output


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


async def hear(process: subprocess.Popen[bytes], job: bytes) -> tuple[int, bytes]:
    """Give it its job and hear it to its end: its exit code, and what it said."""
    return await asyncio.to_thread(_hear, process, job)


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


def _hear(process: subprocess.Popen[bytes], job: bytes) -> tuple[int, bytes]:
    assert process.stdout is not None, "it is a pipe"
    _give(process, job)
    output = process.stdout.read()
    return process.wait(), output


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Close its pipes and wait for its end, which has come or is near."""
    with contextlib.suppress(BrokenPipeError), process:
        pass
