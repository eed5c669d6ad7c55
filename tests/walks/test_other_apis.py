"""Responses and Anthropic's Messages API through the official SDKs: the same path, another form."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import AsyncAnthropic, beta_async_tool
from openai import AsyncOpenAI

from tests.fakes.answers import Called
from tests.fakes.engine import FakeEngine
from tests.walks.gateway import RunningGateway
from tests.walks.sdk_world import TEXT, messages, responses, running

__all__ = ["messages", "responses", "running"]

WEATHER = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


async def record_of(running: RunningGateway, answer_id: str) -> dict[str, Any]:
    async with running.http() as http:
        answer = await http.get(f"/v1/requests/{answer_id}")
        assert answer.status_code == 200, answer.text
        record: dict[str, Any] = answer.json()["record"]
        return record


# ---- responses ----------------------------------------------------------------------------------


async def test_response_is_answered_by_the_adapter_and_recorded(
    running: RunningGateway, responses: AsyncOpenAI, small: FakeEngine
) -> None:
    answer = await responses.responses.create(
        model="returns", input=TEXT, instructions="Be short.", max_output_tokens=20, temperature=0
    )
    assert (answer.status, answer.model) == ("completed", "returns@v1")
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    seen = small.requests[-1].body
    assert seen["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}]
    assert seen["max_completion_tokens"] == 20
    record = await record_of(running, answer.id)
    assert (record["endpoint"], record["reason"], record["status"]) == ("responses", "adapter", 200)


async def test_streamed_response_has_the_events_of_the_whole_one(responses: AsyncOpenAI) -> None:
    whole = await responses.responses.create(model="returns", input=TEXT, temperature=0)
    kinds, text = [], ""
    async with responses.responses.stream(model="returns", input=TEXT, temperature=0) as stream:
        async for event in stream:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert text == whole.output_text == final.output_text
    assert final.usage == whole.usage
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_response_calls_a_tool_and_takes_what_it_gave_back(
    responses: AsyncOpenAI, small: FakeEngine, stream: bool
) -> None:
    small.auto_tool_choice = True
    tools: Any = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    choice: Any = {"type": "function", "name": "weather"}
    if stream:
        async with responses.responses.stream(model="returns", input=TEXT, tools=tools, tool_choice=choice) as events:
            answer: Any = await events.get_final_response()
    else:
        answer = await responses.responses.create(model="returns", input=TEXT, tools=tools, tool_choice=choice)
    call = answer.output[0]
    assert (call.type, call.name) == ("function_call", "weather")
    assert "city" in json.loads(call.arguments)
    given_back: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    asked: Any = [{"role": "user", "content": TEXT}, call.model_dump(exclude_none=True), given_back]
    await responses.responses.create(model="returns", input=asked, tools=tools)
    user, assistant, tool = small.requests[-1].body["messages"]
    assert user == {"role": "user", "content": TEXT}
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == call.call_id
    assert tool["content"] == "rain"


@pytest.mark.parametrize("mode", ["auto", "required"])
async def test_tools_that_the_choice_leaves_out_do_not_reach_the_engine(
    responses: AsyncOpenAI, small: FakeEngine, mode: str
) -> None:
    small.auto_tool_choice = True
    names = ("weather", "clock", "calendar")
    tools: list[Any] = [{"type": "function", "name": name, "parameters": WEATHER} for name in names]
    allowed = [{"type": "function", "name": name} for name in ("calendar", "weather")]
    choice: Any = {"type": "allowed_tools", "mode": mode, "tools": allowed}
    answer: Any = await responses.responses.create(model="returns", input=TEXT, tools=tools, tool_choice=choice)
    assert answer.tool_choice.model_dump() == choice
    chat_tools: Any = [{"type": "function", "function": {"name": name, "parameters": WEATHER}} for name in names]
    chat_allowed = [{"type": "function", "function": {"name": name}} for name in ("calendar", "weather")]
    chat_choice: Any = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": chat_allowed}}
    turn: Any = {"role": "user", "content": TEXT}
    asked: Any = {"model": "returns", "messages": [turn], "tools": chat_tools, "tool_choice": chat_choice}
    await responses.chat.completions.create(**asked)
    for request in list(small.requests)[-2:]:
        assert [tool["function"]["name"] for tool in request.body["tools"]] == ["weather", "calendar"]
        assert request.body["tool_choice"] == mode


async def test_choice_of_server_tools_alone_allows_no_call(running: RunningGateway, small: FakeEngine) -> None:
    small.auto_tool_choice = True
    tools = [{"type": "web_search"}, {"type": "function", "name": "weather", "parameters": WEATHER}]
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "web_search"}]}
    key = await running.key(unknown_fields="drop")
    async with running.http(key) as http:
        asked = {"model": "returns", "input": TEXT, "tools": tools, "tool_choice": choice}
        answer = await http.post("/v1/responses", json=asked)
    assert answer.status_code == 200, answer.text
    assert small.requests[-1].body["tool_choice"] == "none"


async def test_bound_of_calls_by_a_server_that_makes_none_is_taken(responses: AsyncOpenAI, small: FakeEngine) -> None:
    await responses.responses.create(model="returns", input=TEXT, max_tool_calls=3)
    assert "max_tool_calls" not in small.requests[-1].body


@pytest.mark.parametrize(
    ("fields", "instead"),
    [
        ({"max_tokens": 9}, "send max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "send text.format"),
        ({"stop": ["."]}, "leave it out"),
    ],
)
async def test_field_of_chat_in_a_response_is_refused_with_its_name_there(
    responses: AsyncOpenAI, fields: dict[str, Any], instead: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=instead) as refused:
        await responses.responses.create(model="returns", input=TEXT, extra_body=fields)
    assert (refused.value.code, refused.value.param) == ("unknown_parameter", next(iter(fields)))


async def test_response_keeps_a_schema(responses: AsyncOpenAI) -> None:
    form: Any = {"type": "json_schema", "name": "weather", "schema": WEATHER, "strict": True}
    answer = await responses.responses.create(model="returns", input=TEXT, text={"format": form}, max_output_tokens=64)
    assert "city" in json.loads(answer.output_text)


async def test_response_that_was_cut_is_incomplete(responses: AsyncOpenAI) -> None:
    answer = await responses.responses.create(model="returns", input=TEXT, max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def test_response_has_the_logprobs_that_were_asked_for_and_no_others(responses: AsyncOpenAI) -> None:
    asked: Any = {"model": "returns", "input": TEXT, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole: Any = await responses.responses.create(**asked)
    tokens = whole.output[0].content[0].logprobs
    assert "".join(each.token for each in tokens) == whole.output_text
    assert [len(each.top_logprobs) for each in tokens] == [2] * len(tokens)
    assert whole.top_logprobs == 2
    events: list[Any] = [event async for event in await responses.responses.create(**asked, stream=True)]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [each.token for event in deltas for each in event.logprobs] == [each.token for each in tokens]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [each.logprob for each in done.logprobs] == [each.logprob for each in tokens]
    assert events[-1].response.output[0].content[0].logprobs == tokens
    plain: Any = await responses.responses.create(model="returns", input=TEXT)
    assert plain.output[0].content[0].logprobs == []


async def test_response_of_a_stored_item_says_how_a_client_sends_it_itself(responses: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="`store`: false"):
        await responses.responses.create(model="returns", input=[{"type": "item_reference", "id": "msg_1"}])


NO_RESPONSES: list[tuple[dict[str, Any], str]] = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].image_url"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function"}}, "tool_choice.name"),
    ({"input": []}, "input"),
    ({"input": 7}, "input"),
    ({"max_output_tokens": 100_000}, "max_output_tokens"),
    ({"extra_body": {"messages": []}}, "messages"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    (
        {
            "tools": [{"type": "function", "name": "f"}],
            "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
        },
        "tool_choice",
    ),
]


async def test_response_that_is_not_taken_names_the_field(responses: AsyncOpenAI, subtests: pytest.Subtests) -> None:
    for fields, param in NO_RESPONSES:
        with subtests.test(fields=fields):
            with pytest.raises(openai.BadRequestError) as refused:
                await responses.responses.create(**({"model": "returns", "input": TEXT} | fields))
            assert refused.value.param == param


# ---- messages -----------------------------------------------------------------------------------


async def test_message_is_answered_by_the_adapter_and_recorded(
    running: RunningGateway, messages: AsyncAnthropic, small: FakeEngine
) -> None:
    answer = await messages.messages.create(
        model="returns", max_tokens=20, system="Be short.", messages=[{"role": "user", "content": TEXT}]
    )
    assert (answer.model, answer.role, answer.stop_reason) == ("returns@v1", "assistant", "end_turn")
    assert answer.content[0].type == "text"
    assert answer.content[0].text
    assert answer.usage.output_tokens > 0
    seen = small.requests[-1].body
    assert seen["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}]
    record = await record_of(running, answer.id)
    assert (record["endpoint"], record["reason"], record["status"]) == ("messages", "adapter", 200)
    assert answer._request_id == record["id"], "Anthropic's client reads the header request-id"


async def test_streamed_message_is_the_whole_one(messages: AsyncAnthropic) -> None:
    asked: Any = {"model": "returns", "max_tokens": 20, "messages": [{"role": "user", "content": TEXT}]}
    whole = await messages.messages.create(**asked)
    async with messages.messages.stream(**asked) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_message()
    assert [block.text for block in final.content] == [block.text for block in whole.content]  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
    assert kinds.count("content_block_start") == kinds.count("content_block_stop") == 1


async def test_streamed_message_begins_with_the_tokens_of_its_prompt(
    messages: AsyncAnthropic, responses: AsyncOpenAI, small: FakeEngine
) -> None:
    asked: Any = {"model": "returns", "max_tokens": 20, "messages": [{"role": "user", "content": TEXT}]}
    whole = await messages.messages.create(**asked)
    async with messages.messages.stream(**asked) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_message()
    assert events[0].type == "message_start"
    assert events[0].message.usage.input_tokens == whole.usage.input_tokens > 0
    assert final.usage == whole.usage
    async with responses.responses.stream(model="returns", input=TEXT) as told:
        assert [event async for event in told]
    assert small.requests[-1].body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("stream", [False, True])
async def test_message_calls_a_tool_and_takes_what_it_gave_back(
    messages: AsyncAnthropic, small: FakeEngine, stream: bool
) -> None:
    small.auto_tool_choice = True
    tools: Any = [{"name": "weather", "input_schema": WEATHER}]
    asked: Any = {
        "model": "returns",
        "max_tokens": 64,
        "tools": tools,
        "tool_choice": {"type": "tool", "name": "weather"},
    }
    turn: Any = {"role": "user", "content": TEXT}
    if stream:
        async with messages.messages.stream(**asked, messages=[turn]) as events:
            answer: Any = await events.get_final_message()
    else:
        answer = await messages.messages.create(**asked, messages=[turn])
    assert answer.stop_reason == "tool_use"
    call = answer.content[0]
    assert (call.type, call.name) == ("tool_use", "weather")
    assert "city" in call.input
    given_back: Any = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    turns: Any = [turn, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [given_back]}]
    await messages.messages.create(model="returns", max_tokens=20, tools=tools, messages=turns)
    _, assistant, tool = small.requests[-1].body["messages"]
    assert assistant["tool_calls"][0]["id"] == tool["tool_call_id"] == call.id
    assert tool["content"] == "rain"


@pytest.mark.parametrize("unknown", ["refuse", "drop"])
async def test_tool_runner_sends_the_whole_conversation_in_each_turn(
    running: RunningGateway, small: FakeEngine, unknown: str
) -> None:
    @beta_async_tool
    async def weather(city: str) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    def wording(body: Any) -> Called | str:
        return "It rains." if body["messages"][-1]["role"] == "tool" else Called("weather", {"city": "Bern"})

    small.auto_tool_choice = True
    small.answers["*"] = wording
    key = await running.key(unknown_fields=unknown)
    turn: Any = {"role": "user", "content": TEXT}
    async with AsyncAnthropic(base_url=running.url, api_key=key, max_retries=0) as client:
        runner = client.beta.messages.tool_runner(model="returns", max_tokens=64, tools=[weather], messages=[turn])
        answer: Any = await runner.until_done()
    assert answer.content[0].text == "It rains."
    assert [message["role"] for message in small.requests[-1].body["messages"]] == ["user", "assistant", "tool"]


async def test_thread_that_a_client_asks_for_is_refused_with_its_reason(messages: AsyncAnthropic) -> None:
    thread = messages.beta.messages.thread(model="returns", max_tokens=20)
    with pytest.raises(anthropic.BadRequestError, match="stores no threads") as refused:
        await thread.send({"role": "user", "content": TEXT})
    assert refused.value.error_code == "thread_unsupported_request"  # type: ignore[attr-defined]


async def test_bound_over_the_models_length_is_no_prompt_to_shorten(messages: AsyncAnthropic) -> None:
    turn: Any = {"role": "user", "content": TEXT}
    with pytest.raises(anthropic.BadRequestError, match="max_tokens=4000") as refused:
        await messages.messages.create(model="returns", max_tokens=4000, messages=[turn])
    assert "prompt is too long" not in str(refused.value)


async def test_message_keeps_a_schema_and_passes_its_effort_on(messages: AsyncAnthropic, small: FakeEngine) -> None:
    config: Any = {"format": {"type": "json_schema", "schema": WEATHER}, "effort": "low"}
    asked: Any = {"model": "returns", "max_tokens": 64, "messages": [{"role": "user", "content": TEXT}]}
    answer: Any = await messages.messages.create(**asked, output_config=config, cache_control={"type": "ephemeral"})
    assert "city" in json.loads(answer.content[0].text)
    seen = small.requests[-1].body
    assert seen["response_format"]["json_schema"] == {"name": "answer", "schema": WEATHER}
    assert seen["reasoning_effort"] == "low"


async def test_message_stops_at_a_sequence(messages: AsyncAnthropic) -> None:
    whole: Any = await messages.messages.create(
        model="returns", max_tokens=20, messages=[{"role": "user", "content": TEXT}]
    )
    word = whole.content[0].text.split()[3]
    cut = await messages.messages.create(
        model="returns", max_tokens=20, stop_sequences=[word], messages=[{"role": "user", "content": TEXT}]
    )
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", word)


NO_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 9_000}, "max_tokens"),
    ({"messages": [{"role": "user", "content": [{"type": "document"}]}]}, "messages[0].content[0].type"),
    (
        {"messages": [{"role": "user", "content": [{"type": "search_result", "source": "https://a"}]}]},
        "messages[0].content[0].type",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages[0].content[0].source"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
        "messages[0].content[0].source.type",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url"}}]}]},
        "messages[0].content[0].source.url",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "image"}]}],
                }
            ]
        },
        "messages[0].content[0].content[0].source",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "rain"}]}]},
        "messages[0].content[0].tool_use_id",
    ),
    (
        {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "input": {}}]}]},
        "messages[0].content[0].name",
    ),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"stop_sequences": 3}, "stop_sequences"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"output_config": {"effort": 7}}, "output_config.effort"),
    ({"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "{"}]}, "messages"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
]


async def test_message_that_is_not_taken_names_the_field(messages: AsyncAnthropic, subtests: pytest.Subtests) -> None:
    for fields, word in NO_MESSAGES:
        with subtests.test(fields=fields):
            asked: Any = {
                "model": "returns",
                "max_tokens": 20,
                "messages": [{"role": "user", "content": TEXT}],
            } | fields
            extra = {name: asked.pop(name) for name in [*asked] if name == "response_format"}
            with pytest.raises(anthropic.BadRequestError) as refused:
                await messages.messages.create(**asked, extra_body=extra)
            body: Any = refused.value.body
            assert (body["type"], body["error"]["type"]) == ("error", "invalid_request_error")
            assert word in body["error"]["param"]


async def test_errors_of_messages_have_anthropics_form(running: RunningGateway) -> None:
    async with httpx.AsyncClient(base_url=running.url) as http:
        answer = await http.post("/v1/messages", json={}, headers={"x-api-key": "sk-app-unknown"})
        assert (answer.status_code, answer.json()["type"]) == (401, "error")
        assert answer.json()["error"]["type"] == "authentication_error"
        twice = [("x-api-key", "a"), ("x-api-key", "b"), ("content-type", "application/json")]
        assert (await http.post("/v1/messages", content=b"{}", headers=twice)).status_code == 400


async def test_key_of_anthropics_client_opens_every_address(messages: AsyncAnthropic) -> None:
    assert "returns" in [model.id async for model in messages.models.list()]


async def test_unknown_model_has_each_apis_error(responses: AsyncOpenAI, messages: AsyncAnthropic) -> None:
    with pytest.raises(openai.NotFoundError):
        await responses.responses.create(model="nothing", input=TEXT)
    with pytest.raises(anthropic.NotFoundError):
        await messages.messages.create(model="nothing", max_tokens=9, messages=[{"role": "user", "content": TEXT}])


# ---- the decision alone -------------------------------------------------------------------------

CALL = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}


ROUTED: list[tuple[str, dict[str, Any]]] = [
    ("messages", {"messages": [{"role": "user", "content": TEXT}], "system": "Be short.", "max_tokens": 20}),
    ("messages", {"messages": [{"role": "assistant", "content": [CALL]}], "max_tokens": 20, "stop_sequences": []}),
    ("embeddings", {"model": "general", "input": [TEXT, "b"]}),
    ("responses", {"input": [{"role": "user", "content": TEXT}]}),
    ("responses", {"input": TEXT, "instructions": "Be short."}),
    ("completions", {"prompt": TEXT}),
    ("chat/completions", {"messages": [{"role": "user", "content": TEXT}]}),
]


async def test_route_takes_the_bodies_of_all_formats(running: RunningGateway, subtests: pytest.Subtests) -> None:
    for path, fields in ROUTED:
        with subtests.test(path=path, fields=fields):
            body = {"model": "returns"} | fields
            async with running.http() as http:
                answer = await http.post(f"/v1/{path}", json=body)
                route = await http.post("/v1/route", json=body)
                named = await http.post("/v1/route", json=body, params={"format": path.partition("/")[0]})
            assert answer.status_code == 200, answer.text
            assert (route.status_code, named.status_code) == (200, 200), route.text
            assert route.json()["reason"] == named.json()["reason"] == answer.headers["x-apprentice-reason"]


async def test_route_takes_a_body_as_the_format_that_is_named(running: RunningGateway) -> None:
    async with running.http() as http:
        body = {"model": "returns", "input": TEXT}
        task = await http.post("/v1/route", json=body, params={"format": "embeddings"})
        unknown = await http.post("/v1/route", json=body, params={"format": "letters"})
    assert (task.status_code, task.json()["error"]["param"]) == (400, "model")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "format")
