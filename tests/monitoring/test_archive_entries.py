"""The archive, replayed: the watches and verdicts are those of the live monitor, from the files alone."""

from __future__ import annotations

import random
import zlib
from pathlib import Path
from typing import Any, Literal

import duckdb
import msgspec
import pytest
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.archive import entries as archive_entries
from monitoring.archive import run as archive_run
from monitoring.archive import tables as archive
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import ArchiveQuery, NothingArchived, columns_of
from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.phases import Phase
from monitoring.quality.replay.recorded import Placed, Replaying, Turn
from monitoring.quality.signals.child_messages import WATCH_KEY, Begin, MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.signals.entries import FeedbackEntry
from monitoring.quality.signals.run import Monitor
from monitoring.quality.signals.version_watch import Watch
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles
from monitoring.records import PairRecord, Record
from tests.monitoring.monitor_child import METRICS, store_of, to_the_end
from tests.monitoring.monitor_child import said as feedback
from tests.monitoring.monitor_child import served as record
from tests.monitoring.quality.traffic import MORNING, PLAN, V3, said, served, step
from tests.monitoring.test_records import IDS, stream_of

STEP = MonitorStep(
    tasks={"returns": WatchedTask(plan=PLAN)},
    versions={V3: WatchedVersion(task="returns", state="active")},
    metrics=METRICS,
)
NEWER = {
    "feedback": ("reviewed", "reviewers", "resolves", "demonstration_digests", "entry"),
    "records": ("entry",),
}
NEWER_OF_PAIR = ("judge_digest", "judge_answered", "served_stack", "caller")


def archived(begin: Begin, folder: Path) -> None:
    archive_run.run(archive_run.ArchiveJob(begin.redis_url, str(folder), retention_days=36_600))


def read(folder: Path) -> list[Placed]:
    return list(archive_entries.read_entries(FolderStorage(folder), ["returns"], None, None))


async def all_that_counts(redis: Redis, count: int, wrong: float, seed: int) -> None:
    """Labels of callers and reviewers, of classes, twice and early; complaints; pairs with demonstrations."""
    draw, store = random.Random(seed), store_of(redis)
    for _ in range(0, count, 20):
        made = [record(f"caller{draw.randrange(3)}", saving_usd=0.0007) for _ in range(20)]
        early = made[0]
        await store.give(early.id, feedback(True, "early", caller=early.caller), early.caller, young=True)
        await stream_of(redis).append([*made, *(_shadow(one) for one in made[::4])])
        for one in made:
            tags = {"kind": draw.choice(("toys", "food"))}
            told = feedback(draw.random() > wrong, caller=one.caller, rater=f"r{draw.randrange(4)}", tags=tags)
            await store.give(one.id, told, one.caller, young=False)
            if draw.random() < 0.3:
                told = feedback(
                    draw.random() > wrong,
                    "review",
                    caller="reviewer",
                    reviewed=True,
                    demonstration="approve",
                    demonstration_digests={"normal": draw.choice(("right", "wrong"))},
                )
                await store.give(one.id, told, "*", young=False)
            if draw.random() < 0.1:
                await store.give(one.id, feedback(metric="complaint", name="c"), one.caller, young=False)


async def reviewed_by_several(redis: Redis) -> None:
    """A request that three reviewers decide, and one on which two disagree, which is resolved."""
    for answers, decision in (((False, True, True), None), ((False, True), False)):
        made, several = record(), {"metric": "correct", "reviewed": True, "reviewers": len(answers)}
        await stream_of(redis).append([made])
        told = [feedback(right, f"r{number}", caller=f"ada{number}", **several) for number, right in enumerate(answers)]
        told += [feedback(decision, "admin", caller="admin", resolves=True, **several)] if decision is not None else []
        for one in told:
            await store_of(redis).give(made.id, one, "*", young=False)


