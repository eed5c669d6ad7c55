"""The archive in a bucket of a real S3 server: all that a folder promises, whatever is killed or cut off meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.archive import lock as archive_lock
from monitoring.archive import run as archive_run
from monitoring.archive import tables as archive
from monitoring.archive.bucket import BucketStorage, list_days
from monitoring.archive.lock import ArchiveLock, LockLost
from monitoring.archive.merging import LOOKED_KEY
from monitoring.archive.run import ArchiveJob, ArchiveReport
from monitoring.archive.storage import ArchiveStorage, open_storage
from monitoring.archive.tables import ArchiveQuery
from monitoring.bucket_storage import Bucket, BucketError, open_bucket
from monitoring.erasure_run import ErasureJob, erase
from monitoring.helper_process import ERROR_MARK
from monitoring.records import STREAM_KEY
from monitoring.text_reader import TextReader
from monitoring.texts import TextDays, TextRetention, TextSource
from monitoring.time_units import DAY_SECONDS
from tests.fakes.ports import free_port
from tests.fakes.sources import give_credentials, s3_server
from tests.monitoring.test_archive import AFTER_RENAME, BEFORE_RENAME, begun, on, put
from tests.monitoring.test_erasure import AFTER, BEFORE
from tests.monitoring.test_erasure import begun as begun_erasure
from tests.monitoring.test_merging import KILLED_AFTER
from tests.monitoring.test_records import record
from tests.monitoring.test_texts import ended, kept, text
from tests.waiting import until

ADDRESS = "s3://models/of/the-archive"
PART_BYTES = 5 << 20


@pytest.fixture
async def job(valkey_socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ArchiveJob]:
    give_credentials(monkeypatch)
    async with s3_server() as url:
        yield job_in(Bucket(ADDRESS, url), valkey_socket, tmp_path)


def job_in(bucket: Bucket, valkey_socket: str, folder: Path) -> ArchiveJob:
    texts = TextRetention({"returns": TextDays(36_600)})
    return ArchiveJob(f"unix://{valkey_socket}", str(folder / "made"), 36_600, texts=texts, bucket=bucket)


def storage_of(job: ArchiveJob) -> ArchiveStorage:
    return open_storage(job.folder, job.bucket)


def contents(job: ArchiveJob, folder: Path) -> Iterator[tuple[str, str]]:
    """Every object of the bucket, read past the archive: Parquet as its rows."""
    assert job.bucket is not None
    files = open_bucket(job.bucket, skip_instance_cache=True, use_listings_cache=False)
    for name in files.find("models"):
        raw, copy = files.cat_file(name), folder / "copy"
        copy.write_bytes(raw)
        if name.endswith(".parquet"):
            yield name, str(duckdb.execute("SELECT * FROM read_parquet(?)", [str(copy)]).fetchall())
        else:
            yield name, raw.decode()


def records_in(job: ArchiveJob) -> list[str]:
    """The ids of all archived records."""
    storage = storage_of(job)
    with archive.connect_duckdb(storage) as connection:
        table = archive.find_table(storage, ArchiveQuery())
        return sorted(row[0] for row in connection.execute(f"SELECT id FROM {table}").fetchall())


def erasure_of(job: ArchiveJob, folder: Path, *requests: str) -> ErasureJob:
    places = {name: str(folder / name) for name in ("datasets", "trainings", "spool")}
    return ErasureJob(
        redis_url=job.redis_url,
        folder=job.folder,
        bucket=job.bucket,
        until=text(0).at,
        requests=list(requests),
        **places,
    )


async def run(job: ArchiveJob) -> ArchiveReport:
    return await asyncio.to_thread(archive_run.run, job)


@pytest.mark.timeout(600)
async def test_what_is_in_a_bucket_is_listed_read_erased_and_removed_as_in_a_folder(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    old, *fresh = made = [record() for _ in range(3)]
    old.at -= 10 * DAY_SECONDS
    fresh[1].at = fresh[0].at
    await put(redis, *made)
    await redis.xadd(STREAM_KEY, {"id": "x", "handles": "", "record": b"\xff{ of r3"})
    await kept(redis, [text(number) for number in range(6)])
    report = await run(job)
    assert (report.records, report.unreadable, report.texts, report.files) == (4, 1, 6, 3), report
    assert (await run(job)).files == 0, "all is there"
    days = await asyncio.to_thread(archive.count, storage_of(job), ArchiveQuery(since=fresh[0].at))
    assert [(day.rows, day.files, day.size_bytes > 0) for day in days] == [(2, 1, True)]
    assert await asyncio.to_thread(records_in, job) == sorted(one.id for one in made)

    def read(*requests: str) -> list[str]:
        with TextReader(TextSource(job.redis_url, job.folder, bucket=job.bucket)) as texts:
            every = sorted(each.request for each in texts.of_task("returns"))
            assert sorted(texts.of_requests(requests)) == [request for request in requests if request in every]
            return every

    assert await asyncio.to_thread(read, "r1", "r3") == [f"r{number}" for number in range(6)]
    before = dict(contents(job, tmp_path))
    assert {name for name, said in before.items() if "vase number 3" in said or "of r3" in said} == {
        name for name in before if "/texts/" in name or "/unreadable/" in name
    }
    erased = await asyncio.to_thread(erase, erasure_of(job, tmp_path, "r3"))
    assert (erased.texts, erased.requests) == (1, ["r3"])
    after = dict(contents(job, tmp_path))
    assert after.keys() == before.keys()
    assert not [name for name, said in after.items() if "vase number 3" in said or "of r3" in said]
    assert await asyncio.to_thread(read, "r1", "r3") == [f"r{number}" for number in (0, 1, 2, 4, 5)]
    await asyncio.to_thread(erase, erasure_of(job, tmp_path, *(f"r{number}" for number in range(6))))
    assert not [name for name in dict(contents(job, tmp_path)) if "/texts/" in name], "a file without a row goes"
    job.retention_days = 5
    await run(job)
    assert await asyncio.to_thread(records_in, job) == sorted(one.id for one in fresh), "the old day is gone"
    assert list(Path(job.folder).iterdir()) == [], "nothing is left of what was on its way"


@pytest.mark.timeout(600)
async def test_a_killed_writer_of_a_bucket_loses_nothing_and_doubles_nothing(redis: Redis, job: ArchiveJob) -> None:
    made = [on(0), on(1), on(2)]
    await put(redis, *made)
    for hook in (BEFORE_RENAME, AFTER_RENAME):
        assert await asyncio.to_thread(ended, begun(job, hook)) == -9
        await redis.delete(archive_lock.KEY)  # as it is after LOCK_SECONDS
    made.append(on(0))
    await put(redis, made[-1])
    await run(job)
    assert await asyncio.to_thread(records_in, job) == sorted(one.id for one in made)


@pytest.mark.timeout(600)
async def test_a_killed_erasure_in_a_bucket_is_done_again_and_loses_no_other_text(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    await kept(redis, [text(number) for number in range(6)])
    await run(job)
    erasure = erasure_of(job, tmp_path, "r3")
    for hook in (BEFORE, AFTER):
        assert await asyncio.to_thread(ended, begun_erasure(erasure, hook)) == -9
        await redis.delete(archive_lock.KEY)
    assert (await asyncio.to_thread(erase, erasure)).requests == ["r3"]
    texts = [said for name, said in contents(job, tmp_path) if "/texts/" in name]
    assert [number for number in range(6) if f"vase number {number}" in "".join(texts)] == [0, 1, 2, 4, 5]


@pytest.mark.timeout(600)
async def test_a_killed_merge_in_a_bucket_leaves_each_row_once_and_nothing_erased(
    redis: Redis, job: ArchiveJob, tmp_path: Path
) -> None:
    made = [on(0) for _ in range(3)]
    for number, each in enumerate(made):
        await put(redis, each)
        await kept(redis, [text(number, on(0).at)])
        await run(job)
    await redis.delete(LOOKED_KEY)
    assert await asyncio.to_thread(ended, begun(job, KILLED_AFTER.replace("REMOVED", "1"))) == -9
    await redis.delete(archive_lock.KEY)
    assert await asyncio.to_thread(records_in, job) == sorted(one.id for one in made)
    assert (await run(job)).merged == 3, "the records are merged by now, and the texts not yet"
    await kept(redis, [text(3, on(0).at)])
    await run(job)
    await redis.delete(LOOKED_KEY)
    assert await asyncio.to_thread(ended, begun(job, KILLED_AFTER.replace("REMOVED", "0"))) == -9
    await redis.delete(archive_lock.KEY)
    names = [name for name, said in contents(job, tmp_path) if "/texts/" in name and "vase number 1" in said]
    assert len(names) == 2, "of before, and of after"
    assert (await asyncio.to_thread(erase, erasure_of(job, tmp_path, "r1"))).texts == 1
    texts = "".join(said for name, said in contents(job, tmp_path) if "/texts/" in name)
    assert [number for number in range(4) if f"vase number {number}" in texts] == [0, 2, 3]
    assert await asyncio.to_thread(records_in, job) == sorted(one.id for one in made)


@pytest.mark.timeout(600)
async def test_of_two_that_write_into_a_bucket_at_once_neither_writes_what_the_other_has(
    redis: Redis, job: ArchiveJob
) -> None:
    made = [record() for _ in range(120)]
    await put(redis, *made)
    job.part_entries_max = 40
    both = [begun(job), begun(job)]

    def told(process: Any) -> ArchiveReport:
        with process:
            return msgspec.json.decode(process.stdout.readline(), type=ArchiveReport)

    reports = await asyncio.gather(*(asyncio.to_thread(told, process) for process in both))
    assert sum(report.records for report in reports) == 120
    assert await asyncio.to_thread(records_in, job) == sorted(one.id for one in made)


@dataclass
class Relay:
    """A way to a server: nobody gets through while it is `down`, which it is `cut_after` so many bytes of requests."""

    url: str
    down: bool = False
    cut_after: int | None = None


@asynccontextmanager
async def relay(port: int) -> AsyncIterator[Relay]:
    """A way to the server at a port."""
    way = Relay(f"http://127.0.0.1:{(own := free_port())}")

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, is_asking: bool) -> None:
        with suppress(OSError):
            while not way.down and (piece := await reader.read(4096)):
                if is_asking and way.cut_after is not None:
                    way.cut_after -= len(piece)
                    way.down = way.cut_after < 0
                if not way.down:
                    writer.write(piece)
                    await writer.drain()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if way.down:
            writer.close()
            return
        with suppress(OSError):
            back, out = await asyncio.open_connection("127.0.0.1", port)
            ways = [asyncio.create_task(carry(*each)) for each in ((reader, out, True), (back, writer, False))]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for each in (out, writer):
                each.close()
            await asyncio.gather(*ways)

    server = await asyncio.start_server(take, "127.0.0.1", own)
    try:
        yield way
    finally:
        way.down = True
        server.close()


@pytest.mark.timeout(600)
async def test_a_server_that_goes_in_the_middle_of_a_write_gets_all_once_it_is_back(
    redis: Redis, job: ArchiveJob, valkey_socket: str, tmp_path: Path
) -> None:
    assert job.bucket is not None
    assert job.bucket.s3_endpoint_url is not None
    made = [record() for _ in range(500)]
    await put(redis, *made)
    async with relay(int(job.bucket.s3_endpoint_url.rpartition(":")[2])) as way:
        cut = job_in(Bucket(ADDRESS, way.url), valkey_socket, tmp_path)
        way.cut_after = 20_000
        with pytest.raises(BucketError, match="s3://models/of/the-archive"):
            await run(cut)
        assert way.down, "it was in the middle of the file"
        assert list(contents(job, tmp_path)) == [], "half a file is none"
        assert await redis.hget("apprentice:archive:records", "planned")
        with pytest.raises(BucketError, match="s3://models/of/the-archive"):
            await run(cut)
        assert await redis.xlen(STREAM_KEY) == 500, "all of it waits"
        way.down, way.cut_after = False, None
        assert (await run(cut)).records == 500
        assert await asyncio.to_thread(records_in, cut) == sorted(one.id for one in made)
        way.down = True
        with pytest.raises(BucketError, match="can't be read"), storage_of(cut).explain_errors():
            await asyncio.to_thread(read_unlisted, cut)


@pytest.mark.timeout(600)
async def test_a_damaged_object_is_left_out_and_a_lost_bucket_counts_as_no_damage(
    redis: Redis, job: ArchiveJob, valkey_socket: str, tmp_path: Path
) -> None:
    assert job.bucket is not None
    assert job.bucket.s3_endpoint_url is not None
    made = [record() for _ in range(2)]
    made[0].at -= DAY_SECONDS
    await put(redis, *made)
    await run(job)
    async with relay(int(job.bucket.s3_endpoint_url.rpartition(":")[2])) as way:
        storage = storage_of(job_in(Bucket(ADDRESS, way.url), valkey_socket, tmp_path))
        places = await asyncio.to_thread(archive.find_files, storage, ArchiveQuery())

        def read_ids() -> list[str]:
            with storage.explain_errors(), archive.connect_duckdb(storage) as connection:
                rows = archive.query_files(connection, storage, "records", places, "SELECT id FROM {table}")
                return [row["id"] for row in rows]

        way.down = True
        with pytest.raises(BucketError):
            await asyncio.to_thread(read_ids)
        way.down = False
        assert (storage.damaged, sorted(await asyncio.to_thread(read_ids))) == (set(), sorted(each.id for each in made))
    files = open_bucket(job.bucket, skip_instance_cache=True, use_listings_cache=False)
    await asyncio.to_thread(files.pipe_file, f"{ADDRESS}/{places[0]}", b"\xff" * 100)
    storage = storage_of(job)
    assert await asyncio.to_thread(read_ids) == [made[1].id]
    assert storage.damaged == {places[0]}


def read_unlisted(job: ArchiveJob) -> None:
    """A read that fails inside DuckDB."""
    storage = storage_of(job)
    with archive.connect_duckdb(storage) as connection:
        table = archive.read(storage, "records", ["records/day=2026-03-01/part-1-2.parquet"])
        connection.execute(f"SELECT * FROM {table}")


async def test_what_is_wrong_with_a_bucket_is_told_in_one_sentence(
    redis: Redis, valkey_socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    await put(redis, record())
    async with s3_server(INITIAL_NO_AUTH_ACTION_COUNT="1") as url:
        job = job_in(Bucket(ADDRESS, url), valkey_socket, tmp_path)
        with pytest.raises(BucketError, match=f"There are no credentials for {ADDRESS}"):
            await run(job)
        give_credentials(monkeypatch)
        with pytest.raises(BucketError, match=r"refuses access \(403\): give credentials that may list, read, write"):
            await run(job)
        with begun(job) as process:
            assert process.stdout is not None
            assert (await asyncio.to_thread(process.stdout.readline)).startswith(ERROR_MARK + ADDRESS.encode())
    async with s3_server() as url:
        with pytest.raises(BucketError, match="There is nothing at s3://nowhere/x: check bucket and folder"):
            await asyncio.to_thread(list_days, Bucket("s3://nowhere/x", url))
        assert await asyncio.to_thread(list_days, Bucket(ADDRESS, url)) == []
    assert await redis.xlen(STREAM_KEY) == 1


@pytest.mark.timeout(600)
async def test_an_upload_in_parts_is_not_completed_by_who_has_lost_the_lock_meanwhile(
    redis: Redis, job: ArchiveJob, valkey_socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda *_, **__: PART_BYTES)
    storage, file, place = storage_of(job), tmp_path / "file", "records/day=2026-03-01/part-1-2.parquet"
    assert isinstance(storage, BucketStorage)
    file.write_bytes(b"old")
    with Client(unix_socket_path=valkey_socket) as client, storage.lock(client):
        await asyncio.to_thread(storage.write, place, file)
        lock, looks = storage._lock, []
        assert lock is not None
        see = lock.see_that_it_is_held

        def lose() -> None:
            looks.append(1)
            if len(looks) == 3:  # after the one before the upload, and the one at its size
                client.delete(archive_lock.KEY)
                assert not lock._take("renew"), "others may have had it meanwhile"
            see()

        monkeypatch.setattr(lock, "see_that_it_is_held", lose)
        file.write_bytes(bytes(3 * PART_BYTES))
        with pytest.raises(LockLost):
            await asyncio.to_thread(storage.write, place, file)
        assert await asyncio.to_thread(storage.read, place) == b"old"


async def test_a_bucket_has_one_writer_or_many_readers_and_none_writes_without_the_lock(
    redis: Redis, valkey_socket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Client(unix_socket_path=valkey_socket) as client:
        with ArchiveLock(client, shared=True), ArchiveLock(client, shared=True):
            writer = ArchiveLock(client, shared=False)
            assert not writer._take("write")
            assert not ArchiveLock(client, shared=True)._take("read"), "who waits to write comes before new readers"
        assert writer._take("write")
        await redis.delete(archive_lock.KEY)
        monkeypatch.setattr(archive_lock, "BAR_SECONDS", 0.0)
        with ArchiveLock(client, shared=True), ArchiveLock(client, shared=True):
            assert not ArchiveLock(client, shared=False)._take("write")
            await until(
                lambda: ArchiveLock(client, shared=True)._take("read"), "a reader that takes long bars no other"
            )
        await redis.delete(archive_lock.KEY)
        storage = BucketStorage(Bucket(ADDRESS, "http://127.0.0.1:1"), tmp_path)
        with storage.lock(client):
            assert not ArchiveLock(client, shared=True)._take("read")
            assert not ArchiveLock(client, shared=False)._take("write")
            await redis.delete(archive_lock.KEY)
            assert storage._lock is not None
            assert not storage._lock._take("renew"), "others may have had it meanwhile"
            for change in (storage.remove, lambda place: storage.write(place, tmp_path)):
                with pytest.raises(LockLost):
                    change("records/day=2026-03-01/part-1-2.parquet")
        with ArchiveLock(client, shared=False):
            assert await redis.zcard(archive_lock.KEY) == 1
    assert await redis.exists(archive_lock.KEY) == 0
