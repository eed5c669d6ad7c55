"""Answers translated for other APIs: blocks begin and end in order, whatever an engine's events look like."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.errors import Problem
from gateway.formats.anthropic_messages import MESSAGES, MessageWriter
from gateway.formats.request_body import read_body
from gateway.formats.responses import RESPONSES
from gateway.formats.responses_writer import ResponseWriter
from gateway.formats.wire_format import WireFormat

ASK = b'{"model": "m", "input": "hi"}'


def events(*deltas: dict[str, Any], **more: Any) -> bytes:
    told = [
        {"id": "chatcmpl-1", "model": "m", "choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas
    ]
    told.append({"id": "chatcmpl-1", "model": "m", "choices": [{"delta": {}, "finish_reason": "tool_calls"}]} | more)
    return b"".join(b"data: " + json.dumps(each).encode() + b"\n\n" for each in told)


def call(call_id: str | None, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": call_id, "function": {"name": "f", "arguments": arguments}, **more}]}


def read(written: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.partition(b"data: ")[2]) for event in written.split(b"\n\n") if event]


def test_what_only_the_other_kind_of_answer_has_may_be_anything() -> None:
    event = {"id": "chatcmpl-1", "choices": [{"delta": {"content": "yes"}, "message": "?", "finish_reason": "stop"}]}
    whole = {"id": "chatcmpl-1", "choices": [{"message": {"content": "yes"}, "delta": [], "finish_reason": "stop"}]}
    for make_writer in (MessageWriter, lambda: ResponseWriter(ASK)):
        assert b'"yes"' in make_writer().write_end(b"data: " + json.dumps(event).encode() + b"\n\n")
        assert b'"yes"' in make_writer().write_whole(json.dumps(whole).encode())


def test_calls_without_a_number_stay_apart() -> None:
    told = read(MessageWriter().write_end(events(call("a", '{"x":1}'), call("b", {"y": 2}))))
    starts = [event["content_block"]["id"] for event in told if event["type"] == "content_block_start"]
    assert starts == ["a", "b"]
    parts = [event["delta"]["partial_json"] for event in told if event["type"] == "content_block_delta"]
    assert [json.loads(part) for part in parts] == [{"x": 1}, {"y": 2}]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([("a", '{"x"', 0), (None, ":1}", 0), ("b", '{"y"', 1), (None, ":2}", 1)], id="one by one"),
        pytest.param([("a", '{"x"', 0), ("b", '{"y"', 1), (None, ":1}", 0), (None, ":2}", 1)], id="in turn"),
        pytest.param([("a", "", 0), ("b", '{"y":2}', 1), (None, '{"x":1}', 0)], id="the first one last"),
        pytest.param([("a", '{"x":1', 0), ("b", '{"y":2}', 1), (None, "}", 0)], id="the first one is cut"),
    ],
)
def test_calls_are_told_one_after_the_other(parts: list[tuple[str | None, str, int]]) -> None:
    deltas = [{"content": "I look."}, *(call(call_id, text, index=index) for call_id, text, index in parts)]
    told = read(MessageWriter().write_end(events(*deltas)))
    blocks: list[tuple[str | None, str]] = []
    for event in told:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append((event["content_block"].get("id"), ""))
            case "content_block_delta" | "content_block_stop" as kind:
                assert event["index"] == len(blocks) - 1
                delta = event["delta"] if kind == "content_block_delta" else {}
                blocks[-1] = blocks[-1][0], blocks[-1][1] + delta.get("text", delta.get("partial_json", ""))
    assert blocks == [(None, "I look."), ("a", '{"x":1}'), ("b", '{"y":2}')]
    told = read(ResponseWriter(ASK).write_end(events(*deltas)))
    places = [event["output_index"] for event in told if "output_index" in event]
    assert places == sorted(places)
    added = [event["item"] for event in told if event["type"] == "response.output_item.added"]
    assert [item.get("arguments", "") for item in added] == ["", "", ""]
    done = [event["arguments"] for event in told if event["type"] == "response.function_call_arguments.done"]
    assert done == ['{"x":1}', '{"y":2}']


@pytest.mark.parametrize("field", [{"model": None}, {"created": 1.5}, {"usage": {"prompt_tokens": "12"}}])
def test_answer_that_chat_lets_pass_is_told_too(field: dict[str, Any]) -> None:
    choice = {"message": {"content": "yes", "reasoning": {"a": 1}}, "finish_reason": "stop", "stop_reason": [1]}
    body = json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice]} | field).encode()
    assert json.loads(ResponseWriter(ASK).write_whole(body))["output"][0]["content"][0]["text"] == "yes"
    assert json.loads(MessageWriter().write_whole(body))["content"] == [{"type": "text", "text": "yes"}]


@pytest.mark.parametrize("reason", ["length", "model_length"])
def test_answer_that_was_cut_at_any_limit_is_told_as_cut(reason: str) -> None:
    choice = {"message": {"content": "yes"}, "finish_reason": reason}
    body = json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode()
    assert json.loads(MessageWriter().write_whole(body))["stop_reason"] == "max_tokens"
    assert json.loads(ResponseWriter(ASK).write_whole(body))["status"] == "incomplete"


@pytest.mark.parametrize(("stops", "told"), [(["END"], ("stop_sequence", "END")), (None, ("end_turn", None))])
def test_only_a_stop_text_of_the_callers_is_told_as_one(stops: list[str] | None, told: tuple[str, str | None]) -> None:
    """A version's manifest may have stop texts of its own."""
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], "stop_sequences": stops}
    writer = read_body(MESSAGES, json.dumps(asked).encode()).writer
    assert writer is not None
    choice = {"message": {"content": "yes"}, "finish_reason": "stop", "stop_reason": "END"}
    answer = json.loads(writer.write_whole(json.dumps({"id": "chatcmpl-1", "choices": [choice]}).encode()))
    assert (answer["stop_reason"], answer["stop_sequence"]) == told