def _shadow(one: Record) -> Record:
    pair: dict[str, Any] = {"version": V3, "arm": "general", "judge": "normal", "judge_digest": "sha256:a"}
    pair |= {"digest": "right", "served_digest": "wrong", "judge_answered": True}
    told: dict[str, Any] = msgspec.to_builtins(record("", version=None, purpose="shadow", shadow_of=one.id))
    return msgspec.convert({**told, "id": IDS.make(""), "pair": {**pair, "score": 0.0, "served_score": 1.0}}, Record)


async def test_the_watch_of_a_replay_is_the_live_one_to_the_last_bit(
    redis: Redis, begin: Begin, client: Client, tmp_path: Path
) -> None:
    """Every stream and e-value, both arms and all counts: from the files alone."""
    await all_that_counts(redis, 400, 0.2, 1)
    await reviewed_by_several(redis)
    seen = to_the_end(Monitor(begin), STEP)[V3]
    assert {one.signal for one in seen.reports if one.labelled} == {"feedback", "reviewed", "shadow", "complaints"}
    assert None not in (seen.saving, seen.judge)
    archived(begin, tmp_path)
    replaying = Replaying(STEP, {}, look_seconds=1.0)
    for one in read(tmp_path):
        replaying.take(one)
    judged = replaying.judged(seen.at)[V3]
    assert judged == seen
    assert (replaying.records, replaying.unmatched) == (502, 0)
    again = msgspec.structs.replace(replaying.watches.by_version[V3], epoch="", complaints=None)
    assert msgspec.json.encode(again) == msgspec.json.encode(live_watch(client))


def test_all_that_the_monitor_reads_of_feedback_is_read_from_the_archive() -> None:
    read_back = {*archive_entries.FEEDBACK_COLUMNS, *archive_entries.AS_JSON, "value"}
    assert read_back == {field.name for field in msgspec.structs.fields(FeedbackEntry)}


async def test_a_replay_takes_reported_records_in_the_order_of_the_live_monitor(
    redis: Redis, begin: Begin, client: Client, tmp_path: Path
) -> None:
    for seed in range(3):
        await all_that_counts(redis, 60, 0.2, seed)
        reported = [record(f"caller{number % 2}", purpose="reported") for number in range(20)]
        await stream_of(redis).append([*reported, record()])
        for one in reported:
            await store_of(redis).give(one.id, feedback(True, caller=one.caller), one.caller, young=False)
    seen = to_the_end(Monitor(begin), STEP)[V3]
    archived(begin, tmp_path)
    replaying = Replaying(STEP, {}, look_seconds=1.0)
    for one in read(tmp_path):
        replaying.take(one)
    assert replaying.judged(seen.at)[V3] == seen
    assert (seen.requests, replaying.unmatched) == (243, 0)
    again = msgspec.structs.replace(replaying.watches.by_version[V3], epoch="", complaints=None)
    assert msgspec.json.encode(again) == msgspec.json.encode(live_watch(client))


def live_watch(client: Client) -> Watch:
    """The watch in Redis, but for what time alone has moved since: that is in the judgement."""
    raw = client.get(WATCH_KEY + V3)
    assert raw is not None
    found = msgspec.json.decode(raw if raw.startswith(b"{") else zlib.decompress(raw), type=Watch)
    return msgspec.structs.replace(found, epoch="", complaints=None)


