"""Cordons and recycling: a replica without new requests, and an engine started anew so that its ghosts go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.releases.reconciling import reconcile_once
from gateway.features.releases.recycling import Cordon
from gateway.features.releases.state import Releases
from serving.object_store import GENERATION_KEY, ObjectStore
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.fakes.wire import Exchange, HttpListener
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}


class Supervisor:
    """Starts its engine anew when it is asked to, as a service manager would."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.asked = 0
        self.status = 202
        self._http = HttpListener(self._handle, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._http.port}/restart"

    async def _handle(self, exchange: Exchange) -> None:
        self.asked += 1
        if self.status == 202:
            await self.engine.restart()
        await exchange.whole(self.status, {})

    async def __aenter__(self) -> Supervisor:
        await self._http.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.stop()
        self._http.release()


@pytest.fixture
async def supervisor(small: FakeEngine) -> AsyncIterator[Supervisor]:
    async with Supervisor(small) as running:
        yield running


@asynccontextmanager
async def two_replicas(
    configure: Configure, small: FakeEngine, other: FakeEngine, supervisor: Supervisor, **pool: Any
) -> AsyncIterator[RunningGateway]:
    configuration = configure()
    configuration["pools"]["small"] |= {
        "replicas": [
            {"name": "small-0", "url": small.url, "recycle_url": supervisor.url},
            {"name": "small-1", "url": other.url},
        ],
        **pool,
    }
    async with run_gateway(configuration) as running:
        yield running


async def test_a_cordoned_replica_gets_no_new_requests_until_it_is_uncordoned(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, supervisor: Supervisor
) -> None:
    async with two_replicas(configure, small, other, supervisor) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http, gateway.openai() as client:
            shown = (await http.post("/admin/v1/replicas/small-0/cordon", json={"reason": "a new driver"})).json()
            assert shown["cordoned"] == "a new driver"
            before = len(small.requests)
            for _ in range(20):
                assert (await client.chat.completions.create(model="returns", **ASK)).model == "returns@v1"
            assert len(small.requests) == before
            assert (await http.post("/admin/v1/replicas/small-0/uncordon")).json()["cordoned"] is None
            async with asyncio.timeout(60):
                while len(small.requests) == before:
                    await client.chat.completions.create(model="returns", **ASK)


async def test_a_cordon_of_a_cordoned_replica_changes_its_reason_alone_and_is_audited_once(
    configure: Configure, small: FakeEngine, other: FakeEngine, supervisor: Supervisor
) -> None:
    async with two_replicas(configure, small, other, supervisor) as gateway, gateway.http() as http:
        for reason in ("a driver", "a driver", "", "a fan"):
            shown = (await http.post("/admin/v1/replicas/small-0/cordon", json={"reason": reason})).json()
            assert shown["cordoned"] == (reason or "a driver")
        entries = await gateway.services.control.audit.read(limit=1000)
    told = [(entry.before or {}).get("reason") for entry in entries if entry.action == "replica.cordon"]
    assert told == [None, "a driver"]


async def test_recycled_replica_finishes_its_answers_restarts_and_serves_without_error(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, supervisor: Supervisor
) -> None:
    async with two_replicas(configure, small, other, supervisor) as gateway:
        await gateway.place(make_adapter(1))
        replica = gateway.services.fleet.replicas["small-0"]
        life = replica.life
        small.token_delay_seconds = other.token_delay_seconds = 0.02
        over = asyncio.Event()

        async def ask_on() -> int:
            answered = 0
            async with gateway.openai() as client:
                while not over.is_set():
                    stream = await client.chat.completions.create(model="returns", stream=True, **ASK)
                    chunks = [chunk async for chunk in stream]
                    assert {chunk.model for chunk in chunks} == {"returns@v1"}
                    assert chunks[-1].choices[0].finish_reason
                    answered += 1
            return answered

        asking = [asyncio.create_task(ask_on()) for _ in range(4)]
        async with gateway.http() as http:
            assert (await http.post("/admin/v1/replicas/small-0/recycle")).status_code == 202
            await until(lambda: replica.life != life and "returns@v1" in replica.loaded and not replica.cordoned)
            seen = small.requests_total
            await until(lambda: small.requests_total > seen + 4 or any(task.done() for task in asking))
            over.set()
            assert min(await asyncio.gather(*asking)) >= 1
            entries = (await http.get("/admin/v1/audit?limit=100")).json()["entries"]
    assert supervisor.asked == 1
    assert [entry["action"] for entry in entries][-2:] == ["replica.recycle", "replica.recycled"]


