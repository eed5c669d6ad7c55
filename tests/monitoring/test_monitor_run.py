"""The monitor's child on a real Valkey: each entry counts once, whoever reads it and wherever it is killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring import archive_run
from monitoring.badness import Metric
from monitoring.degradation.streams.reckoning import replay
from monitoring.degradation.streams.run import Monitor
from monitoring.degradation.streams.seen import Given, Seen
from monitoring.degradation.streams.steps import (
    CURSORS_KEY,
    NOTE_KEY,
    WATCH_KEY,
    Begin,
    Judged,
    Step,
    WatchedTask,
    WatchedVersion,
)
from monitoring.degradation.verdicts.health import Judgement, StreamReport
from monitoring.degradation.verdicts.plan import Plan
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import Feedback, FeedbackStore
from monitoring.records import STREAM_KEY, AttemptRecord, Record
from tests.fakes.valkey import Valkey
from tests.monitoring.test_records import IDS, RETENTION_SECONDS, record, stream_of

V3 = "returns@v3"
PLAN = Plan(feedback_metric="correct", complaint_metric="complaint")
METRICS = {"correct": Metric(kind="boolean"), "complaint": Metric(kind="boolean", better="lower")}
STEP = Step(
    tasks={"returns": WatchedTask(plan=PLAN, active=V3)},
    versions={V3: WatchedVersion(task="returns", state="active")},
    metrics=METRICS,
)
COMMAND = [sys.executable, "-P", "-m", "monitoring.degradation.streams.run"]
KILLED = """
import os
from monitoring.degradation.streams import run
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


@pytest.fixture
def begin(valkey_socket: str) -> Begin:
    return Begin(redis_url=f"unix://{valkey_socket}", retention_seconds=RETENTION_SECONDS)


