"""Whatever an engine sends, however it is cut: read without a fault, within bounds, and passed on where it is whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from gateway.formats.server_sent_events import EventSplitter, Progress, extend_usage_event, payload_of
from gateway.path.partial_answer import PartialAnswer, head_of

EVENT_BYTES_MAX = 1 << 16
HEAD = {"id": "chatcmpl-1", "model": "returns@v1", "created": 7}
PARTIAL = PartialAnswer("It may be", 3, HEAD, (), committed=True)


def token(text: str) -> bytes:
    told = {"id": "1", "model": "m", "created": 1, "choices": [{"index": 0, "delta": {"content": text}, "x": "y"}]}
    return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


USAGE = b'data: {"id":"1","model":"m","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2},"x":"y"}\n\n'
LAST = b'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
WHOLE = token("Approve ✓ ") + token("— Regel") + b": ping\n\n" + LAST + USAGE + b"data: [DONE]\n\n"


def read(parts: Iterable[bytes]) -> tuple[Progress, list[bytes]]:
    """The stream as an answer reads it, until its end or the first thing that breaks it off."""
    splitter, progress = EventSplitter(EVENT_BYTES_MAX), Progress()
    progress.texts = []
    for_caller: list[bytes] = []
    for part in itertools.chain(parts, [b""]):
        if not splitter.holds and not progress.ended and progress.take_tokens(part):
            for_caller.append(part)
            continue
        plain = 0 if splitter.holds else progress.take_plain(part)
        if plain:
            for_caller.append(part[:plain])
        try:
            events = splitter.feed(part[plain:]) if part else [splitter.rest()]
        except ValueError:
            break
        for_caller += [found for found in map(progress.take, events) if found is not None]
        if progress.done or progress.broken is not None:
            break
    return progress, for_caller


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends) if start < end]


def holds(data: bytes, places: list[int]) -> None:
    """Passed-on events can be read by any client and by a continuation, and are counted."""
    progress, for_caller = read(cut(data, places))
    for event in b"".join(for_caller).split(b"\n\n"):
        payload = payload_of(event + b"\n\n") if event else None
        assert payload is None or isinstance(json.loads(payload.decode()), dict)
    if for_caller:
        head_of(for_caller[0])
    for event in b"".join(PARTIAL.spliced(for_caller)).split(b"\n\n"):
        told = json.loads(event.removeprefix(b"data: ")) if event else HEAD
        assert {name: told[name] for name in HEAD} == HEAD
    total = PARTIAL.total(progress)
    for payload in (progress.usage_payload, total.usage_payload):
        if payload is not None:
            assert "apprentice" in json.loads(extend_usage_event(payload, {"cost_usd": None})[6:])


cuts = st.lists(st.integers(0, 1 << 12), max_size=6)


@given(st.binary(max_size=300), cuts)
def test_no_bytes_at_all_break_the_reading(data: bytes, places: list[int]) -> None:
    holds(data, places)


@given(st.integers(0, len(WHOLE) - 1), st.binary(max_size=3), st.integers(1, 3))
def test_a_damaged_event_among_others_is_passed_on_only_where_it_can_be_read(
    place: int, damage: bytes, at_once: int
) -> None:
    tokens = [token(text) for text in ("a", "b ", "✓", "d")]
    damaged = bytearray(b"".join(tokens))
    damaged[place % len(damaged) : place % len(damaged) + 1] = damage
    size = len(damaged) // 4
    events = [*tokens, *(bytes(damaged[start : start + size]) for start in range(0, len(damaged), size)), *tokens]
    places = list(itertools.accumulate(len(b"".join(events[at : at + at_once])) for at in range(0, 12, at_once)))
    holds(b"".join(events) + LAST + USAGE, places)


@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(max_size=3)), min_size=1, max_size=4), cuts)
@example([(WHOLE.index(b'"y"') + 1, b"\xff")], [])
@example([(WHOLE.rindex(b'"y"') + 1, b"\xff")], [])
def test_a_stream_that_was_damaged_on_its_way_is_passed_on_only_where_it_can_be_read(
    damages: list[tuple[int, bytes]], places: list[int]
) -> None:
    data = bytearray(WHOLE)
    for place, damage in damages:
        data[place : place + 1] = damage
    holds(bytes(data), places)


characters = st.text(st.characters() | st.sampled_from("\ud83d\ude00"), max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | characters,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
deltas = st.fixed_dictionaries({}, optional={"role": json_values, "content": json_values, "tool_calls": json_values})
choices = st.fixed_dictionaries({}, optional={"delta": deltas | json_values, "finish_reason": json_values})
bodies = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "choices": st.lists(choices | json_values, max_size=2) | json_values,
        "usage": st.dictionaries(st.sampled_from(["prompt_tokens", "completion_tokens"]), json_values) | json_values,
        "error": json_values,
        "created": json_values,
    },
)


@given(st.lists(bodies | json_values, max_size=5), cuts)
def test_any_json_in_any_events_is_read(told: list[Any], places: list[int]) -> None:
    holds(b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in told), places)


@given(st.integers(1, 1 << 16), st.sampled_from([b"data: ", b"\n", b"\r\n", b": x", b"data: {", b"\r"]))
def test_a_stream_without_an_end_is_never_held_beyond_an_events_bound(size: int, piece: bytes) -> None:
    splitter = EventSplitter(EVENT_BYTES_MAX)
    chunk = (piece * (size // len(piece) + 1))[:size]
    fed = 0
    try:
        while fed <= 2 * EVENT_BYTES_MAX:
            splitter.feed(chunk.replace(b"\n\n", b"\nx"))
            fed += size if size > 4096 else EVENT_BYTES_MAX // 4
            assert splitter._held_bytes == sum(map(len, splitter._parts)) <= EVENT_BYTES_MAX
    except ValueError:
        assert fed <= EVENT_BYTES_MAX or size > 4096