async def test_a_replica_whose_ghosts_leave_no_load_is_recycled_by_itself(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, supervisor: Supervisor
) -> None:
    small.max_cpu_loras = other.max_cpu_loras = 3
    await small.restart()
    await other.restart()
    async with two_replicas(configure, small, other, supervisor, max_cpu_loras=3) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http:
            version = await gateway.place(make_adapter(2), alias=False)
            assert (await http.post(f"/admin/v1/adapters/{version}/unload")).status_code == 200
            await until(lambda: supervisor.asked == 1 and "small-0" not in gateway.services.snapshot.current.cordons)
            rows = {row["name"]: row for row in (await http.get("/admin/v1/replicas")).json()["replicas"]}
    assert rows["small-0"]["capacity"]["ghosts"] == 0
    assert rows["small-0"]["loaded"] == ["returns@v1"]
    assert rows["small-1"]["capacity"]["ghosts"] == 1


@pytest.mark.parametrize("restarted", [True, False])
async def test_recycling_ends_where_a_restarted_engine_no_longer_tells_its_start(
    configure: Configure,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    other: FakeEngine,
    supervisor: Supervisor,
    restarted: bool,
) -> None:
    async with two_replicas(configure, small, other, supervisor) as gateway:
        await gateway.place(make_adapter(1))
        cordons, replica = gateway.services.objects.cordons, gateway.services.fleet.replicas["small-0"]
        former_life = "of another process" if restarted else replica.life
        small.faults.add(Status(500), path="/metrics")
        replica.life = ""
        now = time.time()
        cordon = Cordon(reason="it is recycled", recycle=True, life=former_life, at=now, restarted_at=now)
        await cordons.put("small-0", msgspec.to_builtins(cordon))
        await gateway.services.snapshot.refresh()
        await reconcile_once(gateway.features[Releases])
        assert ("small-0" in await cordons.written()) is not restarted


async def test_a_restart_that_fails_leaves_the_replica_cordoned_with_the_reason(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, supervisor: Supervisor
) -> None:
    supervisor.status = 500
    async with two_replicas(configure, small, other, supervisor) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http, gateway.openai() as client:
            await http.post("/admin/v1/replicas/small-0/recycle")
            cordons = gateway.services.snapshot
            await until(lambda: "recycle_url failed" in cordons.current.cordons.get("small-0", ""))
            assert (await client.chat.completions.create(model="returns", **ASK)).model == "returns@v1"
            assert (await http.post("/admin/v1/replicas/small-0/uncordon")).json()["cordoned"] is None


async def test_recycling_again_after_a_failure_keeps_the_cordon_from_before(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, supervisor: Supervisor
) -> None:
    supervisor.status = 500
    async with two_replicas(configure, small, other, supervisor) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        snapshot = gateway.services.snapshot
        await http.post("/admin/v1/replicas/small-0/cordon", json={"reason": "a fan"})
        await http.post("/admin/v1/replicas/small-0/recycle")
        await until(lambda: "recycle_url failed" in snapshot.current.cordons.get("small-0", ""))
        supervisor.status = 202
        await http.post("/admin/v1/replicas/small-0/recycle")
        await until(lambda: snapshot.current.cordons.get("small-0") != "it is being recycled")
        assert snapshot.current.cordons == {"small-0": "a fan"}


async def test_one_replica_of_a_pool_at_a_time_and_only_where_it_can_be_started_anew(
    configure: Configure, small: FakeEngine, other: FakeEngine, supervisor: Supervisor
) -> None:
    async with two_replicas(configure, small, other, supervisor) as gateway, gateway.http() as http:
        refused = await http.post("/admin/v1/replicas/small-1/recycle")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "state_conflict")
        assert "recycle_url" in refused.json()["error"]["message"]
        await http.post("/admin/v1/replicas/small-1/cordon")
        refused = await http.post("/admin/v1/replicas/small-0/recycle")
        assert "one replica of a pool at a time" in refused.json()["error"]["message"]
        assert (await http.post("/admin/v1/replicas/nobody/recycle")).status_code == 404
    assert supervisor.asked == 0


async def test_a_cordon_that_cannot_be_read_stays_until_an_admin_takes_it_away(
    configure: Configure, small: FakeEngine, other: FakeEngine, supervisor: Supervisor, redis: Redis
) -> None:
    async with two_replicas(configure, small, other, supervisor) as gateway, gateway.http() as http:
        await ObjectStore(redis, "cordons").put("small-0", {"reason": 7})
        for damaged in (b'{"reason": 7}', b"{"):
            await redis.hset("apprentice:cordons", "small-0", damaged)
            await redis.incr(GENERATION_KEY)
            await reconcile_once(gateway.features[Releases])
            rows = {row["name"]: row for row in (await http.get("/admin/v1/replicas")).json()["replicas"]}
            assert rows["small-0"]["cordoned"]
        uncordoned = await http.post("/admin/v1/replicas/small-0/uncordon")
        assert (uncordoned.status_code, uncordoned.json()["cordoned"]) == (200, None)
        await reconcile_once(gateway.features[Releases])
    assert supervisor.asked == 0
