from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import Feedback, FeedbackStore, handle_of
from monitoring.feedback_erasure import erase_feedback_words
from monitoring.ids import RequestIds
from monitoring.records import (
    REPORTED,
    REPORTED_STREAM_KEY,
    STREAM_KEY,
    AttemptRecord,
    PairRecord,
    Record,
    RecordBuffer,
    RecordStream,
)

IDS = RequestIds(b"secret")
RETENTION_SECONDS = 3600


def record(caller: str = "caller1", **fields: Any) -> Record:
    usual: dict[str, Any] = {"task": "returns", "version": "returns@v3", "pool": "small"}
    return Record(
        id=IDS.make(caller),
        at=time.time(),
        endpoint="chat",
        caller=caller,
        requested_model="returns",
        **{**usual, **fields},
    )


def stream_of(redis: Redis, records_max: int = 1_000_000, unarchived_max: int | None = None) -> RecordStream:
    return RecordStream(redis, RETENTION_SECONDS, records_max, FEEDBACK_STREAM_KEY, 1_000_000, unarchived_max)


def judgement(name: str, caller: str = "caller1") -> Feedback:
    return Feedback(feedback_id=name, metric="correct", value=True, at=time.time(), caller=caller)


async def test_a_record_reads_back_as_it_was_written(redis: Redis) -> None:
    written = record(
        attempts=[AttemptRecord("small", "small-0", "returns@v3", "silent", 1.5)],
        cost_usd=0.00012,
        first_token_seconds=None,
        outcome="ok",
        status=200,
        error_code="ä\n✓",
    )
    await stream_of(redis).append([written])
    assert await stream_of(redis).read(written.id) == written


def test_keys_of_earlier_releases_are_read_and_written() -> None:
    kept = msgspec.to_builtins(record(fingerprint="f", pair=PairRecord("v", served_fingerprint="g")))
    assert (kept["model_asked"], kept["stack"], kept["pair"]["served_stack"]) == ("returns", "f", "g")
    read = msgspec.convert(kept, Record)
    assert (read.requested_model, read.fingerprint) == ("returns", "f")


async def test_what_was_never_written_is_not_there(redis: Redis) -> None:
    assert await stream_of(redis).read(IDS.make("caller1")) is None
    assert await stream_of(redis).read("no id\n at all") is None
    assert await stream_of(redis).latest_of("nobody") is None


async def test_an_entry_that_can_not_be_read_hides_no_record(redis: Redis) -> None:
    stream, made = stream_of(redis), [record(), record()]
    await stream.append(made[:1])
    await redis.xadd(STREAM_KEY, {"id": "x", "handles": "", "record": b'{"id": 5}'})
    await stream.append(made[1:])
    first, place = await stream.newest(2)
    assert (first, await stream.newest(2, place)) == (made[1:], (made[:1], None))


async def test_writing_twice_is_harmless(redis: Redis) -> None:
    stream, three = stream_of(redis), [record() for _ in range(3)]
    await stream.append(three)
    await stream.append(three[:2])
    await stream.append([*three, three[0]])
    assert await redis.xlen(STREAM_KEY) == 3


async def test_a_full_buffer_counts_what_it_can_not_take_and_keeps_the_oldest() -> None:
    buffer = RecordBuffer(2)
    first, second, third = record(), record(), record()
    assert [buffer.put(one) for one in (first, second, third)] == [True, True, False]
    assert len(buffer) == 2
    assert buffer.find(first.id) is first
    assert buffer.find(third.id) is None
    assert buffer.first(10) == [first, second]
    buffer.forget([first])
    buffer.forget([first])
    assert buffer.first(10) == [second]


async def test_whoever_waits_for_a_record_is_woken_by_the_first() -> None:
    buffer = RecordBuffer(10)
    waiting = asyncio.create_task(buffer.some())
    await asyncio.sleep(0)
    assert not waiting.done()
    buffer.put(record())
    await asyncio.wait_for(waiting, 30)
    await asyncio.wait_for(buffer.some(), 30)


