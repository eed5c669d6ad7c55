"""A search keeps no writer from the archive, and finds each request whatever is done there meanwhile."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.archive.merging import LOOKED_KEY
from monitoring.archive.run import ArchiveJob, run
from monitoring.archive.storage import FolderStorage
from monitoring.archive.tables import connect_duckdb
from monitoring.feedback import FeedbackStore
from monitoring.feedback_reader import read_feedback
from monitoring.labels.request_label import LabelRules
from monitoring.metric_values import Metric
from monitoring.records import STREAM_KEY
from monitoring.redis_time import read_redis_time
from monitoring.request_search import AT_ONCE, PAGE_BYTES_MAX, RequestQuery, SearchJob, _candidates, search
from monitoring.synced_files import lock_folder
from monitoring.text_stream import TextStream
from monitoring.texts import Seals, TextDays, TextRetention, TextSource
from monitoring.time_units import DAY_SECONDS
from tests.monitoring.test_archive import damage, put
from tests.monitoring.test_feedback import judgement
from tests.monitoring.test_merging import archive_each, made_on
from tests.monitoring.test_records import record
from tests.monitoring.test_texts import job, kept, reader, text

__all__ = ["job"]


async def test_the_archive_is_free_while_a_search_gives_what_it_found(redis: Redis, job: ArchiveJob) -> None:
    made = [made_on(day) for day in (3, 3, 2, 2)]
    await archive_each(redis, job, made)
    found = []
    with reader(job) as texts, closing(_candidates(texts, RequestQuery())) as every:
        for hit in every:
            found.append(hit.id)
            with lock_folder(Path(job.folder), wait=False):
                await redis.delete(LOOKED_KEY)
            run(job)  # merges the files of both days
    assert found == sorted((each.id for each in made), reverse=True)


class Watched(FolderStorage):
    listed: tuple[str, ...] = ()

    def list_names(self, place: str) -> list[str]:
        self.listed += (place,)
        return super().list_names(place)


async def test_archived_feedback_is_listed_once_and_for_older_requests_alone(
    redis: Redis, job: ArchiveJob, valkey_socket: str
) -> None:
    judged = record()
    await put(redis, judged)
    await FeedbackStore(redis, 3600, 1000).give(judged.id, judgement(), judged.caller, young=False)
    run(job)
    await redis.delete(f"apprentice:feedback:{judged.id}")
    seals, storage, newer = Seals({}, None), Watched(Path(job.folder)), made_on(-1).id
    with Client(unix_socket_path=valkey_socket) as client, connect_duckdb() as connection:
        with lock_folder(Path(job.folder)):
            assert read_feedback(client, connection, storage, [newer], seals) == {}
        assert storage.listed == ()
        (found,) = read_feedback(client, connection, storage, [newer, judged.id], seals)[judged.id]
    assert found.feedback_id == "f1"
    assert len(storage.listed) == len(set(storage.listed)) == 2


async def test_a_page_of_long_texts_ends_early_and_the_next_goes_on_from_there(redis: Redis, job: ArchiveJob) -> None:
    made = sorted((made_on(0) for _ in range(5)), key=lambda each: each.id, reverse=True)
    await put(redis, *made)
    row = Seals({}, None).close(msgspec.structs.replace(text(1), prompt="x" * (PAGE_BYTES_MAX // 2), messages=[]))
    rows = [msgspec.structs.replace(row, request=each.id) for each in made]
    assert await TextStream(redis, 1 << 30).keep(rows) == ["kept"] * 5
    pages, before, source = [], None, TextSource(job.redis_url, job.folder)
    while before is not None or not pages:
        page = search(SearchJob(source=source, query=RequestQuery(with_texts=True, before=before)))
        pages.append([each["id"] for each in page.requests])
        before = page.next_before
    assert pages == [[each.id for each in made[at : at + 2]] for at in (0, 2, 4)]


async def test_a_record_that_can_not_be_read_hides_no_other(redis: Redis, job: ArchiveJob) -> None:
    made = [made_on(1), made_on(0)]
    await put(redis, made[0])
    for fields in ({"id": "x", "handles": "", "record": b'{"id": 5}'}, {"id": "x"}):
        await redis.xadd(STREAM_KEY, dict[Any, Any](fields))
    await put(redis, made[1])
    page = search(SearchJob(source=TextSource(job.redis_url, job.folder), query=RequestQuery()))
    assert [each["id"] for each in page.requests] == [each.id for each in reversed(made)]


@pytest.mark.parametrize("damaged", ["records", "texts", "feedback"])
@pytest.mark.parametrize("is_whole", [True, False])
async def test_a_search_names_a_damaged_file_and_finds_all_else(
    redis: Redis, job: ArchiveJob, damaged: str, is_whole: bool
) -> None:
    made = [made_on(day) for day in (3, 2, 1)]
    job.texts = TextRetention({"returns": TextDays(30)})
    for each in made:
        await kept(redis, [msgspec.structs.replace(text(1), request=each.id, at=each.at)])
        await put(redis, each)
        await FeedbackStore(redis, 3600, 1000).give(each.id, judgement(), each.caller, young=False)
        run(job)
        await redis.delete(f"apprentice:feedback:{each.id}")
    await redis.xtrim(STREAM_KEY, maxlen=0, approximate=False)
    path = sorted(Path(job.folder, damaged).rglob("*.parquet"))[1]
    damage(path, None if is_whole else {"records": "task", "texts": "text", "feedback": "metric"}[damaged])
    rules = {"": LabelRules(metrics={"correct": Metric(kind="boolean")})}
    query = RequestQuery(with_texts=True)
    page = search(SearchJob(source=TextSource(job.redis_url, job.folder), query=query, rules=rules))
    assert page.damaged == [str(path.relative_to(job.folder))]
    found = {each["id"]: each for each in page.requests}
    assert list(found) == [each.id for each in reversed(made) if damaged != "records" or each is not made[1]]
    with_text = [name for name, each in found.items() if each["text"]]
    assert with_text == [name for name in found if damaged != "texts" or name != made[1].id]
    with_label = [name for name, each in found.items() if each["label"]]
    assert with_label == [name for name in found if damaged != "feedback" or name != made[1].id]


@pytest.mark.parametrize("is_archived", [True, False])
async def test_no_page_leaves_out_a_request_of_a_gateway_whose_clock_is_ahead(
    redis: Redis, job: ArchiveJob, is_archived: bool
) -> None:
    ahead = made_on(-5 / DAY_SECONDS)
    await put(redis, ahead, *(record() for _ in range(AT_ONCE - 1)))
    begun = await read_redis_time(redis)
    while await read_redis_time(redis) < begun + 0.05:
        pass
    await put(redis, record())
    if is_archived:
        run(job)
    found, before, source = set[str](), None, TextSource(job.redis_url, job.folder)
    while before is not None or not found:
        page = search(SearchJob(source=source, query=RequestQuery(before=before, limit=1 if not found else AT_ONCE)))
        found |= {each["id"] for each in page.requests}
        before = page.next_before
    assert ahead.id in found
    assert len(found) == AT_ONCE + 1
