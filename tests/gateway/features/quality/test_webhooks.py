"""Messages to the webhook: delivered until they are taken, in order, signed, and never without a bound."""

from __future__ import annotations

import asyncio
import base64
import hmac
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from examples.verify_webhook import verify
from gateway.background.webhook_signature import sign_message
from gateway.configuration.monitor import MonitorSettings
from gateway.features.quality import webhooks
from gateway.features.quality.webhooks import WaitingMessage, Webhooks
from monitoring.metrics import Meters

KEY = "apprentice:webhooks"
HEAD_END = b"\r\n\r\n"


@dataclass
class Receiver:
    """Takes messages over a real socket, and answers each with the next status. `ends`: the answer has an end."""

    statuses: list[int] = field(default_factory=list)
    got: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    port: int = 0
    ends: bool = True

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(HEAD_END)).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
        body = await reader.readexactly(int(headers["content-length"]))
        self.got.append((headers, msgspec.json.decode(body)))
        status = self.statuses.pop(0) if self.statuses else 204
        size = "content-length: 0\r\n" if self.ends else ""
        writer.write(f"HTTP/1.1 {status} So\r\n{size}connection: close\r\n\r\n".encode())
        await writer.drain()
        if not self.ends:
            await reader.read()  # to the end of the connection
        writer.close()


@asynccontextmanager
async def receiver(*statuses: int) -> AsyncIterator[Receiver]:
    found = Receiver(list(statuses))
    listening = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield found


def settings(port: int, **more: Any) -> MonitorSettings:
    return MonitorSettings.model_validate({"webhook_url": f"http://127.0.0.1:{port}/hook", **more})


async def due_again(redis: Redis, since: float | None = None) -> None:
    """Let whatever waits be due now, as if its time had passed."""
    raw: dict[bytes, bytes] = await redis.hgetall(KEY)
    for name, line in raw.items():
        one = msgspec.structs.replace(msgspec.json.decode(line, type=WaitingMessage), next_at=0.0)
        one = one if since is None else msgspec.structs.replace(one, since=since)
        await redis.hset(KEY, name.decode(), msgspec.json.encode(one))


async def add(out: Webhooks, name: str, body: dict[str, Any]) -> None:
    """Have a message wait, as the step does in which its action is over."""
    for write in await out.message(name, body):
        await out._redis.hsetnx(write.key, write.field, write.value)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.mark.parametrize("key", ["a secret", f"whsec_{base64.b64encode(b'a secret of 24 bytes, yes').decode()}"])
async def test_an_action_is_told_with_its_evidence_and_a_signature(
    redis: Redis, http: httpx.AsyncClient, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters = Meters()
    out = Webhooks(redis, http, meters)
    async with receiver() as there:
        await add(out, "returns-1", {"task": "returns", "kind": "shift", "evidence": {"e": 1.5}})
        await out.deliver(settings(there.port, webhook_key=key))
    ((headers, body),) = there.got
    assert body == {"id": "returns-1", "task": "returns", "kind": "shift", "evidence": {"e": 1.5}}
    content = msgspec.json.encode(body)
    assert verify(key, headers, content)
    assert not verify("another", headers, content)
    assert not verify(key, headers, content + b" ")
    assert not verify(key, headers | {"webhook-id": "returns-2"}, content)
    assert not verify(key, headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}, content)
    earlier = hmac.new(key.encode(), content, "sha256").hexdigest()
    assert headers["x-apprentice-signature"] == f"sha256={earlier}", "receivers of before go on"
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + 301)
    assert not verify(key, headers, content), "it is sent again by somebody else"
    assert await redis.hlen(KEY) == 0
    assert meters.webhooks.cell("sent").value == 1


@pytest.mark.parametrize("key", ["whsec_no base64", "whsec_", f"whsec_{base64.b64encode(b'x' * 23).decode()}"])
def test_an_encoded_key_that_is_none_or_too_short_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="webhook_key"):
        settings(80, webhook_key=key)


