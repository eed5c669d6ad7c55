"""One look at a replica: what is up, what is down, and the sentence that says why."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from serving.engine_traits import EngineKind
from serving.fleet import Fleet, PoolConfig
from serving.health import look
from serving.replica import Replica, ReplicaConfig
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


def fleet_of(url: str, engine: EngineKind = "vllm", base_model: str = "base-model", key: str | None = None) -> Fleet:
    replica = ReplicaConfig("small-0", url, "small", key, engine=engine)
    return Fleet([PoolConfig("small", base_model, (replica,), engine=engine)])


async def looked(fleet: Fleet, http: httpx.AsyncClient) -> Replica:
    replica = fleet.replicas["small-0"]
    await look(fleet, replica, http)
    return replica


async def test_vllm_is_up_with_its_base_its_version_and_its_life(http: httpx.AsyncClient) -> None:
    async with FakeEngine() as engine:
        replica = await looked(fleet_of(engine.url), http)
        assert (replica.up, replica.trouble, replica.engine_version) == (True, "", "0.32.0")
        assert replica.life
        assert set(replica.seen) == {"base-model"}


@pytest.mark.parametrize("key", [None, "sk-wrong"])
async def test_an_engine_that_wants_another_key_is_down_and_the_key_is_named_not_told(
    http: httpx.AsyncClient, key: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeEngine(api_key="sk-right") as engine:
        replica = await looked(fleet_of(engine.url, key=key), http)
    assert not replica.up
    assert "401" in replica.trouble
    assert "api_key" in replica.trouble
    assert "sk-" not in caplog.text


async def test_vllm_without_the_base_is_down_and_an_openai_engine_without_it_is_up(http: httpx.AsyncClient) -> None:
    async with FakeEngine("another") as engine:
        replica = await looked(fleet_of(engine.url), http)
        assert (replica.up, replica.trouble) == (False, "it does not serve 'base-model', the pool's base_model")
        replica = await looked(fleet_of(f"{engine.url}/v1", "openai"), http)
        assert (replica.up, replica.seen, replica.engine_version) == (True, {}, "unknown")


async def test_a_trouble_is_logged_when_it_comes_when_it_changes_and_when_it_ends(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "serving.health"):
        async with FakeEngine(bare=True) as engine:
            fleet = fleet_of(f"{engine.url}/v1", "openai")
            for status in (401, 401, 503, None, None):
                engine.faults.clear()
                if status is not None:
                    engine.faults.add(Status(status), path="/v1/models")
                await looked(fleet, http)
        await looked(fleet, http)
    said = [record.getMessage().partition(" is ")[2] for record in caplog.records]
    assert [one.partition(":")[0] for one in said] == ["down", "down", "up", "down"]
    assert "401" in said[0]
    assert "503" in said[1]
    assert "ConnectError" in said[3]
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "WARNING", "INFO", "WARNING"]


async def test_a_bare_engine_knows_no_more_than_completions_and_refuses_vllms_fields(http: httpx.AsyncClient) -> None:
    body = {"model": "any/thing", "messages": [{"role": "user", "content": "x"}]}
    async with FakeEngine(bare=True, base_path="/openai/v1") as engine:
        for path in ("/health", "/version", "/metrics", "/v1/models", "/v1/chat/completions"):
            assert (await http.get(engine.url + path)).status_code == 404
        url = f"{engine.url}/openai/v1/chat/completions"
        assert (await http.post(url, json=body)).status_code == 200
        refused = await http.post(url, json=body | {"top_k": 1})
        assert (refused.status_code, "top_k" in refused.text) == (400, True)
