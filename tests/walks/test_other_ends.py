"""Answers of the other APIs with reasoning, with nothing, with a refusal, or broken: as clients put them together."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

from tests.fakes.answers import Said
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, EmptyAnswer, RawEvent, Tokens
from tests.walks.sdk_world import TEXT, messages, responses, running

__all__ = ["messages", "responses", "running"]

ASK: Any = {"model": "returns", "max_tokens": 64, "messages": [{"role": "user", "content": TEXT}]}
THOUGHT = {"id": "chatcmpl-x", "choices": [{"index": 0, "delta": {"reasoning": "Hm."}}]}


async def put_together(events: AsyncIterator[Any]) -> tuple[list[dict[str, Any]], Any]:
    """The output as a client makes it of a stream's parts alone, and the last event. OpenAI's for Node does so."""
    output: list[dict[str, Any]] = []
    number, event = -1, None
    async for event in events:
        assert event.sequence_number == number + 1
        number = event.sequence_number
        match event.type:
            case "response.output_item.added":
                output.append(event.item.model_dump())
            case "response.content_part.added":
                output[event.output_index]["content"].append(event.part.model_dump())
            case "response.output_text.delta" | "response.reasoning_text.delta":
                output[event.output_index]["content"][event.content_index]["text"] += event.delta
            case "response.content_part.done":
                assert output[event.output_index]["content"][event.content_index] == event.part.model_dump()
    return output, event


async def test_reasoning_of_a_streamed_response_has_a_part_as_a_text_has(
    responses: AsyncOpenAI, small: FakeEngine
) -> None:
    small.faults.add(RawEvent(0, b"data: " + json.dumps(THOUGHT).encode() + b"\n\n"), model="returns@*")
    output, last = await put_together(await responses.responses.create(model="returns", input=TEXT, stream=True))
    assert [item["content"] for item in output] == [item.model_dump()["content"] for item in last.response.output]
    assert output[0]["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert output[1]["content"][0]["text"]


@pytest.mark.parametrize("stream", [False, True])
async def test_answer_without_a_word_has_an_empty_text(
    responses: AsyncOpenAI, messages: AsyncAnthropic, small: FakeEngine, stream: bool
) -> None:
    small.faults.add(EmptyAnswer(), model="returns@*")
    if stream:
        async with responses.responses.stream(model="returns", input=TEXT) as events:
            response: Any = await events.get_final_response()
        async with messages.messages.stream(**ASK) as told:
            message: Any = await told.get_final_message()
    else:
        response = await responses.responses.create(model="returns", input=TEXT)
        message = await messages.messages.create(**ASK)
    assert (response.status, response.output[0].content[0].text) == ("completed", "")
    assert (message.stop_reason, message.content[0].text) == ("end_turn", "")


async def test_response_that_breaks_has_an_error_and_then_fails(responses: AsyncOpenAI, small: FakeEngine) -> None:
    small.faults.add(Tokens(30), Dies(10), model="returns@*")
    events: list[Any] = [
        each async for each in await responses.responses.create(model="returns", input=TEXT, stream=True)
    ]
    error, failed = events[-2:]
    assert (error.type, error.code, failed.type) == ("error", "stream_broken", "response.failed")
    assert [each.sequence_number for each in events] == list(range(len(events)))
    assert (failed.response.id, failed.response.status) == (events[0].response.id, "failed")
    assert (failed.response.error.code, failed.response.error.message) == ("server_error", error.message)


async def test_message_that_breaks_raises_its_error(messages: AsyncAnthropic, small: FakeEngine) -> None:
    small.faults.add(Tokens(30), Dies(10), model="returns@*")
    with pytest.raises(anthropic.APIStatusError) as broken:
        async with messages.messages.stream(**ASK) as events:
            await events.get_final_message()
    body: Any = broken.value.body
    assert (body["error"]["type"], body["error"]["code"]) == ("api_error", "stream_broken")


def refuse(said: Said) -> None:
    said.refuses = True


@pytest.mark.parametrize("stream", [False, True])
async def test_message_that_is_a_refusal_stops_as_one(
    messages: AsyncAnthropic, small: FakeEngine, stream: bool
) -> None:
    small.twists["returns@v1"] = refuse
    if stream:
        async with messages.messages.stream(**ASK) as events:
            message: Any = await events.get_final_message()
    else:
        message = await messages.messages.create(**ASK)
    assert message.content[0].text
    assert message.stop_reason == "refusal"


async def test_usage_of_a_response_has_all_that_its_client_reads(responses: AsyncOpenAI) -> None:
    usage = (await responses.responses.create(model="returns", input=TEXT)).usage
    assert usage is not None
    assert (usage.input_tokens_details.cached_tokens, usage.input_tokens_details.cache_write_tokens) == (0, 0)
    assert usage.output_tokens_details.reasoning_tokens == 0
