from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.answers.events import (
    DONE,
    EVENT_BYTES_MAX,
    EventSplitter,
    Progress,
    body_of,
    error_event,
    payload_of,
    usage_event,
)


def event(**body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def chunk(content: str | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content is not None else {}, "finish_reason": finish_reason}
    return event(id="chatcmpl-1", object="chat.completion.chunk", choices=[choice], **more)


STREAM = (
    event(id="chatcmpl-1", choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}]),
    b": a comment that keeps the connection open\n\n",
    chunk("Approve ✓ "),
    chunk("— Regel 14"),
    chunk(finish_reason="stop"),
    event(id="chatcmpl-1", choices=[], usage={"prompt_tokens": 7, "completion_tokens": 2}),
    DONE,
)
WHOLE = b"".join(STREAM)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def split(parts: list[bytes]) -> list[bytes]:
    splitter = EventSplitter()
    found = [event for part in parts for event in splitter.feed(part)]
    return found + [rest for rest in [splitter.rest()] if rest]


@given(st.lists(st.integers(0, 1 << 16), max_size=30))
def test_any_cut_of_the_bytes_gives_the_same_events(places: list[int]) -> None:
    assert split(cut(WHOLE, places)) == list(STREAM)


@given(st.lists(st.integers(0, 1 << 16), max_size=30))
def test_any_cut_of_a_stream_with_crlf_gives_the_same_events(places: list[int]) -> None:
    assert split(cut(WHOLE.replace(b"\n", b"\r\n"), places)) == list(STREAM)


@given(
    st.lists(
        st.sampled_from([b"\n", b"\r\n", b"data: a", b"data:b", b": c", b"id: 1", b"x", "é".encode()]), max_size=14
    ),
    st.lists(st.integers(0, 1 << 16), max_size=8),
)
def test_any_cut_of_any_lines_gives_the_same_events(lines: list[bytes], places: list[int]) -> None:
    data = b"".join(lines)
    assert split(cut(data, places)) == split([data])


def test_a_carriage_return_that_ends_no_line_is_relayed_as_it_came() -> None:
    assert split([b"data: a\rb\n\n"]) == [b"data: a\rb\n\n"]


def test_one_byte_at_a_time_is_a_cut_too() -> None:
    assert split([bytes([byte]) for byte in WHOLE]) == list(STREAM)


def test_an_event_without_its_blank_line_comes_out_at_the_end() -> None:
    assert split([WHOLE[:-2]]) == list(STREAM)
    assert split([WHOLE + b"data: half"]) == [*STREAM, b"data: half\n\n"]
    assert split([WHOLE + b"\n\r\n"]) == list(STREAM)


def test_an_event_without_an_end_is_refused() -> None:
    splitter = EventSplitter()
    splitter.feed(b"data: " + b"x" * (EVENT_BYTES_MAX - 6))
    with pytest.raises(ValueError, match="longer than the gateway's limit"):
        splitter.feed(b"x")


@pytest.mark.parametrize(
    ("raw", "payload"),
    [
        (b"data: {}\n\n", b"{}"),
        (b"data:{}\n\n", b"{}"),
        (b"data:  {}\n\n", b" {}"),
        (b"event: message\ndata: {}\nid: 7\n\n", b"{}"),
        (b"data: {\ndata: }\n\n", b"{\n}"),
        (b"data: [DONE]\n\n", b"[DONE]"),
        (b": comment\n\n", None),
        (b"event: ping\n\n", None),
        (b"data: \n\n", b""),
    ],
)
def test_the_data_of_an_event(raw: bytes, payload: bytes | None) -> None:
    assert payload_of(raw) == payload


def taken(*events: bytes) -> tuple[Progress, list[bytes]]:
    progress = Progress()
    return progress, [found for found in map(progress.take, events) if found is not None]


def test_a_stream_is_relayed_without_its_comments_its_usage_and_its_end() -> None:
    progress, for_caller = taken(*STREAM)
    assert for_caller == [STREAM[0], *STREAM[2:5]]
    assert (progress.answer_id, progress.finish_reason, progress.done) == ("chatcmpl-1", "stop", True)
    assert (progress.chunks, progress.skipped, progress.broken) == (2, 0, None)
    assert progress.usage is not None
    assert (progress.usage.prompt_tokens, progress.usage.completion_tokens) == (7, 2)


def seen(progress: Progress) -> tuple[object, ...]:
    return tuple(getattr(progress, name) for name in Progress.__slots__)


PIECES = (*STREAM, chunk("more"), chunk(finish_reason="length"), b"id: 7\ndata: {}\n\n", b"data: {\ndata: }\n\n")


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.lists(st.integers(0, 1 << 12), max_size=4))
def test_events_that_are_taken_together_say_the_same_as_one_by_one(events: list[bytes], places: list[int]) -> None:
    for part in cut(b"".join(events), places):
        together, alone = Progress(), Progress()
        end = together.take_plain(part)
        plain = split([part[:end]]) if end else []
        assert b"".join(plain) == part[:end]
        assert [alone.take(event) for event in plain] == plain
        assert seen(together) == seen(alone)


def test_a_read_of_tokens_is_plain_up_to_the_usage_and_the_end() -> None:
    tokens = b"".join(chunk("a") for _ in range(3))
    assert Progress().take_plain(tokens) == len(tokens)
    assert Progress().take_plain(tokens + STREAM[-2] + STREAM[-1]) == len(tokens)
    assert Progress().take_plain(tokens[:-1]) == 2 * len(tokens) // 3
    assert Progress().take_plain(b"") == Progress().take_plain(STREAM[-1]) == Progress().take_plain(b"data: {") == 0


