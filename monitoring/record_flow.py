"""The flow of records: from memory into the stream, or into the spool while Redis does not accept them.

A record stays only in memory for at most flush_interval_seconds before it is sent. If Redis is away, or has not
answered within spool_after_seconds, the record is written to the spool at the next tick, at most flush_interval_seconds
later. While the spool holds records, new ones are added to it, so that they reach the stream in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import msgspec
from redis.exceptions import RedisError

from monitoring.records import Joined, Record, RecordBuffer, RecordStream
from monitoring.spool import Spool, decode_payloads

log = logging.getLogger(__name__)
BATCH_MAX = 500
REPLAY_MAX = 100
"""Fewer than in a flush: a replay blocks the event loop, and nobody waits for it. If Redis is slow, BATCH_MAX."""
SLOW_SECONDS = 0.05
SPILL_MAX = 200
HANDLES_MAX = 100_000
RETRY_SECONDS = 0.25
TAKE_OVER_SECONDS = 10.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pace:
    """Times of the flow: between sendings, until records go to the spool instead, and between syncs of the spool."""

    flush_interval_seconds: float
    spool_after_seconds: float
    spool_sync_interval_seconds: float


@dataclass(frozen=True, slots=True)
class FlowReport:
    """Receivers of the flow's reports: joined feedback, the number of lost records, the seconds that a batch took."""

    joined: Callable[[Joined], None]
    dropped: Callable[[int], None]
    flushed: Callable[[float], None]


class _Unread(Exception):
    """The spool could not be read or shortened: a fault of the disk, not of Redis."""


