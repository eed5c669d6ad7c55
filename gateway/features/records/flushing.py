"""This gateway's flow of records into Redis: opened at the start, emptied at the stop."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from gateway.configuration.settings import Settings
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import STREAM_MAX as FEEDBACK_STREAM_MAX
from monitoring.feedback import Coverage
from monitoring.metrics import Meters
from monitoring.record_flow import FlowReport, Pace, RecordFlow
from monitoring.records import Joined, RecordBuffer, RecordStream
from monitoring.spool import Spool

log = logging.getLogger(__name__)
LAST_SECONDS_MAX = 5.0


@asynccontextmanager
async def open_flow(
    settings: Settings, name: str, redis: Redis, meters: Meters, coverage: Coverage
) -> AsyncIterator[RecordFlow]:
    """Run the flow of records during the block. At its end all records go to the stream, or to disk. Raises OSError."""
    keep = settings.records
    stream = RecordStream(
        redis,
        keep.retention_seconds,
        keep.stream_records_max,
        FEEDBACK_STREAM_KEY,
        FEEDBACK_STREAM_MAX,
        keep.unarchived_records_max if keep.archive else None,
        keep.stream_reported_max,
    )
    counted = 0

    def flushed(seconds: float) -> None:
        nonlocal counted
        meters.records_flush_seconds.observe(seconds)
        meters.records_unarchived_dropped.add(stream.unarchived_dropped - counted)
        counted = stream.unarchived_dropped

    flow = RecordFlow(
        RecordBuffer(keep.pending_max),
        stream,
        Spool(settings.data_folder.absolute() / "spool", name, keep.spool_bytes_max),
        Pace(keep.flush_interval_seconds, keep.spool_after_seconds, keep.spool_sync_interval_seconds),
        FlowReport(lambda joined: _note_joined(meters, coverage, joined), meters.records_dropped.add, flushed),
    )
    await flow.open()
    try:
        yield flow
    finally:
        left = await flow.stop(time.monotonic() + LAST_SECONDS_MAX)
        if left:
            log.error("%d records could not be stored before the stop: the next gateway takes them over", left)


def _note_joined(meters: Meters, coverage: Coverage, joined: Joined) -> None:
    """Count feedback that waited for its record."""
    record = joined.record
    metric = str(joined.feedback.get("metric"))
    meters.feedback.add(1, record.task or "", record.version or "", metric, joined.outcome)
    if joined.first and record.purpose == "serve":
        coverage.judged(record.task or "")