@pytest.mark.parametrize(
    ("details", "reasoned"), [({"reasoning_tokens": 2}, 2), ({"reasoning_tokens": -1}, 0), ([], 0), (None, 0)]
)
def test_counts_are_told_though_the_tokens_of_reasoning_can_not_be_read(details: Any, reasoned: int) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "completion_tokens_details": details}
    choice = {"message": {"content": "yes"}, "finish_reason": "stop"}
    body = json.dumps({"id": "chatcmpl-1", "choices": [choice], "usage": usage}).encode()
    told = json.loads(MessageWriter().write_whole(body))["usage"]
    assert (told["input_tokens"], told["output_tokens"]) == (7, 3)
    told = json.loads(ResponseWriter(ASK).write_whole(body))["usage"]
    assert (told["total_tokens"], told["output_tokens_details"]) == (10, {"reasoning_tokens": reasoned})


def test_logprobs_of_reasoning_and_of_the_end_are_none_of_the_texts() -> None:
    texts = ("yes", " no", "y", "es", "<|im_end|>")
    tokens = [{"token": text, "logprob": -0.5, "bytes": [1], "top_logprobs": []} for text in texts]
    message = {"reasoning": "yes no", "content": "yes"}
    choice = {"message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}
    body = json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice]}).encode()
    asked = b'{"model": "m", "input": "hi", "include": ["message.output_text.logprobs"]}'
    reasoning, text = json.loads(ResponseWriter(asked).write_whole(body))["output"]
    assert (reasoning["type"], text["content"][0]["logprobs"]) == ("reasoning", tokens[2:4])
    assert json.loads(ResponseWriter(ASK).write_whole(body))["output"][1]["content"][0]["logprobs"] == []


@pytest.mark.parametrize("logprobs", [7, {"content": 7}, {"content": [7]}, {}, None])
def test_logprobs_that_can_not_be_read_are_left_out(logprobs: Any) -> None:
    choice = {"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": logprobs}
    body = json.dumps({"id": "chatcmpl-1", "model": "m", "choices": [choice]}).encode()
    asked = b'{"model": "m", "input": "hi", "top_logprobs": 1}'
    assert json.loads(ResponseWriter(asked).write_whole(body))["output"][0]["content"][0]["logprobs"] == []


def test_reasoning_before_a_call_goes_back_with_the_call() -> None:
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    parts = [{"type": "reasoning_text", "text": "Hm."}]
    turns = [
        {"role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": parts},
        {"role": "assistant", "content": "I look."},
        call,
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": parts},
        call | {"call_id": "d"},
        {"type": "function_call_output", "call_id": "c", "output": "b"},
        {"type": "reasoning", "id": "rs_3", "summary": [], "content": None, "encrypted_content": "x"},
        call | {"call_id": "e"},
    ]
    chat = json.loads(read_body(RESPONSES, json.dumps({"model": "m", "input": turns}).encode()).raw)
    _, first, _, second = chat["messages"]
    assert (first["content"], first["reasoning"], len(first["tool_calls"])) == ("I look.", "Hm.\nHm.", 2)
    assert "reasoning" not in second


def test_thinking_before_a_tool_goes_back_with_the_tool() -> None:
    thought = {"type": "thinking", "thinking": "Hm.", "signature": ""}
    use = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "c", "content": "b"}
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [thought, {"type": "redacted_thinking", "data": "x"}, use]},
        {"role": "user", "content": [result]},
    ]
    asked = {"model": "m", "max_tokens": 9, "messages": turns}
    chat = json.loads(read_body(MESSAGES, json.dumps(asked).encode()).raw)
    assert [message.get("reasoning") for message in chat["messages"]] == [None, "Hm.", None]


@pytest.mark.parametrize("place", [0, 1])
def test_instructions_and_developer_messages_become_one_system_message(place: int) -> None:
    turns = [{"role": "user", "content": "c"}]
    turns.insert(place, {"role": "developer", "content": "b"})
    asked = {"model": "m", "instructions": "a", "input": turns}
    chat = json.loads(read_body(RESPONSES, json.dumps(asked).encode()).raw)
    assert chat["messages"] == [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize("place", [0, 1])
def test_system_turns_of_a_message_are_joined_with_its_system(place: int) -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "c"}]
    turns.insert(place, {"role": "system", "content": [{"type": "text", "text": "b"}]})
    asked = {"model": "m", "max_tokens": 9, "system": "a", "messages": turns}
    chat = json.loads(read_body(MESSAGES, json.dumps(asked).encode()).raw)
    assert chat["messages"] == [{"role": "system", "content": "a\n\nb"}, {"role": "user", "content": "c"}]