@pytest.mark.parametrize(
    "changed",
    [
        {"webhook-signature": "v1,é"},
        {"webhook-signature": "v1,\ud800"},
        {"webhook-id": "\ud800"},
        {"webhook-timestamp": "9" * 400},
        {"webhook-timestamp": "now"},
    ],
)
def test_headers_of_strangers_are_no_error_for_a_receiver(changed: dict[str, str]) -> None:
    headers = sign_message("a secret", "returns-1", b"{}", time.time())
    assert verify("a secret", headers, b"{}")
    assert not verify("a secret", headers | changed, b"{}")


async def test_what_is_refused_is_sent_again_when_it_is_due_and_not_before(
    redis: Redis, http: httpx.AsyncClient
) -> None:
    meters = Meters()
    out = Webhooks(redis, http, meters)
    async with receiver(503, 500, 204) as there:
        await add(out, "returns-1", {"kind": "verdict"})
        for _ in range(3):
            await out.deliver(settings(there.port))
        assert len(there.got) == 1, "it waits"
        for _ in range(2):
            await due_again(redis)
            await out.deliver(settings(there.port))
    assert [body["id"] for _, body in there.got] == ["returns-1"] * 3
    assert (meters.webhooks.cell("retried").value, meters.webhooks.cell("sent").value) == (2, 1)


async def test_after_an_outage_the_messages_of_a_task_come_in_order(redis: Redis, http: httpx.AsyncClient) -> None:
    out = Webhooks(redis, http, Meters())
    async with receiver(503) as there:
        await add(out, "returns-1", {"task": "returns"})
        await out.deliver(settings(there.port))
        await add(out, "returns-2", {"task": "returns"})
        await add(out, "claims-1", {"task": "claims"})
        await out.deliver(settings(there.port))
        assert [body["id"] for _, body in there.got] == ["returns-1", "claims-1"], "the older one of returns is not due"
        await due_again(redis)
        await out.deliver(settings(there.port))
    assert [body["id"] for _, body in there.got][2:] == ["returns-1", "returns-2"]
    assert await redis.hlen(KEY) == 0


async def test_an_older_message_that_fails_again_holds_back_what_came_after_it(
    redis: Redis, http: httpx.AsyncClient
) -> None:
    out = Webhooks(redis, http, Meters())
    for name in ("b", "a", "c"):
        await add(out, name, {"task": "returns"})
    async with receiver(204, 500) as there:
        await out.deliver(settings(there.port))
    assert [body["id"] for _, body in there.got] == ["b", "a"]
    assert await redis.hlen(KEY) == 2


async def test_once_the_older_message_is_dropped_the_next_one_goes_out(redis: Redis, http: httpx.AsyncClient) -> None:
    out = Webhooks(redis, http, Meters())
    await add(out, "returns-1", {"task": "returns"})
    await due_again(redis, since=1.0)
    await add(out, "returns-2", {"task": "returns"})
    async with receiver(503) as there:
        await out.deliver(settings(there.port))
    assert [body["id"] for _, body in there.got] == ["returns-1", "returns-2"]
    assert await redis.hlen(KEY) == 0


async def test_a_message_that_is_refused_for_what_it_says_holds_nothing_back(
    redis: Redis, http: httpx.AsyncClient
) -> None:
    out = Webhooks(redis, http, Meters())
    for name in ("returns-1", "returns-2"):
        await add(out, name, {"task": "returns"})
    async with receiver(422) as there:
        await out.deliver(settings(there.port))
        await add(out, "returns-3", {"task": "returns"})
        await out.deliver(settings(there.port))
        assert [body["id"] for _, body in there.got] == ["returns-1", "returns-2", "returns-3"]
        await due_again(redis)
        await out.deliver(settings(there.port))
    assert [body["id"] for _, body in there.got][3:] == ["returns-1"], "it is tried again all the same"


async def test_a_receiver_whose_answer_does_not_end_has_taken_the_message_once(
    redis: Redis, http: httpx.AsyncClient
) -> None:
    meters = Meters()
    out = Webhooks(redis, http, meters)
    async with receiver(200) as there:
        there.ends = False
        await add(out, "returns-1", {"kind": "verdict"})
        await out.deliver(settings(there.port))
    assert await redis.hlen(KEY) == 0
    assert meters.webhooks.cell("sent").value == len(there.got) == 1