class RecordFlow:
    """Moves records into the stream. It owns the spool; a single thread reads and writes it."""

    def __init__(
        self, buffer: RecordBuffer, stream: RecordStream, spool: Spool, pace: Pace, report: FlowReport
    ) -> None:
        self.buffer = buffer
        self.stream = stream
        self._spool = spool
        self._pace = pace
        self._report = report
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._handles: OrderedDict[str, str] = OrderedDict()
        self._away = False
        self._unread = False
        self._refusal = ""
        """The reason why the disk takes no records now, which is logged once; empty if it does."""
        self._asked_at: float | None = None
        self._took = 0.0

    @property
    def pending(self) -> int:
        """The number of records in memory and in the spool, which are not known to be in the stream."""
        return len(self.buffer) + self._spool.records

    @property
    def spool_bytes(self) -> int:
        """Size of the spool's segments."""
        return self._spool.size_bytes

    def oldest_seconds(self) -> float:
        """The age of the oldest record that is not known to be in the stream; 0 if there is none."""
        at = self._spool.oldest_at
        return max(self.buffer.oldest_seconds(), time.time() - at if at is not None else 0.0)

    def unanswered_seconds(self) -> float:
        """Time since Redis was first sent records without an answer; 0 if it answered the last time."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    def latest_of(self, handle: str) -> str | None:
        """The id of the newest record of a session or subject that is not yet in the stream."""
        return self.buffer.latest_of(handle) or self._handles.get(handle)

    async def find_latest(self, handle: str) -> str | None:
        """The id of the newest record of a session or subject, stored or not yet. Raises RedisError."""
        return self.latest_of(handle) or await self.stream.latest_of(handle)

    async def find(self, request_id: str) -> Record | None:
        """The record of a request, stored or not yet; None if there is none. Raises RedisError."""
        return self.buffer.find(request_id) or await self.stream.read(request_id)

    async def open(self) -> None:
        """Lock this gateway's part of the spool. Raises OSError if that fails."""
        await self._in_thread(self._spool.open)

    async def run(self) -> None:
        """Keep records flowing until cancelled. Redis may be away meanwhile."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_sending())
            group.create_task(self._keep_spooling())
            group.create_task(self._keep_spool())

    async def stop(self, until: float) -> int:
        """Empty the buffer into the stream, or else onto the disk; try the stream until `until` (monotonic seconds).

        Returns the number of records that are left, which are in the spool if the disk took them.
        """
        try:
            async with asyncio.timeout(self._pace.spool_after_seconds):
                while len(self.buffer) and not self._spool.records:
                    await self._flush_some()
        except (RedisError, OSError, TimeoutError) as error:
            self._note_away(error)
        await self._spill()
        await self._synced()
        while self.pending and time.monotonic() < until:
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + until - time.monotonic()):
                    await (self._replay_some() if self._spool.records else self._flush_some())
            except (RedisError, OSError, TimeoutError, _Unread):
                await asyncio.sleep(0.1)
        remaining = self.pending
        try:
            await self._in_thread(self._spool.close)
        except OSError as error:
            log.error("the spool can't be closed: %s", error)
        self._thread.shutdown(wait=False)
        return remaining

    async def _keep_sending(self) -> None:
        while True:
            if not self._spool.records:
                await self.buffer.some()
                await asyncio.sleep(self._pace.flush_interval_seconds)
            try:
                if self._spool.records:
                    await self._replay_some()
                elif await self._flush_some() >= BATCH_MAX:
                    continue
            except (RedisError, OSError) as error:
                self._note_away(error)
                await asyncio.sleep(RETRY_SECONDS)
            except _Unread as error:
                if not self._unread:
                    log.error("the spool can't be read, its records wait: %s", error)
                self._unread = True
                await asyncio.sleep(RETRY_SECONDS)

    async def _keep_spooling(self) -> None:
        while True:
            await self.buffer.some()
            await asyncio.sleep(self._pace.flush_interval_seconds)
            if self._spool.records or self._away or self.unanswered_seconds() >= self._pace.spool_after_seconds:
                await self._spill()

    async def _keep_spool(self) -> None:
        """Sync the spool, and take over the segments of dead gateways."""
        looked_at = -TAKE_OVER_SECONDS
        while True:
            try:
                if time.monotonic() - looked_at >= TAKE_OVER_SECONDS:
                    looked_at = time.monotonic()
                    if await self._in_thread(self._spool.take_over):
                        self.buffer.wake()
                    self._tell_lost()
            except OSError as error:
                log.error("spools can't be taken over: %s", error)
            await asyncio.sleep(self._pace.spool_sync_interval_seconds)
            if self._spool.is_dirty:
                await self._synced()

    async def _flush_some(self) -> int:
        """Move one batch from the buffer to the stream; returns its size. Raises RedisError, and then loses nothing."""
        batch = self.buffer.first(BATCH_MAX)
        if batch:
            await self._append(batch)
            self.buffer.forget(batch)
        return len(batch)

    async def _replay_some(self) -> None:
        """Move one batch from the spool to the stream. Raises RedisError and _Unread, and then loses nothing."""
        payloads = await self._of_spool(self._spool.first, REPLAY_MAX if self._took < SLOW_SECONDS else BATCH_MAX)
        records, unreadable = decode_payloads(payloads, Record)
        if records:
            await self._append(records)
        await self._of_spool(self._spool.forget)
        self._unread = False
        self._tell_lost(unreadable)
        if not self._spool.records:
            self._handles.clear()

    def _tell_lost(self, more: int = 0) -> None:
        if lost := more + self._spool.count_newly_lost():
            self._report.dropped(lost)

    async def _append(self, records: list[Record]) -> None:
        began = time.monotonic()
        if self._asked_at is None:
            self._asked_at = began
        for joined in await self.stream.append(records):
            self._report.joined(joined)
        self._asked_at = None
        if self._away:
            self._away = False
            log.warning("Redis takes records again; %d wait in the spool", self._spool.records)
        self._took = time.monotonic() - began
        self._report.flushed(self._took)

    async def _spill(self) -> None:
        """Write all records that are in memory now to the spool. If the disk fails, they stay in memory."""
        remaining = len(self.buffer)
        while remaining > 0 and (batch := self.buffer.first(min(remaining, SPILL_MAX))):
            remaining -= len(batch)
            payloads = [msgspec.json.encode(record) for record in batch]
            try:
                dropped = await self._in_thread(self._spool.append, payloads, batch[0].at)
            except OSError as error:
                refusal = error.strerror or str(error)  # without the file's name, which differs each time
                if refusal != self._refusal:
                    log.error("%d records can't be spooled, and wait in memory: %s", len(self.buffer), error)
                self._refusal = refusal
                return
            self._refusal = ""
            for record in batch:
                for handle in record.handles:
                    self._handles[handle] = record.id
                    self._handles.move_to_end(handle)
            while len(self._handles) > HANDLES_MAX:
                self._handles.popitem(last=False)
            self.buffer.forget(batch)
            # The sender may wait for a record in memory: it stored this batch while this function was writing it.
            self.buffer.wake()
            if dropped:
                self._report.dropped(dropped)

    async def _synced(self) -> None:
        try:
            await self._in_thread(self._spool.sync)
        except OSError as error:
            log.error("the spool can't be synced: %s", error)

    def _note_away(self, error: BaseException) -> None:
        if not self._away:
            log.warning("Redis takes no records, they go to the spool: %s", error or type(error).__name__)
        self._away = True

    async def _of_spool(self, call: Callable[..., T], *arguments: object) -> T:
        try:
            return await self._in_thread(call, *arguments)
        except OSError as error:
            raise _Unread(str(error)) from error

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