@pytest.mark.parametrize(
    ("wire_format", "fields"),
    [
        (MESSAGES, {"messages": [{"role": "user", "content": "c"}], "max_tokens": 20.0, "top_k": 4.0}),
        (RESPONSES, {"input": "c", "max_output_tokens": 20.0, "top_logprobs": 4.0}),
    ],
)
def test_whole_numbers_of_other_apis_may_have_a_point(wire_format: WireFormat, fields: dict[str, Any]) -> None:
    body = read_body(wire_format, json.dumps({"model": "m", **fields}).encode())
    assert (body.answer_tokens, body.read.top_k or body.read.top_logprobs) == (20, 4)


def test_values_that_ask_for_nothing_are_taken() -> None:
    asked = {"model": "m", "input": "c", "tools": [], "tool_choice": "auto", "top_logprobs": 0, "stop": None}
    chat = json.loads(read_body(RESPONSES, json.dumps(asked).encode()).raw)
    assert chat == {"model": "m", "messages": [{"role": "user", "content": "c"}]}


def test_result_of_a_tool_keeps_its_error_and_its_image() -> None:
    source = {"type": "base64", "media_type": "image/png", "data": "AAAA"}
    result: dict[str, Any] = {"type": "tool_result", "tool_use_id": "a", "is_error": True}
    result["content"] = [{"type": "text", "text": "boom"}, {"type": "image", "source": source}]
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1}}
    turns = [
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    asked = {"model": "m", "max_tokens": 9, "messages": turns}
    chat = json.loads(read_body(MESSAGES, json.dumps(asked).encode()).raw)["messages"]
    assert json.loads(chat[1]["tool_calls"][0]["function"]["arguments"]) == {"x": 1}
    assert chat[2] == {"role": "tool", "tool_call_id": "a", "content": "Error: boom"}
    assert chat[3]["content"] == [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]


def test_nested_rubbish_in_an_unknown_field_is_not_built() -> None:
    body = b'{"model": "m", "input": "c", "zz": [' + b",".join([b"[]"] * 9) + b"]}"
    assert bytes(read_body(RESPONSES, body)._fields["zz"]).count(b"[]") == 9
    with pytest.raises(Problem, match="at most"):
        read_body(RESPONSES, b'{"model": "m", "input": "c", "tools": [{"type": "function", "name": "f", "parameters": ['
                  + b",".join([b"[]"] * 100_000) + b"]}]}")  # fmt: skip


def test_strict_tool_of_a_message_stays_strict() -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}, "strict": True, "cache_control": {"type": "ephemeral"}}
    asked = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "c"}], "tools": [tool]}
    chat = json.loads(read_body(MESSAGES, json.dumps(asked).encode()).raw)
    assert chat["tools"] == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
    ]


def test_tool_without_parameters_is_a_function_without_them() -> None:
    asked = {"model": "m", "input": "c", "tools": [{"type": "function", "name": "f"}]}
    chat = json.loads(read_body(RESPONSES, json.dumps(asked).encode()).raw)
    assert chat["tools"] == [{"type": "function", "function": {"name": "f"}}]


def test_call_without_arguments_has_an_empty_object_of_them() -> None:
    told = read(ResponseWriter(ASK).write_end(events(call("a", "", index=0), call("b", "{}", index=1))))
    done = [event["arguments"] for event in told if event["type"] == "response.function_call_arguments.done"]
    items = [event["item"]["arguments"] for event in told if event["type"] == "response.output_item.done"]
    assert done == items == [item["arguments"] for item in told[-1]["response"]["output"]] == ["{}", "{}"]


@pytest.mark.parametrize(
    "odd",
    [
        {"refusal": {"a": 1}},
        {"tool_calls": [{"id": 7, "index": "x", "function": {"name": 3, "arguments": [1]}}]},
        {"tool_calls": [None, 3, {"function": "f"}]},
    ],
)
@pytest.mark.parametrize("make", [MessageWriter, lambda: ResponseWriter(ASK)])
def test_odd_types_that_chat_lets_pass_are_told_too(make: Any, odd: dict[str, Any]) -> None:
    whole = json.dumps({"choices": [{"message": {"content": "yes", **odd}}]}).encode()
    assert b"yes" in make().write_whole(whole)
    assert b"yes" in make().write_end(events({"content": "yes"}, odd))


def test_an_error_in_a_stream_has_the_next_number() -> None:
    writer = ResponseWriter(ASK)
    told = read(writer.write_events(events({"content": "yes"})))
    error, failed = read(writer.write_failure(Problem("stream_broken", "It broke.")))
    assert error["sequence_number"] == failed["sequence_number"] - 1 == told[-1]["sequence_number"] + 1
