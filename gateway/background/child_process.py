"""Child processes, for work that would block the gateway's event loop: start, hand over the job, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

T = TypeVar("T")


class ChildProcess:
    """A process, and the thread that waits for it: its own, since it may run for hours, and asyncio's threads are few
    and the request path's."""

    def __init__(self, process: subprocess.Popen[bytes], thread: ThreadPoolExecutor) -> None:
        self._process = process
        self._thread = thread

    async def give(self, job: bytes) -> None:
        """Give it its job. Its input stays open: a child ends at once when that is closed, so with its gateway."""
        await _run_in(self._thread, lambda: _give(self._process, job))

    async def read_line(self) -> bytes:
        """The next line that it tells; empty at its end."""
        assert self._process.stdout is not None, "it is a pipe"
        return await _run_in(self._thread, self._process.stdout.readline)

    async def wait(self) -> int:
        """Wait for its end. Its exit code."""
        return await _run_in(self._thread, self._process.wait)


@asynccontextmanager
async def run_child(command: Sequence[str]) -> AsyncIterator[ChildProcess]:
    """A process for as long as the block is entered. What is left of it and of its own is killed then, and waited for.

    It is begun in a thread, since uvloop forks for it and so holds the loop for 4 ms and more; this does not.
    """
    thread = ThreadPoolExecutor(1, "child")
    try:
        beginning: Future[subprocess.Popen[bytes]] = thread.submit(
            subprocess.Popen,
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the gateway, with which it ends
        )
        try:
            process = await asyncio.shield(asyncio.wrap_future(beginning))
        except asyncio.CancelledError:
            ending = _run_in(thread, lambda: _end(beginning))  # what the thread has begun by then is nobody's
            while not ending.done():
                with contextlib.suppress(asyncio.CancelledError):  # a gateway's stop cancels its jobs again and again
                    await asyncio.shield(ending)
            raise
        try:
            yield ChildProcess(process, thread)
        finally:
            _kill(process)  # where it still runs: the thread that reads from it ends then, too
            await asyncio.shield(_run_in(thread, lambda: _let_go(process)))
    finally:
        thread.shutdown(wait=False)


def _run_in(thread: ThreadPoolExecutor, call: Callable[[], T]) -> asyncio.Future[T]:
    """The result to come. The thread has the call at once, whatever is cancelled then."""
    return asyncio.get_running_loop().run_in_executor(thread, call)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it with what it has begun itself, which would hold its pipes. Its number is its group's until it is waited
    for."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(beginning: Future[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(OSError):  # it did not begin at all
        process = beginning.result()
        _kill(process)
        _let_go(process)


def _give(process: subprocess.Popen[bytes], job: bytes) -> None:
    assert process.stdin is not None, "it is a pipe"
    with contextlib.suppress(BrokenPipeError):  # its end tells
        process.stdin.write(job)
        process.stdin.flush()


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Close its pipes and wait for its end, which has come or is near."""
    with contextlib.suppress(BrokenPipeError), process:
        pass
