"""Streams: relayed whole, whatever the network or the engine does to them, or ended with a clear error."""

from __future__ import annotations

import asyncio

import httpx
import openai
import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, Fault, Framing, NoDone, Pings, RawEvent, Stalls, Tokens
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.test_hang_up import asking, last_record

EVENT = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"%05d%b"}}]}\n\n'
MANY_BYTES = b"".join(EVENT % (number, b"x" * (1 << 16)) for number in range(300))
ASK = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}


async def streamed(gateway: RunningGateway, **more: object) -> str:
    """The stream's bytes as text."""
    async with gateway.http() as http:
        answer = await http.post("/v1/chat/completions", json={"model": "returns", "stream": True, **ASK, **more})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return answer.text


async def test_a_stream_says_what_a_whole_answer_says(gateway: RunningGateway) -> None:
    async with gateway.openai() as client:
        whole = await client.chat.completions.create(model="returns", **ASK)
        stream = await client.chat.completions.create(model="returns", stream=True, **ASK)
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
    assert said == whole.choices[0].message.content


async def test_usage_is_told_only_to_who_asks_and_then_with_the_cost(gateway: RunningGateway) -> None:
    without = await streamed(gateway)
    with_usage = await streamed(gateway, stream_options={"include_usage": True})
    assert '"usage":{' not in without
    assert without.endswith("data: [DONE]\n\n")
    assert '"apprentice":{"cost_usd":' in with_usage
    assert with_usage.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("include_usage", [False, True])
