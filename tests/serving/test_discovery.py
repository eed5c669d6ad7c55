"""Discovered replicas: what an answer of a source changes, and what a failure leaves as it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field

import pytest

from serving.discovery import Discovery, fill
from serving.fleet import DiscoveredPool, Fleet, PoolConfig
from serving.replica import ReplicaConfig
from serving.replica_sources import DiscoveryError, Endpoint, ReplicaSource, name_of
from tests.waiting import until


@dataclass(eq=False)
class Told:
    """A source that answers as it is told, one thing after another."""

    interval_seconds: float = 0.001
    asked: int = 0
    _things: asyncio.Queue[frozenset[Endpoint] | Exception] = field(default_factory=asyncio.Queue)

    def __str__(self) -> str:
        return "the test"

    def tell(self, *addresses: str) -> None:
        self._things.put_nowait(frozenset(Endpoint(name_of(each), each, 8000) for each in addresses))

    def fail(self, fault: Exception) -> None:
        self._things.put_nowait(fault)

    async def follow(self) -> AsyncGenerator[frozenset[Endpoint], None]:
        self.asked += 1
        while True:
            thing = await self._things.get()
            if isinstance(thing, Exception):
                raise thing
            yield thing


def pool(source: ReplicaSource, sidecar_port: int | None = None, name: str = "small") -> PoolConfig:
    template = ReplicaConfig(name, f"http://{name}", name, api_key="key", in_flight_max=7)
    return PoolConfig(name, "base", (), discovered=DiscoveredPool(source, template, sidecar_port))


@pytest.fixture
async def discovery() -> AsyncIterator[Discovery]:
    async with Discovery() as owner:
        yield owner


@pytest.fixture
def told() -> Told:
    return Told()


def names(discovery: Discovery, source: ReplicaSource) -> list[str]:
    return [replica.name for replica in discovery.fill([pool(source)])[0].replicas]


@pytest.mark.invariant("No discovery that fails empties a pool.")
async def test_a_source_that_fails_leaves_the_replicas_and_is_asked_again(discovery: Discovery, told: Told) -> None:
    discovery.follow([pool(told)])
    told.tell("10.0.0.7", "10.0.0.8")
    await discovery.first_answers()
    assert discovery.changed.is_set()
    assert names(discovery, told) == ["small-10-0-0-7", "small-10-0-0-8"]
    followed = discovery.followed["small"]
    for fault, words in ((DiscoveryError("no address"), "no address"), (KeyError("x"), "KeyError, which the log has")):
        told.fail(fault)
        await until(lambda words=words: followed.fault == words)  # type: ignore[misc]
        assert len(names(discovery, told)) == 2
    told.tell("10.0.0.8", "10.0.0.9")
    await until(lambda: not followed.fault)
    assert names(discovery, told) == ["small-10-0-0-8", "small-10-0-0-9"]
    assert told.asked == 3


async def test_a_source_that_answers_and_fails_at_once_is_asked_less_and_less(
    discovery: Discovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, sleep = [], asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    class Broken(Told):
        async def follow(self) -> AsyncGenerator[frozenset[Endpoint], None]:
            yield frozenset({Endpoint("a", "10.0.0.7", 8000)})
            raise DiscoveryError("the watch is forbidden")

    monkeypatch.setattr("serving.discovery.asyncio.sleep", note)
    discovery.follow([pool(Broken(interval_seconds=60.0))])
    for _ in range(100):
        await sleep(0)
    assert waits[0] <= 0.25
    assert min(waits[5:8]) >= 4.0
    assert max(waits) <= 60.0


async def test_an_answer_without_endpoints_is_taken_and_named_as_a_fault(
    discovery: Discovery, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    discovery.follow([pool(told)])
    told.tell("10.0.0.7")
    await discovery.first_answers()
    told.tell()
    await until(lambda: discovery.followed["small"].fault == "none of its endpoints is ready")
    assert names(discovery, told) == []
    told.tell("10.0.0.7")
    await until(lambda: names(discovery, told))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        "pool small: the test gives no replica (none of its endpoints is ready); 0 stay",
        "pool small: the test answers again",
    ]


async def test_the_first_failure_is_an_answer_too_and_a_gateway_starts_without_replicas(
    discovery: Discovery, told: Told
) -> None:
    told.fail(DiscoveryError("no such Service"))
    discovery.follow([pool(told), PoolConfig("general", "base", ())])
    await discovery.first_answers()
    assert discovery.followed["small"].fault == "no such Service"
    assert not discovery.changed.is_set()


async def test_a_replica_has_all_that_its_pool_says(discovery: Discovery, told: Told) -> None:
    discovery.follow([pool(told, 8090)])
    told.tell("10.0.0.7", "fd00::1")
    await discovery.first_answers()
    plain, six = discovery.fill([pool(told, 8090)])[0].replicas
    assert (plain.url, plain.sidecar_url) == ("http://10.0.0.7:8000", "http://10.0.0.7:8090")
    assert (plain.api_key, plain.in_flight_max, plain.pool) == ("key", 7, "small")
    assert (six.url, six.name) == ("http://[fd00::1]:8000", "small-fd00-0000-0000-0000-0000-0000-0000-0001")


async def test_a_name_that_is_too_long_is_cut_and_stays_unique(discovery: Discovery, told: Told) -> None:
    long = pool(told, name="s" * 62)
    discovery.follow([long])
    told.tell("10.0.0.7", "10.0.0.8")
    await discovery.first_answers()
    found = [replica.name for replica in discovery.fill([long])[0].replicas]
    assert len(set(found)) == 2
    assert max(map(len, found)) == 63


def test_pools_whose_names_begin_alike_have_replicas_of_different_names(told: Told) -> None:
    pools = ("small", "small-eu")
    for pods in (("eu-x", "x"), ("eu-" + "x" * 63, "x" * 63)):
        found = [
            fill(pool(told, name=name), [Endpoint(pod, "10.0.0.7", 8000)], pools, ()).replicas[0].name
            for name, pod in zip(pools, pods, strict=True)
        ]
        assert found[0] != found[1]
        assert found[1].startswith("small-eu-x")
        assert max(map(len, found)) <= 63
    assert fill(pool(told), [Endpoint("eu-x", "10.0.0.7", 8000)], pools, ()).replicas[0].name == "small-eu-x"


async def test_a_replica_that_is_named_by_hand_is_never_taken_for_a_discovered_one(
    discovery: Discovery, told: Told
) -> None:
    by_hand = ReplicaConfig("small-10-0-0-7", "http://10.0.0.9:8000", "general")
    pools = [PoolConfig("general", "base", (by_hand,)), pool(told)]
    discovery.follow(pools)
    told.tell("10.0.0.7", "10.0.0.8")
    await discovery.first_answers()
    general, small = discovery.fill(pools)
    found = [replica.name for replica in (*general.replicas, *small.replicas)]
    assert (len(set(found)), found[2]) == (3, "small-10-0-0-8")


async def test_a_pool_that_is_not_discovered_renames_no_replica(discovery: Discovery, told: Told) -> None:
    pools = [PoolConfig("small", "base", ()), pool(told, name="small-eu")]
    discovery.follow(pools)
    told.tell("10.0.0.7")
    await discovery.first_answers()
    assert [replica.name for replica in discovery.fill(pools)[1].replicas] == ["small-eu-10-0-0-7"]


async def test_a_replica_of_another_pool_renames_none_that_begins_alike(discovery: Discovery, told: Told) -> None:
    by_hand = ReplicaConfig("small", "http://10.0.0.9:8000", "general")
    pools = [PoolConfig("general", "base", (by_hand,)), pool(told, name="small-eu")]
    discovery.follow(pools)
    told.tell("10.0.0.7")
    await discovery.first_answers()
    assert [replica.name for replica in discovery.fill(pools)[1].replicas] == ["small-eu-10-0-0-7"]


async def test_another_source_is_followed_and_what_was_known_stays_until_it_answers(
    discovery: Discovery, told: Told
) -> None:
    discovery.follow([pool(told)])
    told.tell("10.0.0.7")
    await discovery.first_answers()
    discovery.follow([pool(told, 8090)])
    before, other = discovery.followed["small"], Told()
    discovery.follow([pool(other)])
    assert names(discovery, other) == ["small-10-0-0-7"]
    other.tell("10.0.0.9")
    await discovery.first_answers()
    assert names(discovery, other) == ["small-10-0-0-9"]
    await until(before.task.done)
    discovery.follow([])
    assert not discovery.followed
    assert told.asked == other.asked == 1


async def test_a_replica_that_comes_back_is_the_same_as_before(discovery: Discovery, told: Told) -> None:
    discovery.follow([pool(told)])
    told.tell("10.0.0.7", "10.0.0.8")
    await discovery.first_answers()
    fleet = Fleet(discovery.fill([pool(told)]))
    before = fleet.replicas["small-10-0-0-7"]
    told.tell("10.0.0.8")
    await until(lambda: len(names(discovery, told)) == 1)
    fleet.set_pools(discovery.fill(fleet.pools.values()), 20)
    assert list(fleet.replicas) == ["small-10-0-0-8"]
    told.tell("10.0.0.7", "10.0.0.8")
    await until(lambda: len(names(discovery, told)) == 2)
    fleet.set_pools(discovery.fill(fleet.pools.values()), 30)
    assert fleet.replicas["small-10-0-0-7"] is before


async def test_a_replica_that_joins_later_is_cordoned_if_an_admin_said_so(discovery: Discovery, told: Told) -> None:
    discovery.follow([pool(told)])
    told.tell("10.0.0.7", "10.0.0.8")
    fleet = Fleet([pool(told)])
    fleet.know({}, {"small-10-0-0-8": {}})
    await discovery.first_answers()
    fleet.set_pools(discovery.fill(fleet.pools.values()), 10)
    assert [replica.cordoned for replica in fleet.replicas.values()] == [False, True]
    fleet.know({}, {})
    assert not fleet.replicas["small-10-0-0-8"].cordoned
