"""Keeping of texts."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.texts.job import keep_texts
from gateway.features.texts.state import TextQueue
from monitoring.metrics import Meters
from monitoring.spool import Spool
from monitoring.text_stream import TextStream
from monitoring.texts import TextRow
from tests.waiting import until


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

    def forget_damaged(self, before: float) -> None:
        pass

    def count_newly_lost(self) -> int:
        return 0

    def close(self) -> None:
        self.calls.append("closed")


async def test_a_stop_waits_for_what_the_thread_does_with_the_spool() -> None:
    spool = _SlowSpool()
    services = SimpleNamespace(settings=None)
    texts: Any = SimpleNamespace(
        spool=spool, queue=TextQueue(), services=services, apply_settings=lambda _: None, retention_seconds=1.0
    )
    task = asyncio.create_task(keep_texts(texts))
    await asyncio.to_thread(spool.looking.wait)
    task.cancel()
    await asyncio.wait([task])
    assert spool.calls == ["looked", "closed"]


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_a_spooled_text_that_cannot_be_read_is_counted_and_holds_up_no_other(
    redis: Redis, tmp_path: Path, is_damaged: bool
) -> None:
    dead = Spool(tmp_path, "dead", 1 << 20)
    dead.open()
    dead.append([b'{"request": 1}', msgspec.json.encode(TextRow(request="r-1", at=1.0, task="returns"))], 1.0)
    dead.close()
    if is_damaged:
        (segment,) = tmp_path.glob("*.spool")
        segment.write_bytes(segment.read_bytes().replace(b'"request": 1', b'"request": 2'))
    services = SimpleNamespace(settings=None, meters=Meters())
    texts: Any = SimpleNamespace(
        spool=Spool(tmp_path, "own", 1 << 20),
        stream=TextStream(redis, 1 << 20),
        queue=TextQueue(),
        services=services,
        apply_settings=lambda _: None,
        retention_seconds=1.0,
    )
    task = asyncio.create_task(keep_texts(texts))
    await until(lambda: task.done() or ("", "dropped") in dict(services.meters.texts.numbers()))
    counts = {name: count for name, (count,) in services.meters.texts.numbers()}
    assert counts == {("returns", "kept"): 1, ("", "dropped"): 1}
    task.cancel()
    await asyncio.wait([task])
