"""One erasure of requests' texts, in a process of its own: from Redis, the archive, the spool, data sets and suites.

`python -m monitoring.erasure_run` reads an ErasureJob as a line of JSON, and prints an ErasureReport. It ends at once
when its input is closed. After a kill, the next run repeats everything; it finds erased texts already erased.

Meanwhile the data sets and the archive are locked, in this order, so a build that has read a text finishes its set
first. The erasure first erases waiting texts from Redis. Then it archives all other waiting entries, so that every
request can be found there, and rewrites the files without the texts.
"""

from __future__ import annotations

import time
from collections.abc import Set
from pathlib import Path

import msgspec

from monitoring.archive.merging import remove_all_spanned
from monitoring.archive.run import ArchiveReport, write_all
from monitoring.archive.storage import open_storage
from monitoring.bucket_storage import Bucket
from monitoring.erasure import (
    ErasedSet,
    erase_from_sets,
    erase_from_trainings,
    erase_texts,
    erase_unreadable,
    erase_words_of_feedback,
    find_requests,
    find_tasks,
    make_search,
    remove_leftovers,
)
from monitoring.evaluation.erasure import (
    ErasedSuite,
    erase_from_evaluations,
    erase_from_suites,
    erase_from_uploads,
    mark_forgotten,
)
from monitoring.feedback_erasure import erase_feedback_words
from monitoring.helper_process import run_job
from monitoring.redis_address import open_redis
from monitoring.synced_files import lock_folder
from monitoring.text_stream import delete_texts, forgotten_name_of, read_waiting_raw
from monitoring.texts import TextKeys, TextRow
from monitoring.unread_places import UNREADABLE, note_unread


class ErasureJob(msgspec.Struct):
    """The requests to erase: by id, and up to the time `until` (Unix seconds) by the names of callers and handles.
    `keys` open the rows of suites, to count their classes again."""

    redis_url: str
    folder: str
    datasets: str
    trainings: str
    spool: str
    until: float
    requests: list[str] = []
    names: list[str] = []
    bucket: Bucket | None = None
    keys: TextKeys = TextKeys()


class ErasureReport(msgspec.Struct):
    """The result: the requests found, and the numbers of erased items. `evaluated` counts rows of evaluations,
    `trained` rows of trainings; `trainings` names the folders that have lost any. `unread` are files and folders that
    could not be read or changed, each with the reason: the erasure is not complete."""

    requests: list[str] = []
    texts: int = 0
    feedback: int = 0
    datasets: list[ErasedSet] = []
    suites: list[ErasedSuite] = []
    evaluated: int = 0
    trained: int = 0
    trainings: list[str] = []
    unread: list[str] = []
    seconds: float = 0.0


def erase(job: ErasureJob) -> ErasureReport:
    """Erase what the job names. Raises RedisError, OSError, JobError and duckdb.Error; texts may be erased by then."""
    began = time.monotonic()
    report, storage, requests = ErasureReport(), open_storage(job.folder, job.bucket), set(job.requests)
    datasets, trainings = Path(job.datasets), Path(job.trainings)
    for each in (storage.scratch, datasets):
        each.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (
        lock_folder(datasets),
        open_redis(job.redis_url, socket_timeout=30, socket_connect_timeout=5) as redis,
        storage.lock(redis),
    ):
        for each in (storage.scratch, datasets, trainings):
            remove_leftovers(each, report.unread)
        remove_all_spanned(storage)
        names = frozenset(job.names)
        waiting = {name for name, raw in read_waiting_raw(redis) if _is_meant(name, raw, job, names, requests)}
        delete_texts(redis, waiting, 0)
        write_all(redis, storage, ArchiveReport())
        requests |= waiting | find_requests(storage, job.names, job.until)
        report.requests = sorted(requests)
        report.texts = len(waiting) + erase_texts(storage, requests)
        report.feedback = erase_words_of_feedback(storage, requests)
        erase_unreadable(storage, requests, report.unread)
        with note_unread(report.unread, "feedback in Redis"):
            erase_feedback_words(redis, requests)
        mark_forgotten(redis, requests)
        erase_from_uploads(redis, requests, report.unread)
        report.suites = erase_from_suites(redis, requests, job.keys.seals(), report.unread)
        report.evaluated = erase_from_evaluations(redis, requests, report.unread)
        _erase_damaged(Path(job.spool), requests, report.unread)
        report.trained, report.trainings = erase_from_trainings(trainings, requests, job.until, report.unread)
        tasks = find_tasks(storage, requests)
        report.datasets = erase_from_sets(datasets, requests, tasks, job.until, report.unread)
    report.unread += [f"{storage.root}/{place}: damaged" for place in sorted(storage.damaged)]
    report.seconds = round(time.monotonic() - began, 3)
    return report


def _is_meant(request: str, raw: bytes, job: ErasureJob, names: Set[str], requests: Set[str]) -> bool:
    """Return whether a waiting text is meant. One that can't be decoded is, if it holds one of the names."""
    if request in requests:
        return True
    try:
        row = msgspec.json.decode(raw, type=TextRow)
    except UNREADABLE:
        return any(name.removeprefix(forgotten_name_of("")).encode() in raw for name in names)
    return row.at <= job.until and not names.isdisjoint((forgotten_name_of(row.caller), *row.handles))


def _erase_damaged(folder: Path, requests: Set[str], unread: list[str]) -> None:
    """Delete a spool's damaged segments that may hold one of the texts."""
    names_one = make_search(requests)
    for path in folder.glob("*.damaged"):
        with note_unread(unread, path):
            if names_one(path.read_bytes()):
                path.unlink()


if __name__ == "__main__":
    run_job(ErasureJob, erase)
