"""The monitor's child on a real Valkey: each entry counts once, whoever reads it and wherever it is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.archive import run as archive_run
from monitoring.quality.signals.child_messages import Begin, JudgedStep
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry
from monitoring.quality.signals.run import Monitor
from tests.fakes.valkey import Valkey
from tests.monitoring.monitor_child import (
    STEP,
    V3,
    asked,
    child,
    feedback_of,
    forget,
    said,
    served,
    some_traffic,
    store_of,
    to_the_end,
    watch_of,
)
from tests.monitoring.quality.replays import replay
from tests.monitoring.test_records import RETENTION_SECONDS, stream_of

KILLED = """
import os
from monitoring.quality.signals import run
{hook}
run.main()
"""
BEFORE_THE_WRITING = "run.Monitor._write = lambda *told: os.kill(os.getpid(), 9)"
AFTER_THE_WRITING = """
whole = run.Monitor._write
def write(*told):
    whole(*told)
    os.kill(os.getpid(), 9)
run.Monitor._write = write
"""


# ---- a process of its own --------------------------------------------------------------------------


async def test_a_child_answers_every_step_from_what_has_come_since_and_ends_with_its_input(
    redis: Redis, begin: Begin
) -> None:
    with child(begin) as process:
        first = asked(process)
        assert first is not None
        assert (first.error, first.read, first.more) == ("", 0, False)
        await some_traffic(redis, 60)
        while (judged := asked(process)) is not None and judged.more:
            pass
        second = asked(process)
        assert second is not None
        assert not second.error
        found = to_the_end(Monitor(begin))[V3]
        assert (found.requests, second.unreadable, second.unmatched) == (60, 0, 0)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


async def test_a_step_that_can_not_be_read_is_told_and_the_next_one_is_answered(redis: Redis, begin: Begin) -> None:
    with child(begin) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{none}\n")
        process.stdin.flush()
        assert "can't be read" in msgspec.json.decode(process.stdout.readline(), type=JudgedStep).error
        judged = asked(process)
        assert judged is not None
        assert not judged.error


@pytest.mark.parametrize("hook", [BEFORE_THE_WRITING, AFTER_THE_WRITING])
async def test_wherever_a_child_is_killed_each_entry_counts_once(
    redis: Redis, begin: Begin, client: Client, hook: str
) -> None:
    await some_traffic(redis, 120)
    killed = [sys.executable, "-c", KILLED.format(hook=hook)]
    part = msgspec.structs.replace(STEP, entries_max=1)
    for _ in range(2):
        with child(begin, killed) as process:
            assert asked(process, part) is None
            assert process.wait(20) == -signal.SIGKILL
    after_kills = to_the_end(Monitor(begin))[V3]
    watch = watch_of(client)
    forget(client)
    assert to_the_end(Monitor(begin))[V3].labels == after_kills.labels
    assert watch_of(client) == watch


async def test_without_redis_it_says_so_and_loses_nothing(begin: Begin) -> None:
    valkey = Valkey("--appendonly", "yes", "--appendfsync", "always")
    away = Begin(redis_url=valkey.url, retention_seconds=RETENTION_SECONDS)
    with child(away) as process:
        judged = asked(process)
        assert judged is not None
        assert "Redis" in judged.error
        try:
            await valkey.start()
            async with Redis(unix_socket_path=str(valkey.socket)) as redis:
                await some_traffic(redis, 40)
                while (judged := asked(process)) is not None and judged.more:
                    assert not judged.error
                await valkey.end()
                judged = asked(process)
                assert judged is not None
                assert "Redis" in judged.error
            await valkey.start()
            async with Redis(unix_socket_path=str(valkey.socket)) as redis:
                await some_traffic(redis, 40, seed=2)
            while (judged := asked(process)) is not None and judged.more:
                assert not judged.error
            last = to_the_end(Monitor(away))
            assert last[V3].requests == 80
        finally:
            await valkey.end()


def test_the_child_is_nice_to_others(begin: Begin) -> None:
    with child(begin) as process:
        assert asked(process) is not None
        assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, os.getpid())


# ---- the same, whoever reads -------------------------------------------------------------------------


async def test_any_size_of_steps_and_any_number_of_children_leave_the_same_watch(
    redis: Redis, begin: Begin, client: Client
) -> None:
    await some_traffic(redis, 700)
    whole = to_the_end(Monitor(begin))[V3]
    assert whole.requests == 700
    assert whole.labels > 400
    watch = watch_of(client)
    forget(client)
    part = msgspec.structs.replace(STEP, entries_max=1)
    children = 1
    while Monitor(begin).step(part).more:
        children += 1
    assert children > 1
    assert watch_of(client) == watch


async def test_a_child_that_is_not_the_last_to_write_reads_again_what_stands(
    redis: Redis, begin: Begin, client: Client
) -> None:
    one, two = Monitor(begin), Monitor(begin)
    for seed in range(4):
        await some_traffic(redis, 50, seed=seed)
        to_the_end(one if seed % 2 else two)
    watch = watch_of(client)
    assert watch["requests"] == 200
    forget(client)
    to_the_end(Monitor(begin))
    assert watch_of(client) == watch


class Overtaken(Monitor):
    """One before whose first writing another child does it all."""

    other: Monitor | None = None

    def _write(self, *told: Any) -> None:
        if self.other is not None:
            other, self.other = self.other, None
            to_the_end(other)
        super()._write(*told)


async def test_of_two_that_read_the_same_one_writes_and_the_other_goes_on_from_there(
    redis: Redis, begin: Begin
) -> None:
    await some_traffic(redis, 60)
    late = Overtaken(begin)
    late.other = Monitor(begin)
    judged = late.step(STEP)
    assert judged.error == ""
    assert judged.at > 0
    assert judged.judgements[V3].requests == 60
    assert not late.step(STEP).error


async def test_two_at_once_under_load_count_nothing_twice_and_leave_nothing_out(
    redis: Redis, begin: Begin, client: Client
) -> None:
    stop = threading.Event()

    def run() -> None:
        monitor = Monitor(begin)
        while not stop.is_set():
            monitor.step(msgspec.structs.replace(STEP, entries_max=20))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        await some_traffic(redis, 400)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    to_the_end(Monitor(begin))
    watch = watch_of(client)
    assert watch["requests"] == 400
    forget(client)
    to_the_end(Monitor(begin))
    assert watch_of(client) == watch


async def test_clocks_of_gateways_that_disagree_change_nothing(redis: Redis, begin: Begin) -> None:
    store = store_of(redis)
    for days in (-300, 0, 200):
        made = [served() for _ in range(10)]
        for one in made:
            one.at += days * 86_400
        await stream_of(redis).append(made)
        for one in made:
            await store.give(one.id, said(at=time.time() - days * 86_400), "caller1", young=True)
    found = to_the_end(Monitor(begin))[V3]
    assert (found.requests, found.labels) == (30, 30)
    assert found.feedback_delay_seconds is not None
    assert found.feedback_delay_seconds < 60
    assert found.requests_per_day == pytest.approx(30 * 24, rel=0.1)


async def test_a_replay_of_the_archive_comes_to_the_same_evidence(redis: Redis, begin: Begin, tmp_path: Path) -> None:
    await some_traffic(redis, 400, wrong=0.05)
    await some_traffic(redis, 200, wrong=0.6, seed=2)
    seen = to_the_end(Monitor(begin))[V3]
    archive_run.run(archive_run.ArchiveJob(begin.redis_url, str(tmp_path), retention_days=36_600))
    records = [_seen(row) for row in _rows(tmp_path / "records")]
    feedback = [_given(row) for row in _rows(tmp_path / "feedback")]
    again = replay(records, feedback, STEP, seen.at)[V3]
    live, replayed = feedback_of(seen), feedback_of(again)
    assert live.alarming
    assert (replayed.alarming, replayed.e_value, replayed.observed) == (True, live.e_value, live.observed)
    assert again.requests == seen.requests
    assert [one.estimate for one in again.reports if one.labelled] == pytest.approx(
        [one.estimate for one in seen.reports if one.labelled], rel=0.05
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    paths = [str(path) for path in sorted(folder.rglob("*.parquet"))]
    found = duckdb.connect().execute("SELECT * FROM read_parquet(?, hive_partitioning=false)", [paths])
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _seen(row: dict[str, Any]) -> tuple[str, RecordEntry]:
    return f"{int(row['at'] * 1000)}-0", msgspec.convert(row, RecordEntry)


def _given(row: dict[str, Any]) -> tuple[str, FeedbackEntry]:
    known = {name: value for name, value in row.items() if value is not None}
    return f"{int(row['at'] * 1000)}-0", msgspec.convert({**known, "value": row["value_boolean"]}, FeedbackEntry)
