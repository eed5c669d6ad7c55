"""A few seconds of `python -m benchmarks.soak`: nothing is held once nothing is under way."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.soak import LEFT, World, figures_of, goals_of, soak

MINUTES = 0.1


@pytest.mark.invariant("Nothing is held once nothing is under way.")
async def test_after_hang_ups_faults_swaps_and_streams_nothing_is_held() -> None:
    with tempfile.TemporaryDirectory(prefix="soak") as folder, ExitStack() as stack:  # a Unix socket's path is short
        world = World(stack, Path(folder))
        quiet, counts = await soak(world, 1, MINUTES, rounds=2)
        figures = figures_of(quiet, counts, world.metrics())
        log = world.log.read_text()
    wanted = [goal for goal in goals_of(MINUTES) if goal.figure.removesuffix("_left") in {*LEFT, "tasks_grown"}]
    assert len(wanted) == len(LEFT) + 1
    assert not [why for goal in wanted if (why := goal.missed(figures))]
    assert (figures["internal_errors"], figures["measurements_lost"]) == (0, 0)
    assert "Traceback" not in log
    assert counts["requests"] > counts["hang_ups"] > 0
