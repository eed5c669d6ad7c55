"""Replicas that DNS names: they join and leave while requests flow, and adapters follow them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest

from gateway.callers import new_key
from gateway.configuration.settings import Settings
from serving import replica_sources
from serving.adapters import reconcile
from serving.object_store import ObjectStore
from tests.fakes.certificates import Authority
from tests.fakes.engine import FakeEngine
from tests.fakes.ports import free_port
from tests.waiting import until
from tests.walks.conftest import BASE_MODEL, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}


class Dns:
    def __init__(self) -> None:
        self.addresses: frozenset[str] = frozenset()
        self.fails = False

    async def __call__(self, name: str) -> frozenset[str]:
        if self.fails:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return self.addresses


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Dns:
    answering = Dns()
    monkeypatch.setattr(replica_sources, "resolve", answering)
    return answering


@pytest.fixture
async def engines() -> AsyncIterator[list[FakeEngine]]:
    """Two engines on the same port of two addresses."""
    port = free_port()
    async with (
        FakeEngine(BASE_MODEL, host="127.0.0.2", port=port, n_tokens=4) as one,
        FakeEngine(BASE_MODEL, host="127.0.0.3", port=port, n_tokens=4) as two,
    ):
        yield [one, two]


def discovered(configure: Configure, engines: list[FakeEngine]) -> dict[str, Any]:
    configuration = configure()
    small = configuration["pools"]["small"]
    del small["replicas"]
    port = int(engines[0].url.rpartition(":")[2])
    small["discover"] = {"dns": "engines", "port": port, "interval_seconds": 0.1}
    return configuration


async def ask_on(gateway: RunningGateway, over: asyncio.Event, answered: list[str]) -> None:
    async with gateway.openai() as client:
        while not over.is_set():
            answer = await client.chat.completions.create(model="returns", **ASK)
            answered.append(answer.model)


@pytest.mark.invariant("Replicas join and leave without a dropped request.")
async def test_a_scaled_pool_gets_and_gives_back_its_adapters_and_drops_no_request(
    configure: Configure, engines: list[FakeEngine], dns: Dns, make_adapter: MakeAdapter
) -> None:
    first, second = engines
    dns.addresses = frozenset({"127.0.0.2"})
    async with run_gateway(discovered(configure, engines)) as gateway:
        assert next(iter(gateway.services.fleet.replicas)) == "small-127-0-0-2"
        await gateway.place(make_adapter(1))
        over, answered = asyncio.Event(), list[str]()
        asking = [asyncio.create_task(ask_on(gateway, over, answered)) for _ in range(4)]
        dns.addresses = frozenset({"127.0.0.2", "127.0.0.3"})
        await until(lambda: second.requests_total > 5)
        dns.addresses = frozenset({"127.0.0.3"})
        await until(lambda: "small-127-0-0-2" not in gateway.services.fleet.replicas)
        count = len(answered)
        await until(lambda: len(answered) > count + 20)
        seen = first.requests_total
        await until(lambda: len(answered) > count + 40)
        over.set()
        await asyncio.gather(*asking)
        assert first.requests_total == seen
        assert set(answered) == {"returns@v1"}


async def test_a_failing_resolver_takes_no_replica_and_is_in_the_metrics(
    configure: Configure, engines: list[FakeEngine], dns: Dns, make_adapter: MakeAdapter
) -> None:
    dns.addresses = frozenset({"127.0.0.2"})
    async with run_gateway(discovered(configure, engines)) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        dns.fails = True
        metrics = ""
        async with asyncio.timeout(20):
            while 'apprentice_discovery_failing{pool="small"} 1' not in metrics:
                await asyncio.sleep(0.05)
                metrics = (await http.get("/metrics")).text
        async with gateway.openai() as client:
            assert (await client.chat.completions.create(model="returns", **ASK)).model == "returns@v1"


async def test_the_cordon_of_a_replica_that_has_left_can_be_ended(
    configure: Configure, engines: list[FakeEngine], dns: Dns
) -> None:
    dns.addresses = frozenset({"127.0.0.2"})
    path = "/admin/v1/replicas/small-127-0-0-2"
    async with run_gateway(discovered(configure, engines)) as gateway, gateway.http() as http:
        assert (await http.post(f"{path}/cordon")).json()["cordoned"] is not None
        dns.addresses = frozenset({"127.0.0.3"})
        await until(lambda: "small-127-0-0-2" not in gateway.services.fleet.replicas)
        assert list((await http.get("/admin/v1/replicas")).json()["cordons_left"]) == ["small-127-0-0-2"]
        ended = await http.post(f"{path}/uncordon")
        assert (ended.status_code, ended.json()) == (200, {"name": "small-127-0-0-2", "cordoned": None})
        assert await gateway.services.objects.cordons.written() == {}
        assert (await http.post(f"{path}/uncordon")).status_code == 404


async def test_a_gateway_starts_without_replicas_and_takes_those_that_come(
    configure: Configure, engines: list[FakeEngine], dns: Dns
) -> None:
    dns.fails = True
    async with run_gateway(discovered(configure, engines)) as gateway:
        assert [r for r in gateway.services.fleet.replicas if r.startswith("small")] == []
        dns.fails, dns.addresses = False, frozenset({"127.0.0.3"})
        await until(lambda: "small-127-0-0-3" in gateway.services.fleet.replicas)


async def test_what_stood_on_a_replica_that_has_long_left_is_forgotten(
    configure: Configure,
    engines: list[FakeEngine],
    dns: Dns,
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reconcile, "LEAVING_SECONDS_MAX", 0.2)
    dns.addresses = frozenset({"127.0.0.2", "127.0.0.3"})
    async with run_gateway(discovered(configure, engines)) as gateway:
        await gateway.place(make_adapter(1))
        dns.addresses = frozenset({"127.0.0.3"})

        def placed() -> list[str]:
            return [p.replica for p in gateway.services.snapshot.current.placements.values()]

        assert sorted(placed()) == ["small-127-0-0-2", "small-127-0-0-3"]
        await until(lambda: placed() == ["small-127-0-0-3"])
        placements = ObjectStore(gateway.services.redis, "placements")
        await placements.put("small-127-0-0-9/returns@v1", {"replica": "small-127-0-0-9"})
        await placements.delete("small-127-0-0-9/returns@v1")

        async def is_forgotten() -> bool:
            return [*await placements.generations()] == ["small-127-0-0-3/returns@v1"]

        await until(is_forgotten)


async def test_discovered_engines_are_reached_by_tls_under_their_certificates_name(
    configure: Configure, dns: Dns, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    authority, port = Authority(tmp_path), free_port()
    dns.addresses = frozenset({"127.0.0.2", "127.0.0.3"})
    async with (
        FakeEngine(BASE_MODEL, host="127.0.0.2", port=port, n_tokens=4, tls=_as("engine-small", authority)) as ours,
        FakeEngine(BASE_MODEL, host="127.0.0.3", port=port, n_tokens=4, tls=_as("engine-other", authority)),
    ):
        configuration = discovered(configure, [ours])
        small = configuration["pools"]["small"]
        small["tls"] = {"ca_file": authority.ca}
        small["discover"]["server_name"] = "engine-small"
        async with run_gateway(configuration) as gateway:
            replicas = gateway.services.fleet.replicas
            await until(lambda: replicas["small-127-0-0-2"].up)
            await gateway.place(make_adapter(1))
            over, answered = asyncio.Event(), list[str]()
            asking = asyncio.create_task(ask_on(gateway, over, answered))
            await until(lambda: len(answered) > 3)
            over.set()
            await asking
            assert not replicas["small-127-0-0-3"].up, "its certificate has another name"
        assert {seen.model for seen in ours.requests} >= {"returns@v1"}


def _as(name: str, authority: Authority) -> SSLContext:
    return authority.listening(name, name)


def test_tls_files_of_discovered_engines_need_their_certificates_name(configure: Configure) -> None:
    configuration = configure()
    small = configuration["pools"]["small"]
    del small["replicas"]
    small |= {"discover": {"dns": "engines", "port": 8000}, "tls": {}}
    with pytest.raises(ValueError, match=r"pools.small.tls: set discover.server_name, too"):
        Settings(**configuration, admin_key=new_key()[0])
