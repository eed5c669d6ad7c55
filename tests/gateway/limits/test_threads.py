"""Threads that callers share: each has its turn, a flood leaves one free, and what is given back is given back once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from gateway.limits.threads import Threads


class Work:
    """Work that goes on until it is let go on; `begun` are the names of what was begun, in order."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.gate = threading.Event()

    def __call__(self, name: str) -> str:
        self.begun.append(name)
        assert self.gate.wait(60)
        return name

    async def begins(self, count: int) -> None:
        """Wait until so much has begun."""
        async with asyncio.timeout(60):
            while len(self.begun) < count:
                await asyncio.sleep(0.001)


@pytest.fixture
def work() -> Iterator[Work]:
    found = Work()
    yield found
    found.gate.set()


async def test_one_callers_flood_leaves_a_thread_to_others_and_they_take_turns(work: Work) -> None:
    with Threads(2) as threads:
        flood = [asyncio.create_task(threads.run("a", 1, work, f"a{number}")) for number in range(20)]
        await work.begins(1)
        assert await asyncio.wait_for(threads.run("b", 1, str.upper, "b"), 60) == "B"
        others = [asyncio.create_task(threads.run(name, 1, work, name)) for name in ("b", "c")]
        await work.begins(2)
        work.gate.set()
        assert await asyncio.gather(*others) == ["b", "c"]
        assert await asyncio.gather(*flood) == [f"a{number}" for number in range(20)]
    assert work.begun[:2] == ["a0", "b"]
    assert work.begun.index("c") <= 4, "each has its turn"


async def test_what_is_given_up_is_never_begun_and_keeps_no_place(work: Work) -> None:
    with Threads(2) as threads:
        first, *rest = (asyncio.create_task(threads.run("a", 5, work, f"a{number}")) for number in range(5))
        await work.begins(1)
        for one in (first, *rest):
            one.cancel()
        gone = await asyncio.gather(first, *rest, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in gone)
        last = asyncio.create_task(threads.run("a", 5, work, "last"))
        await asyncio.sleep(0)
        assert work.begun == ["a0"], "its thread is at work, though nobody waits for it"
        work.gate.set()
        assert await last == "last"
        assert work.begun == ["a0", "last"]


async def test_what_may_wait_for_one_caller_is_bounded_and_one_may_always(work: Work) -> None:
    with Threads(2, waiting_characters_max=10) as threads:
        assert threads.has_room("a", 1000)
        tasks = [asyncio.create_task(threads.run("a", 8, work, f"a{number}")) for number in range(2)]
        await work.begins(1)
        assert not threads.has_room("a", 3)
        assert threads.has_room("a", 2)
        assert threads.has_room("b", 1000)
        work.gate.set()
        await asyncio.gather(*tasks)
        assert threads.has_room("a", 1000)


async def test_a_fault_of_the_work_is_told_and_its_thread_is_free_again() -> None:
    with Threads(2) as threads:
        for _ in range(4):
            with pytest.raises(ValueError, match="invalid literal"):
                await threads.run("a", 1, int, "x")
        assert await threads.run("a", 1, int, "7") == 7
