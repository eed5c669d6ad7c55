"""The archive: every record and every judgement is in one Parquet file, once, whatever was killed meanwhile."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from redis.asyncio import Redis

from monitoring.archive import run as archive_run
from monitoring.archive import tables as archive
from monitoring.archive.merging import LOOKED_KEY
from monitoring.archive.run import ArchiveJob, ArchiveReport
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import ArchiveQuery, DamagedFiles, Day, NothingArchived
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import Feedback, FeedbackStore
from monitoring.records import REPORTED_STREAM_KEY, STREAM_KEY, AttemptRecord, FindingRecord, PairRecord, Record
from monitoring.text_stream import TextStream
from monitoring.texts import STREAM_KEY as TEXTS_STREAM_KEY
from monitoring.texts import TEXT_KEY, TextDays, TextRetention, TextRow
from monitoring.time_units import DAY_SECONDS
from tests.monitoring.test_records import RETENTION_SECONDS, record, stream_of

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()

KILLED = """
import os, sys
__file__ = "run.py"  # without one DuckDB takes it for a notebook, and prints its progress where the report belongs
from monitoring.archive import run as archive_run
{hook}
archive_run.run_job(archive_run.ArchiveJob, archive_run.run)
"""
AFTER_RENAME = """
whole = archive_run.write_part
def write_part(*told):
    whole(*told)
    os.kill(os.getpid(), 9)
archive_run.write_part = write_part
"""
YEARS_AHEAD = """
import time
now = time.time
time.time = lambda: now() + 10 * 366 * 86_400
"""
BEFORE_RENAME = """
archive_run.write_part = lambda *told: os.kill(os.getpid(), 9)
"""


@pytest.fixture
def job(valkey_socket: str, tmp_path: Path) -> ArchiveJob:
    return ArchiveJob(f"unix://{valkey_socket}", str(tmp_path / "archive"), retention_days=36_600)


def begun(job: ArchiveJob, hook: str = "") -> subprocess.Popen[bytes]:
    """A run in a process of its own, which goes on."""
    command = [sys.executable, "-c", KILLED.format(hook=hook)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(job) + b"\n")
    process.stdin.flush()
    return process


def child(job: ArchiveJob, hook: str = "") -> int:
    """A run in a process of its own; its exit code."""
    with begun(job, hook) as process:
        return process.wait(60)


def parts(job: ArchiveJob, dataset: str = "records") -> list[Path]:
    return sorted(Path(job.folder, dataset).rglob("*.parquet"))


def rows(paths: list[Path]) -> list[dict[str, Any]]:
    connection = duckdb.connect()
    found = connection.execute("SELECT * FROM read_parquet(?, hive_partitioning=false)", [[str(p) for p in paths]])
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def damage(path: Path, column: str | None = None) -> None:
    """Overwrite the beginning of a column's values in a file, or the whole file."""
    content, where = bytearray(path.read_bytes()), slice(None)
    if column is not None:
        query = "SELECT data_page_offset FROM parquet_metadata(?) WHERE path_in_schema = ?"
        (offset,) = duckdb.execute(query, [str(path), column]).fetchall()[0]
        where = slice(offset, offset + 8)
    content[where] = b"\xff" * len(content[where])
    path.write_bytes(content)


def whole() -> Record:
    return record(
        attempts=[AttemptRecord("small", "small-0", "returns@v3", "silent", 1.5)],
        findings=[
            FindingRecord(
                check="out_of_scope",
                mode="observe",
                fired=True,
                score=-0.5,
                threshold=0.1,
                neighbours=["t-1", "t-2"],
                note="a note",
                version="returns@v3",
            )
        ],
        pair=PairRecord("returns@v2", True, "aa"),
        handles=["h1", "h2"],
        cost_usd=0.25,
        prompt_tokens=7,
        stream=True,
        error_code="ä\n✓",
    )


async def put(redis: Redis, *records: Record) -> None:
    await stream_of(redis).append(list(records))


def on(day: int, **fields: Any) -> Record:
    made = record(**fields)
    made.at = NOON + day * DAY_SECONDS
    return made


