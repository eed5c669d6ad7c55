"""Replicas by DNS: what an answer changes, and what no answer leaves as it is."""

from __future__ import annotations

import socket

import pytest

from serving.discovery import Discovery, resolve
from serving.fleet import DiscoveredPool, Fleet, PoolConfig
from serving.replica import ReplicaConfig


class Dns:
    """A resolver that answers as it is told."""

    def __init__(self) -> None:
        self.addresses: frozenset[str] | OSError = frozenset()
        self.asked = 0

    async def __call__(self, name: str) -> frozenset[str]:
        assert name == "engines"
        self.asked += 1
        if isinstance(self.addresses, OSError):
            raise self.addresses
        return self.addresses


def pool(sidecar_port: int | None = None) -> PoolConfig:
    template = ReplicaConfig("small", "http://small", "small", api_key="key", in_flight_max=7)
    return PoolConfig("small", "base", (), discovered=DiscoveredPool("engines", 8000, template, sidecar_port))


async def found(discovery: Discovery, dns: Dns, at: float, *addresses: str) -> list[str]:
    dns.addresses = frozenset(addresses)
    await discovery.look([pool()], at)
    return [replica.name for replica in discovery.fill([pool()])[0].replicas]


@pytest.mark.invariant("No answer of DNS empties a pool.")
async def test_an_empty_or_failing_answer_leaves_the_replicas_and_is_counted() -> None:
    dns, failed = Dns(), list[str]()
    discovery = Discovery(failed.append, dns)
    assert await found(discovery, dns, 10, "10.0.0.7", "10.0.0.8") == ["small-10-0-0-7", "small-10-0-0-8"]
    assert await found(discovery, dns, 20) == ["small-10-0-0-7", "small-10-0-0-8"]
    dns.addresses = socket.gaierror(-3, "Temporary failure in name resolution")
    assert not await discovery.look([pool()], 30)
    assert len(discovery.fill([pool()])[0].replicas) == 2
    assert failed == ["small", "small"]
    assert await found(discovery, dns, 40, "10.0.0.8", "10.0.0.9") == ["small-10-0-0-8", "small-10-0-0-9"]


async def test_a_replica_has_all_that_its_pool_says() -> None:
    dns = Dns()
    dns.addresses = frozenset({"10.0.0.7", "fd00::1"})
    discovery = Discovery(lambda _: None, dns)
    assert await discovery.look([pool(8090)], 10)
    plain, six = discovery.fill([pool(8090)])[0].replicas
    assert (plain.url, plain.sidecar_url) == ("http://10.0.0.7:8000", "http://10.0.0.7:8090")
    assert (plain.api_key, plain.in_flight_max, plain.pool) == ("key", 7, "small")
    assert (six.url, six.name) == ("http://[fd00::1]:8000", "small-fd00-0000-0000-0000-0000-0000-0000-0001")


async def test_dns_is_asked_once_in_the_interval_of_a_pool() -> None:
    dns = Dns()
    discovery = Discovery(lambda _: None, dns)
    dns.addresses = frozenset({"10.0.0.7"})
    assert await discovery.look([pool()], 10.0)
    assert not await discovery.look([pool()], 14.9)
    assert dns.asked == 1
    assert discovery.due_at([pool()]) == 15.0
    assert not await discovery.look([pool()], 15.0)
    assert dns.asked == 2
    assert discovery.due_at([PoolConfig("general", "base", ())]) is None


async def test_a_replica_that_comes_back_is_the_same_as_before() -> None:
    dns = Dns()
    discovery = Discovery(lambda _: None, dns)
    await found(discovery, dns, 10, "10.0.0.7", "10.0.0.8")
    fleet = Fleet(discovery.fill([pool()]))
    before = fleet.replicas["small-10-0-0-7"]
    await found(discovery, dns, 20, "10.0.0.8")
    fleet.take_in(discovery.fill(fleet.pools.values()), 20)
    assert list(fleet.replicas) == ["small-10-0-0-8"]
    await found(discovery, dns, 30, "10.0.0.7", "10.0.0.8")
    fleet.take_in(discovery.fill(fleet.pools.values()), 30)
    assert fleet.replicas["small-10-0-0-7"] is before


async def test_the_system_resolves_a_name_and_says_where_there_is_none() -> None:
    assert "127.0.0.1" in await resolve("localhost")
    with pytest.raises(OSError, match=r"."):
        await resolve("nothing.invalid")
