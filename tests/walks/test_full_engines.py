"""Engines whose places for adapters are taken: what is refused, and what gives way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.two_replicas import (
    LOAD,
    UNLOAD,
    called,
    is_resident,
    push,
    shown,
    until_ready,
    with_two,
)


@pytest.fixture
async def tight(configure: Configure, small: FakeEngine, other: FakeEngine) -> AsyncIterator[RunningGateway]:
    """A gateway over two replicas that hold three adapters at most; one place of the four stays free."""
    for engine in (small, other):
        engine.max_cpu_loras = 4
        await engine.restart()
    async with run_gateway(with_two(configure, other, max_cpu_loras=4, max_loras=2)) as running:
        yield running


@pytest.mark.invariant("No adapter is loaded without room.")
@pytest.mark.parametrize("strangers", [0, 1], ids=["all full", "one replica full"])
async def test_without_room_it_is_refused_before_any_engine_hears_of_it(
    tight: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine, strangers: int
) -> None:
    for number in range(3 - strangers):
        await tight.place(make_adapter(number), alias=number == 0)
    for number in range(strangers):
        other.load(f"stranger-{number}", make_adapter(20 + number))
        await until(lambda: "stranger-0" in tight.services.fleet.replicas["small-1"].seen)
    version = await push(tight, make_adapter(9))
    before = [(len(called(e, LOAD)), len(called(e, UNLOAD)), list(e.adapters.registered)) for e in (small, other)]
    async with tight.http() as http:
        answer = await http.post(f"/admin/v1/adapters/{version}/stage")
        again = await http.post(f"/admin/v1/adapters/{version}/stage")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "no_capacity")
    full = "small-1" if strangers else "small-0, small-1"
    assert answer.json()["error"]["message"] == (
        f"{version} was not loaded and is verified: no room in the pool small: {full} can take no more adapters. "
        "Unload or retire versions, or recycle a replica that holds ghosts, then stage it again."
    )
    assert again.json() == answer.json()
    after = [(len(called(e, LOAD)), len(called(e, UNLOAD)), list(e.adapters.registered)) for e in (small, other)]
    assert after == before
    assert (await shown(tight, version))["state"] == "verified"


@pytest.mark.invariant("No adapter is loaded without room.")
async def test_ghosts_give_way_and_what_serves_is_never_evicted(
    tight: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, other: FakeEngine
) -> None:
    await tight.place(make_adapter(1))
    async with tight.http() as http:
        for number in range(2, 8):
            version = await tight.place(make_adapter(number), alias=False)
            await until_ready(tight, version)
            for engine in (small, other):
                live = [name for name in ("returns@v1", version) if not is_resident(engine, name)]
                assert not live, f"evicted: {live}"
            answer = await http.post(f"/admin/v1/adapters/{version}/unload")
            assert answer.status_code == 200, answer.text
    assert small.adapters.evicted > 0
    assert other.adapters.evicted > 0
