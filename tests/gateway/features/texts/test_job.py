"""Keeping of texts."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

from gateway.features.texts.job import keep_texts
from gateway.features.texts.state import TextQueue


class _SlowSpool:
    """Looks for other gateways' files until `seen` is called."""

    records = 0
    is_dirty = False

    def __init__(self) -> None:
        self.looking = threading.Event()
        self.calls: list[str] = []

    def open(self) -> None:
        pass

    def take_over(self) -> None:
        self.looking.set()
        threading.Event().wait(0.2)
        self.calls.append("looked")

    def close(self) -> None:
        self.calls.append("closed")


async def test_a_stop_waits_for_what_the_thread_does_with_the_spool() -> None:
    spool = _SlowSpool()
    services = SimpleNamespace(settings=None)
    texts: Any = SimpleNamespace(spool=spool, queue=TextQueue(), services=services, apply_settings=lambda _: None)
    task = asyncio.create_task(keep_texts(texts))
    await asyncio.to_thread(spool.looking.wait)
    task.cancel()
    await asyncio.wait([task])
    assert spool.calls == ["looked", "closed"]
