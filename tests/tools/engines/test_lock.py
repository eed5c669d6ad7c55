from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tools.engines.errors import LaunchError
from tools.engines.lock import hold_in_turn, hold_or_refuse


def test_second_holder_is_refused_and_served_once_the_first_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "up" / "lock"
    with (
        hold_or_refuse(path, "it runs already"),
        pytest.raises(LaunchError, match="it runs already"),
        hold_or_refuse(path, "it runs already"),
    ):
        pass
    with hold_or_refuse(path, "it runs already"):
        pass


async def test_second_in_turn_waits_and_says_so(tmp_path: Path) -> None:
    hints: list[str] = []
    waits = asyncio.Event()
    order: list[str] = []

    def hint(text: str) -> None:
        hints.append(text)
        waits.set()

    async def second() -> None:
        async with hold_in_turn(tmp_path / "lock", hint):
            order.append("second")

    async with hold_in_turn(tmp_path / "lock", hints.append):
        task = asyncio.create_task(second())
        async with asyncio.timeout(30):
            await waits.wait()
        order.append("first")
    await task
    assert order == ["first", "second"]
    assert hints == ["waiting for another process that does the same"]
