"""Gateways' own reports: the idle ones, those with an older snapshot, and each version's requests."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from gateway.state.presence import GONE_SECONDS, KEY, SMOOTHING_SECONDS, GatewayRoll, Presence, PresenceReport
from serving.fleet import Fleet, PoolConfig
from serving.replica import ReplicaConfig


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    async def __call__(self) -> float:
        return self.now


def fleet() -> Fleet:
    return Fleet([PoolConfig("small", "base", (ReplicaConfig("small-0", "http://127.0.0.1:1", "small"),))])


def told(generation: int, holds: dict[str, dict[str, int]] | None = None) -> PresenceReport:
    return PresenceReport(0.0, generation, holds or {}, {})


def test_a_version_is_idle_once_every_gateway_knows_the_change_and_none_holds_it() -> None:
    assert GatewayRoll([told(7), told(8)]).idle("small-0", "returns@v1", 7)
    assert not GatewayRoll([told(7), told(6)]).idle("small-0", "returns@v1", 7)
    holding = told(7, {"small-0": {"returns@v1": 2}})
    assert not GatewayRoll([told(7), holding]).idle("small-0", "returns@v1", 7)
    assert GatewayRoll([told(7), holding]).idle("small-0", "returns@v2", 7)
    assert GatewayRoll([told(7), holding]).idle("small-1", "returns@v1", 7)
    assert not GatewayRoll([told(7), holding]).idle("small-0", None, 7)


async def test_leases_are_told_and_gone_with_the_gateway(redis: Redis) -> None:
    clock, rooms = Clock(), fleet()
    one = Presence(redis, "one", rooms, lambda: 3, clock)
    two = Presence(redis, "two", fleet(), lambda: 3, clock)
    lease = rooms.replicas["small-0"].lease(0.0, "returns@v1")
    await one.tell()
    await two.tell()
    roll = await two.present()
    assert sorted(await redis.hkeys(KEY)) == [b"one", b"two"]
    assert not roll.idle("small-0", "returns@v1", 3)
    lease.give_back(1.0)
    await one.tell()
    assert (await two.present()).idle("small-0", "returns@v1", 3)
    await one.leave()
    assert await redis.hkeys(KEY) == [b"two"]


async def test_a_gateway_that_says_nothing_any_more_is_forgotten(redis: Redis) -> None:
    clock, rooms = Clock(), fleet()
    one = Presence(redis, "one", rooms, lambda: 3, clock)
    two = Presence(redis, "two", fleet(), lambda: 3, clock)
    rooms.replicas["small-0"].lease(0.0, "returns@v1")
    await one.tell()
    clock.now += GONE_SECONDS + 0.1
    await two.tell()
    roll = await two.present()
    assert roll.idle("small-0", "returns@v1", 3)
    assert await redis.hkeys(KEY) == [b"two"]


async def test_a_damaged_line_stops_nothing_and_nothing_is_idle_until_it_is_old(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    gateway = Presence(redis, "one", fleet(), lambda: 3, clock)
    await redis.hset(KEY, "two", b'{"at": "noon"}')
    for _ in range(2):
        await gateway.tell()
        assert not (await gateway.present()).idle("small-0", "returns@v1", 3)
        clock.now += GONE_SECONDS - 0.1
    assert [record.getMessage().count("two") for record in caplog.records] == [1]
    await gateway.tell()
    assert (await gateway.present()).idle("small-0", "returns@v1", 3)
    assert await redis.hkeys(KEY) == [b"one"]


async def test_a_gateway_of_another_release_that_tells_on_is_never_forgotten(redis: Redis) -> None:
    clock = Clock()
    gateway = Presence(redis, "one", fleet(), lambda: 3, clock)
    for at in range(3):
        await redis.hset(KEY, "two", b"[%d]" % at)
        await gateway.tell()
        assert not (await gateway.present()).idle("small-0", "returns@v1", 3)
        clock.now += GONE_SECONDS - 0.1


async def test_what_is_asked_of_a_version_is_a_smoothed_mean_over_all_gateways(redis: Redis) -> None:
    clock = Clock()
    rooms = [fleet(), fleet()]
    gateways = [Presence(redis, str(at), room, lambda: 1, clock) for at, room in enumerate(rooms)]
    for room in rooms:
        for _ in range(4):
            room.replicas["small-0"].lease(0.0, "returns@v1")
    for _ in range(10):
        clock.now += SMOOTHING_SECONDS / 2
        for gateway in gateways:
            await gateway.tell()
    in_flight = (await gateways[0].present()).in_flight("returns@v1")
    assert 7.9 < in_flight <= 8.0
    assert (await gateways[0].present()).in_flight("returns@v2") == 0.0


async def test_a_clock_that_is_set_back_makes_no_demand_of_nothing(redis: Redis) -> None:
    clock, rooms = Clock(), fleet()
    gateway = Presence(redis, "one", rooms, lambda: 1, clock)
    lease = rooms.replicas["small-0"].lease(0.0, "returns@v1")
    for _ in range(10):
        await gateway.tell()
        clock.now += SMOOTHING_SECONDS / 2
    lease.give_back(1.0)
    clock.now -= 3600.0
    await gateway.tell()
    assert 0.9 < (await gateway.present()).in_flight("returns@v1") <= 1.0
    clock.now += SMOOTHING_SECONDS
    await gateway.tell()
    assert (await gateway.present()).in_flight("returns@v1") == 0.0
