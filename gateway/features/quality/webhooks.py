"""What the monitor does is told to a webhook: each action once it is done, again and again until it is taken.

Messages wait in Redis, so that the next gateway that has the job goes on where one was killed. One that could not be
delivered within KEPT_SECONDS is dropped and counted. A receiver may get a message twice, with the same id. It gets
those of a task in order: one that waits holds back what came after it, unless it was refused for what it says. Order
and age go by Redis's clock, since those of two gateways need not agree.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from typing import Any

import httpx
import msgspec
from redis.asyncio import Redis

from gateway.configuration.monitor import MonitorSettings
from gateway.state.redis import redis_time
from monitoring.metrics import Meters
from serving.object_store import UNREADABLE

log = logging.getLogger(__name__)
KEY = "apprentice:webhooks"
KEPT_SECONDS = 86_400.0
WAITING_MAX = 1000
AT_ONCE_MAX = 20
TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS = 2.0
BACKOFF_SECONDS_MAX = 600.0
TRIES_COUNTED_MAX = 20
"""More tries than these wait no longer."""
SIGNATURE = "x-apprentice-signature"
REFUSES_WHAT_IS_SAID = frozenset({400, 409, 413, 415, 422})
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
        """When what it tells was done; else since when it waits."""
        at = self.body.get("at")
        return float(at) if isinstance(at, int | float) else self.since

    def is_due(self, now: float) -> bool:
        """Whether it is to be sent now; no clock that was set back, or that is damaged, has it wait for longer."""
        return not now < self.next_at <= now + BACKOFF_SECONDS_MAX


class Webhooks:
    """The messages that wait, and their way out. Every method raises RedisError."""

    def __init__(self, redis: Redis, http: httpx.AsyncClient, meters: Meters) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._http = http
        self._meters = meters

    async def message(self, message_id: str, body: dict[str, Any]) -> bytes:
        """A message as it is to wait under its id in the hash KEY; empty where too many wait, so that it is dropped."""
        if await self._redis.hlen(KEY) >= WAITING_MAX:
            log.error("%d messages wait for the webhook, and another is dropped", WAITING_MAX)
            self._meters.webhooks.add(1, "dropped")
            return b""
        return msgspec.json.encode(WaitingMessage(body={"id": message_id, **body}, since=await redis_time(self._redis)))

    async def deliver(self, settings: MonitorSettings) -> None:
        """Deliver what is due, oldest first, and of each task in order; without an address nothing waits."""
        raw = await self._redis.hgetall(KEY)
        if not raw:
            return
        if settings.webhook_url is None:
            await self._redis.delete(KEY)
            return
        waiting = await self._readable(raw)
        held: set[str] = set()  # the tasks of which an older message still waits
        tried = 0
        for name, one in sorted(waiting.items(), key=lambda item: (item[1].at, item[0])):
            if one.task in held or tried == AT_ONCE_MAX:
                continue
            left: WaitingMessage | None = one
            if one.is_due(await redis_time(self._redis)):
                tried += 1
                left = await self._deliver_one(name, one, settings)
            if left is not None and not left.passed:
                held.add(one.task)

    async def _readable(self, raw: dict[bytes, bytes]) -> dict[bytes, WaitingMessage]:
        """The messages that wait; one that can't be read is dropped, as it never can be sent."""
        found: dict[bytes, WaitingMessage] = {}
        for name, line in raw.items():
            try:
                found[name] = msgspec.json.decode(line, type=WaitingMessage)
            except UNREADABLE as error:
                log.error("a message to the webhook can't be read, and is dropped: %r: %s", name, error)
                self._meters.webhooks.add(1, "dropped")
                await self._redis.hdel(KEY, name)
        return found

    async def _deliver_one(self, name: bytes, one: WaitingMessage, settings: MonitorSettings) -> WaitingMessage | None:
        """The message as it waits then; None where it waits no longer."""
        refused, passed = await self._sent(one, settings)
        if refused is None:
            self._meters.webhooks.add(1, "sent")
            await self._redis.hdel(KEY, name)
            return None
        now = await redis_time(self._redis)
        if now - one.since > KEPT_SECONDS:
            log.error("the webhook did not take %r within a day, and it is dropped: %s", name, refused)
            self._meters.webhooks.add(1, "dropped")
            await self._redis.hdel(KEY, name)
            return None
        self._meters.webhooks.add(1, "retried")
        wait_seconds = min(BACKOFF_SECONDS * 2 ** min(one.tries, TRIES_COUNTED_MAX), BACKOFF_SECONDS_MAX)
        if one.tries == 0:
            log.warning("the webhook did not take %r, it is tried again: %s", name, refused)
        later = msgspec.structs.replace(one, tries=one.tries + 1, next_at=now + wait_seconds, passed=passed)
        await self._redis.hset(KEY, name, msgspec.json.encode(later))
        return later

    async def _sent(self, one: WaitingMessage, settings: MonitorSettings) -> tuple[str | None, bool]:
        """Why it was not taken (None: it was), and whether that was for what it says."""
        body = msgspec.json.encode(one.body)
        headers = {"Content-Type": "application/json"}
        if settings.webhook_key is not None:
            headers[SIGNATURE] = signature_of(settings.webhook_key.get_secret_value(), body)
        try:
            answer = await self._http.post(
                settings.webhook_url or "", content=body, headers=headers, timeout=TIMEOUT_SECONDS
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"{type(error).__name__}: {error}", False
        refused = None if answer.is_success else f"it answered {answer.status_code}"
        return refused, answer.status_code in REFUSES_WHAT_IS_SAID


def signature_of(key: str, body: bytes) -> str:
    """What proves to a receiver that the body is ours: `sha256=` and the HMAC-SHA256 of it, in hexadecimal digits."""
    return f"sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"
