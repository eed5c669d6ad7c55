"""The input of the monitor's child: records, feedback and pairs as they come, damaged ones, and its own states."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.quality.phases import Phase
from monitoring.quality.signals import run
from monitoring.quality.signals.child_messages import (
    CURSORS_KEY,
    NOTE_KEY,
    WATCH_KEY,
    Begin,
    WatchedTask,
    WatchedVersion,
)
from monitoring.quality.signals.run import Monitor
from monitoring.records import REPORTED_STREAM_KEY, STREAM_KEY, AttemptRecord, Record
from tests.monitoring.monitor_child import (
    METRICS,
    PLAN,
    STEP,
    V3,
    feedback_of,
    forget,
    said,
    served,
    some_traffic,
    store_of,
    to_the_end,
    watch_of,
)
from tests.monitoring.test_records import IDS, stream_of


async def test_the_first_child_begins_where_the_streams_begin(redis: Redis, begin: Begin) -> None:
    await some_traffic(redis, 30)
    assert to_the_end(Monitor(begin))[V3].requests == 30


async def test_feedback_that_comes_before_its_record_counts_once_it_is_there(redis: Redis, begin: Begin) -> None:
    monitor, one = Monitor(begin), served()
    receipt = await store_of(redis).give(one.id, said(), "caller1", young=True)
    assert receipt.outcome == "pending"
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


async def test_reports_are_read_from_a_stream_of_their_own_in_the_order_of_all(
    redis: Redis, begin: Begin, client: Client
) -> None:
    for seed in range(3):
        await some_traffic(redis, 40, seed=seed)
        await some_traffic(redis, 40, seed=seed + 10, purpose="reported")
    assert await redis.xlen(REPORTED_STREAM_KEY) == 120
    found, watch = to_the_end(Monitor(begin))[V3], watch_of(client)
    assert found.requests == 240
    forget(client)
    while Monitor(begin).step(msgspec.structs.replace(STEP, entries_max=1)).more:
        pass
    to_the_end(Monitor(begin))
    assert watch_of(client) == watch


async def test_what_an_older_release_has_read_is_gone_on_with_and_reports_come_to_it(
    redis: Redis, begin: Begin, client: Client
) -> None:
    await some_traffic(redis, 20)
    to_the_end(Monitor(begin))
    client.hdel(CURSORS_KEY, "reported")
    await some_traffic(redis, 20, purpose="reported")
    assert to_the_end(Monitor(begin))[V3].requests == 40


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
    step = msgspec.structs.replace(STEP, tasks={"returns": WatchedTask(plan=plan)})
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
    assert len([one for one in judged.judgements[V3].reports if one.of_class is not None]) == 20


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
    for other in (less, {**whole, "course": "of another time"}, {**whole, "form": 1, "gone": 0}):
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
        before, after = (one["complaints"]["detectors"]["whole"] for one in (known, watch_of(client, name)))
        assert after["cohorts"][:-1] == before["cohorts"][:-1]


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


async def test_entries_that_came_after_a_step_was_known_wait_for_the_next_step(
    redis: Redis, begin: Begin, client: Client
) -> None:
    seconds, microseconds = client.time()
    await some_traffic(redis, 10)
    monitor = Monitor(begin)
    judged = monitor.step(msgspec.structs.replace(STEP, known_at=seconds + microseconds / 1e6))
    assert (judged.judgements[V3].requests, judged.read, judged.more) == (0, 0, False)
    assert to_the_end(monitor)[V3].requests == 10


async def test_a_baseline_on_the_object_store_is_taken_when_the_state_has_moved(redis: Redis, begin: Begin) -> None:
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


async def test_a_version_that_can_not_be_judged_is_named_at_each_step(redis: Redis, begin: Begin) -> None:
    await some_traffic(redis, 10)
    monitor = Monitor(begin)
    assert V3 in to_the_end(monitor)
    assert monitor._watches is not None
    whole = monitor._watches.by_version[V3]
    assert whole.complaints is not None
    damaged = msgspec.structs.replace(whole.complaints.detectors.whole, cohorts=())
    detectors = msgspec.structs.replace(whole.complaints.detectors, whole=damaged)
    complaints = msgspec.structs.replace(whole.complaints, detectors=detectors)
    monitor._watches.by_version[V3] = msgspec.structs.replace(whole, complaints=complaints)
    other = msgspec.structs.replace(STEP, metrics={**METRICS, "more": METRICS["correct"]})
    for step in (other, STEP, STEP):
        judged = monitor.step(step)
        assert (judged.unjudged, list(judged.judgements)) == ([V3], [])
    monitor._watches.by_version[V3] = whole
    assert monitor.step(other).unjudged == []


async def test_only_what_is_new_is_judged(redis: Redis, begin: Begin) -> None:
    versions = {f"returns@v{n}": WatchedVersion(task="returns", state="active") for n in range(40)}
    step = msgspec.structs.replace(STEP, versions=versions)
    await some_traffic(redis, 10)
    monitor = Monitor(begin)
    assert len(to_the_end(monitor, step)) == 40
    assert monitor.step(step).judgements == {}
    await some_traffic(redis, 10, seed=2)
    assert to_the_end(monitor, step).keys() == {V3}
    told = {
        **versions,
        "returns@v7": msgspec.structs.replace(versions["returns@v7"], phase=Phase(own="degraded"), since=5.0),
    }
    assert to_the_end(monitor, msgspec.structs.replace(step, versions=told)).keys() == {"returns@v7"}


async def test_versions_of_a_removed_task_keep_no_others_from_being_judged_again(
    redis: Redis, begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "REJUDGED_AT_ONCE", 1)
    monkeypatch.setattr(run, "REJUDGED_SECONDS", 0.0)
    await some_traffic(redis, 10)
    to_the_end(Monitor(begin))
    left = WatchedVersion(task="claims", state="active")
    step = msgspec.structs.replace(
        STEP, tasks={"claims": WatchedTask(plan=PLAN)}, versions={**STEP.versions, "claims@v1": left}
    )
    monitor = Monitor(begin)
    assert monitor.step(step).judgements.keys() == {"claims@v1"}
    again = [name for _ in range(4) for name in monitor.step(step).judgements]
    assert again.count("claims@v1") >= 2


def test_ten_thousand_records_take_little_time(begin: Begin, client: Client) -> None:
    """Of one busy version; some 40 us each on an idle core. The bound leaves room for a busy one."""
    client.flushall()
    one = served(findings=[], adapter_digest="a" * 71, fingerprint="b" * 71, answer_id="c" * 40)
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
