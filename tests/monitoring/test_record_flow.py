"""Records on their way: none is lost and none is stored twice, whether Redis answers, is slow, or is away."""

from __future__ import annotations

import asyncio
import resource
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Unreachable

from monitoring.feedback import FeedbackStore
from monitoring.record_flow import BATCH_MAX, FlowReport, Pace, RecordFlow
from monitoring.records import STREAM_KEY, Joined, Record, RecordBuffer
from monitoring.spool import Spool
from tests.monitoring.test_records import RETENTION_SECONDS, judgement, record, stream_of
from tests.monitoring.test_spool import no_file_left
from tests.waiting import DEADLINE_SECONDS, until

PACE = Pace(flush_interval_seconds=0.005, spool_after_seconds=0.05, spool_sync_interval_seconds=0.05)


class Door:
    """A stream that can be shut: it is away, or hangs; or loses its next answers after it has stored."""

    def __init__(self, redis: Redis) -> None:
        self._stream = stream_of(redis)
        self.unarchived_dropped = 0
        self.open = asyncio.Event()
        self.open.set()
        self.hangs = False
        self.answers_lost = 0
        self.asked = 0

    async def append(self, records: list[Record]) -> list[Joined]:
        self.asked += 1
        if self.hangs:
            await self.open.wait()
        if not self.open.is_set():
            raise Unreachable("shut")
        told = await self._stream.append(records)
        if self.answers_lost:
            self.answers_lost -= 1
            raise Unreachable("answer lost")
        return told