async def test_the_age_of_the_oldest_record_is_known() -> None:
    buffer = RecordBuffer(10)
    assert buffer.oldest_seconds() == 0
    old = record()
    old.at -= 30
    buffer.put(old)
    buffer.put(record())
    assert 30 <= buffer.oldest_seconds() < 60


@pytest.mark.parametrize("damaged", [None, "no judgement"])
async def test_a_lost_judgement_that_waited_stops_no_record(
    redis: Redis, valkey_socket: str, damaged: str | None
) -> None:
    stream, store, made = stream_of(redis), FeedbackStore(redis, RETENTION_SECONDS, 1000), record()
    for name in ("lost", "waits"):
        assert (await store.give(made.id, judgement(name), "caller1", young=True)).outcome == "pending"
    key, field = f"apprentice:feedback:{made.id}", "caller1\tlost"
    await redis.hset(key, field, "no judgement")
    if damaged is None:
        with Client(unix_socket_path=valkey_socket) as client:
            erase_feedback_words(client, {made.id})
    assert await redis.hget(key, field) == (damaged.encode() if damaged else None)
    joined = await stream.append([made, record()])
    assert [(each.outcome, each.feedback["feedback_id"]) for each in joined] == [("joined", "waits")]
    assert await redis.xlen(STREAM_KEY) == 2
    assert await redis.hkeys(key) == [b"caller1\twaits"]


async def test_the_stream_is_bounded(redis: Redis) -> None:
    stream = stream_of(redis, records_max=1000)
    for _ in range(5):
        await stream.append([record() for _ in range(500)])
    assert 1000 <= await redis.xlen(STREAM_KEY) <= 1200


@pytest.mark.invariant("No report displaces a served record.")
async def test_reports_displace_no_served_record(redis: Redis) -> None:
    stream = RecordStream(redis, RETENTION_SECONDS, 100, FEEDBACK_STREAM_KEY, 1_000_000, reported_max=50)
    made = [record() for _ in range(100)]
    reports = [record(purpose=REPORTED, handles=[f"h{number}"]) for number in range(300)]
    await stream.append(made)
    for first in range(0, 300, 50):
        await stream.append(reports[first : first + 50])
    assert [await stream.read(one.id) for one in made] == made
    assert await redis.xlen(REPORTED_STREAM_KEY) == 50
    assert [await stream.read(one.id) for one in reports[-50:]] == reports[-50:]
    assert await stream.read(reports[0].id) is None
    assert await stream.latest_of("h0") is None
    assert await stream.latest_of("h299") == reports[299].id
    newest, _ = await stream.newest(1000)
    assert {one.id for one in newest} == {one.id for one in made}


async def test_records_of_both_kinds_are_stored_from_one_batch(redis: Redis) -> None:
    served, reported = record(), record(purpose=REPORTED)
    store = FeedbackStore(redis, RETENTION_SECONDS, 1000)
    for one in (served, reported):
        await store.give(one.id, judgement(one.purpose), "caller1", young=True)
    joined = await stream_of(redis).append([reported, served])
    assert [one.record for one in joined] == [served, reported]
    assert (await redis.xlen(STREAM_KEY), await redis.xlen(REPORTED_STREAM_KEY)) == (1, 1)


async def test_a_report_that_an_older_gateway_stored_is_found_among_the_records(redis: Redis) -> None:
    stream, reported = stream_of(redis), record(purpose=REPORTED)
    await stream.append([reported])
    await redis.rename(REPORTED_STREAM_KEY, STREAM_KEY)
    assert await stream.read(reported.id) == reported


