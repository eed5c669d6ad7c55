"""Obstacles between requests and a version, shown to an admin: rules in force, and replicas that do not have it."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from gateway.fleet_health import check_health
from tests.fakes.engine import FakeEngine
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_changed import CHANGED, reason
from tests.walks.test_health import sent

OVERRIDE = "/admin/v1/overrides"


@pytest.fixture
async def gateway(configure: Configure, make_adapter: MakeAdapter) -> Any:
    """A gateway whose task `returns` is served by `returns@v1`; `returns@v2` is ready beside it."""
    async with run_gateway(configure(tasks={"returns": {"fallback_pool": "general"}})) as running:
        await running.place(make_adapter(1))
        await running.place(make_adapter(2), alias=False)
        yield running


async def ruled(http: httpx.AsyncClient, name: str, **rule: Any) -> None:
    answer = await http.put(f"{OVERRIDE}/{name}", json={"task": "returns", **rule})
    assert answer.is_success, answer.text


async def why(http: httpx.AsyncClient) -> dict[str, Any]:
    answer = (await http.get("/admin/v1/tasks/returns/quality")).json()
    return dict(answer["report"])


async def test_a_rule_that_takes_all_requests_is_told_and_how_it_is_ended(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        await ruled(http, "away", action="general")
        await ruled(http, "vases", action="refuse", contains="vase", message="No.")
        await ruled(http, "seen", action="general", mode="observe")
        found = await why(http)
        assert "the rule away keeps its requests from it" in found["line"]
        assert (
            "The rule away sends all requests of returns to the general model, whatever leads the task."
            in found["known"]
        )
        assert "The rule vases refuses requests of returns that fit it." in found["known"]
        assert not any("seen" in one for one in found["known"])
        assert any("`apprentice overrides delete away`" in one for one in found["next"])
        await http.delete(f"{OVERRIDE}/away")
        assert "rule" not in (await why(http))["line"]


async def test_promotion_after_a_change_names_the_rule_that_passes_the_version_over(
    gateway: RunningGateway,
) -> None:
    async with gateway.http() as http:
        found = await sent(http, "POST", CHANGED, effective_at=time.time() - 10)
        rule = found["changed"]["override"]
        promoted = await sent(http, "POST", "/admin/v1/aliases/returns/promote", version="returns@v2")
        assert any(f"The rule {rule} sends all requests of returns" in one for one in promoted["warnings"])
        assert await reason(http) == "override"
        await http.delete(f"{OVERRIDE}/{rule}")
        assert await reason(http) == "adapter"


async def test_a_version_that_no_replica_has_is_told_and_is_no_way_back(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    async with gateway.http() as http:
        await sent(http, "POST", "/admin/v1/aliases/returns/promote", version="returns@v2")
        await small.kill()
        await check_health(gateway.services)
        told = await why(http)
        nowhere = "returns@v1 is ready on none of its replicas"
        assert any(one.startswith(nowhere) for one in told["known"])
        back = await sent(http, "POST", "/admin/v1/aliases/returns/rollback")
        assert any(one.startswith(nowhere) for one in back["warnings"])
        told = await why(http)
        assert "ready nowhere" in told["line"]
        assert any("`apprentice adapters why returns@v1`" in one for one in told["next"])
