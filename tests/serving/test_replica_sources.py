"""DNS as a source of replicas."""

from __future__ import annotations

import asyncio
import socket
from contextlib import aclosing

import pytest

from serving import replica_sources
from serving.replica_sources import DiscoveryError, DnsName, Endpoint, resolve


async def test_the_system_resolves_a_name_and_says_where_there_is_none() -> None:
    assert "127.0.0.1" in await resolve("localhost")
    with pytest.raises(OSError, match=r"."):
        await resolve("nothing.invalid")


async def test_each_address_is_an_endpoint_and_dns_is_asked_once_in_an_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    async def answer(name: str) -> frozenset[str]:
        asked.append(name)
        return frozenset({"10.0.0.7", "fd00::1"})

    monkeypatch.setattr(replica_sources, "resolve", answer)
    async with aclosing(DnsName("engines", 8000, interval_seconds=3600).follow()) as answers:
        six = Endpoint("fd00-0000-0000-0000-0000-0000-0000-0001", "fd00::1", 8000)
        assert await anext(answers) == {Endpoint("10-0-0-7", "10.0.0.7", 8000), six}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(answers), 0.05)
    assert asked == ["engines"]


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (socket.gaierror(-3, "Temporary failure in name resolution"), "Temporary failure"),
        (UnicodeError("label too long"), "label too long"),
        (None, "no address"),
    ],
)
async def test_a_name_without_an_answer_is_an_error_that_says_so(
    fault: Exception | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(name: str) -> frozenset[str]:
        if fault is not None:
            raise fault
        return frozenset()

    monkeypatch.setattr(replica_sources, "resolve", answer)
    with pytest.raises(DiscoveryError, match=told):
        await anext(DnsName("engines", 8000).follow())
