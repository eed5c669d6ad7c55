"""Erasures as they stand in Redis."""

from __future__ import annotations

import msgspec
from redis.asyncio import Redis

from gateway.features.erasures.job import describe_unread
from gateway.features.erasures.store import WAITING_KEY, Erasure, ErasureStore
from monitoring.text_stream import TextStream
from monitoring.texts import Seals
from serving.object_store import ObjectStore
from tests.monitoring.test_texts import NOW, text


async def test_an_erasure_that_a_newer_release_has_entered_keeps_no_other_waiting(redis: Redis) -> None:
    store, erasures = ErasureStore(redis), [Erasure(id=name, at=1.0, by="admin", of="a request") for name in ("1", "2")]
    for erasure, state in zip(erasures, ("paused", "waiting"), strict=True):
        await ObjectStore(redis, "erasures").put(erasure.id, {**msgspec.to_builtins(erasure), "state": state})
    await redis.sadd(WAITING_KEY, "1", "2")
    assert await store.waiting() == erasures[1:]
    assert await store.get("1") is None


async def test_no_text_of_an_erased_request_comes_from_a_gateway_whose_clock_is_ahead(redis: Redis) -> None:
    store, stream = ErasureStore(redis), TextStream(redis, 1 << 20)
    rows = [Seals({}, None).close(text(number, at=NOW + 60)) for number in (1, 2, 3)]
    await store.mark(Erasure(id="1", at=NOW, by="admin", of="a request", requests=["r1"]))
    await store.mark(Erasure(id="2", at=NOW, by="admin", of="a subject", names=["handle2"]))
    assert await stream.keep(rows) == ["forgotten", "kept", "kept"], "a handle may name later requests, too"


def test_the_error_of_an_erasure_names_some_of_many_places() -> None:
    error = describe_unread([f"/data/{number}: damaged" for number in range(5000)]) or ""
    assert "/data/19: damaged; and 4980 more." in error
    assert len(error) < 1000
    assert describe_unread([]) is None
