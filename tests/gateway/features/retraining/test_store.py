"""Examples of requests to train: none is kept for longer than the request that it is of may be judged."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.features.retraining.store import RetrainingStore
from monitoring.quality.verdicts.retraining import Example, Retraining
from monitoring.texts import FORGOTTEN_KEY, NO_END_MS, Resealing, Seals
from serving.object_store import Unreadable

DAY = 86_400.0
RETENTION_SECONDS = 10 * DAY


def example(age_seconds: float) -> Example:
    """An example whose request is so old, and was judged a moment ago."""
    now = time.time()
    told = f"{int((now - age_seconds) * 1000):012x}"
    request_id = f"{told[:8]}-{told[8:]}-7000-8000-000000000000-{'0' * 16}"
    return Example(request_id=request_id, metric="correct", value=False, at=now - age_seconds / 1000)


async def test_examples_go_once_their_requests_are_older_than_the_retention(redis: Redis) -> None:
    store = RetrainingStore(redis, RETENTION_SECONDS)
    examples = [example(DAY * age) for age in (0.0, 3.0, 9.9, 11.0)]
    await store.keep("one", examples)
    assert await store.examples("one") == examples[:3]
    keys = [key async for key in redis.scan_iter("apprentice:retraining:one:examples*")]
    left = sorted([await redis.ttl(key) / DAY for key in keys])
    assert [round(one, 1) for one in left] == [0.1, 7.0, 10.0, 10.0]


async def test_those_of_one_day_go_with_the_oldest_of_them(redis: Redis) -> None:
    store = RetrainingStore(redis, RETENTION_SECONDS)
    into_the_day = time.time() % DAY
    await store.keep("one", [example(into_the_day), example(into_the_day - 1.0)])
    keys = [key async for key in redis.scan_iter("apprentice:retraining:one:examples:*")]
    [left] = [await redis.pttl(key) / 1000 for key in keys]
    assert abs(left - (RETENTION_SECONDS - into_the_day)) < 5


async def test_nothing_is_kept_of_a_request_that_is_forgotten(redis: Redis) -> None:
    store = RetrainingStore(redis, RETENTION_SECONDS)
    await store.keep("one", [])
    await store.keep("one", [example(11 * DAY)])
    assert await store.examples("one") == []
    assert not [key async for key in redis.scan_iter("apprentice:retraining:*")]


async def test_examples_that_are_damaged_hide_none_of_another_day_and_can_be_forgotten(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    store = RetrainingStore(redis, RETENTION_SECONDS)
    examples = [example(DAY * age) for age in (0.0, 3.0)]
    await store.keep("one", examples)
    damaged = f"apprentice:retraining:one:examples:{int(time.time() // DAY)}"
    await redis.set(damaged, b"{")
    for _ in range(2):
        assert await store.examples("one") == examples[1:]
    assert caplog.text.count(f"{damaged} can't be read") == 1
    await redis.set("apprentice:retraining:one:examples", b"\xff")
    assert await store.examples("one") == []
    await store.forget_examples("one")


async def test_no_example_of_an_erased_request_is_kept_before_or_after_the_erasure_looks(redis: Redis) -> None:
    store, examples = RetrainingStore(redis, RETENTION_SECONDS), [example(DAY * age) for age in range(3)]
    await store.keep("before", examples)  # the request to train is not opened yet
    assert await store.forget_requests({examples[0].request_id}) == 1
    assert await store.examples("before") == examples[1:]
    await redis.set(FORGOTTEN_KEY + examples[1].request_id, NO_END_MS)
    await store.keep("after", examples[1:])
    assert await store.examples("after") == examples[2:]
    assert await store.examples("before") == examples[1:], "these are for the erasure to delete"


async def test_a_request_that_can_not_be_read_is_logged_once(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    store = RetrainingStore(redis, RETENTION_SECONDS)
    await redis.hset(store.object_store.values, mapping={"a": b"{", b"\xff": b"{}"})
    await redis.hset(store.object_store.generation_names, mapping={"a": "many", "b": "1"})
    for _ in range(2):
        assert await store.all() == []
    assert caplog.text.count("the request to train a can't be read") == 1
    with pytest.raises(Unreadable):
        await store.get("a")
    assert await store.get("b") == (None, 1)


async def test_words_of_examples_are_sealed_and_come_under_the_present_key(redis: Redis) -> None:
    seals = Seals({}, None)
    store = RetrainingStore(redis, RETENTION_SECONDS, lambda: seals)
    examples = [replace(example(DAY * age), comment="a vase", demonstration={"of": "vase"}) for age in range(4)]
    for number, sealing in enumerate((None, "old", "lost", "new")):
        seals = Seals({sealing or "new": (sealing or "new").encode().ljust(32)}, sealing)
        name = f"of-{number}"
        await store.keep(name, [examples[number]])
        await store.open(Retraining(id=name, task="t", version="t@v1", opened_at=1.0, by="ada", because="a test"))
        assert await store.examples(name) == [examples[number]]

    async def holding(word: bytes) -> list[bytes]:
        keys = [key async for key in redis.scan_iter("apprentice:retraining:*:examples:*")]
        return [key for key in keys if word in await redis.get(key)]

    assert len(await holding(b"vase")) == 1
    seals = Seals({name: name.encode().ljust(32) for name in ("old", "new")}, "new")
    for expected in (Resealing(2, 1), Resealing(0, 1)):
        resealing = Resealing()
        await store.reseal(resealing)
        assert resealing == expected
    assert (await holding(b"vase"), len(await holding(b'"key":"new"'))) == ([], 3)
    assert [await store.examples(f"of-{n}") == [examples[n]] for n in range(4)] == [True, True, False, True]
    assert [each.key for each in await store.examples("of-2")] == ["lost"]
    assert await store.forget_requests({each.request_id for each in examples[2:]}) == 2
    assert [len(await store.examples(f"of-{n}")) for n in range(4)] == [1, 1, 0, 0]
