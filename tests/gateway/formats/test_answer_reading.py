"""Reading answers on the way: what they say, and that the caller gets what it would have got without our asking."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats.answer_reading import Reading
from router.answers import AnswerAlternative, ReceivedCall
from tests.fakes.answers import Said as Saying
from tests.fakes.answers import Shape, Speaker, say

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "A toaster."}]}
SCHEMA = {"type": "object", "properties": {"decision": {"type": "string"}}}
TOOLS: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "decide", "parameters": SCHEMA}}],
    "tool_choice": "required",
}


def saying(wording: str | None, body: dict[str, Any], count: int = 1) -> list[Saying]:
    return [say(Speaker("a", "b" * 64), body, index, 9, wording) for index in range(count)]


def events(shape: Shape, said: list[Saying]) -> list[bytes]:
    found = [shape.opening(one.index, 7) for one in said]
    tokens = range(max(1, *(len(one.tokens) for one in said)))
    found += [shape.token(one, number, 7) for number in tokens for one in said if number < max(1, len(one.tokens))]
    return [event for event in found if event is not None]


def shape(body: dict[str, Any], chat: bool) -> Shape:
    return Shape(body, chat, "id-1", 7, "a")


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("wording", [None, 'It is "logprobs": {"content": [', "Ü\n\n\u2028 ok", ""])
def test_without_the_logprobs_an_answer_is_byte_by_byte_what_it_is_where_nobody_asks(
    chat: bool, count: int, wording: str | None
) -> None:
    said = saying(wording, ASK, count)
    asked, plain = shape(ASK | {"logprobs": True if chat else 0}, chat), shape(ASK, chat)
    whole = [json.dumps(one.whole(said, 7)).encode() for one in (asked, plain)]
    reading = Reading(strips=True)
    assert reading.take_whole(whole[0]) == whole[1]
    in_steps = Reading(strips=True)
    assert asyncio.run(in_steps.take_long(whole[0])) == whole[1]
    assert in_steps.answered(True) == reading.answered(True)
    assert [len(one.logprobs) for one in reading.answered(True).alternatives] == [len(said[0].tokens)] * count
    streamed = Reading(strips=True)
    assert b"".join(streamed.take(events(asked, said))) == b"".join(events(plain, said))
    assert streamed.answered(True) == reading.answered(True)
    together = Reading(strips=True)
    assert together.take([b"".join(events(asked, said))]) == [b"".join(events(plain, said))]
    assert together.answered(True) == reading.answered(True)


def test_logprobs_that_the_caller_asked_for_stay_and_the_bytes_are_the_same_objects() -> None:
    said = saying(None, ASK)
    asked = shape(ASK | {"logprobs": True, "top_logprobs": 3}, chat=True)
    reading = Reading(strips=False)
    told = events(asked, said)
    assert all(one is other for one, other in zip(reading.take(told), told, strict=True))
    assert list(reading.answered(True).alternatives[0].logprobs) == said[0].logprobs


@pytest.mark.parametrize("stream", [True, False])
def test_a_tool_call_is_read_whole_or_from_its_parts(stream: bool) -> None:
    body = ASK | TOOLS
    said = saying(None, body)
    reading = Reading(strips=False)
    if stream:
        reading.take(events(shape(body, chat=True), said))
    else:
        reading.take_whole(json.dumps(shape(body, chat=True).whole(said, 7)).encode())
    assert reading.answered(True).alternatives == (
        AnswerAlternative("", "tool_calls", "", (ReceivedCall("decide", said[0].text),), []),
    )


def test_a_tool_that_takes_text_has_a_name_and_no_arguments() -> None:
    told = {"choices": [{"message": {"tool_calls": [{"type": "custom", "custom": {"name": "run", "input": "x"}}]}}]}
    reading = Reading(strips=False)
    reading.take_whole(json.dumps(told).encode())
    assert reading.answered(True).alternatives[0].calls == (ReceivedCall("run", None),)


@pytest.mark.parametrize("index", [{}, {"index": 0}], ids=["none", "always 0"])
def test_calls_that_their_engine_does_not_number_stay_apart(index: dict[str, int]) -> None:
    reading = Reading(strips=False)
    for name, order in (("find", "1"), ("refund", "2")):
        begun = {"id": f"call-{name}", "function": {"name": name, "arguments": '{"order":'}}
        for delta in (begun, {"function": {"arguments": f"{order}}}"}}):
            told = {"choices": [{"index": 0, "delta": {"tool_calls": [delta | index]}}]}
            reading.take([b"data: " + json.dumps(told).encode() + b"\n\n"])
    expected = tuple(ReceivedCall(name, f'{{"order":{order}}}') for name, order in (("find", "1"), ("refund", "2")))
    assert reading.answered(True).alternatives[0].calls == expected


def test_a_refusal_is_read_apart_from_the_text() -> None:
    reading = Reading(strips=False)
    reading.take([b'data: {"choices":[{"index":0,"delta":{"refusal":"No"}}]}\n\n'])
    reading.take([b'data: {"choices":[{"index":0,"delta":{"refusal":"."},"finish_reason":"stop"}]}\n\n'])
    assert reading.answered(True).alternatives == (AnswerAlternative("", "stop", "No.", (), []),)


@pytest.mark.parametrize(
    ("event", "shown"),
    [
        (
            b'data: {"choices": [{"text": "a", "logprobs" : {"token_logprobs": [-1]}}]}\n\n',
            b'data: {"choices": [{"text": "a", "logprobs" : null}]}\n\n',
        ),
        (
            b'data: {"choices":[{"text":"{}","logprobs":{}}]}\n\n',
            b'data: {"choices":[{"text":"{}","logprobs":null}]}\n\n',
        ),
        (
            b'data: {"choices":[{"text":"a","logprobs":\ndata: {"token_logprobs":\ndata: [-1]}}]}\n\n',
            b'data: {"choices":[{"text":"a","logprobs":null}]}\n\n',
        ),
        (b": a comment\n\n", b": a comment\n\n"),
        (b"data: [DONE]\n\n", b"data: [DONE]\n\n"),
        (b"data: no json\n\n", b"data: no json\n\n"),
        (b'data: {"choices":[{"logprobs":null}]}\n\n', b'data: {"choices":[{"logprobs":null}]}\n\n'),
    ],
)
def test_whatever_its_form_an_event_goes_on_without_logprobs(event: bytes, shown: bytes) -> None:
    assert Reading(strips=True).take([event]) == [shown]


NAMES = (
    *("choices", "index", "message", "delta", "content", "refusal", "tool_calls", "function", "name", "custom"),
    *("arguments", "logprobs", "text"),
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=12,
)


@given(values, st.booleans())
def test_whatever_an_engine_says_is_read_or_left_as_it_is(value: Any, strips: bool) -> None:
    body = json.dumps({"choices": value}).encode()
    reading = Reading(strips)
    whole, streamed = reading.take_whole(body), reading.take([b"data: " + body + b"\n\n"])
    reading.answered(True)
    if not strips:
        assert (whole, streamed) == (body, [b"data: " + body + b"\n\n"])
    else:
        json.loads(whole)
        json.loads(streamed[0][6:])