@contextmanager
def child(begin: Begin, command: list[str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command or COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(msgspec.json.encode(begin) + b"\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def asked(process: subprocess.Popen[bytes], step: Step = STEP) -> Judged | None:
    """What it answers; None where it ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(step) + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    return msgspec.json.decode(line, type=Judged) if line else None


def to_the_end(monitor: Monitor, step: Step = STEP) -> dict[str, Judgement]:
    """The newest judgements once all is read: what came in this very millisecond is for the next step."""
    found: dict[str, Judgement] = {}
    while True:
        judged = monitor.step(step)
        assert not judged.error
        found |= judged.judgements
        if not judged.more and int(judged.at * 1000) > newest(monitor):
            return found


def newest(monitor: Monitor) -> int:
    """When the newest entry came, in milliseconds of Redis's clock."""
    found = [monitor._redis.xrevrange(name, count=1) for name in (STREAM_KEY, FEEDBACK_STREAM_KEY)]
    return max([int(rows[0][0].partition(b"-")[0]) for rows in found if rows], default=0)


def served(caller: str = "caller1", **fields: Any) -> Record:
    usual: dict[str, Any] = {
        "led_to": V3,
        "reason": "adapter",
        "outcome": "ok",
        "attempts": [AttemptRecord("small", "small-0", V3, None, 0.1)],
        "completion_tokens": 12,
        "duration_seconds": 0.2,
        "cost_usd": 0.0001,
        "language": "en",
    }
    return record(caller, **{**usual, **fields})


def store_of(redis: Redis) -> FeedbackStore:
    return FeedbackStore(redis, RETENTION_SECONDS, 1_000_000)


def said(value: Any = True, name: str = "f1", **fields: Any) -> Feedback:
    usual: dict[str, Any] = {"metric": "correct", "at": time.time(), "caller": "caller1"}
    return Feedback(feedback_id=name, value=value, **{**usual, **fields})


async def some_traffic(redis: Redis, count: int, wrong: float = 0.1, seed: int = 1) -> None:
    """Requests of three callers, most of them judged, some twice or by complaint."""
    draw, store = random.Random(seed), store_of(redis)
    for first in range(0, count, 20):
        made = [served(f"caller{draw.randrange(3)}") for _ in range(min(20, count - first))]
        await stream_of(redis).append(made)
        for one in made:
            for number in range(draw.choice((0, 1, 1, 2))):
                told = said(draw.random() > wrong, f"f{number}", caller=one.caller, rater=f"r{number}")
                await store.give(one.id, told, one.caller, young=True)
            if draw.random() < 0.1:
                await store.give(one.id, said(metric="complaint", name="c"), one.caller, young=True)


def watch_of(redis: Client, version: str = V3) -> dict[str, Any]:
    raw = redis.get(WATCH_KEY + version)
    assert raw is not None
    found: dict[str, Any] = json.loads(raw)
    return {**found, "epoch": ""}


@pytest.fixture
def client(valkey_socket: str) -> Iterator[Client]:
    with Client(unix_socket_path=valkey_socket) as found:
        yield found


def forget(client: Client) -> None:
    """As if no child had ever run."""
    names = [*client.scan_iter("apprentice:monitor:*")]
    client.delete(*names)


def feedback_of(judgement: Judgement) -> StreamReport:
    (found,) = [one for one in judgement.streams if one.stream == "feedback"]
    return found


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
        assert process.wait(20) == 0


async def test_a_step_that_can_not_be_read_is_told_and_the_next_one_is_answered(redis: Redis, begin: Begin) -> None:
    with child(begin) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"{none}\n")
        process.stdin.flush()
        assert "can't be read" in msgspec.json.decode(process.stdout.readline(), type=Judged).error
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
    archive_run.run(archive_run.Job(begin.redis_url, str(tmp_path), retention_days=36_600))
    records = [_seen(row) for row in _rows(tmp_path / "records")]
    feedback = [_given(row) for row in _rows(tmp_path / "feedback")]
    again = replay(records, feedback, STEP, seen.at)[V3]
    live, replayed = feedback_of(seen), feedback_of(again)
    assert live.alarming
    assert (replayed.alarming, replayed.e_value, replayed.observed) == (True, live.e_value, live.observed)
    assert again.requests == seen.requests
    assert [one.estimate for one in again.streams if one.labelled] == pytest.approx(
        [one.estimate for one in seen.streams if one.labelled], rel=0.05
    )


def _rows(folder: Path) -> list[dict[str, Any]]:
    paths = [str(path) for path in sorted(folder.rglob("*.parquet"))]
    found = duckdb.connect().execute("SELECT * FROM read_parquet(?, hive_partitioning=false)", [paths])
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def _seen(row: dict[str, Any]) -> tuple[str, Seen]:
    return f"{int(row['at'] * 1000)}-0", msgspec.convert(row, Seen)


def _given(row: dict[str, Any]) -> tuple[str, Given]:
    return f"{int(row['at'] * 1000)}-0", msgspec.convert({**row, "value": row["value_boolean"]}, Given)


# ---- what comes in -----------------------------------------------------------------------------------


async def test_the_first_child_begins_where_the_streams_begin(redis: Redis, begin: Begin) -> None:
    await some_traffic(redis, 30)
    assert to_the_end(Monitor(begin))[V3].requests == 30


async def test_feedback_that_comes_before_its_record_counts_once_it_is_there(redis: Redis, begin: Begin) -> None:
    monitor, one = Monitor(begin), served()
    receipt = await store_of(redis).give(one.id, said(), "caller1", young=True)
    assert receipt.given == "pending"
    assert to_the_end(monitor)[V3].labels == 0
    await stream_of(redis).append([one])
    assert to_the_end(monitor)[V3].labels == 1


async def test_the_first_word_counts_however_much_later_the_second_one_is_read(redis: Redis, begin: Begin) -> None:
    store, one = store_of(redis), served()
    await stream_of(redis).append([one])
    for number, value in enumerate((False, True, True)):
        await store.give(one.id, said(value, f"f{number}", rater=f"r{number}"), "caller1", young=True)
        found = to_the_end(Monitor(begin))
    assert (found[V3].labels, feedback_of(found[V3]).wrong) == (1, 1.0)


async def test_a_shadow_and_the_word_on_it_judge_both_arms(redis: Redis, begin: Begin) -> None:
    """The pair is read in one step, the demonstration in a later one, by another child."""
    made = [served() for _ in range(30)]
    pair = {"version": V3, "arm": "general", "judge": "normal", "digest": "right", "served_digest": "wrong"}
    shadows = [
        msgspec.convert({**_plain(served("", version=None, purpose="shadow", shadow_of=one.id)), "pair": pair}, Record)
        for one in made
    ]
    await stream_of(redis).append([*made, *shadows])
    assert to_the_end(Monitor(begin))[V3].arms == []
    for one in made:
        told = said(False, demonstration="x", demonstration_digests={"normal": "right"})
        await store_of(redis).give(one.id, told, "caller1", young=True)
    arms = {one.arm: one for one in to_the_end(Monitor(begin))[V3].arms}
    assert (arms["general"].mean, arms["version"].mean, arms["general"].labels) == (1.0, 0.0, 30)
    assert arms["general"].advantage_low is not None
    assert arms["general"].advantage_low > 0.5


def _plain(one: Record) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(one)
    return {**found, "id": IDS.make("")}


async def test_what_can_not_be_read_is_counted_and_keeps_nothing_else_waiting(
    redis: Redis, begin: Begin, client: Client
) -> None:
    bad: list[dict[Any, Any]] = [
        {"record": b"{"},
        {"record": b'{"id": 5}'},
        {"other": "field"},
        {"record": b"\xff\xfe"},
        {"record": b'{"id": "x", "attempts": ' + b"[" * 5000 + b"]" * 5000 + b"}"},
    ]
    await some_traffic(redis, 10)
    for fields in bad:
        await redis.xadd(STREAM_KEY, fields)
        told: dict[Any, Any] = {"request": "x", "feedback": fields.get("record", b"5")}
        await redis.xadd(FEEDBACK_STREAM_KEY, told)
    gone: dict[Any, Any] = {"request": IDS.make("c"), "index": "", "feedback": msgspec.json.encode(said())}
    await redis.xadd(FEEDBACK_STREAM_KEY, gone)
    await some_traffic(redis, 10, seed=2)
    monitor = Monitor(begin)
    judged = monitor.step(STEP)
    assert judged.unreadable == 2 * len(bad)
    assert judged.unmatched == 1
    assert to_the_end(Monitor(begin))[V3].requests == 20


async def test_a_damaged_watch_is_begun_anew_and_counted(redis: Redis, begin: Begin, client: Client) -> None:
    await some_traffic(redis, 20)
    to_the_end(Monitor(begin))
    for damaged in (b"{", b"\xff\xff", b"{}"):
        client.set(WATCH_KEY + V3, damaged)
        judged = Monitor(begin).step(STEP)
        assert (judged.unreadable, judged.judgements[V3].requests) == (1, 0)
        assert Monitor(begin).step(STEP).unreadable == 0


async def test_the_long_state_of_a_version_with_many_classes_is_packed_and_read_again(
    redis: Redis, begin: Begin, client: Client
) -> None:
    plan = msgspec.structs.replace(PLAN, class_tag="kind")
    step = msgspec.structs.replace(STEP, tasks={"returns": WatchedTask(plan=plan, active=V3)})
    held = {"kind": "admin", "wrong": 5, "of": 100, "upper": 0.1, "at": 1.0, "by": "ada", "source": "counted"}
    named = msgspec.json.encode({f"feedback:k{n}": held for n in range(20)})
    await redis.hset("apprentice:baselines", V3, named)
    for first in range(0, 400, 40):
        made = [served(f"caller{n % 4}") for n in range(40)]
        await stream_of(redis).append(made)
        for number, one in enumerate(made, first):
            told = said(number % 9 != 0, caller=one.caller, tags={"kind": f"k{number % 20}"})
            await store_of(redis).give(one.id, told, one.caller, young=True)
    whole = to_the_end(Monitor(begin), step)[V3]
    raw = client.get(WATCH_KEY + V3)
    assert raw is not None
    assert not raw.startswith(b"{")
    assert len(raw) < 60_000
    judged = Monitor(begin).step(step)
    assert judged.unreadable == 0
    assert judged.judgements[V3].labels == whole.labels == 400
    assert len([one for one in judged.judgements[V3].streams if one.of_class is not None]) == 20


async def test_a_state_or_a_note_of_another_version_of_the_program_is_begun_anew(
    redis: Redis, begin: Begin, client: Client
) -> None:
    one = served()
    await stream_of(redis).append([one])
    await store_of(redis).give(one.id, said(), "caller1", young=True)
    assert to_the_end(Monitor(begin))[V3].labels == 1
    whole = json.loads(client.get(WATCH_KEY + V3) or b"")
    less = {name: value for name, value in whole.items() if name != "roll"}
    (note,) = client.scan_iter(NOTE_KEY + "*")
    for other in (less, {**whole, "told": "of another time"}):
        client.set(WATCH_KEY + V3, json.dumps(other))
        client.set(note, b'{"given": 5}')
        await store_of(redis).give(one.id, said(name=f"f{len(other)}"), "caller1", young=True)
        found = to_the_end(Monitor(begin))[V3]
        assert (found.requests, found.labels) == (0, 1)


async def test_children_that_are_killed_after_a_step_each_get_through_a_week_of_silence(
    redis: Redis, begin: Begin, client: Client
) -> None:
    names = [f"returns@v{number}" for number in range(4)]
    versions = {name: WatchedVersion(task="returns", state="active") for name in names}
    usual = msgspec.structs.replace(STEP, versions=versions)
    now_ms = int(time.time() * 1000)
    for days in (7, 1):
        for number, name in enumerate(names):
            one = served(led_to=name, version=name, attempts=[AttemptRecord("small", "small-0", name, None, 0.1)])
            fields: dict[Any, Any] = {"id": one.id, "handles": "", "record": msgspec.json.encode(one)}
            await redis.xadd(STREAM_KEY, fields, id=f"{now_ms - days * 86_400_000 + number}-0")
    to_the_end(Monitor(begin), usual)
    watches = [watch_of(client, name) for name in names]
    assert [one["requests"] for one in watches] == [2] * 4
    forget(client)
    short, steps = msgspec.structs.replace(usual, seconds_max=0.0), 1
    while (judged := Monitor(begin).step(short)).more:
        steps += 1
        assert not judged.error
    assert steps > 4 * 6 * 4, "four versions, of which each has some 6 days to go before its second request"
    assert sum(judged.judgements[name].requests for name in names) == 8
    for name, known in zip(names, watches, strict=True):
        found = watch_of(client, name)
        assert found["complaints"]["whole"]["cohorts"][:-1] == known["complaints"]["whole"]["cohorts"][:-1]


async def test_damaged_or_lost_cursors_have_all_read_anew_and_nothing_counted_twice(
    redis: Redis, begin: Begin, client: Client
) -> None:
    await some_traffic(redis, 50)
    usual = to_the_end(Monitor(begin))[V3]
    monitor = Monitor(begin)
    to_the_end(monitor)
    for damage in (("records", "none"), ("step", b"\xff"), None):
        if damage is None:
            client.delete(CURSORS_KEY)
        else:
            client.hset(CURSORS_KEY, *damage)
        found = to_the_end(monitor)[V3]
        assert (found.requests, found.labels) == (usual.requests, usual.labels)


async def test_the_watch_of_a_retired_version_is_deleted_and_comes_not_back(
    redis: Redis, begin: Begin, client: Client
) -> None:
    await some_traffic(redis, 10)
    monitor = Monitor(begin)
    to_the_end(monitor)
    assert client.exists(WATCH_KEY + V3)
    gone = msgspec.structs.replace(STEP, versions={V3: WatchedVersion(task="returns", state="retired")})
    assert V3 not in to_the_end(monitor, gone)
    await some_traffic(redis, 10, seed=2)
    assert to_the_end(monitor, gone) == {}
    assert not client.exists(WATCH_KEY + V3)


async def test_a_version_that_the_step_does_not_name_yet_is_watched_all_the_same(redis: Redis, begin: Begin) -> None:
    await some_traffic(redis, 10)
    young = msgspec.structs.replace(STEP, versions={})
    assert to_the_end(Monitor(begin), young)[V3].requests == 10


async def test_a_baseline_on_the_shelf_is_taken_when_the_state_has_moved(redis: Redis, begin: Begin) -> None:
    await some_traffic(redis, 30)
    monitor = Monitor(begin)
    assert "kind" not in feedback_of(to_the_end(monitor)[V3]).baseline
    held = {"kind": "admin", "wrong": 5, "of": 100, "upper": 0.1, "at": 1.0, "by": "ada", "source": "counted"}
    await redis.hset("apprentice:baselines", V3, msgspec.json.encode({"feedback": held}))
    await redis.hset("apprentice:baselines", "broken", b"{")
    await redis.incr("apprentice:generation")
    judged = monitor.step(STEP)
    assert judged.unreadable == 1
    assert feedback_of(judged.judgements[V3]).baseline == {**held, "wrong": 5.0, "of": 100.0, "rate": 0.05}


async def test_only_what_is_new_is_judged(redis: Redis, begin: Begin) -> None:
    versions = {f"returns@v{n}": WatchedVersion(task="returns", state="active") for n in range(40)}
    step = msgspec.structs.replace(STEP, versions=versions)
    await some_traffic(redis, 10)
    monitor = Monitor(begin)
    assert len(to_the_end(monitor, step)) == 40
    assert monitor.step(step).judgements == {}
    await some_traffic(redis, 10, seed=2)
    assert to_the_end(monitor, step).keys() == {V3}
    told = {**versions, "returns@v7": msgspec.structs.replace(versions["returns@v7"], verdict="degraded", since=5.0)}
    assert to_the_end(monitor, msgspec.structs.replace(step, versions=told)).keys() == {"returns@v7"}


def test_ten_thousand_records_take_little_time(begin: Begin, client: Client) -> None:
    """Of one busy version; some 40 us each on an idle core. The bound leaves room for a busy one."""
    client.flushall()
    one = served(findings=[], adapter_digest="a" * 71, stack="b" * 71, answer_id="c" * 40)
    began = int(time.time() * 1000) - 1_000_001
    pipeline = client.pipeline(transaction=False)
    for number in range(10_000):
        one.id, one.duration_seconds = f"r{number}", 0.2 + number % 97 / 1000
        fields: dict[Any, Any] = {"id": one.id, "handles": "", "record": msgspec.json.encode(one)}
        pipeline.xadd(STREAM_KEY, fields, id=f"{began + number * 100}-0")
    pipeline.execute()
    monitor, spent = Monitor(begin), time.process_time()
    found = to_the_end(monitor)[V3]
    spent = time.process_time() - spent
    print(f"{spent * 100:.1f} us of CPU time a record")
    assert found.requests == 10_000
    assert spent < 3.0


def test_the_child_is_nice_to_others(begin: Begin) -> None:
    with child(begin) as process:
        assert asked(process) is not None
        assert os.getpriority(os.PRIO_PROCESS, process.pid) > os.getpriority(os.PRIO_PROCESS, os.getpid())
