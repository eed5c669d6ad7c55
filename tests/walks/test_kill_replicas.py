"""kill -9 of a replica under each call to it, and adapters that end the engine which takes them in."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from serving.adapters import reconcile
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Moment, Reset
from tests.waiting import until
from tests.walks.conftest import MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.two_replicas import (
    LOAD,
    UNLOAD,
    Hold,
    called,
    callers,
    lists,
    loads,
    push,
    shown,
    two,
    until_ghosts_are_counted,
    until_ready,
)

__all__ = ["two"]
pytestmark = pytest.mark.invariant("A gateway's death at any step of a swap leaves engines as written down.")


@pytest.mark.parametrize("at", ["load, before", "load, after", "probe"])
async def test_a_replica_killed_while_it_takes_a_version_in_comes_back_with_all_of_them(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, at: str
) -> None:
    version = await push(two, make_adapter(2))
    held = Hold(after_work="after" in at)
    if at == "probe":
        other.faults.add(held, model=version, times=1)
    else:
        other.faults.add(held, path=LOAD, times=1)
    async with callers(two) as asked, two.http() as http:
        staging = asyncio.create_task(http.post(f"/admin/v1/adapters/{version}/stage"))
        await until(held.met.is_set, "the call")
        await other.kill()
        replica = two.services.fleet.replicas["small-1"]
        await until(lambda: not replica.up, "seen to be down")
        other.calls.clear()
        await other.restart()
        assert (await staging).status_code == 200
        for name in ("returns@v1", version):
            await until_ready(two, name)
    asked.only("returns@v1")
    assert called(small, LOAD) == [200, 200]
    assert sorted(call.body["lora_name"] for call in other.calls if call.path == LOAD) == ["returns@v1", version]
    assert called(other, LOAD) == [200, 200]


@pytest.mark.parametrize("seen_down", [True, False])
async def test_a_replica_killed_while_it_unloads_comes_back_without_the_version(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, seen_down: bool
) -> None:
    version = await two.place(make_adapter(2), alias=False)
    await until_ready(two, version)
    held = Hold()
    other.faults.add(held, path=UNLOAD, times=1)
    replica = two.services.fleet.replicas["small-1"]
    async with callers(two) as asked, two.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{version}/unload?wait_seconds=0")).status_code == 202
        await until(held.met.is_set, "the call")
        if seen_down:
            await other.kill()
            await until(lambda: not replica.up, "seen to be down")
            await other.restart()
        else:
            async with replica.looking:  # nobody looks at the engine between its end and its next start
                await other.restart()
        await until_ready(two, "returns@v1")
        await until(lambda: not lists(small, version), "unloaded")
        await until_ghosts_are_counted(http, small, other)
    asked.only("returns@v1")
    assert not lists(other, version)
    assert [len(engine.adapters.ghosts) for engine in (small, other)] == [1, 0]


@dataclass(frozen=True)
class EndsItsEngine(Fault):
    """The engine ends before it answers, and is started again by whoever watches over it."""

    kind = "ends_its_engine"
    model: str
    engine: FakeEngine
    ends: list[float] = field(default_factory=list)
    starting: set[asyncio.Task[None]] = field(default_factory=set)

    async def on_request(self, moment: Moment) -> None:
        if self.model in (moment.body.get("lora_name"), moment.body.get("model")):
            self.ends.append(time.monotonic())
            self.starting.add(asyncio.create_task(self.engine.restart()))
            await moment.exchange.hang()


@pytest.mark.parametrize("path", [LOAD, "/v1/chat/completions"])
async def test_a_version_that_ends_its_engine_ends_one_twice_and_is_quarantined(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, path: str
) -> None:
    version = await push(two, make_adapter(2))
    faults = [EndsItsEngine(version, engine) for engine in (small, other)]
    for fault in faults:
        fault.engine.faults.add(fault, path=path)
    async with callers(two) as asked, two.http() as http:
        answer = await http.post(f"/admin/v1/adapters/{version}/stage")
        for name in ("small-0", "small-1"):
            await until(lambda name=name: two.services.fleet.replicas[name].loaded == {"returns@v1"}, f"v1 on {name}")
    asked.only("returns@v1")
    assert answer.status_code == 409
    assert f"ended twice while it began to serve {version}" in answer.json()["error"]["message"]
    assert (await shown(two, version))["state"] == "quarantined"
    assert sorted(len(fault.ends) for fault in faults) == [0, 2], "the other engine never met it"


async def test_an_engine_that_ends_once_after_another_failure_has_not_ended_twice(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    version = await push(two, make_adapter(2))
    small.faults.add(Reset(), path=LOAD, times=1)
    ends = EndsItsEngine(version, small)
    small.faults.add(ends, path=LOAD, times=1)
    async with two.http() as http:
        answer = await http.post(f"/admin/v1/adapters/{version}/stage")
    assert answer.status_code == 200, answer.text
    assert len(ends.ends) == 1
    await until_ready(two, version)


async def test_a_version_withdrawn_while_its_engine_is_down_leaves_no_ghost_there(
    two: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    version = await push(two, make_adapter(2))
    held = Hold()
    small.faults.add(held, path=LOAD, times=1)
    async with two.http() as http:
        await http.post(f"/admin/v1/adapters/{version}/stage?wait_seconds=0")
        await until(held.met.is_set, "the call")
        await small.kill()
        await until(lambda: not two.services.fleet.replicas["small-0"].up, "seen to be down")
        assert (await http.post(f"/admin/v1/adapters/{version}/unload?wait_seconds=0")).status_code == 200
        await small.restart()

        async def is_forgotten() -> bool:
            return not (await shown(two, version))["placements"]

        await until(is_forgotten, "nothing is written down of it")
        await until_ghosts_are_counted(http, small, other)


async def test_a_version_is_tried_nowhere_else_while_the_engine_that_began_it_is_away(
    two: RunningGateway,
    make_adapter: MakeAdapter,
    small: FakeEngine,
    other: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = await push(two, make_adapter(2))
    monkeypatch.setattr(reconcile, "DOWN_SECONDS_MAX", 0.1)
    monkeypatch.setattr(reconcile, "STAGE_SECONDS_MAX", 2.0)
    held = Hold()
    small.faults.add(held, path=LOAD, times=1)
    async with two.http() as http:
        staging = asyncio.create_task(http.post(f"/admin/v1/adapters/{version}/stage"))
        await until(held.met.is_set, "the call")
        await small.kill()
        answer = await staging
    assert answer.status_code == 409
    assert "small-0 went away while it began to serve it" in answer.json()["error"]["message"]
    assert (await shown(two, version))["state"] == "verified"
    assert not [call for call in other.calls if call.path == LOAD and call.body["lora_name"] == version]


async def test_a_version_is_released_without_a_replica_that_stays_down(
    two: RunningGateway, make_adapter: MakeAdapter, other: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "DOWN_SECONDS_MAX", 0.5)
    version = await push(two, make_adapter(2))
    held = Hold()
    other.faults.add(held, path=LOAD, times=1)
    async with callers(two) as asked, two.http() as http:
        staging = asyncio.create_task(http.post(f"/admin/v1/adapters/{version}/stage"))
        await until(held.met.is_set, "the call")
        await other.kill()
        assert (await staging).status_code == 200
        await until_ready(two, version, ["small-0"])
        answer = await http.put("/admin/v1/aliases/returns", json={"version": version})
        assert answer.status_code == 200, answer.text
        await other.restart()
        await until_ready(two, version)
    asked.only("returns@v1", version)
    assert loads([other], version) == 1
