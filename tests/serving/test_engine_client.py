"""The engine client over real sockets, against an engine that sends exactly the bytes of each test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serving.engine_client import EngineClient
from serving.errors import (
    Dropped,
    EngineError,
    Failed,
    Missing,
    Overloaded,
    Oversize,
    RefusedByEngine,
    Silent,
    Truncated,
    Unreachable,
)
from tests.fakes.engine import FakeEngine
from tests.waiting import until

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Scripted:
    """Answers the n-th request on any connection with the n-th script; keeps what was asked, and by whom."""

    def __init__(self) -> None:
        self.url = ""
        self.scripts: list[Any] = []
        self.asked: list[tuple[int, bytes]] = []
        self.connections = 0
        self.open = 0

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
                self.asked.append((number, head + await reader.readexactly(length)))
                script = self.scripts.pop(0)
                for step in script if isinstance(script, list) else [script]:
                    if step is None:
                        return
                    if isinstance(step, asyncio.Event):
                        await step.wait()
                        continue
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                        continue
                    writer.write(step)
                    await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def talking(*scripts: Any, answer_bytes_max: int = 1 << 20) -> AsyncIterator[tuple[Scripted, EngineClient]]:
    engine = Scripted()
    engine.scripts = list(scripts)
    listener = await asyncio.start_server(engine.talk, "127.0.0.1", 0)
    engine.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with listener, EngineClient(2.0, answer_bytes_max) as client:
        yield engine, client


async def ask(engine: Scripted, client: EngineClient, body: bytes = b"{}", silence_seconds: float = 5) -> Any:
    headers = {"Content-Type": "application/json"}
    return await client.post(engine.url, "/v1/chat/completions", body, headers, silence_seconds)


async def read(engine: Scripted, client: EngineClient, **more: Any) -> bytes:
    answer = await ask(engine, client, **more)
    try:
        body: bytes = await answer.read()
        return body
    finally:
        answer.close()


async def test_the_request_arrives_as_it_was_given() -> None:
    async with talking(WHOLE) as (engine, client):
        assert await read(engine, client, body=b'{"a":1}') == b"{}"
    head, _, body = engine.asked[0][1].partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head.split(b"\r\n") == [
        b"POST /v1/chat/completions HTTP/1.1",
        b"Host: " + engine.url.removeprefix("http://").encode(),
        b"User-Agent: apprentice",
        b"Accept-Encoding: identity",
        b"Content-Type: application/json",
        b"Content-Length: 7",
    ]


@pytest.mark.parametrize(("below", "path"), [("", ""), ("/", ""), ("/openai/v1", "/openai/v1"), ("/v1/", "/v1")])
async def test_an_engines_address_may_have_a_path_of_its_own(below: str, path: str) -> None:
    async with talking(WHOLE) as (engine, client):
        answer = await client.post(engine.url + below, "/chat/completions", b"{}", {}, 1.0)
        assert await answer.read() == b"{}"
        answer.close()
    assert engine.asked[0][1].startswith(f"POST {path}/chat/completions HTTP/1.1\r\n".encode())


async def test_a_large_body_arrives_whole() -> None:
    async with talking(WHOLE) as (engine, client):
        await read(engine, client, body=b"x" * (4 << 20))
    assert engine.asked[0][1].endswith(b"\r\n\r\n" + b"x" * (4 << 20))


async def test_connection_is_reused_after_a_whole_answer_and_dropped_after_half_of_one() -> None:
    never = asyncio.Event()
    async with talking(WHOLE, WHOLE, [STREAM_HEAD + b"1\r\na\r\n", never], WHOLE) as (engine, client):
        await read(engine, client)
        await read(engine, client)
        half = await ask(engine, client)
        assert await half.next_chunk() == b"a"
        half.close()
        await read(engine, client)
        never.set()
        assert [number for number, _ in engine.asked] == [1, 1, 1, 2]


async def test_requests_at_the_same_time_have_connections_of_their_own() -> None:
    go = asyncio.Event()
    async with talking([go, WHOLE], [go, WHOLE], WHOLE) as (engine, client):
        both = asyncio.gather(read(engine, client), read(engine, client))
        await until(lambda: len(engine.asked) == 2)
        go.set()
        assert list(await both) == [b"{}", b"{}"]
        await read(engine, client)
        assert engine.connections == 2


async def test_a_stream_comes_in_parts_and_ends() -> None:
    go = asyncio.Event()
    async with talking([STREAM_HEAD + b"3\r\nabc\r\n", go, b"2\r\nde\r\n0\r\n\r\n"], WHOLE) as (engine, client):
        answer = await ask(engine, client)
        assert await answer.next_chunk() == b"abc"
        go.set()
        assert await answer.read() == b"de"
        assert await answer.next_chunk() == b""
        answer.close()
        answer.close()
        await read(engine, client)
        assert engine.connections == 1


async def test_any_cut_of_the_bytes_is_the_same_answer() -> None:
    whole = b"HTTP/1.1 100 Continue\r\n\r\n" + STREAM_HEAD + b"3\r\nabc\r\n0\r\n\r\n"
    async with talking([whole[at : at + 1] for at in range(len(whole))]) as (engine, client):
        assert await read(engine, client) == b"abc"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ([STREAM_HEAD + b"3\r\nabc\r\n", None], Truncated),
        ([WHOLE[:-1], None], Truncated),
        ([STREAM_HEAD + b"nonsense\r\n"], Truncated),
        ([b"HTTP/1.1 200 OK\r\n", None], Dropped),
        ([b"nonsense\r\n\r\n"], Dropped),
        ([None], Dropped),
    ],
)
async def test_an_answer_that_breaks_is_not_taken_for_a_whole_one(script: list[Any], error: type[EngineError]) -> None:
    async with talking(script, WHOLE) as (engine, client):
        with pytest.raises(error):
            await read(engine, client)
        assert await read(engine, client) == b"{}"


async def test_an_answer_without_a_length_ends_with_its_connection() -> None:
    async with talking([b"HTTP/1.1 200 OK\r\n\r\nabc", None], WHOLE) as (engine, client):
        assert await read(engine, client) == b"abc"
        await read(engine, client)
        assert engine.connections == 2


async def test_a_connection_that_the_engine_closes_is_not_used_again() -> None:
    closing = WHOLE.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    async with talking([closing], WHOLE) as (engine, client):
        await read(engine, client)
        await read(engine, client)
        assert engine.connections == 2


async def test_a_kept_connection_that_closes_under_a_request_is_replaced_once() -> None:
    async with talking(WHOLE, [None], WHOLE, [None]) as (engine, client):
        await read(engine, client)
        assert await read(engine, client) == b"{}"
        assert [number for number, _ in engine.asked] == [1, 1, 2]


async def test_a_connection_that_was_kept_too_long_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine_connections.KEEP_ALIVE_SECONDS", 0.0)
    async with talking(WHOLE, WHOLE) as (engine, client):
        await read(engine, client)
        await read(engine, client)
        assert [number for number, _ in engine.asked] == [1, 2]


async def test_request_over_a_fresh_connection_is_never_sent_twice() -> None:
    async with talking(WHOLE, [None], WHOLE) as (engine, client):
        await read(engine, client)
        with pytest.raises(Dropped):
            await client.post(engine.url, "/v1/chat/completions", b"{}", {}, 5.0, fresh=True)
        assert [number for number, _ in engine.asked] == [1, 2]


async def test_idle_connections_end_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine_connections.KEEP_ALIVE_SECONDS", 0.1)
    go = asyncio.Event()
    async with talking(*[[go, WHOLE]] * 5) as (engine, client):
        several = asyncio.gather(*(read(engine, client) for _ in range(5)))
        await until(lambda: len(engine.asked) == 5)
        go.set()
        await several
        assert engine.open == 5
        await until(lambda: engine.open == 0)
        [origin] = client._origins.values()
        assert (origin.idle, origin._sweeper) == ([], None)


async def test_connections_to_an_engine_that_has_left_are_let_go() -> None:
    go = asyncio.Event()
    async with talking(WHOLE, [go, WHOLE]) as (engine, client):
        await read(engine, client)
        client.keep({engine.url})
        assert len(client._origins) == 1
        late = asyncio.create_task(read(engine, client))
        await until(lambda: len(engine.asked) == 2)
        client.keep(())
        assert not client._origins
        go.set()
        await late


async def test_connection_that_the_engine_closed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine_connections.KEEP_ALIVE_SECONDS", 0.1)
    go = asyncio.Event()
    async with talking([WHOLE, go, None]) as (engine, client):
        await read(engine, client)
        go.set()
        [origin] = client._origins.values()
        await until(lambda: not origin.idle)


@pytest.mark.parametrize("encoding", ["gzip", "br", "Zstd"])
async def test_encoded_answer_is_refused_by_name(encoding: str) -> None:
    answer = WHOLE.replace(b"\r\n\r\n", f"\r\ncontent-encoding: {encoding}\r\n\r\n".encode())
    async with talking(answer) as (engine, client):
        with pytest.raises(Failed, match=f"encoded as '{encoding}'"):
            await read(engine, client)


async def test_answer_encoded_as_identity_is_read() -> None:
    answer = WHOLE.replace(b"\r\n\r\n", b"\r\nContent-Encoding: identity\r\n\r\n")
    async with talking(answer) as (engine, client):
        assert await read(engine, client) == b"{}"


async def test_a_redirect_is_not_followed() -> None:
    redirect = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: /\r\ncontent-length: 0\r\n\r\n"
    async with talking([redirect]) as (engine, client):
        with pytest.raises(EngineError) as raised:
            await ask(engine, client)
        assert raised.value.status == 307


@pytest.mark.parametrize("begun", [b"", STREAM_HEAD, STREAM_HEAD + b"1\r\na\r\n"])
async def test_silence_is_told_from_a_broken_connection(begun: bytes) -> None:
    never = asyncio.Event()
    async with talking([begun, never]) as (engine, client):
        with pytest.raises(Silent):
            await read(engine, client, silence_seconds=0.05)
        never.set()


@pytest.mark.parametrize("drop", [b"HTTP/1.1 100 Continue\r\n\r\n", b"\r\n"])
async def test_head_that_drips_is_a_silence_as_long_as_it_is_not_whole(drop: bytes) -> None:
    async with talking([*[drop, 0.02] * 30, WHOLE]) as (engine, client):
        with pytest.raises(Silent, match="no answer within"):
            await ask(engine, client, silence_seconds=0.2)


async def test_a_slow_reader_stops_the_engine_and_is_no_silence_of_it() -> None:
    part = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    async with talking([STREAM_HEAD, *[part] * 64, b"0\r\n\r\n"], answer_bytes_max=1 << 30) as (engine, client):
        answer = await ask(engine, client, silence_seconds=0.05)
        await asyncio.sleep(0.2)
        size = 0
        while chunk := await answer.next_chunk():
            size += len(chunk)
        answer.close()
        assert size == 64 * 0x10000


@pytest.mark.parametrize(("before", "after"), [(5.0, 0.05), (0.05, 0.1)])
async def test_limit_on_tokens_holds_from_when_it_is_set(before: float, after: float) -> None:
    never = asyncio.Event()
    async with talking([STREAM_HEAD + b"1\r\na\r\n", never]) as (engine, client):
        answer = await ask(engine, client, silence_seconds=before)
        await answer.next_chunk()
        answer.expect_tokens(after)
        with pytest.raises(Silent, match=f"no token for {after:g} s"):
            await asyncio.wait_for(answer.next_chunk(), 30)
        answer.close()
        never.set()


async def test_bytes_without_a_token_end_no_silence() -> None:
    async with talking([STREAM_HEAD, *[b"1\r\na\r\n"] * 1_000_000]) as (engine, client):
        answer = await ask(engine, client)
        answer.expect_tokens(0.05)

        async def take_all() -> None:
            while await answer.next_chunk():
                pass

        with pytest.raises(Silent):
            await asyncio.wait_for(take_all(), 30)
        answer.close()


async def test_token_that_is_taken_late_ends_the_silence() -> None:
    go, never = asyncio.Event(), asyncio.Event()
    async with talking([STREAM_HEAD + b"1\r\na\r\n", go, b"1\r\nb\r\n", never]) as (engine, client):
        answer = await ask(engine, client)
        answer.expect_tokens(0.5)
        assert await answer.next_chunk() == b"a"
        answer.heard()
        go.set()
        connection = answer._connection
        await until(lambda: bool(connection._lapsed))
        assert await answer.next_chunk() == b"b"
        answer.heard()
        with pytest.raises(Silent):
            await answer.next_chunk()
        answer.close()
        never.set()


async def test_bytes_that_came_before_a_cut_reach_a_slow_caller() -> None:
    go = asyncio.Event()
    async with talking([STREAM_HEAD + b"1\r\na\r\n", go, b"1\r\nb\r\n", None]) as (engine, client):
        answer = await ask(engine, client)
        answer.expect_tokens(0.05)
        connection = answer._connection
        await until(lambda: bool(connection._lapsed))
        assert await answer.next_chunk() == b"a"
        go.set()
        await until(lambda: not connection.open)
        assert await answer.next_chunk() == b"b"
        with pytest.raises(Truncated):
            await answer.next_chunk()
        answer.close()


async def test_an_answer_over_the_limit_is_cut_off() -> None:
    async with talking([STREAM_HEAD + b"5\r\nabcde\r\n0\r\n\r\n"], answer_bytes_max=4) as (engine, client):
        with pytest.raises(Oversize, match="longer than the gateway's limit"):
            await read(engine, client)


async def test_headers_without_an_end_are_cut_off() -> None:
    endless = b"HTTP/1.1 200 OK\r\n" + b"x-a: " + b"b" * 1000 + b"\r\n" + b"x-b: c\r\n" * 20_000
    async with talking([endless]) as (engine, client):
        with pytest.raises(Dropped):
            await read(engine, client)


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RefusedByEngine), (404, Missing), (429, Overloaded), (500, Failed), (503, Overloaded)],
)
async def test_a_status_is_an_error_with_the_engine_s_own_words(status: int, error: type[EngineError]) -> None:
    answer = b"HTTP/1.1 %d No\r\nretry-after: 7\r\ncontent-length: 3\r\n\r\nwhy" % status
    async with talking([answer]) as (engine, client):
        with pytest.raises(error) as raised:
            await ask(engine, client)
        assert (raised.value.status, raised.value.body) == (status, b"why")
        assert raised.value.retry_after_seconds == (7.0 if error is Overloaded else None)


async def test_nobody_listens() -> None:
    async with talking() as (engine, client):
        pass
    async with EngineClient(2.0, 1 << 20) as client:
        with pytest.raises(Unreachable):
            await ask(engine, client)


async def test_a_cancelled_request_closes_its_connection() -> None:
    never = asyncio.Event()
    async with talking([never], WHOLE) as (engine, client):
        task = asyncio.create_task(ask(engine, client))
        await until(lambda: len(engine.asked) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        never.set()
        await read(engine, client)
        assert engine.connections == 2


async def test_a_look_has_the_status_and_the_body_and_keeps_its_connection() -> None:
    async with FakeEngine() as engine, EngineClient(5.0, answer_bytes_max=1) as client:
        assert await client.get(engine.url, "/health", {}, 5) == (200, b"")
        status, body = await client.get(engine.url, "/v1/models", {}, 5)
        assert (status, [card["id"] for card in json.loads(body)["data"]]) == (200, ["base-model"])
        assert (await client.get(engine.url, "/elsewhere", {}, 5))[0] == 404
        assert engine.connections_opened == 1


async def test_a_look_without_a_body_waits_for_none_and_gives_up_its_connection() -> None:
    async with FakeEngine() as engine, EngineClient(5.0, 1 << 20) as client:
        for _ in range(2):
            assert await client.get(engine.url, "/v1/models", {}, 5, with_body=False) == (200, b"")
        assert engine.connections_opened == 2


async def test_engines_that_the_system_trusts_share_one_context() -> None:
    async with EngineClient(5.0, 1 << 20) as client:
        contexts = {client._origin(f"https://engine-{number}.invalid").tls() for number in range(2)}
        assert len(contexts) == 1
        assert None not in contexts


async def test_an_error_whose_body_never_ends_is_told_by_its_status() -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\ncontent-length: 99\r\n\r\n"
    never = asyncio.Event()
    async with talking([head + b'{"error"', never]) as (engine, client), asyncio.timeout(30):
        with pytest.raises(Overloaded) as failed:
            await ask(engine, client, silence_seconds=600)
        never.set()
    assert (failed.value.body, failed.value.retry_after_seconds) == (b'{"error"', 7.0)


async def test_a_line_end_in_a_header_is_refused() -> None:
    async with talking() as (engine, client):
        with pytest.raises(ValueError, match="line end"):
            await client.post(engine.url, "/", b"", {"a": "b\r\nc: d"}, 1.0)
