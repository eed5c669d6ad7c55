"""Trainings in Redis: what a trainer tells is bounded, and its newest point stays."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from gateway.features.training import store
from gateway.features.training.store import TrainingStore


async def test_points_of_a_loss_are_thinned_out_and_the_newest_stays(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "POINTS_KEPT_MAX", 20)
    trainings = TrainingStore(redis)
    await trainings.note_progress("one", {"kind": "started", "steps": 500})
    for step in range(1, 501):
        await trainings.note_progress("one", {"kind": "step", "step": step, "loss": 1.0 / step})
        assert await redis.hlen("apprentice:training:one:progress") <= 20
    progress = await trainings.progress("one")
    assert (progress["step"], progress["loss"], progress["started"]["steps"]) == (500, 0.002, 500)
    assert len(progress["losses"]) >= 8
