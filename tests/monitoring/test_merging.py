"""Small files of the archive become large ones: each row stays there once, for readers and erasures, after any kill."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis

from monitoring.archive import merging, tables
from monitoring.archive.merging import FOLDERS_KEY, LOOKED_KEY
from monitoring.archive.run import ArchiveJob, ArchiveReport, run
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import (
    ArchiveQuery,
    connect_duckdb,
    count,
    day_of,
    find_table,
    list_unspanned,
    write_part,
)
from monitoring.erasure_run import erase
from monitoring.records import STREAM_KEY, Record
from monitoring.request_search import RequestQuery, SearchJob, search
from monitoring.text_retention import rewrite_part
from monitoring.texts import PRUNED_KEY, Seals, TextDays, TextRetention, TextSource
from monitoring.time_units import DAY_SECONDS
from tests.monitoring.test_archive import begun, damage, parts, put, rows
from tests.monitoring.test_erasure import erasure_of
from tests.monitoring.test_records import record
from tests.monitoring.test_texts import ended, job, kept, reader, text

__all__ = ["job"]

KILLED_BEFORE = """
from monitoring.archive.storage import FolderStorage
FolderStorage.write = lambda *told: os.kill(os.getpid(), 9)
"""
KILLED_BEFORE_MERGES = """
from monitoring.archive import run
run.merge_parts = lambda *told: os.kill(os.getpid(), 9)
"""
KILLED_AFTER = """
from monitoring.archive.storage import BucketStorage, FolderStorage
def killed_after(whole):
    def remove(storage, *places):
        whole(storage, *places[:REMOVED])
        places and os.kill(os.getpid(), 9)
    return remove
for storage in (BucketStorage, FolderStorage):
    storage.remove = killed_after(storage.remove)
"""


async def archive_each(redis: Redis, job: ArchiveJob, records: list[Record]) -> ArchiveReport:
    """Archive each record by a run of its own. Returns the last run's report."""
    for each in records:
        await put(redis, each)
        report = await asyncio.to_thread(run, job)
    return report


def read_ids(job: ArchiveJob) -> list[str]:
    storage = FolderStorage(Path(job.folder))
    with connect_duckdb() as connection:
        table = find_table(storage, ArchiveQuery())
        return [row[0] for row in connection.execute(f"SELECT id FROM {table}").fetchall()]


def made_on(day: float, **fields: str) -> Record:
    made = record(**fields)
    made.at -= day * DAY_SECONDS
    moment = f"{int(made.at * 1000):012x}"
    made.id = f"{moment[:8]}-{moment[8:]}{made.id[13:]}"
    return made


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.sampled_from(["", "reported-"]), st.data())
def test_only_what_a_file_spans_counts_no_more(sizes: list[int], kind: str, data: st.DataObject) -> None:
    ends = [sum(sizes[: number + 1]) for number in range(len(sizes))]
    names = [f"part-{kind}{end - size}-7-{end - 1}-8.parquet" for size, end in zip(sizes, ends, strict=True)]
    low = data.draw(st.integers(0, len(names) - 1))
    high = data.draw(st.integers(low, len(names) - 1))
    wide = f"part-{kind}{ends[low] - sizes[low]}-7-{ends[high] - 1}-8.parquet"
    others = ["part-1-2.parquet", "part-other.txt", f"part-{'' if kind else 'reported-'}3-7-3-8.parquet"]
    merged = wide.replace(".parquet", "-merged.parquet")
    listed = sorted({*names, wide, merged, *others})
    assert set(list_unspanned([*names, wide])) == {*names, wide}, "it says nothing of what is between its ends"
    assert set(list_unspanned(listed)) == {*names[:low], *names[high + 1 :], merged, *others}


async def test_twelve_files_of_today_become_one_with_the_same_rows(redis: Redis, job: ArchiveJob) -> None:
    made = [record() for _ in range(13)]
    assert (await archive_each(redis, job, made[:11])).merged == 0
    single = parts(job)
    before = rows(single)
    assert (await archive_each(redis, job, made[11:12])).merged == 12
    (path,) = parts(job)
    assert path.name.startswith(single[0].name.rsplit("-", 2)[0]), "it begins as the first one"
    assert rows([path])[:11] == before
    assert (await archive_each(redis, job, made[12:])).merged == 0
    assert read_ids(job) == [each.id for each in made]


