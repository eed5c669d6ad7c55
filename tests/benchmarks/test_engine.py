"""The benchmarks' engine in C: it must answer as vLLM does, or what stands in front of it is measured wrongly."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from benchmarks.harness import ask
from benchmarks.subjects import BASE_MODEL, Subject, chunks_sent, set_pace, start_engine
from tests.programs import needs

pytestmark = needs("gcc", "taskset")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def engine() -> Iterator[Subject]:
    with ExitStack() as stack:
        yield start_engine(stack, 0)


def body(**more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": 'a "model": {"stream":true}'}], **more}).encode()


def request(content: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nHost: e\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(content), content)


def events_of(streamed: bytes) -> list[dict[str, object]]:
    return [json.loads(event[6:]) for event in streamed.split(b"\n\n") if event.startswith(b"data: {")]


def test_a_whole_answer_has_790_bytes_an_id_of_its_own_and_the_model_that_was_asked(engine: Subject) -> None:
    answers = [ask(engine.port, "POST", path, body(model=BASE_MODEL)) for path in (CHAT, CHAT, "/v1/completions")]
    assert [(status, len(answer)) for status, _, answer in answers] == [(200, 790)] * 3
    decoded = [json.loads(answer) for _, _, answer in answers]
    assert len({one["id"] for one in decoded}) == 3
    assert {one["model"] for one in decoded} == {BASE_MODEL}
    assert decoded[0]["usage"]["completion_tokens"] == 64


def test_a_stream_has_64_events_and_the_usage_where_it_is_asked_for(engine: Subject) -> None:
    for path in (CHAT, "/v1/completions"):
        plain = ask(engine.port, "POST", path, body(model=BASE_MODEL, stream=True))[2]
        asked = body(model=BASE_MODEL, stream=True, stream_options={"include_usage": True})
        counted = ask(engine.port, "POST", path, asked)[2]
        assert (len(events_of(plain)), len(events_of(counted))) == (64, 65)
        assert plain.endswith(b"data: [DONE]\n\n")
        assert "usage" in events_of(counted)[-1]
        assert 200 < len(plain) / 65 < 280


def test_adapters_come_and_go_and_answer_in_other_words_than_the_base(engine: Subject) -> None:
    load = {"lora_name": "returns@v1", "lora_path": "/store/abc"}
    assert ask(engine.port, "POST", CHAT, body(model="returns@v1"))[0] == 404
    assert ask(engine.port, "POST", "/v1/load_lora_adapter", load)[0] == 200
    listed = json.loads(ask(engine.port, "GET", "/v1/models")[2])["data"]
    assert [(one["id"], one["root"], one["parent"]) for one in listed] == [
        (BASE_MODEL, BASE_MODEL, None),
        ("returns@v1", "/store/abc", BASE_MODEL),
    ]
    told = [json.loads(ask(engine.port, "POST", CHAT, body(model=name))[2]) for name in (BASE_MODEL, "returns@v1")]
    assert told[0]["choices"][0]["message"] != told[1]["choices"][0]["message"]
    assert told[1]["model"] == "returns@v1"
    assert ask(engine.port, "POST", "/v1/unload_lora_adapter", {"lora_name": "returns@v1"})[0] == 200
    assert ask(engine.port, "POST", CHAT, body(model="returns@v1"))[0] == 404


def test_requests_may_come_byte_by_byte_or_several_at_once(engine: Subject) -> None:
    whole, streamed = request(body(model=BASE_MODEL)), request(body(model=BASE_MODEL, stream=True))
    with socket.create_connection(("127.0.0.1", engine.port), 5) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in whole:
            connection.sendall(bytes([byte]))
        connection.sendall(streamed + whole + whole)
        got = b""
        while got.count(b'"object":"chat.completion"') < 3 or not got.endswith(b"}"):
            got += connection.recv(65_536)
    assert got.count(b"HTTP/1.1 200 OK") == 4
    assert got.index(b"data: [DONE]") < got.rindex(b'"object":"chat.completion"')


def test_a_body_of_almost_a_megabyte_is_read(engine: Subject) -> None:
    assert ask(engine.port, "POST", CHAT, body(model=BASE_MODEL, user="x" * 1_000_000))[0] == 200


def test_a_reader_that_goes_away_or_sleeps_holds_up_nobody(engine: Subject) -> None:
    streamed = request(body(model=BASE_MODEL, stream=True))
    with socket.create_connection(("127.0.0.1", engine.port), 5) as sleeper:
        set_pace(engine, 60_000_000)
        sleeper.sendall(streamed)
        set_pace(engine, 0)
        with socket.create_connection(("127.0.0.1", engine.port), 5) as leaver:
            leaver.sendall(streamed)
        before = chunks_sent(engine)
        assert len(events_of(ask(engine.port, "POST", CHAT, body(model=BASE_MODEL, stream=True))[2])) == 64
        assert chunks_sent(engine) >= before + 64
