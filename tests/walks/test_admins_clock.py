"""Admins' actions on a task carry Redis's clock, as the monitor's do: not their gateway's own."""

from __future__ import annotations

import time

import pytest

from monitoring.quality.verdicts.quality import SignalReport
from monitoring.redis_time import read_redis_time
from tests.walks.conftest import MakeAdapter
from tests.walks.gateway import RunningGateway
from tests.walks.review_world import monitor_elsewhere
from tests.walks.test_health import BASELINE, HEALTH, PIN, SHIFT, become, judged, sent, told

__all__ = ["monitor_elsewhere"]  # what a test sets stays as it is
DAY = 86_400.0


@pytest.fixture
async def ahead(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> float:
    """The gateway's clock is a day ahead from now on; the time by Redis's."""
    own = time.time
    monkeypatch.setattr(time, "time", lambda: own() + DAY)
    return await read_redis_time(gateway.services.redis)


def is_of_now(at: float, now: float) -> bool:
    return now - 1 <= at <= now + 600


@pytest.mark.invariant("No gateway's clock shifts the evidence.")
async def test_a_pin_its_release_and_what_is_undone_are_of_redis_time(gateway: RunningGateway, ahead: float) -> None:
    async with gateway.http() as http:
        await become(gateway, SHIFT, pin=None)
        undone = await sent(http, "POST", f"{HEALTH}/actions/{SHIFT.id}/undo")
        known = undone["quality"]["versions"]["returns@v1"]
        assert is_of_now(undone["action"]["at"], ahead)
        assert is_of_now(known["stepped_at"], ahead)
        pinned = await sent(http, "POST", PIN, verdict="degraded", reason="a", until=ahead + DAY / 2)
        known = pinned["quality"]["versions"]["returns@v1"]
        assert (is_of_now(known["pin"]["at"], ahead), known["pin"]["until"]) == (True, ahead + DAY / 2)
        healthy = await sent(http, "POST", PIN, verdict="healthy", reason="a")
        assert is_of_now(healthy["quality"]["versions"]["returns@v1"]["since"], ahead)
        released = await sent(http, "DELETE", PIN)
        assert is_of_now(released["action"]["at"], ahead)


async def test_a_change_and_what_is_opened_and_closed_for_it_are_of_redis_time(
    gateway: RunningGateway, ahead: float
) -> None:
    async with gateway.http() as http:
        found = await sent(http, "POST", f"{HEALTH.removesuffix('/quality')}/changed", effective_at=ahead + DAY / 2)
        assert is_of_now(found["changed"]["at"], ahead)
        assert not (await told(http, f"{HEALTH}/returns@v1/baselines"))["stale"]
        assert any("changes on" in one for one in (await told(http))["report"]["known"])
        asked = (await told(http, "/admin/v1/retraining"))["retraining"][0]
        assert is_of_now(asked["opened_at"], ahead)
        taken = await sent(http, "DELETE", f"{HEALTH.removesuffix('/quality')}/changed")
        assert is_of_now(taken["action"]["at"], ahead)
        assert is_of_now((await told(http, f"/admin/v1/retraining/{asked['id']}"))["closed_at"], ahead)
        by_hand = await http.post("/admin/v1/retraining", json={"task": "returns", "reason": "a"})
        closed = await sent(http, "POST", f"/admin/v1/retraining/{by_hand.json()['id']}/close")
        assert is_of_now(closed["closed_at"], ahead)


async def test_a_baseline_is_of_redis_time(gateway: RunningGateway, ahead: float) -> None:
    await judged(gateway, SignalReport(signal="feedback", labelled=True, observed=400, estimate=0.2, low=0.1, high=0.3))
    async with gateway.http() as http:
        for more in ({"wrong": 1, "of": 40}, {"accept": True}):
            held = await sent(http, "POST", BASELINE, signal="feedback", reason="a", **more)
            assert is_of_now(held["set"]["feedback"]["at"], ahead)


async def test_a_canary_begins_by_redis_time(gateway: RunningGateway, make_adapter: MakeAdapter, ahead: float) -> None:
    version = await gateway.place(make_adapter(2), alias=False)
    async with gateway.http() as http:
        alias = await sent(http, "POST", "/admin/v1/aliases/returns/canary", version=version, share=0.5)
    assert is_of_now(alias["canary"]["started_at"], ahead)


async def test_staging_and_cordon_are_timed_by_redis(
    gateway: RunningGateway, make_adapter: MakeAdapter, ahead: float
) -> None:
    version = await gateway.place(make_adapter(2), alias=False)
    staged = (await gateway.services.snapshot.refresh()).versions[version]
    assert all(is_of_now(at, ahead) for at in (staged.created_at, staged.changed_at))
    placements = gateway.services.snapshot.current.placements.items()
    assert all(is_of_now(placement.since, ahead) for (_, name), placement in placements if name == version)
    async with gateway.http() as http:
        await sent(http, "POST", f"/admin/v1/replicas/{next(iter(gateway.services.fleet.replicas))}/cordon")
    (cordon,) = (await gateway.services.objects.cordons.all()).values()
    assert is_of_now(cordon["at"], ahead)


async def test_a_canary_of_a_state_file_begins_by_redis_time(
    gateway: RunningGateway, make_adapter: MakeAdapter, ahead: float
) -> None:
    version = await gateway.place(make_adapter(2), alias=False)
    async with gateway.http() as http:
        await sent(http, "POST", "/admin/v1/aliases/returns/canary", version=version, share=0.5)
        file = await sent(http, "GET", "/admin/v1/state")
        await sent(http, "POST", "/admin/v1/aliases/returns/rollback")
        file["aliases"]["returns"]["generation"] += 1
        await sent(http, "POST", "/admin/v1/state/apply", state=file)
        alias = await sent(http, "GET", "/admin/v1/aliases/returns")
    assert is_of_now(alias["canary"]["started_at"], ahead)
