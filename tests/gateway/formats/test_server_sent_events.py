from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Problem
from gateway.formats.chat import CHAT
from gateway.formats.server_sent_events import (
    BOM,
    DONE,
    WHOLE,
    EventSplitter,
    Progress,
    extend_usage_event,
    payload_of,
    with_fingerprint,
)

EVENT_BYTES_MAX = 1 << 16


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
BYTES = b"".join(STREAM)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]


def split(parts: list[bytes]) -> list[bytes]:
    splitter = EventSplitter(EVENT_BYTES_MAX)
    found = [event for part in parts for event in splitter.feed(part)]
    return found + [rest for rest in [splitter.rest()] if rest]


@pytest.mark.invariant("No answer depends on where the network cut its bytes.")
@given(st.lists(st.integers(0, 1 << 16), max_size=30))
def test_any_cut_of_the_bytes_gives_the_same_events(places: list[int]) -> None:
    assert split(cut(BYTES, places)) == list(STREAM)


@given(st.sampled_from([b"\n", b"\r\n", b"\r"]), st.booleans(), st.lists(st.integers(0, 1 << 16), max_size=30))
def test_any_line_end_a_bom_and_any_cut_give_the_same_events(line_end: bytes, bom: bool, places: list[int]) -> None:
    data = BYTES.replace(b"\n", line_end)
    assert split(cut(BOM + data if bom else data, places)) == list(STREAM)


@given(
    st.lists(
        st.sampled_from([b"\n", b"\r\n", b"\r", b"data: a", b"data:b", b": c", b"id: 1", b"x", "é".encode()]),
        max_size=14,
    ),
    st.lists(st.integers(0, 1 << 16), max_size=8),
)
def test_any_cut_of_any_lines_gives_the_same_events(lines: list[bytes], places: list[int]) -> None:
    data = b"".join(lines)
    assert split(cut(data, places)) == split([data])


def test_carriage_return_ends_a_line() -> None:
    assert split([b"data: a\rb\n\n"]) == [b"data: a\nb\n\n"]


def test_mark_inside_the_stream_is_no_bom() -> None:
    assert split([b"data: a\n\n", BOM + b"data: b\n\n"]) == [b"data: a\n\n", BOM + b"data: b\n\n"]


def test_one_byte_at_a_time_is_a_cut_too() -> None:
    assert split([bytes([byte]) for byte in BYTES]) == list(STREAM)


def test_an_event_without_its_blank_line_comes_out_at_the_end() -> None:
    assert split([BYTES[:-2]]) == list(STREAM)
    assert split([BYTES + b"data: half"]) == [*STREAM, b"data: half\n\n"]
    assert split([BYTES + b"\n\r\n"]) == list(STREAM)


def test_event_in_many_parts_takes_time_in_proportion_to_its_length() -> None:
    def seconds(parts: int) -> float:
        splitter = EventSplitter(1 << 30)
        began = time.process_time()
        for _ in range(parts):
            assert splitter.feed(b"x" * 4096) == []
        assert len(splitter.feed(b"\n\n")[0]) == parts * 4096 + 2
        return time.process_time() - began

    assert seconds(4000) < 1.0


def test_an_event_without_an_end_is_refused() -> None:
    splitter = EventSplitter(EVENT_BYTES_MAX)
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


COUNTED = chunk("more", usage={"prompt_tokens": 7, "completion_tokens": 3})
PIECES = (
    *STREAM,
    COUNTED,
    chunk("more"),
    chunk(finish_reason="length"),
    b"id: 7\ndata: {}\n\n",
    b"data: {\ndata: }\n\n",
)


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
    assert Progress().take_plain(tokens + COUNTED) == len(tokens + COUNTED)
    assert Progress().take_plain(tokens[:-1]) == 2 * len(tokens) // 3
    assert Progress().take_plain(b"") == Progress().take_plain(STREAM[-1]) == Progress().take_plain(b"data: {") == 0


def passed(events: Iterable[bytes], said: bool = False) -> tuple[Progress, list[bool]]:
    progress = Progress()
    progress.texts = [] if said else None
    return progress, [progress.take_tokens(event) for event in events]


