"""The reviewers' view: texts as they were sent, within their bounds, for all bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.conversation_texts import TEXT_BYTES_MAX, clip_text, read_answered, read_asked, read_tools


def body(**fields: Any) -> bytes:
    return json.dumps({"model": "returns", **fields}).encode()


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"id": "x", "choices": [{"index": 0, **choice}]}).encode() + b"\n\n"


def test_messages_are_kept_as_they_were_sent_with_all_their_fields() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "A"}], "name": "n"}, {"role": "tool", "x": 1}]
    cut: list[str] = []
    assert read_asked(CHAT, body(messages=messages), cut.append) == (messages, None)
    assert cut == []


def test_a_message_that_can_not_be_told_again_is_kept_as_text() -> None:
    message = '{"role": "user", "content": "A", "name": 1e999}'
    (kept,), _ = read_asked(CHAT, f'{{"messages": [{message}]}}'.encode(), print)
    assert kept == {"role": None, "content": message}


def test_long_conversations_keep_the_latest_messages_and_long_messages_their_start() -> None:
    cut: list[str] = []
    many = [{"role": "user", "content": str(number) * 10_000} for number in range(9)]
    kept, _ = read_asked(CHAT, body(messages=many), cut.append)
    assert kept == many[3:]
    long = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "é" * 90_000}]}]
    kept, _ = read_asked(CHAT, body(messages=long), cut.append)
    assert [message["role"] for message in kept] == ["user"]
    assert len(kept[0]["content"].encode()) <= TEXT_BYTES_MAX
    assert cut == [
        "The first 3 of 9 messages are left out: they are too long.",
        "The last message is cut: it is longer than 65,536 bytes.",
        "The first 1 of 2 messages are left out: they are too long.",
    ]


def test_tools_are_kept_whole_or_not_at_all() -> None:
    cut: list[str] = []
    tool = {"type": "function", "function": {"name": "refund", "description": "é" * 10_000}}
    assert read_tools(Raw(json.dumps([tool] * 2).encode()), cut.append) == [tool, tool]
    assert cut == []
    assert read_tools(Raw(json.dumps([tool] * 3).encode()), cut.append) == []
    assert cut == ["The tools are left out: they are longer than 131,072 bytes."]
    assert read_tools(None, print) == []


@pytest.mark.parametrize("prompt", ["x" * 70_000, ["a", "x" * 70_000, "b"]])
def test_a_long_prompt_is_cut(prompt: str | list[str]) -> None:
    cut: list[str] = []
    _, kept = read_asked(COMPLETIONS, body(prompt=prompt), cut.append)
    assert type(kept) is type(prompt)
    assert len(json.dumps(kept, ensure_ascii=False).encode()) < TEXT_BYTES_MAX + 100
    assert cut == ["The prompt is cut: it is longer than 65,536 bytes."]


def test_a_stream_says_the_same_as_a_whole_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "refund", "arguments": '{"a": 1}'}}
    whole = body(choices=[{"index": 0, "message": {"role": "assistant", "content": "Yes", "tool_calls": [call]}}])
    parts = [
        event(delta={"role": "assistant", "content": ""}),
        event(delta={"content": "Ye"}),
        event(delta={"content": "s"}),
        event(delta={"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "refund", "arguments": ""}}]}),
        event(delta={"tool_calls": [{"index": 0, "function": {"arguments": '{"a": '}}]}),
        event(delta={"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]}) + b": a comment\n\n",
        event(delta={}, finish_reason="tool_calls"),
    ]
    told = ("Yes", [{"id": "c1", "name": "refund", "arguments": '{"a": 1}'}])
    assert read_answered(CHAT, [whole], False, print) == told
    assert read_answered(CHAT, parts, True, print) == told
    joined = b"".join(parts)
    assert read_answered(CHAT, [joined[:77], joined[77:]], True, print) == told


def test_a_refusal_is_shown_and_alternatives_are_numbered() -> None:
    refused = body(choices=[{"index": 0, "message": {"content": None, "refusal": "I can't."}}])
    assert read_answered(CHAT, [refused], False, print) == ("I can't.", [])
    two = [event(text="A"), b'data: {"choices": [{"index": 1, "text": "B"}]}\n\n', event(text="C")]
    cut: list[str] = []
    assert read_answered(CHAT, two, True, cut.append) == ("[1] AC\n\n[2] B", [])
    assert cut == ["It has 2 answers: a label does not say which of them is right."], "it is not a row of a data set"


def test_what_is_too_long_is_cut_and_what_is_no_json_is_told() -> None:
    cut: list[str] = []
    calls = [{"function": {"name": f"f{number}", "arguments": "x" * 50_000}} for number in range(4)]
    text, tools = read_answered(
        CHAT, [body(choices=[{"message": {"content": "y" * 70_000, "tool_calls": calls}}])], False, cut.append
    )
    assert len(text.encode()) == TEXT_BYTES_MAX
    assert sum(len(value) for call in tools for value in call.values()) <= TEXT_BYTES_MAX
    assert cut == [
        "The answer is cut: it is longer than 65,536 bytes.",
        "The tool calls are cut: they are longer than 65,536 bytes.",
    ]
    cut.clear()
    assert read_answered(CHAT, [b"data: {oops\n\n"], True, cut.append) == ("", [])
    assert cut == ["A part of the answer could not be read."]


@given(st.text(), st.integers(0, 40))
def test_a_clipped_text_has_whole_characters_and_keeps_to_its_bound(text: str, most: int) -> None:
    short = clip_text(text, most)
    assert short == text or short.endswith("[…]")
    assert len(short.encode()) <= max(most, 6)


@given(st.binary(max_size=80), st.booleans())
def test_no_bytes_of_an_answer_break_the_reading(raw: bytes, stream: bool) -> None:
    text, tools = read_answered(CHAT, [raw], stream, lambda _: None)
    assert isinstance(text, str)
    assert tools == [] or isinstance(tools[0], dict)
