"""Background job that redacts and seals texts, and moves them from the queue into Redis, in batches, in a thread.

While Redis is away, or full of texts that wait for the archive, texts go to the spool on disk. Later they follow from
there, in their order. A text that can't be redacted is dropped and counted: no text is kept without redaction.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import msgspec
from redis.exceptions import RedisError

from gateway.features.texts.redactors import redact_conversation
from gateway.features.texts.state import Texts
from gateway.formats.conversation_texts import AnsweredRequest
from monitoring.spool import decode_payloads
from monitoring.texts import KeptText, TextRow

log = logging.getLogger(__name__)
T = TypeVar("T")
BATCH_MAX = 50
LOOK_SECONDS = 1.0
"""Time after which the settings, the spool and its sync are checked, even without new texts."""
TAKE_OVER_SECONDS = 30.0
RETRY_SECONDS = 0.5
STORE_SECONDS_MAX = 5.0


class _Full(Exception):
    """Redis holds the maximum of texts that wait for the archive."""


async def keep_texts(texts: Texts) -> None:
    """Store the queued texts. Runs until cancelled; then the rest goes to the spool."""
    with ThreadPoolExecutor(1, "texts") as thread:
        keeper = _Keeper(texts, thread)
        await keeper.in_thread(texts.spool.open)
        try:
            while True:
                await keeper.turn()
        finally:
            thread.shutdown()  # first wait for a cancelled turn's work: one thread at a time may use the spool
            keeper.stop()


class _Made(NamedTuple):
    """The rows from a batch of requests, and the tasks of requests that gave no row."""

    rows: list[TextRow]
    dropped: list[str]


class _Keeper:
    def __init__(self, texts: Texts, thread: ThreadPoolExecutor) -> None:
        self._texts = texts
        self._thread = thread
        self._took_over_at = -TAKE_OVER_SECONDS
        self._sync_at = 0.0
        self._is_away = False

    async def turn(self) -> None:
        """Store a batch of texts, spooled ones first, or wait for texts."""
        texts = self._texts
        texts.apply_settings(texts.services.settings)
        try:
            await self._look_after_spool()
            if texts.spool.records:
                await self._replay_some()
            elif len(texts.queue):
                await self._keep_some()
            else:
                await texts.queue.some(LOOK_SECONDS)
        except (RedisError, OSError, TimeoutError, _Full) as error:
            self._note_away(error)
            await self._spill()
            await asyncio.sleep(RETRY_SECONDS)

    def stop(self) -> None:
        """Write the texts in memory to the spool, for the next gateway."""
        texts = self._texts
        left = texts.queue.first(len(texts.queue))
        try:
            if rows := self._rows(left).rows:
                texts.spool.append([msgspec.json.encode(row) for row in rows], rows[0].at)
            texts.spool.close()
        except OSError as error:
            log.error("%d texts are lost at the stop: %s", len(left), error)

    async def in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        """The result of a slow call, run in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    async def _keep_some(self) -> None:
        """Store a batch. Raises RedisError, TimeoutError and _Full; then the texts stay in the queue."""
        made = await self.in_thread(self._rows, self._texts.queue.first(BATCH_MAX))
        await self._store(made.rows)
        self._forget(made)

    async def _replay_some(self) -> None:
        payloads = await self.in_thread(self._texts.spool.first, BATCH_MAX)
        rows, unreadable = decode_payloads(payloads, TextRow)
        await self._store(rows)
        await self.in_thread(self._texts.spool.forget)
        if unreadable:
            self._texts.services.meters.texts.add(unreadable, "", "dropped")

    async def _spill(self) -> None:
        """Write all texts in memory to the spool. If the disk fails, they stay in memory."""
        texts = self._texts
        while sent := texts.queue.first(BATCH_MAX):
            made = await self.in_thread(self._rows, sent)
            payloads = [msgspec.json.encode(row) for row in made.rows]
            try:
                gone = await self.in_thread(texts.spool.append, payloads, made.rows[0].at) if payloads else 0
            except OSError as error:
                log.error("%d texts can't be spooled: %s", len(texts.queue), error)
                return
            self._forget(made)
            if gone:
                texts.services.meters.texts.add(gone, "", "dropped")

    def _forget(self, made: _Made) -> None:
        """Remove stored and dropped texts from the queue, and count the dropped ones."""
        self._texts.queue.forget(len(made.rows) + len(made.dropped))
        for task in made.dropped:
            self._texts.services.meters.texts.add(1, task, "dropped")

    async def _store(self, rows: Sequence[TextRow]) -> None:
        if not rows:
            return
        async with asyncio.timeout(STORE_SECONDS_MAX):
            outcomes = await self._texts.stream.keep(rows)
        for row, outcome in zip(rows, outcomes, strict=True):
            if outcome == "kept":
                self._texts.services.meters.texts.add(1, row.task, "kept")
        if "full" in outcomes:  # a second try reports the stored ones as the same
            raise _Full("texts.unarchived_bytes_max is reached: texts wait for the archive")
        self._is_away = False

    async def _look_after_spool(self) -> None:
        spool, now = self._texts.spool, time.monotonic()
        if now - self._took_over_at >= TAKE_OVER_SECONDS:
            self._took_over_at = now
            await self.in_thread(spool.take_over)
            await self.in_thread(spool.forget_damaged, time.time() - self._texts.retention_seconds)
        if lost := spool.count_newly_lost():
            self._texts.services.meters.texts.add(lost, "", "dropped")
        if spool.is_dirty and now >= self._sync_at:
            try:
                await self.in_thread(spool.sync)
            except OSError as error:  # Redis may take them all the same
                self._sync_at = now + TAKE_OVER_SECONDS
                log.error("%d spooled texts are not sure to be on the disk: %s", spool.records, error)

    def _rows(self, batch: Sequence[AnsweredRequest]) -> _Made:
        made = _Made([], [])
        for sent in batch:
            task = sent.record.task or ""
            redact = self._texts.redactions.get(task)
            if redact is None:  # the task keeps no texts any more
                made.dropped.append(task)
                continue
            try:
                text = KeptText(request=sent.record.id, handles=sent.record.handles, **sent.fields())
                made.rows.append(self._texts.seals.close(redact_conversation(text, redact)))
            except Exception:  # a user's own redaction may raise any error
                log.exception("a text was not kept", extra={"request_id": sent.record.id})
                made.dropped.append(task)
        return made

    def _note_away(self, error: BaseException) -> None:
        if not self._is_away:
            log.warning("Redis takes no texts, they go to the spool: %s", error or type(error).__name__)
        self._is_away = True
