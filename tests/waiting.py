"""Waiting in tests: a condition is looked at again and again, up to a deadline. No test sleeps instead."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import httpx

DEADLINE_SECONDS = 120.0
"""Many times what the slowest takes: helper processes are niced, and wait where other tests keep the machine busy."""
POLL_SECONDS = 0.005
ASKING_POLL_SECONDS_MAX = 0.05
"""Of a condition that is a coroutine: it mostly asks a gateway, and two hundred requests a second keep a core busy."""


async def until_answering(process: asyncio.subprocess.Process, url: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait until a server's process answers at all. Raises AssertionError where it ends before, and TimeoutError."""
    async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(seconds):
        while True:
            assert process.returncode is None
            try:
                await http.get(url)
                return
            except httpx.TransportError:
                await asyncio.sleep(ASKING_POLL_SECONDS_MAX)


async def until(condition: Callable[[], Any], what: str = "", seconds: float = DEADLINE_SECONDS) -> Any:
    """The first true result of a condition, which may be a coroutine's. Raises AssertionError after `seconds`."""
    pause = POLL_SECONDS
    try:
        async with asyncio.timeout(seconds):
            while True:
                result = condition()
                if inspect.isawaitable(result):
                    result = await result
                    pause = min(1.2 * pause, ASKING_POLL_SECONDS_MAX)
                if result:
                    return result
                await asyncio.sleep(pause)
    except TimeoutError:
        raise AssertionError(f"not within {seconds:g} s: {what or inspect.getsource(condition).strip()}") from None
