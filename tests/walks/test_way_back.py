"""The way back, step by step: a canary alone, a leader that leads already, a staging that comes to nothing."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.releases import V1, V2, alias, audit_of, step, two_versions


async def test_who_means_the_canary_alone_moves_no_leader(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        await step(http, "promote", version=V2)
        await step(http, "canary", version=V1, share=0.5)
        await step(http, "rollback", 400, version=V1, canary_only=True)
        ended = await step(http, "rollback", canary_only=True)
        assert (ended["weights"], ended["canary"]) == ({V2: 1.0}, None)
        refused = await step(http, "rollback", 409, canary_only=True)
        assert refused["error"]["message"] == f"returns has no canary: {V2} leads it, and nothing was changed."
        assert (await alias(http))["weights"] == {V2: 1.0}
        assert (await step(http, "rollback"))["weights"] == {V1: 1.0}


@pytest.mark.parametrize("name", ["promote", "rollback"])
async def test_what_leads_already_is_left_as_it_is(configure: Configure, make_adapter: MakeAdapter, name: str) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        before = await alias(http)
        (leading,) = before["weights"]
        entries = len(await audit_of(http, f"alias.{name}"))
        told = await step(http, name, version=leading)
        assert told == {**before, "changed": False, "warnings": []}
        assert await alias(http) == before
        assert len(await audit_of(http, f"alias.{name}")) == entries
        await step(http, name, 409, version=leading, expected_generation=before["generation"] + 1)


async def test_a_staging_that_comes_to_nothing_is_in_the_audit(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        small.answers["returns@v3"] = "something else"
        folder = make_adapter(3, expected="approve")
        pushed = await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(folder)})
        name = pushed.json()["version"]
        assert (await http.post(f"/admin/v1/adapters/{name}/stage")).status_code == 409

        async def failed() -> list[dict[str, Any]]:
            return await audit_of(http, "adapter.stage_failed")

        (entry,) = await until(failed)
        assert (entry["object"], entry["actor"], entry["after"]["state"]) == (name, "system", "quarantined")
        assert entry["after"]["note"]
        why = (await http.get(f"/admin/v1/adapters/{name}/why")).json()
        assert [one["action"] for one in why["audit"]][-1] == "adapter.stage_failed"


async def test_a_failed_staging_is_in_the_audit_though_redis_goes_away_right_behind_it(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_gone(*_: object, **__: object) -> None:
        raise RedisConnectionError("gone")

    services = gateway.services
    small.faults.add(Status(500), path="/v1/load_lora_adapter")
    async with gateway.http() as http:
        added = (await http.post("/admin/v1/adapters", json={"task": "returns", "path": str(make_adapter(2))})).json()

        async def is_over() -> bool:
            return (await services.control.registry.version(added["version"])).state == "verified"

        async def is_entered() -> list[dict[str, object]]:
            return await audit_of(http, "adapter.stage_failed")

        with monkeypatch.context() as patch:
            for name in ("append", "enter"):
                patch.setattr(services.control.audit, name, is_gone)
            await services.control.registry.move(added["version"], "staging")
            await until(is_over)
        [entry] = await until(is_entered)
    assert (entry["object"], entry["actor"]) == (added["version"], "system")