async def test_a_record_comes_back_from_its_file_as_it_was(redis: Redis, job: ArchiveJob) -> None:
    first, second = whole(), record(task=None)
    await put(redis, first, second)
    report = archive_run.run(job)
    assert (report.records, report.feedback, report.files, report.unreadable) == (2, 0, 1, 0)
    (path,) = parts(job)
    assert path.parent.name == archive.day_of(first.at)
    assert [msgspec.convert(row, Record) for row in rows([path])] == [first, second]
    places = [place.decode() for place, _ in await redis.xrange(STREAM_KEY)]
    assert [row["entry"] for row in rows([path])] == places
    assert report.size_bytes == path.stat().st_size


async def test_reported_records_come_into_the_dataset_of_records_once(redis: Redis, job: ArchiveJob) -> None:
    served, reported = record(), record(purpose="reported")
    await put(redis, served, reported)
    await redis.xadd(REPORTED_STREAM_KEY, {"id": "x", "handles": "", "record": b"{"})
    assert archive_run.run(job).records == 3
    assert archive_run.run(job).records == 0
    assert {row["id"]: row["purpose"] for row in rows(parts(job))} == {served.id: "serve", reported.id: "reported"}
    (kept,) = Path(job.folder, "unreadable").rglob("*.jsonl")
    assert kept.name.startswith("reported-")


def test_columns_are_the_fields_of_a_record_in_their_order() -> None:
    columns = archive.columns_of(Record)
    assert list(columns) == [field.encode_name for field in msgspec.structs.fields(Record)]
    assert archive.columns_of(archive.RecordRow) == {**columns, "entry": "VARCHAR"}
    chosen = ("id", "at", "status", "stream", "dropped", "cost_usd")
    kinds = ["VARCHAR", "DOUBLE", "BIGINT", "BOOLEAN", "VARCHAR[]", "DOUBLE"]
    assert [columns[name] for name in chosen] == kinds
    attempt = '"pool" VARCHAR, "replica" VARCHAR, "version" VARCHAR, "fault" VARCHAR, "seconds" DOUBLE'
    assert columns["attempts"] == f"STRUCT({attempt})[]"
    assert columns["findings"].endswith(")[]")
    assert columns["pair"].startswith('STRUCT("version" VARCHAR, "contract_kept" BOOLEAN, ')


async def test_the_file_has_the_columns_that_were_declared(redis: Redis, job: ArchiveJob) -> None:
    await put(redis, whole())
    archive_run.run(job)
    described = duckdb.connect().execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(parts(job)[0])]).fetchall()
    found = {name: kind for name, kind, *_ in described if name != "day"}
    plain = {name: kind.replace('"', "") for name, kind in archive.columns_of(archive.RecordRow).items()}
    assert {name: kind.replace('"', "") for name, kind in found.items()} == plain


async def test_days_have_folders_and_what_comes_later_files_of_its_own(redis: Redis, job: ArchiveJob) -> None:
    made = [on(0), on(1), on(0), on(2)]
    await put(redis, *made)
    assert archive_run.run(job).files == 3
    more = on(1)
    await put(redis, more)
    assert archive_run.run(job) == ArchiveReport(
        records=1, files=1, size_bytes=parts(job)[2].stat().st_size, seconds=pytest.approx(1, abs=30)
    )
    assert [path.parent.name for path in parts(job)] == [
        "day=2026-03-01",
        "day=2026-03-02",
        "day=2026-03-02",
        "day=2026-03-03",
    ]
    assert sorted(row["id"] for row in rows(parts(job))) == sorted(one.id for one in [*made, more])
    before = parts(job)
    assert archive_run.run(job).records == 0
    assert parts(job) == before


async def test_many_entries_make_several_parts_and_each_is_in_one(redis: Redis, job: ArchiveJob) -> None:
    made = [record() for _ in range(1234)]
    for at in range(0, 1234, 200):
        await put(redis, *made[at : at + 200])
    job.part_entries_max = 500
    assert archive_run.run(job).records == 1234
    assert len(parts(job)) == 3
    assert [row["id"] for row in rows(parts(job))] == [one.id for one in made]


@pytest.mark.invariant("Each record is in one file of the archive.")
@pytest.mark.parametrize("hook", [AFTER_RENAME, BEFORE_RENAME], ids=["after a rename", "before a rename"])
async def test_a_run_killed_at_a_rename_is_done_again_under_the_same_names(
    redis: Redis, job: ArchiveJob, hook: str
) -> None:
    made = [on(0), on(1), on(2)]
    await put(redis, *made)
    assert child(job, hook) == -9
    there = {path: path.stat().st_ino for path in parts(job)}
    assert len(there) == (1 if hook == AFTER_RENAME else 0)
    later = on(0)
    await put(redis, later)
    await redis.set(LOOKED_KEY, b"")  # nothing is merged
    assert child(job) == 0
    assert sorted(row["id"] for row in rows(parts(job))) == sorted(one.id for one in [*made, later])
    assert len(parts(job)) == 4
    assert {path: path.stat().st_ino for path in there} == there
    assert await redis.hget("apprentice:archive:records", "planned") is None


