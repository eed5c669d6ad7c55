"""EndpointSlices: whom they name, and what a watch of them does where the API is away, forgets or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serving.endpoint_slices import KubernetesService, find_ready
from serving.replica_sources import DiscoveryError, Endpoint
from serving.service_account import ServiceAccount
from tests.fakes.kubernetes import FakeKubernetes, endpoint, endpoint_slice
from tests.waiting import until

HTTP = {"http": 8000}
ONE = Endpoint("engine-small-0", "10.0.0.7", 8000)
TWO = Endpoint("engine-small-1", "10.0.0.8", 8000)
ANSWER_SECONDS_MAX = 60.0
Answers = AsyncGenerator[frozenset[Endpoint], None]


def slice_of(name: str = "engine-small-abc", *endpoints: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return endpoint_slice(name, endpoints, **{"ports": HTTP, **more})


def found(*slices: Mapping[str, Any], port: str | None = "http") -> Sequence[tuple[str, str, int]]:
    return sorted(find_ready(slices, port))


@pytest.fixture
async def cluster() -> AsyncIterator[FakeKubernetes]:
    async with FakeKubernetes() as running:
        yield running


@pytest.fixture
def service(cluster: FakeKubernetes, tmp_path: Path) -> KubernetesService:
    account = ServiceAccount(cluster.url, cluster.account(tmp_path / "account"))
    return KubernetesService("engine-small", None, "http", account)


async def told(answers: Answers) -> frozenset[Endpoint]:
    return await asyncio.wait_for(anext(answers), ANSWER_SECONDS_MAX)


async def told_until(answers: Answers, *wanted: Endpoint) -> None:
    while await told(answers) != {*wanted}:
        pass


@pytest.mark.parametrize(
    ("ready", "serving", "terminating", "counts"),
    [
        (True, True, False, True),
        (None, None, False, True),
        (False, False, False, False),
        (True, False, False, False),
        (False, True, True, False),
        (True, True, True, False),
        (False, False, True, False),
    ],
)
def test_only_what_is_ready_and_not_terminating_may_get_requests(
    ready: bool | None, serving: bool | None, terminating: bool, counts: bool
) -> None:
    one = endpoint("10.0.0.7", "engine-small-0", ready=ready, serving=serving, terminating=terminating)
    assert found(slice_of("a", one)) == ([ONE] if counts else [])


def test_a_pod_in_two_slices_is_one_endpoint_by_ipv4_and_leaves_once_either_says_so() -> None:
    four = slice_of("a", endpoint("10.0.0.7", "engine-small-0"))
    six = slice_of("b", endpoint("fd00::7", "engine-small-0"), family="IPv6")
    assert found(four, six) == found(six, four) == [ONE]
    assert found(six) == [("engine-small-0", "fd00::7", 8000)]
    stale = slice_of("c", endpoint("10.0.0.7", "engine-small-0", ready=False, serving=True, terminating=True))
    assert found(four, stale) == found(stale, four) == []


def test_pods_of_one_name_and_addresses_without_a_pod_are_told_apart() -> None:
    old = endpoint("10.0.0.7", "engine-small-0", ready=False, serving=True, terminating=True, uid="old")
    assert found(slice_of("a", old, endpoint("10.0.0.9", "engine-small-0"))) == [("engine-small-0", "10.0.0.9", 8000)]
    by_hand = slice_of("a", endpoint("10.0.0.7")), slice_of("b", endpoint("10.0.0.7"), ports={"http": 8001})
    assert found(*by_hand) == [("10-0-0-7-8000", "10.0.0.7", 8000), ("10-0-0-7-8001", "10.0.0.7", 8001)]


def test_the_port_is_found_by_its_name_or_is_the_only_one() -> None:
    one = endpoint("10.0.0.7", "engine-small-0")
    two_ports = slice_of("a", one, ports={"http": 8000, "metrics": 9000})
    assert found(two_ports) == [ONE]
    assert found(slice_of("a", one, ports={"": 8000}), port=None) == [ONE]
    assert found(slice_of("a", one), port=None) == [ONE]
    for slices, port in (((two_ports,), None), ((two_ports,), "grpc"), ((slice_of("a", one, ports={}),), "http")):
        with pytest.raises(DiscoveryError, match="which port"):
            found(*slices, port=port)
    assert found(slice_of("a", ports={})) == [], "a pool of no pods has no ports either"


def test_names_are_no_addresses_and_no_slice_at_all_is_no_service() -> None:
    assert found(slice_of("a", endpoint("engine.example.com"), family="FQDN")) == []
    with pytest.raises(DiscoveryError, match="no such Service"):
        found()


async def test_changes_are_told_as_they_come_and_a_watch_goes_on_where_the_last_one_ended(
    cluster: FakeKubernetes, service: KubernetesService
) -> None:
    cluster.put(slice_of("a", endpoint("10.0.0.7", "engine-small-0")))
    cluster.put(slice_of("x", endpoint("10.0.0.99", "other-0"), service="other"))
    async with aclosing(service.follow()) as answers:
        assert await told(answers) == {ONE}
        cluster.put(slice_of("b", endpoint("10.0.0.8", "engine-small-1")))
        assert await told(answers) == {ONE, TWO}
        cluster.bookmark()
        assert await told(answers) == {ONE, TWO}
        cluster.end_watches()
        cluster.delete("b")
        assert await told(answers) == {ONE}
        cluster.put(slice_of("a", endpoint("10.0.0.7", "engine-small-0", ready=False, serving=True, terminating=True)))
        assert await told(answers) == frozenset()
    assert cluster.lists == 1
    assert cluster.watches == [102, 104], "the list's own version, then that of the bookmark"


async def test_what_the_server_has_forgotten_is_listed_again(
    cluster: FakeKubernetes, service: KubernetesService
) -> None:
    cluster.put(slice_of("a", endpoint("10.0.0.7", "engine-small-0")))
    async with aclosing(service.follow()) as answers:
        assert await told(answers) == {ONE}
        await asyncio.gather(told_until(answers, TWO), forgotten_with_another(cluster))
    assert cluster.lists == 2


async def forgotten_with_another(cluster: FakeKubernetes) -> None:
    await until(lambda: cluster.watches)
    cluster.slices.clear()
    cluster.forget()
    cluster.slices["b"] = slice_of("b", endpoint("10.0.0.8", "engine-small-1")) | {}
    cluster.slices["b"]["metadata"]["resourceVersion"] = "200"


async def test_the_token_is_read_again_for_each_request(
    cluster: FakeKubernetes, service: KubernetesService, tmp_path: Path
) -> None:
    cluster.put(slice_of("a", endpoint("10.0.0.7", "engine-small-0")))
    async with aclosing(service.follow()) as answers:
        assert await told(answers) == {ONE}
        cluster.token = "token-2"
        cluster.account(tmp_path / "account")
        cluster.put(slice_of("b", endpoint("10.0.0.8", "engine-small-1")))
        await told_until(answers, ONE, TWO)
        cluster.end_watches()
        cluster.delete("a")
        await told_until(answers, TWO)
    cluster.token = "token-3"
    with pytest.raises(DiscoveryError, match=r"answers 401: it does not take the token"):
        await anext(service.follow())


async def test_a_refusal_says_what_is_missing_in_the_servers_own_words(
    cluster: FakeKubernetes, service: KubernetesService
) -> None:
    cluster.forbidden = True
    with pytest.raises(DiscoveryError) as refused:
        await anext(service.follow())
    assert "answers 403: the account needs a Role to get, list and watch endpointslices" in str(refused.value)
    assert 'cannot list resource "endpointslices"' in str(refused.value)
    elsewhere = replace(service, namespace="elsewhere")
    assert str(elsewhere) == "the Service elsewhere/engine-small"
    with pytest.raises(DiscoveryError, match='in the namespace "elsewhere"'):
        await anext(elsewhere.follow())


async def test_a_server_that_is_away_or_none_of_kubernetes_is_named(
    cluster: FakeKubernetes, service: KubernetesService, tmp_path: Path
) -> None:
    with pytest.raises(DiscoveryError, match="no such Service"):
        await anext(service.follow())
    with pytest.raises(DiscoveryError, match="files can't be read"):
        await anext(replace(service, account=ServiceAccount(cluster.url, tmp_path / "nowhere")).follow())
    cluster.put(slice_of("a", endpoint("10.0.0.7", "engine-small-0")))
    async with aclosing(service.follow()) as answers:
        assert await told(answers) == {ONE}
        waiting = asyncio.ensure_future(anext(answers))
        await until(lambda: cluster.watches)
        await cluster.stop()
        with pytest.raises(DiscoveryError, match=cluster.url):
            await waiting
    with pytest.raises(DiscoveryError, match=f"{cluster.url}: ConnectError"):
        await anext(service.follow())