async def test_what_is_not_archived_is_trimmed_beyond_a_hard_limit_only_and_counted(redis: Redis) -> None:
    stream = stream_of(redis, records_max=100, unarchived_max=50)
    await stream.append([record() for _ in range(150)])
    assert (await redis.xlen(STREAM_KEY), stream.unarchived_dropped) == (150, 0)
    await stream.append([record() for _ in range(7)])
    assert (await redis.xlen(STREAM_KEY), stream.unarchived_dropped) == (150, 7)
    done = (await redis.xrange(STREAM_KEY, count=20))[-1][0]
    await redis.hset("apprentice:archive:records", "done", done)
    await stream.append([record()])
    assert (await redis.xlen(STREAM_KEY), stream.unarchived_dropped) == (131, 7)
    last = (await redis.xrevrange(STREAM_KEY, count=1))[0][0]
    await redis.hset("apprentice:archive:records", "done", last)
    await stream.append([record()])
    assert (await redis.xlen(STREAM_KEY), stream.unarchived_dropped) == (100, 7)


async def test_what_leads_to_a_record_ends_with_it(redis: Redis) -> None:
    handle = handle_of(b"secret", "caller1", "session", "s")
    await stream_of(redis).append([record(handles=[handle])])
    keys = [key async for key in redis.scan_iter() if key != STREAM_KEY.encode()]
    assert len(keys) == 2
    for key in keys:
        assert 0 < await redis.pttl(key) <= RETENTION_SECONDS * 1000


async def test_a_handle_leads_to_the_latest_of_its_requests(redis: Redis) -> None:
    stream = stream_of(redis)
    session = handle_of(b"secret", "caller1", "session", "s")
    first, second = (
        record(handles=[session]),
        record(handles=[session, handle_of(b"secret", "caller1", "subject", "o")]),
    )
    await stream.append([first, second])
    assert await stream.latest_of(session) == second.id

    assert await stream.latest_of(handle_of(b"secret", "caller2", "session", "s")) is None
    assert await stream.latest_of(handle_of(b"secret", "caller1", "subject", "s")) is None


async def test_feedback_that_came_first_is_joined_to_its_record(redis: Redis) -> None:
    store = FeedbackStore(redis, RETENTION_SECONDS, 1000)
    late = record()
    assert (await store.give(late.id, judgement("mine"), "caller1", young=True)).outcome == "pending"
    assert (await store.give(late.id, judgement("operators", "op"), "*", young=True)).outcome == "pending"
    assert await redis.xlen(FEEDBACK_STREAM_KEY) == 0
    joined = await stream_of(redis).append([record(), late])
    assert {(one.record.id, one.outcome, one.feedback["feedback_id"]) for one in joined} == {
        (late.id, "joined", "mine"),
        (late.id, "joined", "operators"),
    }
    assert await redis.xlen(FEEDBACK_STREAM_KEY) == 2
    assert {one.feedback_id for one in await store.of(late.id)} == {"mine", "operators"}


async def test_feedback_that_came_first_from_somebody_else_is_dropped(redis: Redis) -> None:
    store = FeedbackStore(redis, RETENTION_SECONDS, 1000)
    late = record(caller="caller1")
    await store.give(late.id, judgement("theirs", "caller2"), "caller2", young=True)
    (dropped,) = await stream_of(redis).append([late])
    assert (dropped.outcome, dropped.feedback["feedback_id"]) == ("dropped", "theirs")
    assert await store.of(late.id) == []
    assert await redis.xlen(FEEDBACK_STREAM_KEY) == 0


async def test_feedback_is_joined_once_however_often_its_record_is_written(redis: Redis) -> None:
    store = FeedbackStore(redis, RETENTION_SECONDS, 1000)
    late = record()
    await store.give(late.id, judgement("mine"), "caller1", young=True)
    assert len(await stream_of(redis).append([late])) == 1
    assert await stream_of(redis).append([late]) == []
    assert await redis.xlen(FEEDBACK_STREAM_KEY) == 1
    assert (await store.give(late.id, judgement("mine"), "caller1", young=True)).outcome == "same"


async def test_a_record_without_task_version_and_pool_leads_to_its_feedback_too(redis: Redis) -> None:
    bare = record(task=None, version=None, pool=None)
    await stream_of(redis).append([bare])
    receipt = await FeedbackStore(redis, RETENTION_SECONDS, 1000).give(
        bare.id, judgement("mine"), "caller1", young=False
    )
    assert (receipt.outcome, receipt.task, receipt.version) == ("created", None, None)
