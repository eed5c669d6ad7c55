"""The cases of vLLM's own endpoint tests, asked at the engine and through the gateway: both hold, and say the same.

Of tests/entrypoints in vLLM: openai/responses (basic, simple, structured output, function calls, event stack) and
anthropic/test_messages. What only a larger model can know is not asked.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
import pytest_asyncio

from tests.engine.conftest import BASE_MODEL, RealEngines
from tests.engine.sides import Sides, side
from tests.walks.gateway import RunningGateway

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
PAIRS = {
    "response.completed": "response.created",
    "response.incomplete": "response.created",
    "response.output_item.done": "response.output_item.added",
    "response.content_part.done": "response.content_part.added",
    "response.output_text.done": "response.output_text.delta",
    "response.function_call_arguments.done": "response.function_call_arguments.delta",
}
"""The events that end what another one begins."""
EVENT = {
    "type": "object",
    "properties": {
        "event_name": {"type": "string", "maxLength": 12},
        "date": {"enum": ["Thursday", "Friday"]},
        "participants": {"type": "array", "items": {"enum": ["Alice", "Bob"]}, "maxItems": 2},
    },
    "required": ["event_name", "date", "participants"],
    "additionalProperties": False,
}
WEATHER = {"type": "object", "properties": {"city": {"enum": ["Berlin", "Vienna"]}}, "required": ["city"]}
TOOL = {"name": "get_weather", "description": "The weather in a city.", "strict": True}
HISTORIES: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"role": "system", "content": "Finish the answer with QED."},
        {"role": "user", "content": "What is 5 * 3?"},
        {"role": "assistant", "content": "15. QED."},
        {"role": "user", "content": "Multiply the result by 2."},
    ],
    "input_text": [{"role": "user", "content": [{"type": "input_text", "text": "Hello!"}]}],
    "with_ids": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Be short."}]},
        {
            "type": "message",
            "role": "assistant",
            "id": "msg_1",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Acknowledged.", "annotations": []}],
        },
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say one sentence."}]},
    ],
    "without_ids": [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Be short."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Acknowledged."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say one sentence."}]},
    ],
}


@pytest_asyncio.fixture(loop_scope="session")
async def sides(engines: RealEngines, gateway: RunningGateway) -> AsyncIterator[Sides]:
    """The engine of general."""
    async with (
        side(engines.general.url, "none", BASE_MODEL) as engine,
        side(gateway.url, gateway.admin_key, "general") as own,
    ):
        yield Sides(engine, own)


async def events_of(stream: Any) -> list[Any]:
    return [event async for event in stream]


def kinds(events: Iterable[Any]) -> list[str]:
    """The types of events, each run of the same one once; for how much of a text comes at once is chance."""
    types = [event.type for event in events]
    return [each for before, each in zip([None, *types], types, strict=False) if each != before]


def see_that_events_nest(events: list[Any]) -> None:
    """Check that events which begin something are ended in turn, and are numbered."""
    open_events: list[str] = []
    for kind in kinds(events):
        if kind in PAIRS:
            assert open_events.pop() == PAIRS[kind], kind
        elif kind in PAIRS.values():
            open_events.append(kind)
    assert not open_events
    assert events[0].type == "response.created"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    items = [event.item_id for event in events if event.type.endswith(".delta")]
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert set(items) <= set(added)


async def test_a_text_is_answered_alike_and_with_instructions(sides: Sides) -> None:
    for more in ({}, {"instructions": "Finish the answer with QED."}):
        answers = await sides.ask(lambda one, more=more: one.respond(input="What is 13 * 24?", **more))
        for answer in answers:
            assert answer.output[-1].type == "message"
            assert answer.output[-1].content[0].text == answer.output_text != ""
        assert answers[0].output_text == answers[1].output_text
        assert answers[0].usage.input_tokens == answers[1].usage.input_tokens


@pytest.mark.parametrize("history", HISTORIES)
async def test_a_history_is_answered_alike(sides: Sides, history: str) -> None:
    direct, through = await sides.ask(lambda one: one.respond(input=HISTORIES[history]))
    assert direct.output_text == through.output_text != ""
    assert (direct.status, direct.usage.input_tokens) == (through.status, through.usage.input_tokens)


async def test_logprobs_are_those_of_the_engine_streamed_and_not(sides: Sides) -> None:
    asked: Any = {"input": "Say hello.", "include": ["message.output_text.logprobs"], "top_logprobs": 3}
    for answer in await sides.ask(lambda one: one.respond(**asked)):
        assert len(answer.output[-1].content[-1].logprobs[0].top_logprobs) == 3
    for stream in await sides.ask(lambda one: one.respond(**asked, stream=True)):
        deltas = [event for event in await events_of(stream) if event.type == "response.output_text.delta"]
        tokens = [token for delta in deltas for token in delta.logprobs]
        assert tokens
        assert all(token.logprob <= 0 and 0 < len(token.top_logprobs) <= 3 for token in tokens)


async def test_events_of_a_stream_nest_and_make_up_the_final_text(sides: Sides) -> None:
    streams = await sides.ask(lambda one: one.respond(input="Say hello in one sentence.", stream=True))
    direct, through = [await events_of(stream) for stream in streams]
    for events in (direct, through):
        see_that_events_nest(events)
        said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert said == events[-1].response.output_text != ""
    assert direct[-1].response.output_text == through[-1].response.output_text


async def test_an_answer_that_is_cut_says_so(sides: Sides) -> None:
    for answer in await sides.ask(lambda one: one.respond(input="Tell me of Moby Dick.", max_output_tokens=8)):
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


async def test_more_sampling_parameters_are_taken(sides: Sides) -> None:
    more: Any = {"temperature": 0.7, "top_p": 0.9}
    own = {"top_k": 40, "repetition_penalty": 1.2, "seed": 42}
    for answer in await sides.ask(lambda one: one.respond(input="Write.", **more, extra_body=own)):
        assert answer.status in ("completed", "incomplete")
        assert answer.output[0].content[0].text


async def test_a_schema_of_the_text_is_kept(sides: Sides) -> None:
    form = {"type": "json_schema", "name": "calendar_event", "schema": EVENT, "strict": True}
    text = "Alice and Bob are going to a science fair on Friday."
    direct, through = await sides.ask(lambda one: one.respond(input=text, text={"format": form}, max_output_tokens=96))
    assert json.loads(direct.output_text).keys() == json.loads(through.output_text).keys() == set(EVENT["required"])
    assert direct.output_text == through.output_text


async def test_a_function_is_called_and_its_result_is_answered(sides: Sides) -> None:
    tools = [{"type": "function", "parameters": WEATHER, **TOOL}]
    asked: Any = {"input": "What is the weather in Berlin?", "tools": tools, "max_output_tokens": 64}
    for choice in ("required", {"type": "function", "name": "get_weather"}):
        answers = await sides.ask(lambda one, choice=choice: one.respond(**asked, tool_choice=choice))
        calls = [next(item for item in answer.output if item.type == "function_call") for answer in answers]
        for call in calls:
            assert call.name == "get_weather"
            assert json.loads(call.arguments)["city"] in ("Berlin", "Vienna"), answers
        assert calls[0].arguments == calls[1].arguments
    history: Any = [
        {"role": "user", "content": asked["input"]},
        calls[1].model_dump(exclude_none=True),
        {"type": "function_call_output", "call_id": calls[1].call_id, "output": "20°C"},
    ]
    direct, through = await sides.ask(lambda one: one.respond(input=history))
    assert direct.output_text == through.output_text != ""


async def test_events_of_a_streamed_call_nest_and_make_up_its_arguments(sides: Sides) -> None:
    tools = [{"type": "function", "parameters": WEATHER, **TOOL}]
    asked: Any = {"input": "What is the weather in Berlin?", "tools": tools, "max_output_tokens": 64}
    for stream in await sides.ask(lambda one: one.respond(**asked, tool_choice="required", stream=True)):
        events = await events_of(stream)
        see_that_events_nest(events)
        (done,) = [
            event.item
            for event in events
            if event.type == "response.output_item.done" and event.item.type == "function_call"
        ]
        made = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
        assert (done.name, done.arguments) == ("get_weather", made)
        assert json.loads(made)["city"] in ("Berlin", "Vienna")


@pytest.mark.parametrize("system", [None, "you are a helpful assistant"])
async def test_a_message_is_answered_alike_streamed_and_not(sides: Sides, system: str | None) -> None:
    asked: Any = {"messages": [{"role": "user", "content": "how are you!"}]} | ({"system": system} if system else {})
    direct, through = await sides.ask(lambda one: one.message(**asked))
    for answer in (direct, through):
        assert (answer.type, answer.role) == ("message", "assistant")
        assert answer.stop_reason in ("end_turn", "max_tokens")
    assert direct.content[0].text == through.content[0].text != ""
    assert direct.stop_reason == through.stop_reason
    streams = await sides.ask(lambda one: one.message(**asked, stream=True))
    for stream in streams:
        events = await events_of(stream)
        assert (events[0].type, events[-1].type) == ("message_start", "message_stop")
        said = [event.delta.text for event in events if event.type == "content_block_delta"]
        assert "".join(said) == direct.content[0].text


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_in_a_message(sides: Sides, stream: bool) -> None:
    asked: Any = {
        "messages": [{"role": "user", "content": "What is the weather in Berlin?"}],
        "max_tokens": 64,
        "tools": [{"input_schema": WEATHER, **TOOL}],
        "tool_choice": {"type": "any"},
        "stream": stream,
    }
    for answer in await sides.ask(lambda one: one.message(**asked)):
        if stream:
            events = await events_of(answer)
            (begun,) = [event.content_block for event in events if event.type == "content_block_start"]
            made = "".join(event.delta.partial_json for event in events if event.type == "content_block_delta")
            (ended,) = [event.delta.stop_reason for event in events if event.type == "message_delta"]
            name, given = begun.name, json.loads(made)
        else:
            (block,) = [block for block in answer.content if block.type == "tool_use"]
            name, given, ended = block.name, block.input, answer.stop_reason
        assert (name, ended) == ("get_weather", "tool_use")
        assert given["city"] in ("Berlin", "Vienna")