def told(progress: Progress) -> tuple[object, ...]:
    return tuple(getattr(progress, name) for name in Progress.__slots__ if not name.startswith("frame"))


@given(st.lists(st.sampled_from((*PIECES, chunk("a") + chunk("b"))), max_size=12), st.booleans())
def test_parts_that_are_taken_as_tokens_say_the_same_as_read_ones(parts: list[bytes], said: bool) -> None:
    passing, reading = Progress(), Progress()
    passing.texts, reading.texts = ([], []) if said else (None, None)
    for part in parts:
        before = told(passing)
        if passing.take_tokens(part):
            assert b"".join(filter(None, map(reading.take, split([part])))) == part
        else:
            assert told(passing) == before
    assert told(passing) == told(reading)


TEXTS = ("a", "Approve ✓ ", 'a "word"', "\\", "\n", "\t", "", "\u200b", "é", "}", '"},"finish_reason":"stop', "👍")


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")], ids=["close", "spaced"])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("field", ["content", "text"])
def test_any_text_between_the_same_bytes_is_read_as_it_is(
    separators: tuple[str, str], ascii_only: bool, field: str
) -> None:
    def of(text: str) -> bytes:
        choice = {"index": 0, "delta": {"content": text}} if field == "content" else {"index": 0, "text": text}
        body = {"id": "1", "choices": [{**choice, "finish_reason": None}], "model": "m"}
        return b"data: " + json.dumps(body, separators=separators, ensure_ascii=ascii_only).encode() + b"\n\n"

    events = [of(text) for text in ("first", *TEXTS, *TEXTS)]
    progress, all_taken = passed(events, said=field == "content")
    assert all(all_taken)
    assert progress.frame is not None
    assert progress.chunks == 1 + 2 * (len(TEXTS) - 1)
    if field == "content":
        assert "".join(progress.texts or ()) == "first" + 2 * "".join(TEXTS)


@pytest.mark.parametrize(
    "bad",
    [
        chunk("ok").replace(b"ok", b"\xff"),
        chunk("ok").replace(b"ok", b"o\x01"),
        chunk("ok").replace(b"ok", b"\\"),
        chunk("ok").replace(b"ok", b'"'),
        chunk("ok").replace(b"ok", b"o\nk"),
        chunk("ok").replace(b"ok", b"\n\ndata: "),
        chunk("ok")[:-1],
        chunk("ok") + b"data: ",
        chunk("ok") + chunk("ok")[:-20],
        chunk("ok")[20:],
        chunk("ok", finish_reason="stop"),
        event(id="chatcmpl-1", choices=[], usage={"prompt_tokens": 1}),
        chunk("ok", usage={"prompt_tokens": -1}),
        chunk("ok", error={"message": "no"}),
        DONE,
        b": ping\n\n",
        b"\r\n" + chunk("ok"),
        b"",
    ],
    ids=range(18),
)
def test_whatever_is_no_token_is_left_to_be_read(bad: bytes) -> None:
    progress, all_taken = passed([chunk("a"), chunk("b"), bad, chunk("c")])
    assert all_taken == [True, True, False, True]
    assert (progress.chunks, progress.skipped, progress.ended) == (3, 0, set())


def test_text_of_another_field_makes_no_frame() -> None:
    odd = b'data: {"x":{"content":"a"},"choices":[{"delta":{"content":"\\u0061"}}]}\n\n'
    progress, all_taken = passed([odd, odd.replace(b'"a"', b'"b"')], said=True)
    assert all_taken == [True, True]
    assert (progress.frame, progress.texts) == (None, ["a", "a"])


