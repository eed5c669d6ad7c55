"""Background job of one gateway that moves records and feedback from Redis's streams into Parquet files.

This module only starts a process and waits for it: reading, packing and writing would block the event loop.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any

import msgspec

from gateway.background.job_process import make_command, run_process
from gateway.configuration.settings import Settings
from gateway.errors import Problem
from gateway.request_labels import read_rules
from gateway.services import Services
from monitoring.datasets.build_job import KeptSource
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.metrics import Meters
from monitoring.records import REPORTED_STREAM_KEY
from monitoring.records import STREAM_KEY as RECORDS_STREAM_KEY
from monitoring.texts import PRUNED_KEY, TextDays, TextKeys, TextRetention, TextSource
from monitoring.texts import STREAM_KEY as TEXTS_STREAM_KEY

log = logging.getLogger(__name__)
RUN_SECONDS_MAX = 600.0
PAUSE_KEY = "apprentice:archive:pause"
STREAMS = (
    ("records", RECORDS_STREAM_KEY),
    ("feedback", FEEDBACK_STREAM_KEY),
    ("reported", REPORTED_STREAM_KEY),
    ("texts", TEXTS_STREAM_KEY),
)
"""Each with its name in the archive (archive/run.py)."""
COMMAND = make_command("monitoring.archive.run")
CHECK_COMMAND = make_command("monitoring.archive.bucket")
CHECK_SECONDS_MAX = 60.0


class Archived(msgspec.Struct):
    """The numbers of entries that a run has written."""

    records: int = 0
    feedback: int = 0
    unreadable: int = 0


async def keep_archiving(services: Services) -> None:
    """Archive at every interval, unless another gateway just did. Runs until cancelled. Raises RedisError."""
    keep = services.settings.records
    if not keep.archive:
        await asyncio.Event().wait()
    await _check_bucket(services.settings)
    lease = services.lease_job("archive")
    pause_ms = max(1, int(900 * keep.archive_interval_seconds))
    redis: Any = services.redis

    async def archive() -> None:
        if await redis.set(PAUSE_KEY, services.name, nx=True, px=pause_ms) and await _is_behind(redis):
            await archive_once(services.settings, services.meters)

    await asyncio.sleep(keep.archive_interval_seconds)
    await lease.repeat(archive, keep.archive_interval_seconds)


async def _check_bucket(settings: Settings) -> None:
    """Log faults of the archive's bucket at the start. The gateway starts anyway, since the entries can wait."""
    if settings.archive_bucket is not None:
        try:
            await run_process(CHECK_COMMAND, settings.archive_bucket, list[str], CHECK_SECONDS_MAX)
        except Problem as problem:
            log.error("the archive %s can't be used: %s", name_archive(settings), problem.message)


async def archive_once(settings: Settings, meters: Meters) -> Archived | None:
    """Write all new entries; None after a failure, which is logged. Unwritten entries wait for the next time."""
    job = {
        "redis_url": settings.find_redis_address(),
        "folder": str(settings.archive),
        "bucket": settings.archive_bucket,
        "retention_days": settings.records.archive_retention_days,
        "texts": text_retention_of(settings),
    }
    try:
        archived = await run_process(COMMAND, job, Archived, RUN_SECONDS_MAX)
    except Problem as problem:
        log.error("the archive %s can't be written: %s", name_archive(settings), problem.message)
        return None
    meters.records_archived.add(archived.records)
    if archived.unreadable:
        text = "%d entries could not be read, and lie in %s/unreadable"
        log.error(text, archived.unreadable, name_archive(settings))
    return archived


def text_retention_of(settings: Settings) -> TextRetention:
    """The retention of kept texts and their keys, for another process."""
    tasks = {
        name: TextDays(
            task.texts.retention_days, task.texts.judged_within_days if task.texts.keep == "judged" else None
        )
        for name, task in settings.tasks.items()
    }
    days, class_tags = settings.records.archive_retention_days, sorted(settings.list_class_tags())
    return TextRetention(tasks, days, text_keys_of(settings), class_tags)


def text_keys_of(settings: Settings) -> TextKeys:
    """The keys of kept texts, for another process."""
    keys = {name: base64.b64encode(key).decode() for name, key in settings.texts.key_bytes().items()}
    return TextKeys(keys, settings.texts.key)


def text_source_of(settings: Settings) -> TextSource:
    """The place of kept texts, for another process."""
    return TextSource(
        settings.find_redis_address(), str(settings.archive), text_keys_of(settings), settings.archive_bucket
    )


async def find_kept_source(
    services: Services, task: str, since: float | None, looked_since: float, until: float
) -> KeptSource:
    """The place of a task's kept texts, and the rules of its labels. Raises RedisError."""
    texts, rules = text_source_of(services.settings), await read_rules(services, task)
    return KeptSource(texts=texts, rules=rules, since=since, looked_since=looked_since, until=until)


def name_archive(settings: Settings) -> str:
    """The archive's folder or bucket, for people."""
    return str(settings.archive) if settings.archive_bucket is None else settings.archive_bucket.address


async def _is_behind(redis: Any) -> bool:
    for source, stream in STREAMS:
        last = await redis.xrevrange(stream, count=1)
        done, planned = await redis.hmget(f"apprentice:archive:{source}", "done", "planned")
        if planned or (last and last[0][0] != done):
            return True
    return not await redis.exists(PRUNED_KEY)  # texts may be due for deletion, and files for merging