def test_nothing_is_answered_before_the_first_token_or_the_end() -> None:
    progress = Progress()
    for told, answered in ((STREAM[0], False), (STREAM[1], False), (STREAM[2], True)):
        progress.take(told)
        assert progress.answered is answered
    assert taken(chunk(finish_reason="length"))[0].answered


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "x"},
        {"reasoning_content": "x"},
        {"refusal": "x"},
        {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}]},
    ],
    ids=str,
)
def test_a_token_may_be_text_reasoning_a_refusal_or_a_tool_call(delta: dict[str, Any]) -> None:
    told = event(id="1", choices=[{"index": 0, "delta": delta}])
    progress, for_caller = taken(told)
    assert progress.answered
    assert for_caller == [told]
    assert progress.skipped == 0


@pytest.mark.parametrize(
    "delta", [{}, {"content": ""}, {"content": None, "tool_calls": None}, {"tool_calls": []}], ids=str
)
def test_an_empty_delta_is_no_token(delta: dict[str, Any]) -> None:
    progress, for_caller = taken(event(id="1", choices=[{"index": 0, "delta": delta}]))
    assert not progress.answered
    assert len(for_caller) == 1


def test_the_text_of_a_completion_is_a_token() -> None:
    assert taken(event(id="cmpl-1", choices=[{"index": 0, "text": "x"}]))[0].chunks == 1
    assert taken(event(id="cmpl-1", choices=[{"index": 0, "text": ""}]))[0].chunks == 0


@pytest.mark.parametrize(
    "raw",
    [b"data: {\n\n", b"data: 7\n\n", b'data: {"choices": 1}\n\n', b"data: \xff\n\n", b"data: " + b"[" * 9000 + b"\n\n"],
    ids=range(5),
)
def test_a_malformed_event_is_skipped_and_the_rest_goes_on(raw: bytes) -> None:
    progress, for_caller = taken(chunk("a"), raw, chunk("b"))
    assert for_caller == [chunk("a"), chunk("b")]
    assert (progress.skipped, progress.chunks) == (1, 2)


@pytest.mark.parametrize("error", [{"message": "out of memory", "code": 500}, "out of memory", ["x"]], ids=str)
def test_an_error_inside_a_200_breaks_the_stream_and_reaches_nobody(error: Any) -> None:
    progress, for_caller = taken(chunk("a"), event(error=error))
    assert for_caller == [chunk("a")]
    assert progress.broken is not None
    assert json.loads(progress.broken)["error"] == error


def test_an_error_that_is_null_is_none() -> None:
    progress, for_caller = taken(chunk("a", error=None))
    assert progress.broken is None
    assert len(for_caller) == 1


def test_what_the_engine_adds_is_not_in_the_way() -> None:
    told = chunk("a", system_fingerprint="fp", service_tier=None, usage=None, prompt_token_ids=[1, 2], kv={"a": [1]})
    assert taken(told)[1] == [told]


def test_usage_beside_a_token_does_not_swallow_the_token() -> None:
    told = chunk("a", usage={"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 1}})
    progress, for_caller = taken(told)
    assert for_caller == [told]
    assert progress.usage is not None
    assert progress.usage.prompt_tokens_details is not None
    assert (progress.usage.prompt_tokens_details.cached_tokens, progress.usage_payload) == (1, None)


ABSURD = [
    {"prompt_tokens": 1 << 63, "completion_tokens": 1},
    {"prompt_tokens": 1, "completion_tokens": -100_000},
    {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -1}},
    {"prompt_tokens": (1 << 53) + 1, "completion_tokens": 1},
    "many",
]


@pytest.mark.parametrize("usage", ABSURD)
def test_a_usage_that_cannot_be_is_not_known_and_takes_nothing_else_with_it(usage: Any) -> None:
    beside = chunk("a", finish_reason="stop", usage=usage)
    progress, for_caller = taken(beside, event(id="chatcmpl-1", choices=[], usage=usage))
    assert for_caller == [beside]
    assert (progress.chunks, progress.finish_reason, progress.skipped) == (1, "stop", 1)
    assert (progress.usage, progress.usage_payload, progress.broken) == (None, None, None)
    whole = json.dumps({"id": "1", "choices": [{"finish_reason": "stop"}], "usage": usage}).encode()
    assert (body_of(whole).usage, body_of(whole).choices[0].finish_reason) == (None, "stop")


def test_each_alternative_ends_for_itself() -> None:
    choices = [{"index": n, "delta": {}, "finish_reason": "stop"} for n in range(3)]
    assert taken(event(id="1", choices=choices))[0].choices_finished == 3


def test_the_gateway_splices_what_it_knows_into_the_engines_own_usage() -> None:
    payload = b'{"id":"1", "choices":[], "usage":{"prompt_tokens":7} } '
    told = usage_event(payload, {"cost_usd": 0.1})
    assert told.startswith(b'data: {"id":"1", "choices":[], "usage":{"prompt_tokens":7}')
    assert json.loads(told.removeprefix(b"data: ")) == {
        "id": "1",
        "choices": [],
        "usage": {"prompt_tokens": 7},
        "apprentice": {"cost_usd": 0.1},
    }


def test_an_error_ends_a_stream_as_one_event() -> None:
    told = error_event({"message": "It broke.\nBadly.", "code": "stream_broken"})
    assert told.count(b"\n") == 2
    payload = payload_of(told)
    assert payload is not None
    assert json.loads(payload)["error"]["code"] == "stream_broken"