def test_tokens_after_a_half_are_left_to_be_read() -> None:
    progress, _ = passed([chunk("a")])
    progress.take(half(0, "\ud83d"))
    assert not progress.take_tokens(chunk("b"))


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
    [
        b"data: {\n\n",
        b"data: 7\n\n",
        b'data: {"choices": 1}\n\n',
        b"data: \xff\n\n",
        b"data: " + b"[" * 9000 + b"\n\n",
        b'data: {"choices":[{"delta":{"content":"x"},"logprobs":{"content":[{"logprob":NaN}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":[{"type":"text","text":"x"}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":[{"type":"text","text":"\\u00e9"}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\u00e9"}},{"logprobs":-Infinity}]}\n\n',
    ],
    ids=range(9),
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
    assert (progress.chunks, progress.finish_reason, progress.skipped) == (1, "stop", 0)
    assert (progress.usage, progress.usage_payload, progress.broken) == (None, None, None)
    whole = WHOLE.decode(json.dumps({"id": "1", "choices": [{"finish_reason": "stop"}], "usage": usage}).encode())
    assert whole.choices is not None
    assert (whole.counted(), whole.choices[0].finish_reason) == (None, "stop")


def test_each_alternative_ends_for_itself() -> None:
    choices = [{"index": n, "delta": {}, "finish_reason": "stop"} for n in range(3)]
    assert taken(event(id="1", choices=choices))[0].ended == {0, 1, 2}


def test_alternative_that_ends_twice_has_ended_once() -> None:
    assert taken(chunk(finish_reason="stop"), chunk(finish_reason="stop"))[0].ended == {0}


def test_empty_finish_reason_is_no_end() -> None:
    progress, for_caller = taken(chunk("a", finish_reason=""), chunk("b", finish_reason=""))
    assert (progress.finish_reason, progress.ended, len(for_caller)) == (None, set(), 2)


@pytest.mark.parametrize("raw", [b"data:\n\n", b"data: \n\n", b"event: ping\n\n", b'data: {"choices":null}\n\n'])
def test_event_that_holds_no_token_is_not_counted_as_a_lost_one(raw: bytes) -> None:
    assert taken(chunk("a"), raw)[0].skipped == 0


def half(index: int, text: str, **more: Any) -> bytes:
    return event(id="1", choices=[{"index": index, "delta": {"content": text}, **more}])


def test_the_gateway_splices_what_it_knows_into_the_engines_own_usage() -> None:
    payload = b'{"id":"1", "choices":[], "usage":{"prompt_tokens":7} } '
    told = extend_usage_event(payload, {"cost_usd": 0.1})
    assert told.startswith(b'data: {"id":"1", "choices":[], "usage":{"prompt_tokens":7}')
    assert json.loads(told.removeprefix(b"data: ")) == {
        "id": "1",
        "choices": [],
        "usage": {"prompt_tokens": 7},
        "apprentice": {"cost_usd": 0.1},
    }


def test_an_error_ends_a_stream_as_one_event() -> None:
    told = CHAT.error_event(Problem("stream_broken", "It broke.\nBadly."))
    assert told.count(b"\n") == 2
    payload = payload_of(told)
    assert payload is not None
    assert json.loads(payload)["error"]["code"] == "stream_broken"


@pytest.mark.parametrize(
    ("last", "fields"),
    [
        (b"data: {}\n\n", {}),
        (b"data: { }\n\n", {}),
        (b'data: {"a":{}}\n\n', {"a": {}}),
        (b'data: {"a":\ndata: 1\ndata: }\nid: 5}\n\n', {"a": 1}),
    ],
)
def test_fingerprint_keeps_the_last_event_json(last: bytes, fields: dict[str, Any]) -> None:
    events = with_fingerprint(chunk("a") + last, b'{"usage":{},"system_fingerprint":"fp"}')
    assert events.startswith(chunk("a") + b"data: ")
    assert json.loads(events.removeprefix(chunk("a"))[6:]) == fields | {"system_fingerprint": "fp"}


def test_usage_over_two_lines_stays_one_event() -> None:
    progress, _ = taken(b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1}}\n\n')
    assert progress.usage_payload is not None
    told = extend_usage_event(progress.usage_payload, {"cost_usd": 1})
    payload = payload_of(told)
    assert payload is not None
    assert json.loads(payload)["apprentice"] == {"cost_usd": 1}
