"""A degraded version on an engine that its callers fill: shadows take their room, and callers keep theirs."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import msgspec
import pytest

from gateway.features.shadows.state import Shadows
from gateway.path import own_requests
from monitoring.records import STREAM_KEY
from tests.fakes.engine import FakeEngine
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.monitor_world import V1, arms, found, watch, watching
from tests.walks.releases import V2, ask, metric, step, two_versions
from tests.walks.test_monitor import World, kept, until, verdict, watched

PLACES = 4


def filled(configure: Configure) -> dict[str, Any]:
    """Pools whose engine of adapters holds few requests."""
    pools: dict[str, Any] = configure()["pools"]
    pools["small"]["replicas"][0]["in_flight_max"] = PLACES
    return pools


async def keep_asking(http: httpx.AsyncClient, stop: asyncio.Event, answers: list[int]) -> None:
    while not stop.is_set():
        answers.append((await ask(http)).status_code)


async def run_busy(running: RunningGateway, http: httpx.AsyncClient, pairs: int) -> list[int]:
    """Callers who keep more requests under way than the engine holds, until there are so many pairs."""
    stop, answers = asyncio.Event(), list[int]()
    callers = [asyncio.create_task(keep_asking(http, stop, answers)) for _ in range(2 * PLACES)]
    try:
        await asyncio.wait_for(with_previous(running, pairs), 120)
    finally:
        stop.set()
        await asyncio.gather(*callers)
    return answers


async def with_previous(running: RunningGateway, count: int) -> None:
    """Wait for so many pairs with the previous version."""
    while sum(one["version"] == V1 for one in await arms(running)) < count:
        await asyncio.sleep(0.05)


async def answers_before_pairs(running: RunningGateway, count: int) -> int:
    """The number of callers' answers before so many pairs with the previous version, by the order of the records."""
    rows = await running.services.redis.xrange(STREAM_KEY)
    records = [msgspec.json.decode(fields[b"record"]) for _, fields in rows]
    pairs = [at for at, one in enumerate(records) if one["purpose"] == "shadow" and one["version"] == V1]
    return sum(one["purpose"] == "serve" for one in records[: pairs[count - 1]])


@pytest.mark.invariant("Evidence about other arms finds room on a full engine.")
async def test_shadows_of_a_degraded_version_get_room_on_an_engine_that_callers_fill(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.token_delay_seconds = 0.01
    alone = {"fallback_pool": None}
    async with watching(configure, make_adapter, versions=2, pools=filled(configure), task=alone) as (running, http):
        await watch(running, shadow_share=1.0, versions={V2: found("degraded")})
        answers = await run_busy(running, http, 20)
        assert set(answers) == {200}, "callers wait, and none is turned away"
        few = await answers_before_pairs(running, 20)
        assert few <= 60, "twenty pairs come with few answers of the degraded version"

        async def are_given_back() -> bool:
            places = [replica.in_flight for replica in running.services.fleet.replicas.values()]
            return not any((*places, *running.features[Shadows].draws.first_held.values()))

        await until(are_given_back)


async def test_callers_who_wait_too_long_come_before_shadows(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_requests, "ROOM_SECONDS_MAX", 0.1)
    monkeypatch.setattr(own_requests, "WAITING_MAX", -1)
    alone = {"fallback_pool": None}
    async with watching(configure, make_adapter, versions=2, pools=filled(configure), task=alone) as (running, http):
        await watch(running, shadow_share=1.0, versions={V2: found("degraded")})
        assert (await ask(http)).status_code == 200

        async def is_dropped() -> bool:
            return await metric(http, "apprentice_shadow_requests_total", 'outcome="dropped"') == 1

        await until(is_dropped)


async def test_traffic_leaves_a_degraded_version_on_an_engine_that_callers_fill(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    small.answers |= {V1: "reject", V2: "approve"}
    sections = watched(shadow_share=0.0)
    sections["tasks"]["returns"] |= {"fallback_pool": None, "fallbacks": {"degraded": ["previous_version"]}}
    async with two_versions(configure, make_adapter, pools=filled(configure), **sections) as (running, http):
        await step(http, "promote", version=V2)
        small.token_delay_seconds = 0.005
        world = World(running, http)
        await world.baseline(V2)
        for _ in range(7):
            await asyncio.gather(*(world.ask_and_judge() for _ in range(2 * PLACES)))
        world.right = "reject"
        await world.until(lambda health: verdict(health, V2) == "degraded")
        await world.until(lambda health: kept(health, V2) < 1.0)
        assert (await world.health())["versions"][V2]["to"] == "previous_version"
