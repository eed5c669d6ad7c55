"""Two releases share one Redis while one takes the other's place: what the newer one writes harms nothing here."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.callers import split_key
from gateway.features.releases.reconciling import reconcile_once
from gateway.features.releases.state import Releases
from serving.object_store import ObjectStore
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.two_replicas import LOAD, UNLOAD, called

ASKED = {"model": "returns", "messages": [{"role": "user", "content": "A toaster."}]}


async def change(redis: Redis, kind: str, name: str, **told: Any) -> dict[str, Any]:
    """Let a newer release change an object; as it stands then."""
    after = {**(await ObjectStore(redis, kind).get(name) or {}), **told}
    await ObjectStore(redis, kind).put(name, after)
    return after


async def status_of(gateway: RunningGateway, key: str) -> int:
    async with gateway.http(key) as http:
        return (await http.post("/v1/chat/completions", json=ASKED)).status_code


async def test_a_key_with_a_limit_of_a_newer_release_is_refused_and_others_are_not(
    gateway: RunningGateway, redis: Redis
) -> None:
    keys = [await gateway.key(name=name) for name in ("shop", "web")]
    public, _ = split_key(keys[0]) or ("", "")
    raw = await change(redis, "callers", public, limits={"images_per_minute": 1})
    await gateway.services.snapshot.refresh()
    assert [await status_of(gateway, key) for key in keys] == [401, 200]
    async with gateway.http() as http:
        answer = await http.patch(f"/admin/v1/callers/{public}", json={"limits": None})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict")
        assert "newer release" in answer.json()["error"]["message"]
        assert await ObjectStore(redis, "callers").get(public) == raw
        assert (await http.delete(f"/admin/v1/callers/{public}")).status_code == 200
    assert await ObjectStore(redis, "callers").get(public) is None


async def test_an_alias_without_versions_stays_as_last_read_and_stops_no_other_change(
    gateway: RunningGateway, redis: Redis
) -> None:
    key = await gateway.key()
    await change(redis, "aliases", "returns", weights={})
    await gateway.services.snapshot.refresh()
    assert await status_of(gateway, key) == 200
    async with gateway.http() as http:
        for answer in (
            await http.get("/admin/v1/aliases/returns"),
            await http.put("/admin/v1/aliases/returns", json={"version": "returns@v1"}),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict")


@pytest.mark.parametrize("damaged", [b"{", b"[]", b"\xff"])
async def test_damaged_key_can_be_deleted_and_damaged_rule_keeps_no_other_from_being_set(
    gateway: RunningGateway, redis: Redis, damaged: bytes
) -> None:
    public, _ = split_key(await gateway.key()) or ("", "")
    await redis.hset("apprentice:callers", public, damaged)
    await redis.hset("apprentice:overrides", "a", damaged)
    async with gateway.http() as http:
        rule = {"action": "general", "task": "returns"}
        assert (await http.put("/admin/v1/overrides/b", json=rule)).status_code == 200
        assert [row["id"] for row in (await http.get("/admin/v1/overrides")).json()["overrides"]] == ["b"]
        answers = [await http.put("/admin/v1/overrides/a", json=rule), await http.delete("/admin/v1/overrides/a")]
        answers.append(await http.get("/admin/v1/state"))
        assert [answer.status_code for answer in answers] == [409, 409, 409]
        assert (await http.delete(f"/admin/v1/callers/{public}")).status_code == 200
    assert not await redis.hexists("apprentice:callers", public)


async def test_a_rule_of_a_newer_release_is_not_applied_and_stays(gateway: RunningGateway, redis: Redis) -> None:
    key = await gateway.key()
    raw = await change(redis, "overrides", "tools", action="refuse", task="returns", tool="refund")
    await gateway.services.snapshot.refresh()
    assert await status_of(gateway, key) == 200
    async with gateway.http() as http:
        for answer in (
            await http.put("/admin/v1/overrides/tools", json={"action": "general", "task": "returns"}),
            await http.delete("/admin/v1/overrides/tools"),
        ):
            assert answer.status_code == 409
        assert (await http.get("/admin/v1/overrides")).json()["overrides"][0]["tool"] == "refund"
    assert await ObjectStore(redis, "overrides").get("tools") == raw


async def test_version_of_a_newer_release_is_served_as_last_read_and_left_unchanged(
    gateway: RunningGateway, redis: Redis, small: FakeEngine
) -> None:
    key = await gateway.key()
    raw = await change(redis, "versions", "returns@v1", state="paused")
    await gateway.services.snapshot.refresh()
    await reconcile_once(gateway.features[Releases])
    assert await status_of(gateway, key) == 200
    async with gateway.http() as http:
        for path in ("adapters/returns@v1/retire", "adapters/returns@v1/unload"):
            assert (await http.post(f"/admin/v1/{path}")).status_code == 409
        assert (await http.get("/admin/v1/adapters/returns@v1")).status_code == 409
    assert await ObjectStore(redis, "versions").get("returns@v1") == raw
    assert not called(small, UNLOAD)


@pytest.mark.parametrize("part", ["general_prompt", "sampling"])
async def test_a_manifest_whose_parts_can_not_be_read_is_as_last_read(
    gateway: RunningGateway, redis: Redis, part: str
) -> None:
    key = await gateway.key()
    async with gateway.http() as http:
        manifest = (await http.get("/admin/v1/adapters/returns@v1")).json()["manifest"]
        await change(redis, "versions", "returns@v1", manifest=manifest | {part: ["of a newer release"]})
        await gateway.services.snapshot.refresh()
        assert await status_of(gateway, key) == 200
        assert (await http.get("/admin/v1/adapters")).status_code == 200
        assert (await http.get("/admin/v1/adapters/returns@v1")).status_code == 409


async def test_gateway_beside_a_newer_one_unloads_and_forgets_nothing_unreadable(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis, small: FakeEngine
) -> None:
    async with run_gateway(configure()) as first:
        await first.place(make_adapter(1))
        await first.place(make_adapter(2), alias=False)
    await change(redis, "versions", "returns@v1", state="paused")
    placements = await ObjectStore(redis, "placements").all()
    loads = len(called(small, LOAD))
    async with run_gateway(configure()) as second:
        services = second.services
        await until(lambda: "returns@v2" in services.fleet.replicas["small-0"].loaded)
        await reconcile_once(second.features[Releases])
        assert "returns@v1" not in services.snapshot.current.versions
        assert await second.place(make_adapter(3), alias=False) == "returns@v3"
    kept = await ObjectStore(redis, "placements").all()
    assert {name: kept[name] for name in placements} == placements
    assert (len(called(small, LOAD)), called(small, UNLOAD)) == (loads + 1, [])


async def test_a_replica_is_left_alone_while_one_of_its_placements_can_not_be_read(
    gateway: RunningGateway, make_adapter: MakeAdapter, redis: Redis, small: FakeEngine
) -> None:
    raw = await change(redis, "placements", "small-0/returns@v1", state="warming")
    loads = len(called(small, LOAD))
    async with gateway.http() as http:
        told = {"task": "returns", "path": str(make_adapter(2))}
        assert (await http.post("/admin/v1/adapters", json=told)).status_code == 201
        staged = await http.post("/admin/v1/adapters/returns@v2/stage", params={"wait_seconds": 0})
        assert staged.status_code == 202, staged.text
        await reconcile_once(gateway.features[Releases])
        assert len(called(small, LOAD)) == loads
        assert await ObjectStore(redis, "placements").get("small-0/returns@v1") == raw
        assert await status_of(gateway, await gateway.key()) == 200
        await change(redis, "placements", "small-0/returns@v1", state="ready")
        staged = await http.post("/admin/v1/adapters/returns@v2/stage", params={"wait_seconds": 60})
        assert staged.status_code == 200, staged.text


async def test_a_version_that_can_not_be_probed_keeps_no_other_from_being_loaded(
    gateway: RunningGateway, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with gateway.http() as http:
        told = {"task": "returns", "path": str(make_adapter(2))}
        assert (await http.post("/admin/v1/adapters", json=told)).status_code == 201
        manifest = (await http.get("/admin/v1/adapters/returns@v2")).json()["manifest"]
        await change(redis, "versions", "returns@v2", manifest=manifest | {"golden": [{"messages": []}]})
        assert (await http.post("/admin/v1/adapters/returns@v2/stage?wait_seconds=0")).status_code == 202
        assert await gateway.place(make_adapter(3), alias=False) == "returns@v3"
        shown = await until(lambda: _verified(http, "returns@v2"))
        assert "A fault of the gateway's at returns@v2 on small-0 (KeyError): see its log." in shown["note"]


async def _verified(http: httpx.AsyncClient, version: str) -> dict[str, Any]:
    shown: dict[str, Any] = (await http.get(f"/admin/v1/adapters/{version}")).json()
    return shown if shown["state"] == "verified" else {}


@pytest.mark.parametrize(
    ("kind", "name", "told"),
    [("aliases", "returns", {"mirrored": {}}), ("callers", "a" * 12, {"role": "auditor"})],
)
async def test_a_state_is_not_applied_over_what_a_newer_release_has_written(
    gateway: RunningGateway, redis: Redis, kind: str, name: str, told: dict[str, Any]
) -> None:
    async with gateway.http() as http:
        state = (await http.get("/admin/v1/state")).json()
        raw = await change(redis, kind, name, **told)
        answer = await http.post("/admin/v1/state/apply", json={"state": state, "force": True, "prune": True})
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "state_conflict")
    assert await ObjectStore(redis, kind).get(name) == raw
