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
    """A process, and the thread that waits for it. The process has a thread of its own, since it may run for hours.
    asyncio's threads are few, and the request path needs them."""

    def __init__(self, process: subprocess.Popen[bytes], thread: ThreadPoolExecutor) -> None:
        self._process = process
        self._thread = thread

    async def give(self, job: bytes) -> None:
        """Send the job. The input stays open: a child exits when its input is closed, and so with its gateway."""
        await _run_in(self._thread, lambda: _give(self._process, job))

    async def read_line(self) -> bytes:
        """The next line of the process's output; empty at its end."""
        assert self._process.stdout is not None, "it is a pipe"
        return await _run_in(self._thread, self._process.stdout.readline)

    async def wait(self) -> int:
        """Wait for the process's end. Return its exit code."""
        return await _run_in(self._thread, self._process.wait)


@asynccontextmanager
async def run_child(command: Sequence[str]) -> AsyncIterator[ChildProcess]:
    """Run a process during the block. At the block's end it is killed with its own children, and waited for.

    A thread starts it: uvloop would fork in the event loop, and so block it for 4 ms or more.
    """
    thread = ThreadPoolExecutor(1, "child")
    try:
        beginning: Future[subprocess.Popen[bytes]] = thread.submit(
            subprocess.Popen,
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the gateway only; the process ends with it
        )
        try:
            process = await asyncio.shield(asyncio.wrap_future(beginning))
        except asyncio.CancelledError:
            ending = _run_in(thread, lambda: _end(beginning))  # nobody else would end the new process
            while not ending.done():
                with contextlib.suppress(asyncio.CancelledError):  # a gateway that stops cancels its jobs repeatedly
                    await asyncio.shield(ending)
            raise
        try:
            yield ChildProcess(process, thread)
        finally:
            _kill(process)  # if it still runs; the thread that reads from it then ends, too
            await asyncio.shield(_run_in(thread, lambda: _let_go(process)))
    finally:
        thread.shutdown(wait=False)


def _run_in(thread: ThreadPoolExecutor, call: Callable[[], T]) -> asyncio.Future[T]:
    """The call's future. The thread has the call at once, even if the caller is cancelled later."""
    return asyncio.get_running_loop().run_in_executor(thread, call)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process with its own children, which would keep its pipes open. Until the process is waited for, its
    pid is its group's id."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(beginning: Future[subprocess.Popen[bytes]]) -> None:
    with contextlib.suppress(OSError):  # the process did not start
        process = beginning.result()
        _kill(process)
        _let_go(process)


def _give(process: subprocess.Popen[bytes], job: bytes) -> None:
    assert process.stdin is not None, "it is a pipe"
    with contextlib.suppress(BrokenPipeError):  # its exit code gives the reason
        process.stdin.write(job)
        process.stdin.flush()


def _let_go(process: subprocess.Popen[bytes]) -> None:
    """Close the process's pipes and wait for its end, which is near."""
    with contextlib.suppress(BrokenPipeError), process:
        pass
