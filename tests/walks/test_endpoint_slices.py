"""Replicas that a Service of Kubernetes names: they join and leave while requests flow, and adapters follow them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Moment
from tests.fakes.kubernetes import FakeKubernetes, endpoint, endpoint_slice
from tests.waiting import until
from tests.walks.conftest import BASE_MODEL, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}
FIRST, SECOND = "small-engine-small-0", "small-engine-small-1"


@dataclass(frozen=True)
class Held(Fault):
    """Says two tokens, and the rest once it is let go."""

    let_go: asyncio.Event

    async def before_token(self, moment: Moment) -> None:
        if moment.made == 2:
            await self.let_go.wait()


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as running:
        yield running


@pytest.fixture
async def engines() -> AsyncIterator[list[FakeEngine]]:
    async with (
        FakeEngine(BASE_MODEL, host="127.0.0.2", n_tokens=4) as one,
        FakeEngine(BASE_MODEL, host="127.0.0.3", n_tokens=4) as two,
    ):
        yield [one, two]


def of_engine(number: int, engine: FakeEngine, **conditions: Any) -> dict[str, Any]:
    """The slice of one engine: each has its own port."""
    host, _, port = engine.url.removeprefix("http://").rpartition(":")
    pod = endpoint(host, f"engine-small-{number}", **conditions)
    return endpoint_slice(f"engine-small-{number}", [pod], ports={"http": int(port)})


def discovered(configure: Configure, cluster: FakeKubernetes, account: Path) -> dict[str, Any]:
    configuration = configure(limits={"inter_token_timeout_seconds": 600})
    small = configuration["pools"]["small"]
    del small["replicas"]
    service = {"name": "engine-small", "api_url": cluster.url, "account_folder": cluster.account(account)}
    small["discover"] = {"service": service, "interval_seconds": 0.1}
    return configuration


async def ask_on(gateway: RunningGateway, over: asyncio.Event, answered: list[str]) -> None:
    async with gateway.openai() as client:
        while not over.is_set():
            answered.append((await client.chat.completions.create(model="returns", **ASK)).model)


async def read_stream(gateway: RunningGateway, begun: asyncio.Event) -> tuple[str, str]:
    """The text of a stream, and the reason of its end."""
    async with gateway.openai() as client:
        text, end = "", ""
        async for chunk in await client.chat.completions.create(model="returns", stream=True, **ASK):
            for choice in chunk.choices:
                text, end = text + (choice.delta.content or ""), choice.finish_reason or end
            begun.set()
        return text, end


async def fault_of(gateway: RunningGateway) -> str | None:
    async with gateway.http() as http:
        (told,) = (await http.get("/admin/v1/replicas")).json()["discovery"]
        assert (told["pool"], told["source"]) == ("small", "the Service engine-small")
        return str(told["fault"]) if told["fault"] else None


@pytest.mark.invariant("A terminating endpoint gets no new request, and its running ones end.")
async def test_a_scaled_service_gets_and_gives_back_its_adapters_and_drops_no_request(
    configure: Configure, engines: list[FakeEngine], cluster: FakeKubernetes, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    first, second = engines
    cluster.put(of_engine(0, first))
    async with run_gateway(discovered(configure, cluster, tmp_path / "account")) as gateway:
        replicas = gateway.services.fleet.replicas
        assert next(iter(replicas)) == FIRST
        await gateway.place(make_adapter(1))
        let_go, begun, over, answered = asyncio.Event(), asyncio.Event(), asyncio.Event(), list[str]()
        first.faults.add(Held(let_go), model="returns@v1", times=1)
        stream = asyncio.create_task(read_stream(gateway, begun))
        await begun.wait()
        asking = [asyncio.create_task(ask_on(gateway, over, answered)) for _ in range(4)]
        cluster.put(of_engine(1, second, ready=False))
        cluster.put(of_engine(1, second))
        await until(lambda: second.requests_total > 5)
        assert "returns@v1" in second.adapters.registered
        cluster.put(of_engine(0, first, ready=False, serving=True, terminating=True))
        await until(lambda: FIRST not in replicas)
        over.set()
        await asyncio.gather(*asking)
        seen = first.requests_total
        over.clear()
        asking = [asyncio.create_task(ask_on(gateway, over, answered)) for _ in range(4)]
        count = len(answered)
        await until(lambda: len(answered) > count + 20)
        assert first.requests_total == seen
        assert not stream.done()
        let_go.set()
        text, end = await stream
        held = next(each for each in first.requests if each.body.get("stream"))
        assert (held.outcome, held.tokens, end) == ("done", 4, "stop"), text
        cluster.delete("engine-small-0")
        over.set()
        await asyncio.gather(*asking)
        assert set(answered) == {"returns@v1"}


async def test_an_api_that_is_away_or_refuses_takes_no_replica_and_is_told(
    configure: Configure, engines: list[FakeEngine], cluster: FakeKubernetes, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    cluster.put(of_engine(0, engines[0]))
    async with run_gateway(discovered(configure, cluster, tmp_path / "account")) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        assert await fault_of(gateway) is None
        await cluster.stop()
        await until(lambda: gateway.services.control.discovery.followed["small"].fault)
        assert cluster.url in str(await fault_of(gateway))
        assert 'apprentice_discovery_failing{pool="small"} 1' in (await http.get("/metrics")).text
        cluster.forbidden = True
        await cluster.start()

        async def is_refused() -> bool:
            return "needs a Role" in str(await fault_of(gateway))

        await until(is_refused)
        async with gateway.openai() as client:
            assert (await client.chat.completions.create(model="returns", **ASK)).model == "returns@v1"
        cluster.forbidden = False
        cluster.put(of_engine(1, engines[1]))
        await until(lambda: SECOND in gateway.services.fleet.replicas)
        assert FIRST in gateway.services.fleet.replicas
        assert await fault_of(gateway) is None
