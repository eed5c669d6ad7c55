"""Answers of the other APIs with reasoning, with nothing, with a refusal, or broken: as clients put them together."""

from __future__ import annotations

import json
import typing
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import Message, RawMessageStreamEvent
from openai import AsyncOpenAI
from openai.types.responses import Response, ResponseStreamEvent

from tests.fakes.answers import Called, Said
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, EmptyAnswer, RawEvent, Tokens
from tests.walks.gateway import RunningGateway
from tests.walks.sdk_world import TEXT, messages, responses, running

__all__ = ["messages", "responses", "running"]

ASK: Any = {"model": "returns", "max_tokens": 64, "messages": [{"role": "user", "content": TEXT}]}
THOUGHT = {"id": "chatcmpl-x", "model": "returns@v1", "choices": [{"index": 0, "delta": {"reasoning": "Hm."}}]}
EVENT_TYPES = {
    (path, typing.get_args(kind.model_fields["type"].annotation)[0]): kind
    for path, union in (("messages", RawMessageStreamEvent), ("responses", ResponseStreamEvent))
    for kind in typing.get_args(typing.get_args(union)[0])
}
"""The clients' types of events, by their format and their name."""


@pytest.mark.parametrize("end", ["whole", "tool", "length", "refusal", "empty", "reasoning", "broken"])
async def test_events_and_answers_are_of_the_types_of_their_clients(
    running: RunningGateway, small: FakeEngine, end: str
) -> None:
    fields: dict[str, Any] = {}
    match end:
        case "tool":
            small.answers["returns@v1"] = Called("weather", {"city": "Paris"})
        case "length":
            fields = {"max_tokens": 2, "max_output_tokens": 2}
        case "refusal":
            small.twists["returns@v1"] = refuse
        case "empty":
            small.faults.add(EmptyAnswer(), model="returns@*")
        case "reasoning":
            small.faults.add(RawEvent(0, b"data: " + json.dumps(THOUGHT).encode() + b"\n\n"), model="returns@*")
        case "broken":
            small.faults.add(Tokens(30), Dies(10), model="returns@*")
    asked: dict[str, dict[str, Any]] = {
        "messages": ASK | {name: value for name, value in fields.items() if name == "max_tokens"},
        "responses": {"model": "returns", "input": TEXT, "max_output_tokens": fields.get("max_output_tokens")},
    }
    async with running.http() as http:
        for path, body in asked.items():
            events = (await http.post(f"/v1/{path}", json=body | {"stream": True})).text.split("\n\n")
            told = [json.loads(event.partition("data: ")[2]) for event in events if event]
            assert len(told) > 3
            for each in told:
                if (path, each["type"]) != ("messages", "error"):
                    EVENT_TYPES[path, each["type"]].model_validate(each)
            if end not in ("reasoning", "broken"):
                answer = await http.post(f"/v1/{path}", json=body)
                (Message if path == "messages" else Response).model_validate(answer.json())


async def test_message_that_is_too_long_says_so_in_anthropics_words(messages: AsyncAnthropic) -> None:
    turns: Any = [{"role": "user", "content": TEXT * 300}]
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long: This model's maximum context length"):
        await messages.messages.create(model="returns", max_tokens=64, messages=turns)


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
