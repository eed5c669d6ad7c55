"""The caller hangs up, in every phase: the engine's work ends, and all that was taken is given back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Silent, SlowFirstToken
from tests.waiting import until
from tests.walks.gateway import RunningGateway


@asynccontextmanager
async def asking(
    gateway: RunningGateway, stream: bool, path: str = "chat/completions"
) -> AsyncIterator[asyncio.StreamReader]:
    """A request on a bare socket, which is closed at the end of the block, whatever has come by then."""
    body = json.dumps({"model": "returns", "stream": stream, "messages": [{"role": "user", "content": "A toaster"}]})
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = (
        f"POST /v1/{path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.admin_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body.encode())
    await writer.drain()
    try:
        yield reader
    finally:
        writer.close()


async def all_given_back(gateway: RunningGateway, engine: FakeEngine) -> None:
    """Wait until nothing of the request is left anywhere."""
    services = gateway.services
    await engine.until(
        lambda: (
            engine.in_flight == 0
            and services.admission.in_flight == 0
            and all(replica.in_flight == 0 for replica in services.fleet.replicas.values())
        )
    )


async def last_record(gateway: RunningGateway) -> dict[str, object]:
    """The newest record in the stream, once there is one."""
    ((_, fields),) = await until(lambda: gateway.services.redis.xrevrange("apprentice:records", count=1))
    record: dict[str, object] = json.loads(fields[b"record"])
    return record


@pytest.mark.parametrize("stream", [False, True])
async def test_before_headers_the_engines_work_is_cancelled(
    gateway: RunningGateway, small: FakeEngine, stream: bool
) -> None:
    small.faults.add(Silent(), model="returns@*")
    async with asking(gateway, stream):
        await small.until(lambda: small.in_flight == 1)
    await all_given_back(gateway, small)
    assert len(small.cancelled) == 1
    record = await last_record(gateway)
    assert (record["outcome"], record["status"], record["cost_usd"]) == ("cancelled", 499, None)


async def test_before_the_first_token_the_engines_work_is_cancelled(gateway: RunningGateway, small: FakeEngine) -> None:
    small.faults.add(SlowFirstToken(600), model="returns@*")
    async with asking(gateway, True):
        await small.until(lambda: small.in_flight == 1)
    await all_given_back(gateway, small)
    assert len(small.cancelled) == 1
    assert (await last_record(gateway))["outcome"] == "cancelled"


@pytest.mark.invariant("No engine works for a caller who has gone.")
async def test_inside_a_stream_the_engines_work_is_cancelled_and_its_tokens_are_counted(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    small.n_tokens, small.token_delay_seconds = 2000, 0.01
    async with asking(gateway, True) as reader:
        for _ in range(12):
            assert await reader.readline()
        await small.until(lambda: small.in_flight == 1)
    await all_given_back(gateway, small)
    assert len(small.cancelled) == 1
    record = await last_record(gateway)
    assert record["outcome"] == "cancelled"
    assert 0 < int(str(record["completion_tokens"])) < 2000
    assert record["answer_digest"] is not None


async def test_a_caller_that_stays_gets_it_all_and_nothing_is_cancelled(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    async with asking(gateway, True) as reader:
        text = (await reader.readuntil(b"data: [DONE]\n\n")).decode()
    assert "x-apprentice-version: returns@v1" in text
    await all_given_back(gateway, small)
    assert not small.cancelled
    assert (await last_record(gateway))["outcome"] == "ok"


@pytest.mark.parametrize("sent", ["whole", "half a body", "half a head"])
async def test_a_caller_who_goes_at_once_is_no_fault_of_the_gateway(
    gateway: RunningGateway, small: FakeEngine, caplog: pytest.LogCaptureFixture, sent: str
) -> None:
    body = json.dumps({"model": "returns", "messages": [{"role": "user", "content": "A toaster"}]}).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.admin_key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    request = {"whole": head + body, "half a body": head + body[:9], "half a head": head[:50]}[sent]
    for number in range(30):
        _, writer = await asyncio.open_connection(*gateway.addresses[0])
        writer.write(request)
        await asyncio.sleep(0.001 * (number % 5))
        writer.transport.abort()
    await all_given_back(gateway, small)
    async with gateway.http() as http:
        metrics = (await http.get("/metrics")).text
    assert 'code="internal_error"' not in metrics
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_caller_who_goes_while_tokens_are_counted_is_no_fault_of_the_gateway(
    gateway: RunningGateway, small: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    rule = small.faults.add(Silent(), path="/tokenize")
    async with asking(gateway, stream=False, path="messages/count_tokens"):
        await until(lambda: rule.shown)
    await all_given_back(gateway, small)
    async with gateway.http() as http:
        metrics = (await http.get("/metrics")).text
    assert 'code="internal_error"' not in metrics
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
