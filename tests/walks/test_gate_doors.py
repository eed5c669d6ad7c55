"""Each way by which a version comes to answer requests asks the gate: refused, warned of, or forced with a reason."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from gateway.release_gate import find_obstacle
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, V2, alias, audit_of, step

ALIAS, RULE = "/admin/v1/aliases/returns", "/admin/v1/overrides/to-new"
PAST = {"past_gate": "The old version is unsafe."}
Door = Callable[[httpx.AsyncClient, dict[str, Any]], Awaitable[httpx.Response]]


def rule(**more: Any) -> dict[str, Any]:
    return {"action": "version", "task": "returns", "version": V2, **more}


def put(path: str, body: dict[str, Any]) -> Door:
    return lambda http, more: http.put(path, json=body | more)


def post(name: str, **body: Any) -> Door:
    return lambda http, more: http.post(f"{ALIAS}/{name}", json=body | more)


async def set_observed_rule(http: httpx.AsyncClient, more: dict[str, Any]) -> httpx.Response:
    assert (await http.put(RULE, json=rule(mode="observe"))).status_code == 200, "it only looks"
    return await http.put(RULE, json=rule() | more)


async def promote_as_first(http: httpx.AsyncClient, more: dict[str, Any]) -> httpx.Response:
    """The task has no alias any more, and its leader is not loaded: the version is its first, as it seems."""
    await http.delete(ALIAS)
    assert (await http.post(f"/admin/v1/adapters/{V1}/unload")).status_code == 200
    return await http.post(f"{ALIAS}/promote", json={"version": V2} | more)


def apply(**changed: Any) -> Door:
    """Apply the state as it is, but for this."""

    async def walk(http: httpx.AsyncClient, more: dict[str, Any]) -> httpx.Response:
        content = (await http.get("/admin/v1/state")).json()
        for kind, objects in changed.items():
            for name, value in objects.items():
                before = content[kind].get(name, {"generation": 0, "value": {}})
                content[kind][name] = before | {"value": before["value"] | value}
        return await http.post("/admin/v1/state/apply", json={"state": content} | more)

    return walk


async def apply_former_leader(http: httpx.AsyncClient, more: dict[str, Any]) -> httpx.Response:
    """A file of an alias says that the version has led: a rollback would go to it."""
    content = (await http.get("/admin/v1/state")).json()
    await http.delete(ALIAS)
    content["aliases"]["returns"]["value"]["previous"] = [V2]
    return await http.post("/admin/v1/state/apply", json={"state": content, "force": True} | more)


async def apply_after_prune(http: httpx.AsyncClient, more: dict[str, Any]) -> httpx.Response:
    content = (await http.get("/admin/v1/state")).json() | {"aliases": {}}
    assert (await http.post("/admin/v1/state/apply", json={"state": content, "prune": True})).status_code == 200
    return await http.post(f"{ALIAS}/promote", json={"version": V2} | more)


DOORS: dict[str, Door] = {
    "canary": post("canary", version=V2, share=0.2),
    "promotion": post("promote", version=V2),
    "alias": put(ALIAS, {"version": V2}),
    "weights": put(ALIAS, {"weights": {V1: 0.5, V2: 0.5}}),
    "promotion without an alias": promote_as_first,
    "promotion after a pruned alias": apply_after_prune,
    "rule": put(RULE, rule(contains="vase")),
    "rule to come": put(RULE, rule(starts_at=time.time() + 3600)),
    "rule that only observed": set_observed_rule,
    "state: alias": apply(aliases={"returns": {"weights": {V2: 1.0}}}),
    "state: former leader": apply_former_leader,
    "state: rule": apply(overrides={"to-new": rule()}),
}


@pytest.fixture
async def gateway(
    configure: Configure, make_adapter: MakeAdapter, request: pytest.FixtureRequest
) -> AsyncIterator[RunningGateway]:
    """A gateway of which returns@v1 leads, and returns@v2 is loaded and was never evaluated."""
    async with run_gateway(configure(release={"gate": request.param, "floor": "off"})) as running:
        await running.place(make_adapter(1))
        await running.place(make_adapter(2), alias=False)
        yield running


@pytest.mark.invariant("Nothing answers requests that the gate was not shown, but by force.")
@pytest.mark.parametrize("gateway", ["enforce"], indirect=True)
@pytest.mark.parametrize("door", DOORS)
async def test_an_unshown_version_is_refused_at_each_door_and_forced_with_a_reason(
    gateway: RunningGateway, door: str
) -> None:
    async with gateway.http() as http:
        refused = await DOORS[door](http, {})
        assert refused.status_code == 409, refused.text
        error = refused.json()["error"]
        assert error["code"] == "gate_not_passed", error
        assert f"with {V1}" in error["message"]
    async with gateway.http() as http:
        assert (await http.post(f"/admin/v1/adapters/{V1}/stage")).status_code == 200
        await step(http, "promote", version=V1)
        forced = await DOORS[door](http, PAST)
        assert forced.status_code == 200, forced.text
        assert "by force" in forced.json()["warnings"][0]
        told = (await http.get(f"/admin/v1/adapters/{V2}/gate")).json()
        assert told["forced"]["reason"] == PAST["past_gate"]
        assert told["forced"]["rule"] == ("to-new" if "rule" in door else "")
        obstacle = await find_obstacle(gateway.services, V2)
        assert (obstacle is None) == ("rule" not in door), "what was let to one rule is not let to all requests"
        if door == "rule":
            (entry,) = await audit_of(http, "override.set")
            assert entry["evidence"]["gate"][0]["forced"] == PAST["past_gate"]


@pytest.mark.parametrize("gateway", ["enforce"], indirect=True)
async def test_a_rule_past_the_gate_takes_nothing_back_of_a_canary_past_the_gate(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        for door, rule_shown in (("rule", "to-new"), ("canary", ""), ("rule", "")):
            forced = await DOORS[door](http, PAST)
            assert forced.status_code == 200, forced.text
            told = (await http.get(f"/admin/v1/adapters/{V2}/gate")).json()
            assert told["forced"]["rule"] == rule_shown
        assert await find_obstacle(gateway.services, V2) is None
        assert len(await audit_of(http, "override.set")) == 2


@pytest.mark.parametrize("gateway", ["warn"], indirect=True)
@pytest.mark.parametrize("door", DOORS)
async def test_where_it_warns_each_door_opens_with_a_warning(gateway: RunningGateway, door: str) -> None:
    async with gateway.http() as http:
        opened = await DOORS[door](http, {})
        assert opened.status_code == 200, opened.text
        assert opened.json()["warnings"][0].startswith(f"The gate would not let {V2} through. No evaluation compares")


@pytest.mark.parametrize("gateway", ["enforce"], indirect=True)
async def test_a_task_whose_leaders_are_all_retired_begins_anew(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        await http.delete(ALIAS)
        assert (await http.post(f"/admin/v1/adapters/{V1}/retire")).status_code == 200
        assert (await step(http, "promote", version=V2))["weights"] == {V2: 1.0}
        assert (await alias(http))["previous"] == []
