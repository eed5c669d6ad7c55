"""The health check beside an engine that takes its time: the others are looked at as often as before."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest

from serving import health
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Silent
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.gateway import run_gateway


async def test_an_engine_that_hangs_keeps_no_other_from_being_seen_to_end(
    configure: Configure, small: FakeEngine, other: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT_SECONDS", 300.0)
    monkeypatch.setattr(health, "LOOK_SECONDS_MAX", 300.0)
    sections = configure()
    sections["pools"]["small"]["replicas"].append({"name": "small-1", "url": other.url})
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(run_gateway(sections))
        replicas = gateway.services.fleet.replicas
        assert replicas["small-0"].up
        assert replicas["small-1"].up
        hanging = small.faults.add(Silent(), path="/health")
        await small.until(lambda: hanging.shown > 0)
        looks = other.calls_total
        await other.until(lambda: other.calls_total > looks + 4)
        await other.kill()
        await until(lambda: not replicas["small-1"].up)
        assert replicas["small-0"].looking.locked(), "its look has not ended"
        await other.restart()
        await until(lambda: replicas["small-1"].up)
