"""Records outlive what is killed: gateways with kill -9 under load, and a Redis that answers, hangs, or is gone."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import yaml
from redis.asyncio import Redis

from gateway.callers import new_key
from gateway.configuration.settings import RecordSettings
from monitoring.records import STREAM_KEY
from tests.fakes.engine import FakeEngine
from tests.fakes.valkey import Valkey, valkey
from tests.waiting import until
from tests.walks.served import ASK, Process, Served, client

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
KEEP = RecordSettings()
WINDOW_SECONDS = 2 * KEEP.flush_interval_seconds + KEEP.spool_after_seconds
BUSY_SECONDS = 3.0
"""The time that a machine busy with other tests may add."""


@dataclass
class World:
    """A Valkey, and a configuration for gateways on one data folder."""

    valkey: Valkey
    config: Path
    serve: Served
    key: str = field(default_factory=lambda: new_key()[0])

    @property
    def spool(self) -> Path:
        """The folder that gateways spool to."""
        return self.config.parent / "data" / "spool"

    async def stored(self) -> list[str]:
        """The ids of all records in the stream."""
        async with Redis(unix_socket_path=str(self.valkey.socket)) as redis:
            return [fields[b"id"].decode() for _, fields in await redis.xrange(STREAM_KEY)]


@pytest.fixture
async def world(tmp_path: Path, forked: Served) -> AsyncIterator[World]:
    async with FakeEngine("large", n_tokens=3) as engine, valkey(*DURABLE) as running:
        pool = {"base_model": "large", "callable": True, "replicas": [{"name": "general-0", "url": engine.url}]}
        content = {
            "listen": {"port": 0},
            "redis_url": running.url,
            "data_folder": str(tmp_path / "data"),
            "log_format": "text",
            "pools": {"general": pool},
        }
        path = tmp_path / "apprentice.yaml"
        path.write_text(yaml.safe_dump(content))
        yield World(running, path, forked)


@dataclass
class Asked:
    """The requests that were answered, by id, each with when (monotonic seconds)."""

    answered: dict[str, float] = field(default_factory=dict)

    async def more(self, count: int) -> None:
        """Wait until so many more are answered."""
        wanted = len(self.answered) + count
        await until(lambda: self._have(wanted))

    async def _have(self, wanted: int) -> bool:
        return len(self.answered) >= wanted

    def before(self, moment: float) -> set[str]:
        """Those that were answered before then."""
        return {request_id for request_id, at in self.answered.items() if at < moment}


@asynccontextmanager
async def load(process: Process, key: str, at_once: int = 4) -> AsyncIterator[Asked]:
    """Callers that ask again and again for as long as the block lasts, or the gateway."""
    asked = Asked()

    async def ask(http: httpx.AsyncClient) -> None:
        try:
            while True:
                answer = await http.post("/v1/chat/completions", json=ASK)
                assert answer.status_code == 200, answer.text
                asked.answered[answer.headers["x-request-id"]] = time.monotonic()
        except httpx.HTTPError:
            pass

    async with client(process, key) as http:
        tasks = [asyncio.create_task(ask(http)) for _ in range(at_once)]
        try:
            yield asked
        finally:
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                assert ended is None or isinstance(ended, asyncio.CancelledError), ended


async def all_are_stored_by_the_next(world: World) -> list[str]:
    """Start a gateway, which takes over what is there, and wait until nothing is left to store."""
    async with world.serve(world.config, world.key) as process, client(process, world.key) as http:

        async def is_done() -> bool:
            told = (await http.get("/metrics")).text
            nothing = "apprentice_records_pending 0" in told and "apprentice_records_spool_bytes 0" in told
            return nothing and not list(world.spool.glob("*.spool"))

        await until(is_done)
    assert not list(world.spool.iterdir())
    return await world.stored()


@pytest.mark.invariant("A killed gateway loses only records of a stated window.")
@pytest.mark.parametrize("redis", ["answers", "hangs", "is gone"])
async def test_kill_9_under_load_loses_no_record_past_the_window_and_doubles_none(world: World, redis: str) -> None:
    process_of_valkey = world.valkey._process
    assert process_of_valkey is not None
    async with world.serve(world.config, world.key) as process, load(process, world.key) as asked:
        await asked.more(50)
        if redis == "hangs":
            process_of_valkey.send_signal(signal.SIGSTOP)
        elif redis == "is gone":
            await world.valkey.end()
        await asked.more(50)
        began = time.monotonic()

        async def long_enough() -> bool:
            return time.monotonic() - began > WINDOW_SECONDS + BUSY_SECONDS + 0.5

        await until(long_enough)
        killed_at = time.monotonic()
        await process.stop(signal.SIGKILL)
    if redis == "hangs":
        process_of_valkey.send_signal(signal.SIGCONT)
    elif redis == "is gone":
        await world.valkey.start()
    old_enough = asked.before(killed_at - WINDOW_SECONDS - BUSY_SECONDS)
    assert len(old_enough) > 50
    if redis == "is gone":
        assert list(world.spool.glob("*.spool"))
    stored = await all_are_stored_by_the_next(world)
    assert len(stored) == len(set(stored))
    assert not old_enough - set(stored)


async def test_sigterm_while_redis_is_gone_leaves_every_record_to_the_next_gateway(world: World) -> None:
    async with world.serve(world.config, world.key) as process:
        async with load(process, world.key) as asked:
            await asked.more(20)
            await world.valkey.end()
            await asked.more(20)
        assert await process.stop(signal.SIGTERM) == 0
    await world.valkey.start()
    stored = await all_are_stored_by_the_next(world)
    assert len(stored) == len(set(stored))
    assert set(asked.answered) <= set(stored)


async def test_returning_redis_gets_what_it_missed_in_order_while_requests_go_on(world: World) -> None:
    async with (
        world.serve(world.config, world.key) as process,
        load(process, world.key, at_once=1) as asked,
        client(process, world.key) as http,
    ):
        await asked.more(20)
        await world.valkey.end()
        await asked.more(100)
        told = (await http.get("/metrics")).text
        figures = dict(line.split() for line in told.splitlines() if line.startswith("apprentice_records_"))
        assert float(figures["apprentice_records_pending"]) > 50
        assert float(figures["apprentice_records_oldest_age_seconds"]) > 0
        assert float(figures["apprentice_records_dropped_total"]) == 0
        await world.valkey.start()
        expected = list(asked.answered)

        async def is_there() -> bool:
            return expected[-1] in await world.stored()

        await until(is_there)
        stored = await world.stored()
    assert [request_id for request_id in stored if request_id in set(expected)] == expected
    assert len(stored) == len(set(stored))
