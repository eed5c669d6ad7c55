"""A short run of `python -m benchmarks.durability`: real processes under load, killed with SIGKILL."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from benchmarks import harness
from benchmarks.durability import GOALS, OF_RECORDS, measure_subject
from benchmarks.harness import judge
from tests.fakes.engine import FakeEngine
from tests.walks.fork_server import ForkServer, ServingSubprocess


@pytest.fixture
async def engine_port() -> AsyncIterator[int]:
    """The port of an engine that answers at once."""
    async with FakeEngine("large", n_tokens=4) as engine:
        yield int(engine.url.rpartition(":")[2])


@pytest.fixture(autouse=True)
def _forked_gateways(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateways are forked: it is a test of what their death leaves, not of their start."""
    monkeypatch.setattr(harness, "subprocess", ServingSubprocess(fork_server))


@pytest.mark.invariant("What is acknowledged is on disk.")
@pytest.mark.parametrize(("subject", "kills"), [("gateway", 2), ("embedded_valkey", 1), ("redis", 1), ("failover", 1)])
async def test_what_was_acknowledged_is_there_after_each_kill(subject: str, kills: int, engine_port: int) -> None:
    with tempfile.TemporaryDirectory(prefix="dur") as place:
        found = await asyncio.to_thread(measure_subject, subject, kills, engine_port, Path(place) / subject, 1)
    goals = [goal for goal in GOALS if goal.figure.startswith(f"{subject}.") and not goal.figure.endswith(OF_RECORDS)]
    verdict = judge(goals, {f"{subject}.{name}": value for name, value in found.items()})
    assert verdict.holds, (verdict.reasons, found)
    assert subject == "failover" or found["oldest_lost_record_seconds"] < 2  # a busy machine may be late
