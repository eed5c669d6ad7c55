"""Messages to a webhook: one for each completed action of the monitor, sent again until the receiver accepts it.

Messages wait in Redis. If this gateway is killed, the next one with the job sends them. A message that is not delivered
within KEPT_SECONDS is dropped and counted. A receiver may get a message twice, with the same id. A task's messages
arrive in order: a waiting one holds back the later ones, unless the receiver refused its content. Redis's clock decides
on order and age, since the clocks of two gateways may differ.
"""

from __future__ import annotations

import logging
import math
import time
from typing import Any

import httpx
import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis

from gateway.background.webhook_signature import sign_message
from gateway.configuration.monitor import MonitorSettings
from gateway.state.outbox import Outbox, WaitingEntry, Write
from monitoring.metrics import Meters
from monitoring.redis_time import read_redis_time

log = logging.getLogger(__name__)
KEPT_SECONDS = 86_400.0
WAITING_MAX = 1000
AT_ONCE_MAX = 20
TIMEOUT_SECONDS = 5.0
EMPTIED_SECONDS = 60.0
"""Time between two looks, where no address is set, whether a gateway that has one lets messages wait."""
BACKOFF_SECONDS = 2.0
BACKOFF_SECONDS_MAX = 600.0
TRIES_COUNTED_MAX = 20
"""More tries than these wait no longer."""
REFUSES_CONTENT = frozenset({400, 409, 413, 415, 422})
"""Answers that speak of a message. All others speak of the receiver, of who sends, or of the way, and pass for the next
message as for this one."""


class WaitingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits: its body, since when, how often it was tried and when it is tried again (Unix seconds, by
    Redis's clock).

    `passed` says that the receiver refused what it says, so that it holds nothing back.
    """

    body: dict[str, Any]
    since: float
    tries: int = 0
    next_at: float = 0.0
    passed: bool = False

    @property
    def task(self) -> str:
        """The task that it is of."""
        return str(self.body.get("task"))

    @property
    def at(self) -> float:
        """The time of its action; else since when the message waits."""
        at = self.body.get("at")
        return float(at) if isinstance(at, int | float) else self.since

    def is_due(self, now: float) -> bool:
        """Return whether it is to be sent now; a clock that was set back has it wait for no longer."""
        return not now < self.next_at <= now + BACKOFF_SECONDS_MAX


class Webhooks:
    """The outbox of messages, and their delivery. Every method raises RedisError."""

    def __init__(self, redis: Redis, http: httpx.AsyncClient, meters: Meters) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._outbox = Outbox(redis, "webhooks", msgspec.json.Decoder(WaitingMessage).decode)
        self._http = http
        self._meters = meters
        self._emptied_at = -math.inf

    async def message(self, message_id: str, body: dict[str, Any]) -> list[Write]:
        """The write that has a message wait, as a part of a greater step; none where too many wait already."""
        if await self._redis.hlen(self._outbox.values) >= WAITING_MAX:
            log.error("%d messages wait for the webhook, and another is dropped", WAITING_MAX)
            self._meters.webhooks.add(1, "dropped")
            return []
        message = WaitingMessage(body={"id": message_id, **body}, since=await read_redis_time(self._redis))
        return [Write("HSETNX", self._outbox.values, message_id, msgspec.json.encode(message))]

    async def deliver(self, settings: MonitorSettings) -> None:
        """Deliver what is due, oldest first, and of each task in order; without an address nothing waits."""
        if settings.webhook_url is None:
            if time.monotonic() - self._emptied_at > EMPTIED_SECONDS:
                await self._redis.delete(self._outbox.values)
                self._emptied_at = time.monotonic()
            return
        self._emptied_at = -math.inf
        entries, faults = await self._outbox.read()
        for name, fault in faults.items():  # it can never be sent
            log.error("a message to the webhook can't be read, and is dropped: %r: %s", name, fault)
            self._meters.webhooks.add(1, "dropped")
            await self._redis.hdel(self._outbox.values, name)
        blocked: set[str] = set()  # the tasks of which an older message still waits
        tried = 0
        for entry in sorted(entries, key=lambda entry: (entry.value.at, entry.field)):
            message = entry.value
            if message.task in blocked or tried == AT_ONCE_MAX:
                continue
            holds_back = not message.passed
            if message.is_due(await read_redis_time(self._redis)):
                tried += 1
                holds_back = await self._deliver_one(entry, settings)
            if holds_back:
                blocked.add(message.task)

    async def _deliver_one(self, entry: WaitingEntry[WaitingMessage], settings: MonitorSettings) -> bool:
        """Send a message, or have it wait for its next try. Return whether it holds back those after it."""
        message = entry.value
        refused, passed = await self._send(message, settings)
        now = await read_redis_time(self._redis)
        if refused is None or now - message.since > KEPT_SECONDS:
            if refused is not None:
                log.error("the webhook did not take %r within a day, and it is dropped: %s", entry.name, refused)
            self._meters.webhooks.add(1, "sent" if refused is None else "dropped")
            await self._outbox.finish(entry)
            return False
        self._meters.webhooks.add(1, "retried")
        wait_seconds = min(BACKOFF_SECONDS * 2 ** min(message.tries, TRIES_COUNTED_MAX), BACKOFF_SECONDS_MAX)
        if message.tries == 0:
            log.warning("the webhook did not take %r, it is tried again: %s", entry.name, refused)
        later = replace(message, tries=message.tries + 1, next_at=now + wait_seconds, passed=passed)
        await self._outbox.replace(entry, later)
        return not passed

    async def _send(self, message: WaitingMessage, settings: MonitorSettings) -> tuple[str | None, bool]:
        """Send a message. Return why it was not taken (None: it was), and whether that was for its content."""
        body = msgspec.json.encode(message.body)
        headers = {"Content-Type": "application/json"}
        if settings.webhook_key is not None:
            headers |= sign_message(settings.webhook_key.get_secret_value(), message.body["id"], body, time.time())
        try:
            answer = await self._http.post(
                settings.webhook_url or "", content=body, headers=headers, timeout=TIMEOUT_SECONDS
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"{type(error).__name__}: {error}", False
        refused = None if answer.is_success else f"it answered {answer.status_code}"
        return refused, answer.status_code in REFUSES_CONTENT
