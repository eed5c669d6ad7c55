"""Bodies of many small values: refused before they are made, since that would hold the event loop."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import Problem
from gateway.formats.bounds import FIELDS_MAX, LONG_BODY_BYTES, STRINGS_INSIDE_MAX
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.fields import ON_REQUEST
from gateway.formats.request_body import read_body
from gateway.formats.wire_format import WireFormat
from router.policy import UnknownFields
from tests.gateway.formats.bodies import DEFAULTS, MESSAGES, TASK, problem, read

BYTES = 3_900_000
CPU_SECONDS_MAX = 0.4
"""For all steps together, on a busy machine; before the bounds the worst bodies took 0.5 to 3 s."""


def body(fields: str, messages: str = json.dumps(MESSAGES)) -> bytes:
    return f'{{"model":"returns","messages":{messages},{fields}}}'.encode()


def many(piece: str) -> str:
    return ",".join([piece] * (BYTES // (len(piece) + 1)))


def numbered(piece: str, count: int = 300_000) -> str:
    return ",".join(piece % number for number in range(count))


WORST: dict[str, Callable[[], bytes]] = {
    "unknown fields": lambda: body(numbered('"f%d":0')),
    "unknown fields with backslashes": lambda: body(numbered('"f%d\\\\":0')),
    "one known field many times": lambda: body(many('"stop":["a","b"]')),
    "metadata hidden by a second": lambda: body('"metadata":{"a":[' + many("[]") + ']},"metadata":{}'),
    "unknown value": lambda: body('"x":[' + many("[]") + "]"),
    "unknown object": lambda: body('"x":{' + numbered('"f%d":0') + "}"),
    "documents": lambda: body('"documents":[' + many("[]") + "]"),
    "nested": lambda: body('"x":[' + many("[" * 900 + "]" * 900) + "]"),
    "tools": lambda: body('"tools":[' + many('{"type":"function"}') + "]"),
    "stop": lambda: body('"stop":[' + many('"a"') + "]"),
    "seed": lambda: body('"seed":[' + many("[]") + "]"),
    "stop_token_ids": lambda: body('"stop_token_ids":[' + many("0.0") + "]"),
    "logit_bias": lambda: body('"logit_bias":{' + numbered('"%d":0') + "}"),
    "chat_template_kwargs": lambda: body('"chat_template_kwargs":{"a":[' + many("[]") + "]}"),
    "kv_transfer_params": lambda: body('"kv_transfer_params":[' + many("[]") + "]"),
    "parts": lambda: body('"n":1', '[{"role":"user","content":[' + many('{"type":"text","text":"a"}') + "]}]"),
    "uuid": lambda: body('"n":1', '[{"role":"user","content":[{"type":"text","uuid":[' + many("[]") + "]}]}]"),
    "messages": lambda: body('"n":1', "[" + many('{"role":"user","content":"a"}') + "]"),
}


@pytest.mark.parametrize("unknown", ["refuse", "drop"])
@pytest.mark.parametrize("kind", WORST)
def test_no_body_takes_long_to_read_and_check(kind: str, unknown: UnknownFields) -> None:
    allowed = replace(TASK, parameters_allowed=ON_REQUEST)
    raw = WORST[kind]()
    began = time.thread_time()
    with contextlib.suppress(Problem):
        read_body(CHAT, raw).check(allowed, DEFAULTS, unknown=unknown)
    assert time.thread_time() - began < CPU_SECONDS_MAX


@pytest.mark.parametrize("value", ["x", "x" * 1500], ids=["short", "long"])
def test_fields_are_bounded_in_number(value: str) -> None:
    fields = {f"f{number}": value for number in range(FIELDS_MAX - 2)}
    assert problem(read(**fields)).code == "unknown_parameter"
    raw = json.dumps({"model": "m", "messages": MESSAGES, **fields, "more": 1}).encode()
    found = problem(raw)
    assert (found.code, found.param) == ("invalid_value", None)
    assert str(FIELDS_MAX) in found.message


@pytest.mark.parametrize(("wire_format", "name"), [(CHAT, "messages"), (COMPLETIONS, "prompt")])
def test_strings_of_a_long_conversation_are_bounded_in_number(wire_format: WireFormat, name: str) -> None:
    def raw(count: int) -> bytes:
        texts = [{"type": "text", "text": "x" * 9}] * (count // 4 - 1)
        value: Any = [{"role": "user", "content": texts}] if name == "messages" else ["x" * 9] * count
        return json.dumps({"model": "m", name: value}).encode()

    read_body(wire_format, raw(STRINGS_INSIDE_MAX))
    assert problem(raw(STRINGS_INSIDE_MAX + 8), wire_format).param == name


def test_quotes_in_a_long_text_count_as_no_strings() -> None:
    text = json.dumps([{"name": "value"}] * 100_000)
    found = read(messages=[{"role": "user", "content": text}], user="u")
    found.check(TASK, DEFAULTS)
    assert found.text() == text


def test_long_body_takes_the_last_of_a_field_sent_twice() -> None:
    text = "x" * LONG_BODY_BYTES
    raw = body(f'"user":"a","suffix":"{text}","user":"b","n":1.0')
    assert (read_body(CHAT, raw).read.user, read_body(CHAT, raw).read.n) == ("b", 1)


def test_field_is_refused_by_its_length_before_its_type() -> None:
    found = problem(body('"seed":[' + ",".join(["0"] * 20_000) + "]"))
    assert (found.code, found.param) == ("invalid_value", "seed")
    assert "bytes of JSON" in found.message
