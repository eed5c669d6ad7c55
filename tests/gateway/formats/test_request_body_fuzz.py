"""A caller's body that is made to do harm: refused or read in bounded time; and what another engine is asked of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Problem
from gateway.formats.chat import CHAT
from gateway.formats.fields import GATEWAY_ALONE, KEPT_HERE, ON_REQUEST
from gateway.formats.request_body import RequestBody, make_routing_request, read_body
from gateway.path.partial_answer import PartialAnswer
from router.choice import choose
from router.policy import TaskPolicy
from router.routing_data import NO_SCORES, Choice
from tests.router.situations import asked, moment, policy, usual_fleet

BODY_BYTES = 1 << 20
SECONDS_MAX = 2.0
TASK = TaskPolicy("returns", "general", max_tokens_max=512, n_max=2, parameters_allowed=frozenset(ON_REQUEST))
DEFAULTS = TaskPolicy("", None, max_tokens_max=64)
OPEN = b'{"model":"returns","messages":[{"role":"user","content":"x"}],'


def filled(begin: bytes, piece: Callable[[int], bytes], end: bytes) -> bytes:
    """A body of BODY_BYTES at most: pieces, comma-separated."""
    room = BODY_BYTES - len(begin) - len(end)
    count = room // (len(piece(10**6)) + 1)
    return begin + b",".join(map(piece, range(count))) + end


HARMFUL: dict[str, Callable[[], bytes]] = {
    "many fields": lambda: filled(OPEN, lambda n: b'"f%07d":0' % n, b"}"),
    "the same field": lambda: filled(OPEN, lambda _: b'"temperature":0', b"}"),
    "many messages": lambda: filled(
        b'{"model":"returns","messages":[', lambda _: b'{"role":"user","content":""}', b"]}"
    ),
    "many parts": lambda: filled(
        b'{"model":"returns","messages":[{"role":"user","content":[', lambda _: b'{"type":"text","text":"a"}', b"]}]}"
    ),
    "many stops": lambda: filled(OPEN + b'"stop":[', lambda _: b'"x"', b"]}"),
    "many biases": lambda: filled(OPEN + b'"logit_bias":{', lambda n: b'"%d":1' % n, b"}}"),
    "metadata": lambda: filled(OPEN + b'"metadata":{', lambda n: b'"%d":{}' % n, b"}}"),
    "tools": lambda: filled(OPEN + b'"tools":[', lambda _: b'{"type":"function","function":{"name":"f"}}', b"]}"),
    "a long number": lambda: OPEN + b'"seed":' + b"9" * (BODY_BYTES - 100) + b"}",
    "a long fraction": lambda: OPEN + b'"temperature":0.' + b"1" * (BODY_BYTES - 100) + b"}",
    "a great exponent": lambda: OPEN + b'"temperature":1e' + b"9" * (BODY_BYTES - 100) + b"}",
    "depth": lambda: OPEN + b'"metadata":' + b"[" * (BODY_BYTES - 100),
    "depth that ends": lambda: OPEN + b'"metadata":{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}}",
    "depth in a message": lambda: b'{"model":"returns","messages":[{"role":"user","x":' + b'{"a":' * 200_000,
    "escapes": lambda: OPEN + b'"user":"' + b"\\u0000" * (BODY_BYTES // 6 - 30) + b'"}',
    "half characters": lambda: OPEN + b'"user":"' + b"\\ud800" * (BODY_BYTES // 6 - 30) + b'"}',
    "a long name": lambda: OPEN + b'"' + b"n" * (BODY_BYTES - 100) + b'":0}',
    "a long model": lambda: (
        b'{"model":"' + b"m" * (BODY_BYTES - 100) + b'","messages":[{"role":"user","content":"x"}]}'
    ),
    "spaces": lambda: OPEN + b" " * (BODY_BYTES - 100) + b'"n":1}',
    "a text to fold": lambda: (
        b'{"model":"returns","messages":[{"role":"user","content":"' + "ﷺ".encode() * 340_000 + b'"}]}'
    ),
}


def use(raw: bytes) -> None:
    """All that is done with a body on its way to an engine."""
    body = read_body(CHAT, raw)
    body.check(TASK, DEFAULTS)
    make_routing_request(body, "caller1", frozenset({"*"}), body.session(None), policy(text_needed=True))
    for choice in CHOICES:
        body.for_engine(choice)


def choices() -> tuple[Choice, Choice]:
    found = choose(asked(), NO_SCORES, policy(), usual_fleet(), moment())
    assert isinstance(found, Choice)
    return found, replace(found, pool=replace(found.pool, engine="openai"))


CHOICES = choices()


@pytest.mark.parametrize("name", HARMFUL)
def test_a_body_that_is_made_to_do_harm_is_read_or_refused_in_bounded_time(name: str) -> None:
    raw = HARMFUL[name]()
    began = time.process_time()
    refusal: Problem | None = None
    try:
        use(raw)
    except Problem as problem:
        refusal = problem
    assert refusal is None or refusal.status == 400
    assert refusal is None or len(refusal.body()) < 4096, "what was sent is not sent back"
    assert time.process_time() - began < SECONDS_MAX


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.floats(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from(sorted(CHAT.known_fields - {"model"}))
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": json_values}),
    min_size=1,
    max_size=3,
)


@given(messages, st.dictionaries(fields, json_values, max_size=3), st.integers(0, 700))
def test_continuation_on_another_engine_is_well_formed_or_not_attempted(
    said: list[Any], more: dict[str, Any], tokens: int
) -> None:
    raw = json.dumps({"model": "returns", "messages": said, "stream": True, **more}).encode()
    try:
        body: RequestBody = read_body(CHAT, raw)
        body.check(TASK, DEFAULTS)
    except Problem:
        return
    partial = PartialAnswer("It may be", tokens, {}, (), committed=True)
    for choice in CHOICES:
        sent = partial.body(body, choice)
        if sent is not None:
            told = json.loads(sent)
            assert told["messages"][-1] == {"role": "assistant", "content": "It may be"}
            assert not told.keys() & (KEPT_HERE | GATEWAY_ALONE - {"cache_salt"})
            assert told.get("max_tokens") is None or told["max_tokens"] >= 1