async def test_what_came_together_goes_to_the_caller_in_one_piece_with_the_end(
    gateway: RunningGateway, small: FakeEngine, include_usage: bool
) -> None:
    small.faults.add(Framing(together=99), model="returns@*")
    ask = {"model": "returns", "stream": True, "stream_options": {"include_usage": include_usage}, **ASK}
    async with gateway.http() as http, http.stream("POST", "/v1/chat/completions", json=ask) as answer:
        pieces = [piece async for piece in answer.aiter_raw()]
    assert len(pieces) == 1
    assert pieces[0].startswith(b"data: {")
    assert pieces[0].endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(
    "fault",
    [
        Framing(split_bytes=7),
        Framing(crlf=True, comments=True),
        Framing(cr=True),
        Framing(cr=True, split_bytes=7),
        Framing(bom=True),
        Framing(bom=True, split_bytes=1),
        Framing(together=2),
        RawEvent(),
        NoDone(),
    ],
    ids=[
        "split",
        "crlf_and_comments",
        "cr",
        "cr_split",
        "bom",
        "bom_split",
        "two_at_once",
        "malformed_event",
        "no_done",
    ],
)
async def test_whatever_the_framing_the_caller_gets_the_whole_answer(
    gateway: RunningGateway, small: FakeEngine, fault: Fault
) -> None:
    async with gateway.openai() as client:
        whole = await client.chat.completions.create(model="returns", **ASK)
        small.faults.add(fault, model="returns@*")
        stream = await client.chat.completions.create(model="returns", stream=True, **ASK)
        chunks = [chunk async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.invariant("Nothing is retried after commit.")
@pytest.mark.parametrize("how", ["reset", "half_chunk", "done"])
async def test_a_stream_that_breaks_after_commit_ends_with_an_error_and_without_done(
    gateway: RunningGateway, small: FakeEngine, how: str
) -> None:
    small.faults.add(Tokens(30), Dies(10, how), model="returns@*")
    text = await streamed(gateway)
    assert text.rstrip().splitlines()[-1].startswith('data: {"error":{')
    assert '"code":"stream_broken"' in text
    assert "[DONE]" not in text
    async with gateway.openai() as client:
        stream = await client.chat.completions.create(model="returns", stream=True, **ASK)
        with pytest.raises(openai.APIError, match="not whole"):
            [chunk async for chunk in stream]
    async with gateway.http() as http:
        metrics = (await http.get("/metrics")).text
    assert 'outcome="truncated"} 2' in metrics


@pytest.mark.parametrize("fault", [Stalls(10, 30), Pings()], ids=["nothing", "comments"])
@pytest.mark.parametrize("first_seconds", [1.0, 15.0])
async def test_a_stream_that_stalls_ends_with_an_error_within_its_limit(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, fault: Fault, first_seconds: float
) -> None:
    limits = {"inter_token_timeout_seconds": 1.0, "first_token_timeout_seconds": first_seconds}
    async with run_gateway(configure(limits=limits)) as gateway:
        await gateway.place(make_adapter(1))
        small.faults.add(Tokens(30), fault, model="returns@*")
        async with asyncio.timeout(30):
            text = await streamed(gateway)
        await small.until(lambda: small.in_flight == 0)
    assert '"code":"stream_broken"' in text


@pytest.mark.invariant("A caller that reads slowly stops its engine, and loses nothing.")
async def test_a_caller_that_reads_nothing_for_a_while_stops_the_engine_and_gets_it_all(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    small.faults.add(Tokens(30), RawEvent(10, MANY_BYTES), model="returns@*")
    async with asking(gateway, True) as reader:
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.5)
        assert small.in_flight == 1
        sent = bytearray()
        while b"data: [DONE]\n\n" not in sent[-40:]:
            sent += await reader.read(1 << 20)
    places = [sent.index(b'"content":"%05d' % number) for number in range(300)]
    assert places == sorted(places)
    await small.until(lambda: small.in_flight == 0)
    assert (await last_record(gateway))["outcome"] == "ok"


async def test_a_caller_that_reads_nothing_until_its_time_is_over_is_no_fault_of_ours(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_gateway(configure(limits={"request_timeout_seconds": 1.0})) as gateway:
        await gateway.place(make_adapter(1))
        small.faults.add(Tokens(30), RawEvent(10, MANY_BYTES), model="returns@*")
        async with asking(gateway, True) as reader:
            await reader.readuntil(b"\r\n\r\n")
            record = await last_record(gateway)
    assert (record["outcome"], record["error_code"]) == ("truncated", "timeout")
    assert [each.getMessage() for each in caplog.records if each.levelname == "ERROR"] == []


@pytest.mark.parametrize("error", [b'{"error":{"message":"no"}}', b'{"object":"error","message":"no","code":500}'])
async def test_what_follows_an_error_inside_a_stream_is_not_relayed(
    gateway: RunningGateway, small: FakeEngine, error: bytes
) -> None:
    event = b'data: {"id":"x","choices":[{"index":0,"delta":{"content":"after it"}}]}\n\n'
    small.faults.add(Tokens(30), RawEvent(10, b"data: %b\n\n%b" % (error, event)), model="returns@*")
    text = await streamed(gateway)
    assert '"code":"stream_broken"' in text
    assert "after it" not in text


async def test_a_request_whose_time_is_over_once_its_answer_is_the_callers_was_answered(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with run_gateway(configure(limits={"request_timeout_seconds": 2.0})) as gateway:
        await gateway.place(make_adapter(1))
        small.faults.add(NoDone("open"), model="returns@*")
        text = await streamed(gateway)
        record = await last_record(gateway)
    assert text.endswith("data: [DONE]\n\n")
    assert (record["outcome"], record["status"], record["error_code"]) == ("ok", 200, None)
    assert "Unexpected ASGI message" not in caplog.text


async def test_with_the_commit_policy_complete_a_broken_stream_is_replaced_as_a_whole(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with run_gateway(configure(tasks={"returns": {"commit": "complete"}})) as gateway:
        await gateway.place(make_adapter(1))
        small.faults.add(Tokens(30), Dies(10, "reset"), model="returns@*")
        text = await streamed(gateway)
    assert '"model": "large"' in text or '"model":"large"' in text
    assert "returns@v1" not in text
    assert text.endswith("data: [DONE]\n\n")


async def test_a_connection_is_used_again_after_a_stream(gateway: RunningGateway, small: FakeEngine) -> None:
    await streamed(gateway)
    opened = small.connections_opened
    for _ in range(5):
        await streamed(gateway)
    assert small.connections_opened - opened <= 1


async def test_logprobs_tools_and_schemas_reach_the_engine_as_they_were_sent(
    gateway: RunningGateway, small: FakeEngine
) -> None:
    schema = {"type": "object", "properties": {"decision": {"type": "string"}}, "required": ["decision"]}
    tool = {"type": "function", "function": {"name": "decide", "parameters": schema}}
    choice = {"type": "function", "function": {"name": "decide"}}
    form = {"type": "json_schema", "json_schema": {"name": "decision", "schema": schema}}
    async with gateway.openai() as client:
        told = await client.chat.completions.create(model="returns", logprobs=True, top_logprobs=3, seed=7, **ASK)
        assert len(told.choices[0].logprobs.content[0].top_logprobs) == 3
        called = await client.chat.completions.create(model="returns", tools=[tool], tool_choice=choice, **ASK)
        assert called.choices[0].message.tool_calls[0].function.name == "decide"
        seen = small.requests[-1].body
        assert (seen["tools"], seen["tool_choice"]) == ([tool], choice)
        stream = await client.chat.completions.create(
            model="returns", tools=[tool], tool_choice=choice, stream=True, **ASK
        )
        chunks = [chunk async for chunk in stream]
        assert any(chunk.choices[0].delta.tool_calls for chunk in chunks if chunk.choices)
        await client.chat.completions.create(model="returns", response_format=form, **ASK)
        assert small.requests[-1].body["response_format"] == form


async def test_gateways_own_fields_never_reach_an_engine(gateway: RunningGateway, small: FakeEngine) -> None:
    async with gateway.openai() as client:
        await client.chat.completions.create(
            model="returns", user="u-1", metadata={"session_id": "s"}, extra_headers={"x-secret": "1"}, **ASK
        )
    seen = small.requests[-1]
    assert {"user", "metadata"}.isdisjoint(seen.body)
    headers = httpx.Headers(seen.headers)
    assert "x-secret" not in headers
    assert gateway.admin_key not in str(headers)
