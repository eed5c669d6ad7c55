"""Turns to search: no key has them all, and operators have one that no caller takes."""

from __future__ import annotations

import asyncio

from gateway.callers import Caller
from gateway.features.requests.search import SearchTurns

MANY = 10


def caller(name: str) -> Caller:
    return Caller(name, name, "caller", "", frozenset({"*"}))


def operator(name: str) -> Caller:
    return Caller(name, name, "operator", "", frozenset({"*"}))


async def test_one_key_with_many_searches_keeps_nobody_else_waiting() -> None:
    turns, began, ends = SearchTurns(), list[str](), asyncio.Event()

    async def search(who: Caller) -> None:
        async with turns.turn(who):
            began.append(who.public)
            await ends.wait()

    async with asyncio.TaskGroup() as tasks:
        for who in [
            *(caller("a") for _ in range(MANY)),
            caller("b"),
            *(caller("c") for _ in range(MANY)),
            operator("o"),
        ]:
            tasks.create_task(search(who))
        for _ in range(MANY):
            await asyncio.sleep(0)
        assert began == ["a", "b", "o"]
        ends.set()
    assert sorted(began) == [*("a" * MANY), "b", *("c" * MANY), "o"]
    assert not turns._own