class Flowing:
    """A flow over a door, with all that it told."""

    def __init__(
        self, redis: Redis, folder: Path, name: str = "one", bytes_max: int = 1 << 20, pace: Pace = PACE
    ) -> None:
        self.redis = redis
        self.door: Any = Door(redis)
        self.buffer = RecordBuffer(10_000)
        self.spool = Spool(folder, name, bytes_max)
        self.joined: list[Joined] = []
        self.dropped: list[int] = []
        told = FlowReport(self.joined.append, self.dropped.append, lambda _: None)
        self.flow = RecordFlow(self.buffer, self.door, self.spool, pace, told)

    def put(self, count: int) -> list[Record]:
        made = [record() for _ in range(count)]
        assert all(self.buffer.put(one) for one in made)
        return made

    def has_spooled(self, count: int) -> bool:
        """True once so many records lie on disk, and no more in memory."""
        return self.spool.records == count and not len(self.buffer)

    async def stored(self) -> list[str]:
        return [fields[b"id"].decode() for _, fields in await self.redis.xrange(STREAM_KEY)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        await self.flow.open()
        task = asyncio.create_task(self.flow.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def flowing(redis: Redis, tmp_path: Path) -> Flowing:
    return Flowing(redis, tmp_path / "spool")


def ids(records: list[Record]) -> list[str]:
    return [one.id for one in records]


async def test_records_go_into_the_stream_in_their_order_and_nothing_to_the_disk(redis: Redis, tmp_path: Path) -> None:
    flowing = Flowing(redis, tmp_path / "spool", pace=replace(PACE, spool_after_seconds=60.0))
    async with flowing.running():
        made = flowing.put(2 * BATCH_MAX + 3)
        await until(lambda: not flowing.flow.pending)
        assert await flowing.stored() == ids(made)
        assert not list((flowing.spool._folder).glob("*.spool"))
        await flowing.flow.stop(time.monotonic() + 5)
    assert not list(flowing.spool._folder.iterdir())


@pytest.mark.invariant("A record is written once.")
async def test_a_flush_whose_answer_was_lost_stores_each_record_once(flowing: Flowing) -> None:
    flowing.door.answers_lost = 2
    async with flowing.running():
        made = flowing.put(5)
        await until(lambda: not flowing.flow.pending)
        assert flowing.door.asked == 3
    assert await flowing.stored() == ids(made)


async def test_while_redis_is_away_records_lie_on_disk_and_then_come_in_their_order(flowing: Flowing) -> None:
    flowing.door.open.clear()
    async with flowing.running():
        made = flowing.put(700)
        await until(lambda: flowing.has_spooled(700))
        assert flowing.flow.pending == 700
        assert 0 < flowing.flow.oldest_seconds() < 20
        assert flowing.flow.unanswered_seconds() > 0
        assert flowing.flow.spool_bytes > 700 * 500
        made += flowing.put(50)
        await until(lambda: not flowing.spool.is_dirty)
        flowing.door.open.set()
        made += flowing.put(50)
        await until(lambda: not (flowing.flow.pending or flowing.flow.spool_bytes or flowing.flow.unanswered_seconds()))
        assert flowing.flow.oldest_seconds() == 0
    assert await flowing.stored() == ids(made)
    assert flowing.dropped == []
    assert not list(flowing.spool._folder.glob("*.spool"))


async def test_records_stored_while_they_are_spooled_leave_the_spool(
    flowing: Flowing, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_write, written = threading.Event(), threading.Event(), threading.Event()
    append = flowing.spool.append

    def append_late(payloads: list[bytes], first_at: float) -> int:
        asked.set()
        assert may_write.wait(DEADLINE_SECONDS)
        dropped = append(payloads, first_at)
        written.set()
        return dropped

    monkeypatch.setattr(flowing.spool, "append", append_late)
    flowing.door.hangs = True
    flowing.door.open.clear()
    async with flowing.running():
        made = flowing.put(5)
        await until(asked.is_set)
        flowing.door.open.set()
        await until(lambda: not len(flowing.buffer))
        may_write.set()
        await until(written.is_set)
        await until(lambda: not flowing.flow.pending)
    assert await flowing.stored() == ids(made)


async def test_a_redis_that_hangs_keeps_no_record_in_memory_for_long(flowing: Flowing) -> None:
    flowing.door.hangs = True
    flowing.door.open.clear()
    async with flowing.running():
        made = flowing.put(10)
        await until(lambda: flowing.has_spooled(10))
        assert flowing.door.asked == 1
        flowing.door.open.set()
        await until(lambda: not flowing.flow.pending)
    assert await flowing.stored() == ids(made)


async def test_a_name_leads_to_its_latest_request_though_that_lies_on_disk(flowing: Flowing) -> None:
    flowing.door.open.clear()
    async with flowing.running():
        first, second = record(handles=["a", "b"]), record(handles=["a"])
        for one in (first, second):
            flowing.buffer.put(one)
        await until(lambda: flowing.has_spooled(2))
        assert flowing.flow.latest_of("a") == second.id
        assert flowing.flow.latest_of("b") == first.id
        flowing.door.open.set()
        await until(lambda: flowing.flow.latest_of("a") is None)
        assert not flowing.flow.pending


async def test_of_many_names_on_disk_those_of_the_latest_records_are_known(
    flowing: Flowing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.record_flow.HANDLES_MAX", 2)
    flowing.door.open.clear()
    made = [record(handles=[handle]) for handle in ("a", "b", "a", "c")]
    async with flowing.running():
        assert all(flowing.buffer.put(one) for one in made)
        await until(lambda: flowing.has_spooled(4))
        known = {handle: flowing.flow.latest_of(handle) for handle in ("a", "b", "c")}
    assert known == {"a": made[2].id, "b": None, "c": made[3].id}


async def test_feedback_is_told_once_however_often_its_record_is_sent(flowing: Flowing) -> None:
    late = record()
    await FeedbackStore(flowing.redis, RETENTION_SECONDS, 1000).give(late.id, judgement("mine"), "caller1", young=True)
    flowing.door.open.clear()
    async with flowing.running():
        flowing.buffer.put(late)
        await until(lambda: flowing.has_spooled(1))
        assert flowing.joined == []
        flowing.door.open.set()
        await until(lambda: not flowing.flow.pending)
    assert [one.outcome for one in flowing.joined] == ["joined"]


async def test_a_spool_that_is_full_drops_the_oldest_and_counts_them(redis: Redis, tmp_path: Path) -> None:
    flowing = Flowing(redis, tmp_path / "spool", bytes_max=1 << 17)
    flowing.door.open.clear()
    async with flowing.running():
        made: list[Record] = []
        for _ in range(20):
            made += flowing.put(50)
            await until(lambda: not len(flowing.buffer))
        assert flowing.flow.spool_bytes <= 1 << 17
        kept = flowing.spool.records
        assert sum(flowing.dropped) == 1000 - kept > 0
        flowing.door.open.set()
        await until(lambda: not flowing.flow.pending)
    assert await flowing.stored() == ids(made[-kept:])


async def test_a_stop_without_redis_leaves_all_on_disk_for_the_next_gateway(redis: Redis, tmp_path: Path) -> None:
    one = Flowing(redis, tmp_path / "spool")
    one.door.open.clear()
    async with one.running():
        made = one.put(30)
    assert await one.flow.stop(time.monotonic() + 0.1) == 30
    two = Flowing(redis, tmp_path / "spool", "two")
    async with two.running():
        await until(lambda: len(list((tmp_path / "spool").glob("*.spool"))) == 0)
    assert await two.stored() == ids(made)
    assert await two.flow.stop(time.monotonic() + 5) == 0
    assert list((tmp_path / "spool").iterdir()) == []


async def test_the_spool_of_a_gateway_that_lives_is_left_alone(redis: Redis, tmp_path: Path) -> None:
    one, two = Flowing(redis, tmp_path / "spool"), Flowing(redis, tmp_path / "spool", "two")
    one.door.open.clear()
    async with one.running(), two.running():
        one.put(5)
        await until(lambda: one.has_spooled(5))
        assert two.spool.take_over() == 0
        assert two.flow.pending == 0
        one.door.open.set()
        await until(lambda: not one.flow.pending)


async def test_where_the_disk_takes_nothing_records_stay_in_memory(flowing: Flowing, tmp_path: Path) -> None:
    flowing.door.open.clear()
    async with flowing.running():
        for path in (tmp_path / "spool").iterdir():
            path.unlink()
        (tmp_path / "spool").rmdir()
        made = flowing.put(5)
        await until(lambda: flowing.door.asked > 1)
        assert flowing.flow.pending == 5
        flowing.door.open.set()
        await until(lambda: not flowing.flow.pending)
    assert await flowing.stored() == ids(made)


async def test_a_spool_that_can_not_be_read_is_lost_and_all_later_records_flow(flowing: Flowing) -> None:
    flowing.door.open.clear()
    async with flowing.running():
        flowing.put(20)
        await until(lambda: flowing.has_spooled(20))
        (segment,) = flowing.spool._folder.glob("*.spool")
        segment.unlink()
        segment.mkdir()
        flowing.door.open.set()
        await until(lambda: flowing.dropped)
        made = flowing.put(20)
        await until(lambda: not flowing.flow.pending)
    assert await flowing.stored() == ids(made)
    assert flowing.dropped == [20]


async def test_what_the_disk_refuses_is_not_said_of_redis(
    flowing: Flowing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flowing.door.open.clear()
    async with flowing.running():
        made = flowing.put(5)
        await until(lambda: flowing.has_spooled(5))
        assert "Redis takes no records" in caplog.text
        with monkeypatch.context() as full:
            full.setattr(Path, "open", no_file_left)
            flowing.door.open.set()
            await until(lambda: "the spool can't be read, its records wait: " in caplog.text)
            caplog.clear()
        await until(lambda: not flowing.flow.pending)
    assert "Redis takes no records" not in caplog.text
    assert await flowing.stored() == ids(made)
    assert flowing.dropped == []


async def test_a_full_disk_is_said_once_however_often_it_is_tried(
    flowing: Flowing, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[Record] = []
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with flowing.running():
        for times in (1, 2):
            flowing.door.open.clear()
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            try:
                made += flowing.put(5)
                asked = flowing.door.asked + 3  # Redis is asked far less often than the disk
                await until(lambda asked=asked: flowing.door.asked >= asked)  # type: ignore[misc]
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            await until(lambda: flowing.has_spooled(5))
            flowing.door.open.set()
            await until(lambda: not flowing.flow.pending)
            assert caplog.text.count("can't be spooled") == times
    assert await flowing.stored() == ids(made)


async def test_a_spool_whose_folder_is_gone_is_said_once(
    flowing: Flowing, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with flowing.running():
        flowing.door.open.clear()
        (tmp_path / "spool").rename(tmp_path / "away")
        made = flowing.put(5)
        asked = flowing.door.asked + 3  # Redis is asked far less often than the disk
        await until(lambda: flowing.door.asked >= asked)
        assert caplog.text.count("can't be spooled") == 1
        flowing.door.open.set()
        await until(lambda: not flowing.flow.pending)
        (tmp_path / "away").rename(tmp_path / "spool")
    assert await flowing.stored() == ids(made)


async def test_a_disk_that_refuses_from_the_start_is_not_said_to_be_redis(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = Flowing(redis, tmp_path / "spool", "before")
    before.door.open.clear()
    async with before.running():
        made = before.put(5)
    assert await before.flow.stop(time.monotonic()) == 5
    caplog.clear()
    flowing = Flowing(redis, tmp_path / "spool")
    await flowing.flow.open()
    assert flowing.spool.take_over() == 5
    with monkeypatch.context() as full:
        full.setattr(Path, "open", no_file_left)
        task = asyncio.create_task(flowing.flow.run())
        await until(lambda: "the spool can't be read, its records wait: " in caplog.text)
    await until(lambda: not flowing.flow.pending)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert "Redis" not in caplog.text
    assert await flowing.stored() == ids(made)


async def test_a_record_on_disk_that_can_not_be_read_is_counted_and_stops_nothing(
    flowing: Flowing, tmp_path: Path
) -> None:
    before = Spool(tmp_path / "spool", "before", 1 << 20)
    before.open()
    good = record()
    before.append([b'{"id": 3}', msgspec.json.encode(good)], time.time())
    before.close()
    async with flowing.running():
        await until(lambda: flowing.dropped)
        await until(lambda: not flowing.flow.pending)
    assert await flowing.stored() == [good.id]
    assert flowing.dropped == [1]