async def test_the_verdicts_of_a_replay_are_the_live_ones(redis: Redis, begin: Begin, tmp_path: Path) -> None:
    """Degraded, recovered, and degraded again; the live monitor looks when it has read on, the replay every 20 ms."""
    monitor, told, health, wanted = Monitor(begin), STEP, TaskQuality(), list[tuple[str, str]]()
    for part, wrong in enumerate((0.03, 0.8, 0.02, 0.02, 0.8)):
        await all_that_counts(redis, 260 if not part else 160, wrong, part)
        judged = to_the_end(monitor, told)[V3]
        before, health = health, respond(health, {V3: judged}, Roles(), PLAN, judged.at)[0]
        found, known = health.versions[V3], before.versions.get(V3, VersionQuality())
        if found.verdict != known.verdict:
            wanted.append((known.verdict, found.verdict))
            versions = {V3: msgspec.structs.replace(STEP.versions[V3], phase=Phase(own=found.verdict), since=judged.at)}
            told = msgspec.structs.replace(STEP, versions=versions)
            to_the_end(monitor, told)
    assert wanted == [("healthy", "degraded"), ("degraded", "healthy"), ("healthy", "degraded")]
    archived(begin, tmp_path)
    replaying = Replaying(STEP, {}, look_seconds=0.02)
    turns = [one for one in replaying.run(read(tmp_path)) if "suspect" not in (one.before, one.after)]
    assert [(one.before, one.after) for one in turns] == wanted
    assert all(one.reports and one.because for one in turns)
    assert replaying.qualities[V3].verdict == "degraded"


def older(folder: Path, dataset: Literal["records", "feedback"]) -> None:
    """Make its files those of an older gateway, without the newer columns."""
    for path in sorted((folder / dataset).rglob("*.parquet")):
        pair = ", ".join(f'"{name}" := pair."{name}"' for name in columns_of(PairRecord) if name not in NEWER_OF_PAIR)
        kept = f"EXCLUDE ({', '.join(NEWER[dataset])})"
        kept += f" REPLACE (struct_pack({pair}) AS pair)" if dataset == "records" else ""
        query = f"SELECT * {kept} FROM read_parquet('{path}', hive_partitioning=false)"
        duckdb.connect().execute(f"COPY ({query}) TO '{path}.old' (FORMAT parquet)")
        Path(f"{path}.old").replace(path)


async def test_files_of_an_older_gateway_are_read_alone_and_beside_newer_ones(
    redis: Redis, begin: Begin, tmp_path: Path
) -> None:
    """Without places the order is that of their times."""
    await all_that_counts(redis, 60, 0.2, 1)
    archived(begin, tmp_path)
    whole = read(tmp_path)
    older(tmp_path, "records")
    older(tmp_path, "feedback")
    alone = read(tmp_path)
    assert len(alone) == len(whole)
    assert [one.feedback for one in alone if one.feedback and one.feedback.reviewed] == []
    assert archive.count(FolderStorage(tmp_path), ArchiveQuery("feedback"))[0].rows == sum(
        one.feedback is not None for one in whole
    )
    assert archive_entries.count_without_place(FolderStorage(tmp_path), ["returns"], None, None) == len(whole)
    assert archive.export(FolderStorage(tmp_path), ArchiveQuery("feedback"), tmp_path / "old.jsonl") > 60
    assert '"reviewed":null' in (tmp_path / "old.jsonl").read_text().splitlines()[0]
    await all_that_counts(redis, 40, 0.2, 2)
    archived(begin, tmp_path)
    both = read(tmp_path)
    assert sum(one.feedback is None for one in both) == 125
    assert archive_entries.count_without_place(FolderStorage(tmp_path), ["returns"], None, None) == len(whole)
    assert any(one.feedback.reviewed for one in both if one.feedback is not None)
    assert both == sorted(both, key=lambda one: one[:3])
    pairs = [
        one.record.pair for one in both if one.feedback is None and one.record is not None and one.record.shadow_of
    ]
    assert {one.judge_answered for one in pairs if one is not None} == {None, True}