async def test_files_of_other_days_are_merged_once_a_day_from_two_on(redis: Redis, job: ArchiveJob) -> None:
    made = [made_on(2), made_on(2, purpose="reported"), made_on(2), made_on(2, purpose="reported"), made_on(5)]
    assert (await archive_each(redis, job, made)).merged == 0
    await redis.delete(LOOKED_KEY)
    assert run(job).merged == 4
    assert [path.name.count("reported") for path in parts(job)] == [0, 0, 1]
    assert sorted(read_ids(job)) == sorted(each.id for each in made)
    assert not await redis.exists(FOLDERS_KEY)
    assert run(job).merged == 0


@pytest.mark.parametrize("files_max", [100, 3])
async def test_an_old_redis_that_comes_back_costs_no_record(
    redis: Redis, job: ArchiveJob, monkeypatch: pytest.MonkeyPatch, files_max: int
) -> None:
    monkeypatch.setattr(merging, "FILES_MAX", files_max)
    made = [made_on(2) for _ in range(8)]
    await archive_each(redis, job, made[:7])
    entries = [str(row["entry"]) for row in rows(parts(job))]
    await redis.xdel(STREAM_KEY, *entries[2:])
    await redis.hset("apprentice:archive:records", "done", entries[0])
    await archive_each(redis, job, made[7:])
    for merges in (0, 1, 2):
        assert sorted(set(read_ids(job))) == sorted(each.id for each in made), merges
        await redis.delete(LOOKED_KEY)
        assert run(job).merged == (8 if files_max == 100 and merges == 0 else 0)


