"""What the monitor does is told to a webhook: each action once it is done, again and again until it is taken.

Messages wait in Redis, so that the next gateway that has the duty goes on where one was killed. One that could not be
delivered within KEPT_SECONDS is dropped and counted. A receiver may get a message twice, with the same id.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from typing import Any

import httpx
import msgspec
from redis.asyncio import Redis

from gateway.configuration.monitor import MonitorSettings
from monitoring.metrics import Meters
from serving.shelf import UNREADABLE

log = logging.getLogger(__name__)
KEY = "apprentice:webhooks"
KEPT_SECONDS = 86_400.0
WAITING_MAX = 1000
AT_ONCE_MAX = 20
TIMEOUT_SECONDS = 5.0
BACKOFF_SECONDS = 2.0
BACKOFF_SECONDS_MAX = 600.0
SIGNATURE = "x-apprentice-signature"


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A message that waits: its body, since when, how often it was tried and when it is tried again (Unix seconds)."""

    body: dict[str, Any]
    since: float
    tries: int = 0
    next_at: float = 0.0


class Webhooks:
    """The messages that wait, and their way out. Every method raises RedisError."""

    def __init__(self, redis: Redis, http: httpx.AsyncClient, meters: Meters) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._http = http
        self._meters = meters

    async def add(self, message_id: str, body: dict[str, Any]) -> None:
        """Have a message wait to be delivered; one of this id that waits already stays as it is."""
        if await self._redis.hlen(KEY) >= WAITING_MAX:
            log.error("%d messages wait for the webhook, and another is dropped", WAITING_MAX)
            self._meters.webhooks.add(1, "dropped")
            return
        waiting = Waiting(body={"id": message_id, **body}, since=time.time())
        await self._redis.hsetnx(KEY, message_id, msgspec.json.encode(waiting))

    async def deliver(self, settings: MonitorSettings) -> None:
        """Deliver what is due, oldest first; without an address nothing waits."""
        raw = await self._redis.hgetall(KEY)
        if not raw:
            return
        if settings.webhook_url is None:
            await self._redis.delete(KEY)
            return
        waiting = await self._readable(raw)
        due = sorted((one.since, name) for name, one in waiting.items() if one.next_at <= time.time())
        for _, name in due[:AT_ONCE_MAX]:
            await self._deliver_one(name, waiting[name], settings)

    async def _readable(self, raw: dict[bytes, bytes]) -> dict[bytes, Waiting]:
        """The messages that wait; one that can't be read is dropped, as it never can be sent."""
        found: dict[bytes, Waiting] = {}
        for name, line in raw.items():
            try:
                found[name] = msgspec.json.decode(line, type=Waiting)
            except UNREADABLE as error:
                log.error("a message to the webhook can't be read, and is dropped: %r: %s", name, error)
                self._meters.webhooks.add(1, "dropped")
                await self._redis.hdel(KEY, name)
        return found

    async def _deliver_one(self, name: bytes, one: Waiting, settings: MonitorSettings) -> None:
        refused = await self._sent(one, settings)
        if refused is None:
            self._meters.webhooks.add(1, "sent")
            await self._redis.hdel(KEY, name)
            return
        now = time.time()
        if now - one.since > KEPT_SECONDS:
            log.error("the webhook did not take %s within a day, and it is dropped: %s", name.decode(), refused)
            self._meters.webhooks.add(1, "dropped")
            await self._redis.hdel(KEY, name)
            return
        self._meters.webhooks.add(1, "retried")
        wait_seconds = min(BACKOFF_SECONDS * 2**one.tries, BACKOFF_SECONDS_MAX)
        if one.tries == 0:
            log.warning("the webhook did not take %s, it is tried again: %s", name.decode(), refused)
        later = msgspec.structs.replace(one, tries=one.tries + 1, next_at=now + wait_seconds)
        await self._redis.hset(KEY, name, msgspec.json.encode(later))

    async def _sent(self, one: Waiting, settings: MonitorSettings) -> str | None:
        """Why it was not taken; None where it was."""
        body = msgspec.json.encode(one.body)
        headers = {"Content-Type": "application/json"}
        if settings.webhook_key is not None:
            headers[SIGNATURE] = signature_of(settings.webhook_key.get_secret_value(), body)
        try:
            answer = await self._http.post(
                settings.webhook_url or "", content=body, headers=headers, timeout=TIMEOUT_SECONDS
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return None if answer.is_success else f"it answered {answer.status_code}"


def signature_of(key: str, body: bytes) -> str:
    """What proves to a receiver that the body is ours: `sha256=` and the HMAC-SHA256 of it, in hexadecimal digits."""
    return f"sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"
