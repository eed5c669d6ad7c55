"""Erasures as they stand in Redis."""

from __future__ import annotations

import msgspec
from redis.asyncio import Redis

from gateway.features.erasures.store import WAITING_KEY, Erasure, ErasureStore
from serving.object_store import ObjectStore


async def test_an_erasure_that_a_newer_release_has_entered_keeps_no_other_waiting(redis: Redis) -> None:
    store, erasures = ErasureStore(redis), [Erasure(id=name, at=1.0, by="admin", of="a request") for name in ("1", "2")]
    for erasure, state in zip(erasures, ("paused", "waiting"), strict=True):
        await ObjectStore(redis, "erasures").put(erasure.id, {**msgspec.to_builtins(erasure), "state": state})
    await redis.sadd(WAITING_KEY, "1", "2")
    assert await store.waiting() == erasures[1:]
    assert await store.get("1") is None