async def test_what_is_in_the_archive_of_feedback_comes_back_as_the_monitor_reads_it(
    redis: Redis, begin: Begin, tmp_path: Path
) -> None:
    made = record()
    await stream_of(redis).append([made])
    told = feedback(
        False,
        caller="reviewer",
        rater="ada",
        reviewed=True,
        tags={"kind": "toys"},
        demonstration="x",
        demonstration_digests={"normal": "d1", "exact": "d2"},
    )
    await store_of(redis).give(made.id, told, "*", young=False)
    gone = record()
    await stream_of(redis).append([gone])
    await store_of(redis).give(gone.id, feedback(0.5, metric="stars"), "*", young=False)
    archived(begin, tmp_path)
    places = {name: await redis.xrange(f"apprentice:{name}") for name in ("records", "feedback")}
    found = {one.feedback.metric: one for one in read(tmp_path) if one.feedback is not None}
    assert found["correct"].feedback == FeedbackEntry(
        metric="correct",
        value=False,
        caller="reviewer",
        rater="ada",
        tags={"kind": "toys"},
        reviewed=True,
        demonstration_digests={"normal": "d1", "exact": "d2"},
        request=made.id,
    )
    assert f"{found['correct'].milliseconds}-{found['correct'].number}" == places["feedback"][0][0].decode()
    seen = found["correct"].record
    assert seen is not None
    assert seen.placed_at == int(places["records"][0][0].decode().partition("-")[0]) / 1000
    assert found["stars"].feedback is not None
    assert (found["stars"].feedback.value, found["stars"].feedback.reviewed) == (0.5, False)


def test_an_archive_without_records_is_told(tmp_path: Path) -> None:
    with pytest.raises(NothingArchived):
        read(tmp_path)


async def test_feedback_whose_record_is_not_there_counts_for_nothing(
    redis: Redis, begin: Begin, tmp_path: Path
) -> None:
    await all_that_counts(redis, 20, 0.2, 1)
    archived(begin, tmp_path)
    (path,) = (tmp_path / "records").rglob("*.parquet")
    query = f"SELECT * FROM read_parquet('{path}', hive_partitioning=false) OFFSET 5"
    duckdb.connect().execute(f"COPY ({query}) TO '{path}.part' (FORMAT parquet)")
    Path(f"{path}.part").replace(path)
    replaying = Replaying(STEP, {}, look_seconds=60.0)
    list(replaying.run(read(tmp_path)))
    assert replaying.unmatched >= 5
    assert replaying.watches.by_version[V3].labels < replaying.feedback - replaying.unmatched + 1


# ---- verdicts over a long time, pure -------------------------------------------------------------------


def placed(wrong: list[bool], every_seconds: float, begin: int = 0) -> list[Placed]:
    """A request at every interval, each with its label a second later."""
    found = []
    for number, bad in enumerate(wrong, begin):
        at_ms = round((MORNING + number * every_seconds) * 1000)
        seen = served(f"r{number}", f"shop{number % 3}", placed_at=at_ms / 1000)
        found.append(Placed(at_ms, 0, 0, seen))
        found.append(Placed(at_ms + 1000, 1, 0, seen, said(seen.id, not bad, seen.caller)))
    return found


def turned(entries: list[Placed], look_seconds: float) -> list[Turn]:
    replaying = Replaying(step(), {V3: {"feedback": declare_rate(0.08, 1.0, "admin", "known")}}, look_seconds)
    return list(replaying.run(entries))


def test_looking_seldom_moves_the_times_of_verdicts_by_no_more_than_that() -> None:
    draw = random.Random(3)
    wrong = [draw.random() < (0.5 if 300 <= n < 500 or n >= 800 else 0.04) for n in range(1_000)]
    entries = placed(wrong, 600.0)
    often, seldom = (turned(entries, seconds) for seconds in (1.0, 3600.0))
    assert [one.after for one in often] == ["degraded", "healthy", "degraded"]
    assert [one.after for one in seldom] == [one.after for one in often]
    assert 0 <= seldom[0].at - often[0].at <= 3600.0


def test_what_is_known_of_requests_is_forgotten_once_they_are_judged_no_more() -> None:
    replaying = Replaying(step(), {}, 3600.0)
    list(replaying.run(placed([False] * 500, 6 * 3600.0)))
    assert len(replaying.watches.notes) < 200
    assert replaying.watches.by_version[V3].labels == 500
