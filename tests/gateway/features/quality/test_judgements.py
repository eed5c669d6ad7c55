"""The monitor's judgements are read by every gateway at each label: in parts, and only the changed ones."""

from __future__ import annotations

import time
from typing import Any

from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.state.quality_store import QualityStore
from monitoring.quality.signal_table import LABELLED, UNLABELLED
from monitoring.quality.verdicts.quality import (
    JUDGEMENTS_KEY,
    SUMMARY_KEY,
    ArmReport,
    Judgement,
    SignalReport,
    Summary,
)
from serving.object_store import CHANGES_KEY

MANY = 300


def judged(number: int, labels: int = 100) -> Judgement:
    """A judgement of the size that real ones have."""
    streams = [
        SignalReport(signal=name, labelled=True, observed=1000.0, baseline={"upper": 0.1})
        for name in (*LABELLED, *UNLABELLED)
    ]
    arms = [ArmReport(arm="version", mean=0.9, low=0.8, high=0.95), ArmReport(arm="general", mean=0.9)]
    return Judgement(
        task=f"task-{number}", version=f"task-{number}@v1", at=1.0, labels=labels, reports=streams, arms=arms
    )


async def tell(store: QualityStore, *judgements: Judgement, writing: int = 1, gone: tuple[str, ...] = ()) -> None:
    await store.tell(Summary(at=time.time(), writing=writing), {one.version: one for one in judgements}, gone)


async def test_what_has_not_changed_is_the_same_object_and_what_is_gone_is_gone(redis: Redis) -> None:
    store = QualityStore(redis)
    await tell(store, judged(0), judged(1), judged(2))
    first = await store.judgements()
    await tell(store, judged(1, labels=101), gone=("task-2@v1",))
    second = await store.judgements()
    assert set(second) == {"task-0@v1", "task-1@v1"}
    assert second["task-0@v1"] is first["task-0@v1"]
    assert second["task-1@v1"].labels == 101
    assert second["task-0@v1"] == judged(0)


class Listening(Redis):
    """A client that notes which commands it sends."""

    sent: list[str]

    @classmethod
    def beside(cls, redis: Redis) -> Listening:
        client = cls(connection_pool=redis.connection_pool)
        client.sent = []
        return client

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.sent.append(args[0])
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


async def test_many_are_read_in_parts_so_that_no_answer_holds_the_loop(redis: Redis) -> None:
    await tell(QualityStore(redis), *(judged(number) for number in range(MANY)))
    client = Listening.beside(redis)
    assert len(await QualityStore(client).judgements()) == MANY
    assert set(client.sent) == {"HSCAN"}
    assert len(client.sent) > 1


async def test_only_what_the_last_writings_changed_is_read_again(redis: Redis) -> None:
    store, client = QualityStore(redis), Listening.beside(redis)
    follower = QualityStore(client)
    await tell(store, judged(0), judged(1), judged(2))
    assert len(await follower.judgements()) == 3
    client.sent.clear()
    await tell(store, judged(1, labels=101), writing=2)
    await tell(store, judged(3), writing=3, gone=("task-2@v1",))
    found = await follower.judgements()
    assert client.sent == ["HGET", "HMGET"]
    assert set(found) == {"task-0@v1", "task-1@v1", "task-3@v1"}
    assert found["task-1@v1"].labels == 101
    assert await follower.judgements() is found
    assert client.sent == ["HGET", "HMGET"]


async def test_nothing_is_missed_that_is_too_much_to_name_or_that_redis_has_lost(redis: Redis) -> None:
    store, follower = QualityStore(redis), QualityStore(redis)

    async def labels_of(version: str) -> int:
        return (await follower.judgements())[version].labels

    await tell(store, judged(0), judged(1))
    assert await labels_of("task-0@v1") == 100
    await tell(store, *(judged(number, labels=104) for number in range(MANY)), writing=2)
    await tell(store, judged(1, labels=105), writing=3)
    assert await labels_of("task-0@v1") == 104
    for number in range(MANY):
        await tell(store, judged(number, labels=106), writing=4 + number)
    assert await labels_of("task-0@v1") == 106
    await redis.delete(JUDGEMENTS_KEY, SUMMARY_KEY, CHANGES_KEY)
    await tell(store, judged(2))
    assert set(await follower.judgements()) == {"task-2@v1"}


def test_a_version_of_which_nothing_came_is_no_news_by_its_moment_alone() -> None:
    idle = Judgement(task="returns", version="returns@v1", at=1.0)
    assert idle.is_news(None)
    assert not replace(idle, at=31.0).is_news(idle)
    assert replace(idle, at=31.0, shadows=1).is_news(idle)
    for since in ("requests_since", "labels_since"):
        used = replace(idle, **{since: 0.5})
        assert replace(used, at=31.0).is_news(used), "how much comes a day rests on the moment"