async def test_entries_that_a_backup_of_redis_brings_back_are_archived_once(redis: Redis, job: ArchiveJob) -> None:
    async def answer(*requests: str) -> None:
        await put(redis, *(msgspec.structs.replace(on(0), id=request) for request in requests))
        await TextStream(redis, 10_000).keep([TextRow(request=each, at=NOON, task="returns") for each in requests])

    await answer("a", "b")
    assert child(job) == 0
    await answer("c", "d")
    backup = {key: await redis.dump(key) for key in await redis.keys()}
    await answer("e")
    assert child(job) == 0
    await redis.flushall()
    for key, value in backup.items():
        await redis.restore(key, 0, value)
    await answer("f")
    assert child(job) == 0
    assert sorted(row["id"] for row in rows(parts(job))) == list("abcdef")
    assert sorted(row["request"] for row in rows(parts(job, "texts"))) == list("abcdef")


async def test_of_two_that_write_at_once_neither_writes_what_the_other_has(redis: Redis, job: ArchiveJob) -> None:
    made = [record() for _ in range(300)]
    await put(redis, *made)
    job.part_entries_max = 50
    both = [begun(job) for _ in range(2)]
    told = []
    for one in both:
        assert one.stdout is not None
        told.append(msgspec.json.decode(one.stdout.read(), type=ArchiveReport))
        one.communicate()
        assert one.returncode == 0
    assert sum(report.records for report in told) == 300
    assert sorted(row["id"] for row in rows(parts(job))) == sorted(one.id for one in made)


@pytest.mark.parametrize(
    ("changed", "line"),
    [({"redis_url": "unix:///nowhere"}, b"!Redis can't be used: "), ({"folder": __file__}, b"![Errno ")],
    ids=["redis", "folder"],
)
def test_a_run_without_redis_or_folder_says_so_in_a_line(job: ArchiveJob, changed: dict[str, str], line: bytes) -> None:
    for name, value in changed.items():
        setattr(job, name, value)
    with begun(job) as process:
        assert process.stdout is not None
        assert process.stdout.read().startswith(line)


async def test_a_run_ends_with_the_gateway_that_began_it(redis: Redis, job: ArchiveJob) -> None:
    hook = "import threading\narchive_run.run = lambda job: threading.Event().wait()"
    with begun(job, hook) as one:
        assert one.stdin is not None
        one.stdin.close()
        assert one.wait(20) == 1


async def test_feedback_is_in_the_archive_with_its_records_task_and_version(redis: Redis, job: ArchiveJob) -> None:
    store, judged = FeedbackStore(redis, RETENTION_SECONDS, 1000), record()
    values: list[Any] = [True, 0.5, "damaged"]
    early = Feedback(
        feedback_id="early",
        metric="correct",
        value=False,
        at=NOON,
        caller="caller1",
        demonstration={"a": 1},
        tags={"x": "y"},
        comment="no",
        rater="r",
    )
    assert (await store.give(judged.id, early, "caller1", young=True)).outcome == "pending"
    await put(redis, judged)
    for number, value in enumerate(values):
        said = Feedback(feedback_id=f"f{number}", metric=f"m{number}", value=value, at=NOON, caller="caller1")
        assert (await store.give(judged.id, said, "caller1", young=False)).outcome == "created"
    assert archive_run.run(job).feedback == 4
    (path,) = parts(job, "feedback")
    assert path.parent.name == "day=2026-03-01"
    found = {row["feedback_id"]: row for row in rows([path])}
    assert {(row["request"], row["task"], row["version"], row["pool"]) for row in found.values()} == {
        (judged.id, "returns", "returns@v3", "small")
    }
    assert [found[f"f{n}"][f"value_{kind}"] for n, kind in enumerate(("boolean", "float", "category"))] == values
    told = found["early"]
    assert (told["value_boolean"], told["rater"], told["comment"]) == (False, "r", "no")
    assert (json.loads(told["demonstration"]), json.loads(told["tags"])) == ({"a": 1}, {"x": "y"})
    assert archive_run.run(job).feedback == 0


