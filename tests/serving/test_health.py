"""One look at a replica: what is up, what is down, and the sentence that says why."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest

from serving import health
from serving.engine_client import EngineClient
from serving.engine_traits import EngineKind
from serving.fleet import Fleet, PoolConfig
from serving.health import look
from serving.replica import Replica, ReplicaConfig
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Reset, Silent, Status

HANGING = 120
"""More than a client of many origins has connections, by default."""


@pytest.fixture
async def engines() -> AsyncIterator[EngineClient]:
    async with EngineClient(5.0, 1 << 20) as client:
        yield client


def fleet_of(url: str, engine: EngineKind = "vllm", base_model: str = "base-model", key: str | None = None) -> Fleet:
    replica = ReplicaConfig("small-0", url, "small", key, engine=engine)
    return Fleet([PoolConfig("small", base_model, (replica,), engine=engine)])


async def looked(fleet: Fleet, engines: EngineClient) -> Replica:
    replica = fleet.replicas["small-0"]
    await look(fleet, replica, engines)
    return replica


async def test_vllm_is_up_with_its_base_its_version_and_its_life(engines: EngineClient) -> None:
    async with FakeEngine() as engine:
        replica = await looked(fleet_of(engine.url), engines)
        assert (replica.up, replica.trouble, replica.engine_version) == (True, "", "0.32.0")
        assert replica.life
        assert set(replica.seen) == {"base-model"}


@pytest.mark.parametrize("key", [None, "sk-wrong"])
async def test_an_engine_that_wants_another_key_is_down_and_the_key_is_named_not_told(
    engines: EngineClient, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeEngine(api_key="sk-right") as engine:
        replica = await looked(fleet_of(engine.url, key=key), engines)
    assert not replica.up
    assert "401" in replica.trouble
    assert "api_key" in replica.trouble
    assert "sk-" not in caplog.text


async def test_vllm_without_the_base_is_down_and_an_openai_engine_without_it_is_up(engines: EngineClient) -> None:
    async with FakeEngine("another") as engine:
        replica = await looked(fleet_of(engine.url), engines)
        assert (replica.up, replica.trouble) == (False, "it does not serve 'base-model', the pool's base_model")
        replica = await looked(fleet_of(f"{engine.url}/v1", "openai"), engines)
        assert (replica.up, replica.seen, replica.engine_version) == (True, {}, "unknown")


async def test_a_trouble_is_logged_when_it_comes_when_it_changes_and_when_it_ends(
    engines: EngineClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serving.health"):
        async with FakeEngine(bare=True) as engine:
            fleet = fleet_of(f"{engine.url}/v1", "openai")
            for status in (401, 401, 503, None, None):
                engine.faults.clear()
                if status is not None:
                    engine.faults.add(Status(status), path="/v1/models")
                await looked(fleet, engines)
        await looked(fleet, engines)
    said = [record.getMessage().partition(" is ")[2] for record in caplog.records]
    assert [one.partition(":")[0] for one in said] == ["down", "down", "up", "down"]
    assert "401" in said[0]
    assert "503" in said[1]
    assert "Unreachable" in said[3]
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "INFO", "WARNING"]


async def test_engines_that_hang_keep_no_other_from_being_up(
    engines: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 30.0)
    async with FakeEngine() as silent, FakeEngine() as well:
        silent.faults.add(Silent(), path="/health")
        replicas = [ReplicaConfig(f"small-{number}", silent.url, "small") for number in range(HANGING)]
        fleet = Fleet([PoolConfig("small", "base-model", (*replicas, ReplicaConfig("well", well.url, "small")))])
        looks = [
            asyncio.create_task(look(fleet, fleet.replicas[each.name], engines, identify=True)) for each in replicas
        ]
        await silent.until(lambda: silent.calls_total == HANGING, 30)
        await look(fleet, fleet.replicas["well"], engines)
        assert fleet.replicas["well"].up
        assert not any(task.done() for task in looks)
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)


async def test_a_bare_engine_knows_no_more_than_completions_and_refuses_vllms_fields() -> None:
    body = {"model": "any/thing", "messages": [{"role": "user", "content": "x"}]}
    async with FakeEngine(bare=True, base_path="/openai/v1") as engine, httpx.AsyncClient(trust_env=False) as http:
        for path in ("/health", "/version", "/metrics", "/v1/models", "/v1/chat/completions"):
            assert (await http.get(engine.url + path)).status_code == 404
        url = f"{engine.url}/openai/v1/chat/completions"
        assert (await http.post(url, json=body)).status_code == 200
        refused = await http.post(url, json=body | {"top_k": 1})
        assert (refused.status_code, "top_k" in refused.text) == (400, True)


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("/version", Status(200, text="<html>")),
        ("/version", Status(200, text="[]")),
        ("/version", Silent()),
        ("/metrics", Silent()),
        ("/metrics", Reset()),
    ],
    ids=["html", "list", "silent", "metrics_silent", "metrics_reset"],
)
async def test_an_engine_that_can_not_tell_its_build_is_up_after_some_looks(
    engines: EngineClient, path: str, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 0.5)
    async with FakeEngine() as engine:
        fleet = fleet_of(engine.url)
        engine.faults.add(fault, path=path)
        assert [(await looked(fleet, engines)).up for _ in range(4)] == [False, False, True, True]
        replica = fleet.replicas["small-0"]
        assert (replica.engine_version == "0.32.0", bool(replica.life)) == (path != "/version", path != "/metrics")
        engine.faults.clear()
        await look(fleet, replica, engines, identify=True)
    assert (replica.up, replica.engine_version, bool(replica.life)) == (True, "0.32.0", True)


async def test_an_engine_whose_answer_comes_byte_by_byte_does_not_hold_a_look(
    engines: EngineClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = asyncio.Event()

    async def trickle(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        with suppress(ConnectionError):
            while not writer.is_closing():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        gone.set()

    monkeypatch.setattr(health, "LOOK_SECONDS_MAX", 0.3)
    async with await asyncio.start_server(trickle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        replica = await looked(fleet_of(f"http://127.0.0.1:{port}"), engines)
        await gone.wait()
    assert (replica.up, replica.trouble) == (False, "its answers have not ended within 0.3 s")


@pytest.mark.parametrize(
    "body", ["<html>A start page.</html>", "{}", "null", '{"data": null}', '{"data": [{"id": 1}, 2]}']
)
async def test_what_answers_otherwise_than_an_engine_is_down_and_its_url_is_named(
    engines: EngineClient, body: str
) -> None:
    async with FakeEngine() as engine:
        engine.faults.add(Status(200, text=body), path="/v1/models")
        replica = await looked(fleet_of(engine.url), engines)
    assert not replica.up
    assert re.fullmatch(r"it does not answer as an engine of this kind: fix its url \(\w+: .+\)", replica.trouble)
