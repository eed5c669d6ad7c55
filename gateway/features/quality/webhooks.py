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
"""Without an address, time between two deletions of messages that a gateway with an address may have queued."""
BACKOFF_SECONDS = 2.0
BACKOFF_SECONDS_MAX = 600.0
TRIES_COUNTED_MAX = 20
"""From this number of tries on, the wait does not grow."""
REFUSES_CONTENT = frozenset({400, 409, 413, 415, 422})
"""Status codes that concern the message itself. Others concern the receiver, the sender or the network, and the next
message would get the same."""


class WaitingMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A waiting message: its body, the beginning of its wait, the number of tries and the time of the next one (Unix
    seconds, by Redis's clock).

    `passed`: the receiver refused its content, so that it does not delay later messages.
    """

    body: dict[str, Any]
    since: float
    tries: int = 0
    next_at: float = 0.0
    passed: bool = False

    @property
    def task(self) -> str:
        """The message's task."""
        return str(self.body.get("task"))

    @property
    def at(self) -> float:
        """The time of its action; without one, the beginning of its wait."""
        at = self.body.get("at")
        return float(at) if isinstance(at, int | float) else self.since

    def is_due(self, now: float) -> bool:
        """Return whether it is time to send the message. A clock that was set back does not prolong its wait."""
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
        """The write that queues a message, as a part of a larger step; none if too many wait already."""
        if await self._redis.hlen(self._outbox.values) >= WAITING_MAX:
            log.error("%d messages wait for the webhook, and another is dropped", WAITING_MAX)
            self._meters.webhooks.add(1, "dropped")
            return []
        message = WaitingMessage(body={"id": message_id, **body}, since=await read_redis_time(self._redis))
        return [Write("HSETNX", self._outbox.values, message_id, msgspec.json.encode(message))]

    async def deliver(self, settings: MonitorSettings) -> None:
        """Send the messages that are due, the oldest first, each task's in order. Without an address, delete all."""
        if settings.webhook_url is None:
            if time.monotonic() - self._emptied_at > EMPTIED_SECONDS:
                await self._redis.delete(self._outbox.values)
                self._emptied_at = time.monotonic()
            return
        self._emptied_at = -math.inf
        entries, faults = await self._outbox.read()
        for name, fault in faults.items():  # it can't be sent
            log.error("a message to the webhook can't be read, and is dropped: %r: %s", name, fault)
            self._meters.webhooks.add(1, "dropped")
            await self._redis.hdel(self._outbox.values, name)
        blocked: set[str] = set()  # the tasks with an older message that still waits
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
        """Send a message; if it fails, let it wait for its next try. Return whether it delays its task's later ones."""
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
        """Send a message. Return the reason for its refusal (None: accepted), and whether that is its content."""
        body = msgspec.json.encode(message.body)
        headers = {"Content-Type": "application/json"}
        if settings.webhook_key is not None:
            headers |= sign_message(settings.webhook_key.get_secret_value(), message.body["id"], body, time.time())
        try:
            url = settings.webhook_url or ""
            async with self._http.stream("POST", url, content=body, headers=headers, timeout=TIMEOUT_SECONDS) as answer:
                status, is_accepted = answer.status_code, answer.is_success  # its body may never end
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"{type(error).__name__}: {error}", False
        return None if is_accepted else f"it answered {status}", status in REFUSES_CONTENT