async def test_what_can_not_be_read_is_kept_beside_and_stops_nothing(redis: Redis, job: ArchiveJob) -> None:
    await redis.xadd(STREAM_KEY, {"id": "x", "handles": "", "record": b"\xff{"})
    await redis.xadd(FEEDBACK_STREAM_KEY, {"request": "x"})
    good = record()
    await put(redis, good)
    report = archive_run.run(job)
    assert (report.unreadable, [row["id"] for row in rows(parts(job))]) == (2, [good.id])
    kept = sorted(Path(job.folder, "unreadable").iterdir())
    assert [path.name.partition("-")[0] for path in kept] == ["feedback", "records"]
    assert json.loads(kept[1].read_text())["id"] == "x"


@pytest.mark.parametrize("tokens", [1 << 63, (1 << 64) - 1])
async def test_a_number_that_fits_no_column_is_kept_beside_and_stops_nothing(
    redis: Redis, job: ArchiveJob, tokens: int
) -> None:
    most = (1 << 63) - 1
    good = record(prompt_tokens=most, completion_tokens=-most)
    await put(redis, record(prompt_tokens=tokens), record(completion_tokens=tokens), good)
    report = archive_run.run(job)
    assert (report.records, report.unreadable) == (3, 2)
    found = rows(parts(job))
    assert [(row["id"], row["prompt_tokens"], row["completion_tokens"]) for row in found] == [(good.id, most, -most)]
    later = record()
    await put(redis, later)
    assert archive_run.run(job).records == 1


async def test_texts_in_csv_are_no_formulas_of_a_spreadsheet(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    texts = ["=HYPERLINK(A1)", "+1", "-1", "@SUM(A1)", "\t=1", "a=1", ""]
    await put(redis, *(record(finish_reason=text, cost_usd=-1.0) for text in texts))
    archive_run.run(job)
    for ending in (".csv", ".jsonl"):
        archive.export(FolderStorage(Path(job.folder)), ArchiveQuery(), tmp_path / f"all{ending}")
    with (tmp_path / "all.csv").open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert [row["finish_reason"] for row in cells] == [f"'{text}" for text in texts[:5]] + texts[5:]
    assert {row["cost_usd"] for row in cells} == {"-1.0"}
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert [json.loads(line)["finish_reason"] for line in lines] == texts, "what programs read is as it was"


async def test_days_that_are_too_old_are_removed_and_what_a_killed_run_left(redis: Redis, job: ArchiveJob) -> None:
    made = [record() for _ in range(2)]
    made[0].at -= 10 * DAY_SECONDS
    await put(redis, *made)
    archive_run.run(job)
    assert len(parts(job)) == 2
    job.retention_days = 5
    archive_run.run(job)
    assert [row["id"] for row in rows(parts(job))] == [made[1].id]
    assert sorted(path.name for path in Path(job.folder).iterdir()) == [".lock", "records"]


async def test_unreadable_entries_are_removed_when_they_are_too_old(redis: Redis, job: ArchiveJob) -> None:
    job.retention_days, job.texts = 10, TextRetention({"a": TextDays(3), "b": TextDays(7)})
    now_ms = int((await redis.time())[0]) * 1000
    for key, days in ((STREAM_KEY, 11), (STREAM_KEY, 9), (FEEDBACK_STREAM_KEY, 11), (TEXTS_STREAM_KEY, 4)):
        await redis.xadd(key, {"request": "x"}, id=now_ms - days * DAY_SECONDS * 1000)
        if key == TEXTS_STREAM_KEY:
            await redis.set(f"{TEXT_KEY}x", "{")
        archive_run.run(job)
    folder = Path(job.folder, "unreadable")
    (folder / "notes.txt").touch()
    archive_run.run(job)
    assert [path.name.partition("-")[0] for path in sorted(folder.iterdir())] == ["notes.txt", "records"]


async def test_a_day_that_can_not_be_removed_is_told_and_stops_nothing(
    redis: Redis, job: ArchiveJob, caplog: pytest.LogCaptureFixture
) -> None:
    job.retention_days, old = 366, Path(job.folder, "feedback/day=2020-01-01")
    old.parent.mkdir(parents=True)
    old.write_text("a file where a folder should be")
    await put(redis, record())
    assert archive_run.run(job).records == 1
    assert f"{old} is too old and can't be removed: " in caplog.text


async def test_a_clock_that_is_years_ahead_removes_nothing(redis: Redis, job: ArchiveJob) -> None:
    job.retention_days = 366
    await put(redis, record())
    assert [child(job), child(job, YEARS_AHEAD)] == [0, 0]
    assert len(parts(job)) == 1


async def test_an_export_has_what_was_asked_for_in_each_form(redis: Redis, job: ArchiveJob, tmp_path: Path) -> None:
    made = [on(0, task="a"), on(1, task="b"), on(1, task="a", handles=["h"]), on(2, task="a")]
    await put(redis, *made)
    archive_run.run(job)
    storage = FolderStorage(Path(job.folder))
    asked = ArchiveQuery(since=NOON + 1, until=NOON + 2 * DAY_SECONDS, task="a")
    for ending in (".parquet", ".csv", ".jsonl"):
        target = tmp_path / f"it's{ending}"
        assert archive.export(storage, asked, target) == 1
        assert archive.export(storage, asked, target) == 1
    assert [row["id"] for row in rows([tmp_path / "it's.parquet"])] == [made[2].id]
    (line,) = (tmp_path / "it's.jsonl").read_text().splitlines()
    assert msgspec.json.decode(line, type=Record) == made[2]
    assert json.loads(line)["entry"]
    cells = (tmp_path / "it's.csv").read_text().splitlines()
    assert cells[0].split(",")[:3] == ["id", "at", "endpoint"]
    assert (len(cells), '[""h""]' in cells[1]) == (2, True)
    assert archive.export(storage, ArchiveQuery(task="nobody"), tmp_path / "none.jsonl") == 0
    assert archive.export(storage, ArchiveQuery(), tmp_path / "all.jsonl") == 4
    with pytest.raises(ValueError, match="ends in none of"):
        archive.export(storage, ArchiveQuery(), tmp_path / "x.txt")
    with pytest.raises(NothingArchived):
        archive.export(storage, ArchiveQuery(since=time.time()), tmp_path / "x.csv")
    with pytest.raises(NothingArchived):
        archive.count(FolderStorage(tmp_path / "nowhere"), ArchiveQuery())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".csv", ".jsonl", ".jsonl", ".jsonl", ".parquet"]