@pytest.mark.parametrize("bound", ["MERGED_BYTES_MAX", "RAW_BYTES_MAX", "FILES_MAX"])
async def test_a_merge_has_bounds_and_a_run_an_end(
    redis: Redis, job: ArchiveJob, monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    made = [made_on(2) for _ in range(6)]
    await archive_each(redis, job, made)
    stored = max(path.stat().st_size for path in parts(job))
    with connect_duckdb() as connection:
        listed = [str(path) for path in parts(job)]
        query = (
            "SELECT sum(total_uncompressed_size) AS size FROM parquet_metadata(?) GROUP BY file_name ORDER BY 1 DESC"
        )
        raw = connection.execute(query, [listed]).fetchall()[0][0]
    sizes = {"MERGED_BYTES_MAX": stored, "RAW_BYTES_MAX": int(raw), "FILES_MAX": 1}
    monkeypatch.setattr(merging, bound, 3 * sizes[bound])
    monkeypatch.setattr(merging, "SECONDS_MAX", -1.0)
    await redis.delete(LOOKED_KEY)
    assert run(job).merged == 0
    monkeypatch.setattr(merging, "SECONDS_MAX", 60.0)
    assert run(job).merged == 6, "the next run goes on"
    assert len(parts(job)) == 2
    assert run(job).merged == 2, "what came out is merged by the run after it"
    assert not await redis.exists(FOLDERS_KEY)
    assert read_ids(job) == [each.id for each in made]


@pytest.mark.parametrize("column", [None, "id"])
async def test_a_damaged_file_keeps_no_other_day_from_being_merged(
    redis: Redis, job: ArchiveJob, caplog: pytest.LogCaptureFixture, column: str | None
) -> None:
    await archive_each(redis, job, [made_on(2), made_on(2), made_on(5), made_on(5)])
    damage(parts(job)[-1], column)
    await redis.delete(LOOKED_KEY)
    assert run(job).merged == 2
    assert f"files of {parts(job)[-1].parent} can't be merged: " in caplog.text
    assert len(parts(job)) == 3


async def test_days_that_no_time_is_left_for_wait_for_the_next_run(
    redis: Redis, job: ArchiveJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    await archive_each(redis, job, [made_on(2), made_on(5)])
    await redis.delete(LOOKED_KEY)
    monkeypatch.setattr(merging, "SECONDS_MAX", -1.0)
    run(job)
    assert await redis.scard(FOLDERS_KEY) == 2
    monkeypatch.setattr(merging, "SECONDS_MAX", 60.0)
    run(job)
    assert not await redis.exists(FOLDERS_KEY)


async def test_a_text_that_is_due_does_not_come_back_after_a_killed_merge(redis: Redis, job: ArchiveJob) -> None:
    for number in range(3):
        await kept(redis, [text(number, time.time() - 2 * DAY_SECONDS)])
        run(job)
    await redis.delete(LOOKED_KEY)
    assert ended(begun(job, KILLED_AFTER.replace("REMOVED", "0"))) == -9
    job.texts = TextRetention({"returns": TextDays(1)})
    await redis.delete(PRUNED_KEY)
    assert ended(begun(job, KILLED_BEFORE_MERGES)) == -9
    assert parts(job, "texts") == []


@pytest.mark.parametrize("removed", [None, 0, 2])
async def test_a_killed_merge_leaves_each_row_once_and_is_done_again(
    redis: Redis, job: ArchiveJob, removed: int | None
) -> None:
    made = [made_on(2) for _ in range(5)]
    await archive_each(redis, job, made)
    await redis.delete(LOOKED_KEY)
    hook = KILLED_BEFORE if removed is None else KILLED_AFTER.replace("REMOVED", str(removed))
    assert ended(begun(job, hook)) == -9
    assert len(parts(job)) == (5 if removed is None else 6 - removed)
    assert read_ids(job) == [each.id for each in made]
    assert run(job).merged == (5 if removed is None else 0)
    assert len(parts(job)) == 1
    assert read_ids(job) == [each.id for each in made]


async def test_merged_texts_that_compress_well_can_be_written_again(
    redis: Redis, job: ArchiveJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MEMORY", "200MB")
    at, storage = time.time() - 2 * DAY_SECONDS, FolderStorage(Path(job.folder))
    day, lines = f"texts/{day_of(at)}", storage.scratch / "rows.jsonl"
    prompt = " ".join(str(number * 7919 % 100_003) for number in range(2500))
    row = msgspec.structs.asdict(Seals({}, None).close(text(0, at)))
    storage.scratch.mkdir()
    for part in range(12):
        each = (row | {"request": f"r{part}-{n}", "text": f"{prompt} {part} {n}"} for n in range(900))
        lines.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in each))
        write_part(storage, "texts", lines, f"{day}/part-{part}0-0-{part}9-0.parquet")
    assert run(job).merged == 12
    (name,) = storage.list_names(day)
    rewrite_part(storage, "texts", f"{day}/{name}", lambda row: None if row["request"] == "r3-3" else row)
    assert count(storage, ArchiveQuery("texts"))[0].rows == 12 * 900 - 1


async def test_an_erasure_after_a_killed_merge_leaves_no_byte_of_a_text(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    for number in range(4):
        await kept(redis, [text(number, time.time() - 2 * DAY_SECONDS)])
        run(job)
    await redis.delete(LOOKED_KEY)
    assert ended(begun(job, KILLED_AFTER.replace("REMOVED", "1"))) == -9
    assert "vase number 3" in str(rows(parts(job, "texts")))
    assert erase(erasure_of("r3", job, tmp_path)).texts == 1
    assert "vase number 3" not in str(rows(parts(job, "texts")))
    with reader(job) as texts:
        assert [each.request for each in texts.of_task("returns")] == ["r0", "r1", "r2"]


async def test_a_search_beside_merges_finds_each_request_once(redis: Redis, job: ArchiveJob) -> None:
    made = [made_on(2) for _ in range(24)]
    await archive_each(redis, job, made)
    asked = SearchJob(source=TextSource(job.redis_url, job.folder), query=RequestQuery(limit=100))

    async def merge() -> None:
        for _ in range(12):
            await redis.delete(LOOKED_KEY)
            await put(redis, made_on(2, purpose="shadow"))
            await asyncio.to_thread(run, job)

    merging_now, searches = asyncio.create_task(merge()), 0
    while not merging_now.done() or searches < 3:
        found = await asyncio.to_thread(search, asked)
        assert [each["id"] for each in found.requests] == sorted((each.id for each in made), reverse=True)
        searches += 1
    await merging_now
    assert len(parts(job)) == 1
