"""Processes beside the gateway: none outlives the block that it was begun for."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.background.child_process import run_child


def running(word: str) -> bool:
    """True where a running process has this among its words."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # it ended meanwhile
            continue
        if word.encode() in words:
            return True
    return False


async def test_processes_that_run_for_long_hold_none_of_asyncios_threads() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    async with AsyncExitStack() as stack:
        waiting = []
        for _ in range(3):
            process = await stack.enter_async_context(run_child(("sleep", "60")))
            waiting.append(asyncio.create_task(process.read_line()))
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(lambda: "at once") == "at once"
        assert not any(task.done() for task in waiting)
    assert await asyncio.gather(*waiting) == [b""] * 3


@pytest.mark.parametrize("times", [1, 3])
async def test_a_process_whose_beginning_is_cancelled_is_ended_all_the_same(times: int) -> None:
    seconds = f"60.{uuid.uuid4().int}"

    async def begin() -> None:
        async with run_child(("sleep", seconds)):
            await asyncio.sleep(60)

    beginning = asyncio.create_task(begin())
    await asyncio.sleep(0)  # the thread has it now, and hears of no cancellation
    for _ in range(times):  # as a gateway's stop does, until its jobs have ended
        beginning.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert not running(seconds)


async def test_what_a_process_has_begun_itself_ends_with_it() -> None:
    """Such as the interpreter behind a script that stands for it."""
    seconds = f"60.{uuid.uuid4().int}"
    async with run_child(("sh", "-c", f"sleep {seconds}; true")) as process:
        waiting = asyncio.create_task(process.read_line())
        await asyncio.sleep(0)  # its thread has the call now
        async with asyncio.timeout(30):
            while not running(f"sleep\0{seconds}"):
                await asyncio.sleep(0.01)
        ends_at = asyncio.get_running_loop().time() + 30
    assert await waiting == b""
    assert asyncio.get_running_loop().time() < ends_at
    assert not running(seconds)