@pytest.mark.parametrize("column", [None, "id"])
async def test_an_export_names_the_damaged_file(
    redis: Redis, job: ArchiveJob, tmp_path: Path, column: str | None
) -> None:
    await put(redis, on(0), on(1))
    archive_run.run(job)
    damage(damaged := parts(job)[0], column)
    storage = FolderStorage(Path(job.folder))
    with pytest.raises(DamagedFiles, match=f"damaged files: {damaged}. Leave out their days"):
        archive.export(storage, ArchiveQuery(), tmp_path / "all.csv")
    assert not list(tmp_path.glob("*all.csv*"))
    if column is None:
        with pytest.raises(DamagedFiles, match=str(damaged)):
            archive.count(storage, ArchiveQuery())
    assert archive.export(storage, ArchiveQuery(since=NOON + DAY_SECONDS), tmp_path / "all.csv") == 1


async def test_days_are_counted(redis: Redis, job: ArchiveJob) -> None:
    await put(redis, on(0, task="a"), on(1, task="b"), on(1, task="a"))
    archive_run.run(job)
    sizes = [path.stat().st_size for path in parts(job)]
    storage = FolderStorage(Path(job.folder))
    assert archive.count(storage, ArchiveQuery()) == [
        Day("2026-03-01", 1, 1, sizes[0]),
        Day("2026-03-02", 2, 1, sizes[1]),
    ]
    assert [day.rows for day in archive.count(storage, ArchiveQuery(task="b"))] == [0, 1]
    assert [day.day for day in archive.count(storage, ArchiveQuery(until=NOON + 1))] == ["2026-03-01"]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("gateway.app, gateway.cli.main", "{'duckdb', 'fsspec'}"),
        ("monitoring.request_search", "{'numpy'}"),
        ("monitoring.quality.signals.run", "{'numpy', 'duckdb'}"),
        ("monitoring.labels.report", "{'scipy', 'redis'}"),
        ("gateway.features.evaluations.run", "{'scipy', 'sklearn', 'duckdb'}"),
        ("gateway.features.readiness.run, gateway.features.diagnosis.run", "{'numpy'}"),
    ],
)
def test_what_starts_often_loads_no_large_library(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150)
    assert told.stdout.strip() == "set()"
