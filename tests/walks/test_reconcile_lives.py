"""Restarts of replicas and gateways, and replicas without metrics: what is loaded and probed again, and what is not."""

from __future__ import annotations

import pytest

from gateway.features.releases.reconciling import reconcile_once
from gateway.features.releases.state import Releases
from gateway.fleet_health import check_health
from serving.health import UNTOLD_LOOKS_MAX
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Reset, Status
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.two_replicas import (
    LOAD,
    Hold,
    asked_by_callers,
    called,
    callers,
    go_down,
    lists,
    loads,
    shown,
    two,
    until_ready,
    with_two,
)

__all__ = ["two"]


async def test_a_restarted_gateway_serves_what_is_loaded_without_a_load_or_a_probe(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    async with run_gateway(with_two(configure, other)) as first:
        await first.place(make_adapter(1))
        await until_ready(first, "returns@v1")
    calls = [len(called(engine, LOAD)) + engine.requests_total for engine in (small, other)]
    async with run_gateway(with_two(configure, other)) as second:
        await until_ready(second, "returns@v1")
        for _ in range(3):
            await reconcile_once(second.features[Releases])
        assert [len(called(engine, LOAD)) + engine.requests_total for engine in (small, other)] == calls
        async with callers(second) as asked:
            pass
    asked.only("returns@v1")


async def test_restarted_replica_serves_a_version_only_once_it_is_loaded_and_probed(
    two: RunningGateway, small: FakeEngine, other: FakeEngine
) -> None:
    async with callers(two) as asked:
        loading, probing = Hold(), Hold()
        await go_down(two, small)
        small.faults.add(loading, path=LOAD)
        small.faults.add(probing, model="returns@v1")
        before = len(small.requests)
        await small.restart()
        for held in (loading, probing):
            await held.met.wait()
            seen = asked_by_callers(other, "returns@v1")
            await until(lambda seen=seen: asked_by_callers(other, "returns@v1") >= seen + 5, "answers of small-1")
            assert (await shown(two, "returns@v1"))["ready"] == ["small-1"]
            held.let_go.set()
        assert sum(one.model == "returns@v1" for one in list(small.requests)[before:]) == 1, "more than the probe"
        small.faults.clear()
        await until_ready(two, "returns@v1")
    asked.only("returns@v1")
    assert loads([small], "returns@v1") == 2
    assert loads([other], "returns@v1") == 1


@pytest.mark.parametrize("fault", [Status(500), Reset()], ids=["refused", "reset"])
async def test_restarted_gateway_serves_what_is_loaded_where_a_replica_lost_its_metrics(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, fault: Fault
) -> None:
    async with run_gateway(with_two(configure, other)) as first:
        await first.place(make_adapter(1))
        await until_ready(first, "returns@v1")
    small.faults.add(fault, path="/metrics")
    async with run_gateway(with_two(configure, other)) as second:
        await until(lambda: second.services.fleet.replicas["small-0"].loaded == {"returns@v1"})
        await go_down(second, small)
        small.faults.clear()
        await small.restart()
        await until_ready(second, "returns@v1")
    assert loads([small], "returns@v1") == 2


async def test_a_leader_that_alone_reads_no_metrics_takes_no_version_from_the_others(
    two: RunningGateway, configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    async with run_gateway(with_two(configure, other)) as second:
        await until_ready(second, "returns@v1")
        small.faults.add(Status(500), path="/metrics")
        blind, seeing = (each.services.fleet.replicas["small-0"] for each in (two, second))
        blind.life, blind.untold_looks = "", UNTOLD_LOOKS_MAX
        requests = small.requests_total
        await reconcile_once(two.features[Releases])
        assert small.requests_total == requests, "what the engine still lists is not probed again"
        await check_health(second.services)
        assert seeing.loaded == blind.loaded == {"returns@v1"}
        await two.place(make_adapter(2), alias=False)
        await until(lambda: seeing.loaded == blind.loaded == {"returns@v1", "returns@v2"})
        assert (bool(seeing.life), blind.life) == (True, "")


@pytest.mark.parametrize("fault", [Status(500), Reset()], ids=["refused", "reset"])
async def test_restarted_replica_that_has_lost_its_metrics_gets_its_adapters_again(
    two: RunningGateway, small: FakeEngine, fault: Fault
) -> None:
    await go_down(two, small)
    small.faults.add(fault, path="/metrics")
    await small.restart()
    await until_ready(two, "returns@v1")
    assert lists(small, "returns@v1")
    assert two.services.fleet.replicas["small-0"].loaded == {"returns@v1"}