async def test_a_receiver_that_is_not_there_keeps_nothing_waiting_for_ever(
    redis: Redis, http: httpx.AsyncClient
) -> None:
    meters = Meters()
    out = Webhooks(redis, http, meters)
    async with receiver() as there:
        pass
    await add(out, "returns-1", {"kind": "verdict"})
    await out.deliver(settings(there.port))
    assert await redis.hlen(KEY) == 1
    await due_again(redis, since=1.0)
    await out.deliver(settings(there.port))
    assert await redis.hlen(KEY) == 0
    assert meters.webhooks.cell("dropped").value == 1


async def test_the_same_message_waits_once_and_there_is_room_for_so_many(
    redis: Redis, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "WAITING_MAX", 2)
    meters = Meters()
    out = Webhooks(redis, http, meters)
    for name in ("a", "a", "b", "c"):
        await add(out, name, {})
    assert await redis.hlen(KEY) == 2
    assert meters.webhooks.cell("dropped").value == 1


async def test_a_message_that_can_not_be_read_is_dropped_and_the_others_are_sent(
    redis: Redis, http: httpx.AsyncClient
) -> None:
    meters = Meters()
    out = Webhooks(redis, http, meters)
    async with receiver() as there:
        for name, damaged in (("a", b"{"), ("b", b"\xff"), ("c", b'{"since": "today"}')):
            await redis.hset(KEY, name, damaged)
        await add(out, "returns-1", {"kind": "verdict"})
        await out.deliver(settings(there.port))
    assert [body["id"] for _, body in there.got] == ["returns-1"]
    assert await redis.hlen(KEY) == 0
    assert meters.webhooks.cell("dropped").value == 3


async def test_without_an_address_nothing_waits(redis: Redis, http: httpx.AsyncClient) -> None:
    out = Webhooks(redis, http, Meters())
    await add(out, "a", {})
    await out.deliver(MonitorSettings())
    assert await redis.hlen(KEY) == 0


async def test_messages_come_in_the_order_of_what_they_tell_whoever_has_them_wait(
    redis: Redis, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    meters = Meters()
    one, two = Webhooks(redis, http, meters), Webhooks(redis, http, meters)
    async with receiver() as there:
        await add(one, "returns-2", {"task": "returns", "at": 2.0})
        monkeypatch.setattr("time.time", lambda: 1.0)  # another gateway, whose clock is behind
        for name, at in (("returns-4", 4.0), ("returns-1b", 1.0), ("returns-1a", 1.0)):
            await add(two, name, {"task": "returns", "at": at})
        await add(two, "clauses-1", {"task": "clauses", "at": "today"})
        await one.deliver(settings(there.port))
    ids = [body["id"] for _, body in there.got if body["task"] == "returns"]
    assert ids == ["returns-1a", "returns-1b", "returns-2", "returns-4"]
    assert len(there.got) == 5


async def test_the_age_of_a_message_goes_by_the_clock_of_redis(
    redis: Redis, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Webhooks(redis, http, Meters())
    monkeypatch.setattr("time.time", lambda: 9e9)
    async with receiver(503, 204) as there:
        await add(out, "a", {})
        await out.deliver(settings(there.port))
        assert await redis.hlen(KEY) == 1
        await due_again(redis)
        await out.deliver(settings(there.port))
    assert await redis.hlen(KEY) == 0


async def test_a_message_whose_next_try_is_too_far_to_be_meant_is_tried_now(
    redis: Redis, http: httpx.AsyncClient
) -> None:
    out = Webhooks(redis, http, Meters())
    far = WaitingMessage(body={"id": "a", "task": ["returns"]}, since=1.0, next_at=1e300, tries=10**9)
    async with receiver(422) as there:
        await redis.hset(KEY, b"\xff", msgspec.json.encode(far))
        await out.deliver(settings(there.port))
    assert len(there.got) == 1
