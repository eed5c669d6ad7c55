"""Connections compared with RFC 9110 and 9112: a row has the bytes sent, and those that must come back."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

import pytest

from gateway.configuration.sections import DoorLimits
from gateway.errors import Problem
from gateway.server.exchange import Exchange
from tests.gateway.server.listening import KEY, Answers, Listening, echo, listening
from tests.gateway.server.raw_requests import AUTHORIZATION, CHUNKED, H2C, HEAD, NEXT, OURS, POST, ask

ROWS: dict[str, tuple[bytes, list[int]]] = {
    # 9112, 3: the request line
    "3 a request": (NEXT, [200]),
    "3 absolute form": (b"GET http://gateway/next HTTP/1.1\r\n" + HEAD + b"\r\n", [200]),
    "3 CONNECT": (b"CONNECT gateway:443 HTTP/1.1\r\n" + HEAD + b"\r\n" + NEXT, [405]),
    "3 no version": (b"GET /next\r\n" + HEAD + b"\r\n", [400]),
    "3 HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [400]),
    "3 bare LF": (b"GET /next HTTP/1.1\nHost: gateway\n\n", [400]),
    "2.2 CRLF before a request": (b"\r\n\r\n" + NEXT, [200]),
    "2.2 a space before the first header": (b"GET / HTTP/1.1\r\n Host: gateway\r\n\r\n", [400]),
    # 9112, 3.2: Host
    "3.2 no Host": (b"GET /next HTTP/1.1\r\n" + AUTHORIZATION + b"\r\n", [400]),
    "3.2 two Hosts": (b"GET /next HTTP/1.1\r\nHost: other\r\n" + HEAD + b"\r\n", [400]),
    "3.2 two equal Hosts": (b"GET /next HTTP/1.1\r\nHost: gateway\r\n" + HEAD + b"\r\n", [400]),
    "3.2 a Host that is none": (b"GET /next HTTP/1.1\r\nHost: a/b\r\n" + AUTHORIZATION + b"\r\n", [400]),
    "3.2 an IPv6 Host": (b"GET /next HTTP/1.1\r\nHost: [::1]:80\r\n" + AUTHORIZATION + b"\r\n", [200]),
    "3.2 HTTP/1.0 without Host": (b"GET /next HTTP/1.0\r\n" + AUTHORIZATION + b"\r\n", [200]),
    # 9110, 5.3: headers that are there once
    "5.3 two keys": (POST + AUTHORIZATION + b"Content-Length: 2\r\n\r\n{}", [400]),
    "5.3 two types": (POST + b"Content-Type: a\r\nContent-Type: b\r\nContent-Length: 2\r\n\r\n{}", [400]),
    "5.3 two of ours": (POST + OURS + OURS.lower() + b"Content-Length: 0\r\n\r\n", [400]),
    "5.3 two of others": (POST + b"Accept: a\r\nAccept: b\r\nContent-Length: 0\r\n\r\n", [200]),
    # 9112, 5: header lines
    "5.1 white space behind a value": (NEXT.replace(b"gateway", b"gateway \t").replace(b"secret", b"secret\t "), [200]),
    "5.1 a space before the colon": (POST + b"X : y\r\n\r\n", [400]),
    "5.2 a folded line": (POST + b"X: a\r\n b\r\n\r\n", [400]),
    # 9112, 6: the length of a body
    "6.1 chunked": (CHUNKED + b"1\r\n{\r\n1;x=y\r\n}\r\n0\r\n\r\n" + NEXT, [200, 200]),
    "6.1 gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n" + NEXT, [501]),
    "6.1 gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n" + NEXT, [501]),
    "6.1 identity": (POST + b"Transfer-Encoding: identity\r\n\r\n" + NEXT, [501]),
    "6.1 both lengths": (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT, [400]),
    "6.1 chunked in HTTP/1.0": (
        b"POST /a HTTP/1.0\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + NEXT,
        [400],
    ),
    "6.2 two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}" + NEXT, [400]),
    "6.2 a negative length": (POST + b"Content-Length: -1\r\n\r\n" + NEXT, [400]),
    "6.2 a length that is not a number": (POST + b"Content-Length: 0x2\r\n\r\n{}" + NEXT, [400]),
    "6.2 an endless length": (POST + b"Content-Length: 99999999999999999999\r\n\r\n{}", [400]),
    "6.3 no body": (POST + b"\r\n" + NEXT, [200, 200]),
    "7.1 no chunk": (CHUNKED + b"zz\r\n", [400]),
    "7.1 a chunk longer than it says": (CHUNKED + b"1\r\n{}\r\n0\r\n\r\n", [400]),
    "7.1 an endless chunk size": (CHUNKED + b"fffffffffffffffff\r\n", [400]),
    # 9110, 7.8: upgrades are ignored
    "7.8 h2c with a body": (
        POST + H2C + b"Content-Length: 2\r\n\r\n{}" + NEXT,
        [200, 200],
    ),
    "7.8 h2c with chunks": (
        POST + H2C + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + NEXT,
        [200, 200],
    ),
    "7.8 websocket": (
        b"GET /a HTTP/1.1\r\n" + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + NEXT,
        [200, 200],
    ),
    "7.8 a request inside the body": (
        POST + b"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: %d\r\n\r\n" % len(NEXT) + NEXT,
        [200],
    ),
    # 9110, 8.4: content codings
    "8.4 gzip": (POST + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", [415]),
    "8.4 identity": (POST + b"Content-Encoding: identity\r\nContent-Length: 2\r\n\r\n{}", [200]),
    # 9112, 9.3: several requests
    "9.3 after close": (b"GET /a HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n\r\n" + NEXT, [200]),
    "9.3 HTTP/1.0": (b"GET /a HTTP/1.0\r\n" + HEAD + b"\r\n" + NEXT, [200]),
    "9.3 garbage behind": (NEXT + b"\x00\x01\x02", [200, 400]),
    "9.3 half a head behind": (NEXT + b"GET /half HTTP/1.1\r\nHo", [200]),
    # 9110, 11.6.2: keys
    "11.6 no key": (b"POST /a HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2\r\n\r\n{}" + NEXT, [401, 200]),
    "11.6 a key in a trailer": (
        b"POST /a HTTP/1.1\r\nHost: gateway\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + AUTHORIZATION + b"\r\n",
        [401],
    ),
    "11.6 probes need none": (b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n", [200]),
    "11.6 other spellings of probes do": (b"GET /health%2Flive HTTP/1.1\r\nHost: gateway\r\n\r\n", [401]),
}  # fmt: skip


@pytest.mark.parametrize("cut", ["whole", "bytes"])
@pytest.mark.parametrize(("sent", "statuses"), ROWS.values(), ids=ROWS.keys())
async def test_each_row_is_answered_as_the_rfc_says(sent: bytes, statuses: list[int], cut: str) -> None:
    app = Listening()
    async with listening(app) as port:
        if cut == "whole":
            answers = await ask(port, sent)
        else:  # wherever the network cuts
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for byte in sent:
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            writer.write_eof()
            async with asyncio.timeout(30):
                answers = Answers(await reader.read())
            writer.close()
    assert answers.statuses == statuses, answers.raw
    if not sent.startswith(CHUNKED):  # those break behind their head
        assert len(app.opened) == statuses.count(200), "nobody else is told of it"


async def test_an_upgrade_loses_no_body_and_makes_none_a_request() -> None:
    async with listening(Listening()) as port:
        upgrade = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
        plain = await ask(port, POST + upgrade + b"Content-Length: 5\r\n\r\nhello" + NEXT)
        chunked = await ask(port, POST + upgrade + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + NEXT)
    assert plain.bodies == chunked.bodies == [b"POST /a hello", b"GET /next "]


async def test_a_trailer_is_never_a_header_of_this_request_or_the_next() -> None:
    app = Listening()
    async with listening(app) as port:
        sent = CHUNKED + b"2\r\n{}\r\n0\r\nAuthorization: Bearer other\r\nX-Apprentice-Session: a\r\n\r\n" + NEXT
        answers = await ask(port, sent)
    assert answers.statuses == [200, 200]
    assert [dict(exchange.headers) for exchange in app.opened] == [
        {b"host": b"gateway", b"authorization": KEY.encode(), b"transfer-encoding": b"chunked"},
        {b"host": b"gateway", b"authorization": KEY.encode()},
    ]


@pytest.mark.parametrize(
    "trailers",
    [
        b"x: y\r\n" * 40 + b"\r\n",
        b"x: " + b"y" * 5000 + b"\r\n\r\n",
        b"x" * 40_000,
        b"x: " + b"y" * 100_000,
        b"x: y\r\n" * 5000,
    ],
    ids=["too many", "a long one", "a name without an end", "a value without an end", "for ever"],
)
async def test_trailers_are_held_to_the_bounds_of_heads(trailers: bytes) -> None:
    limits = DoorLimits(headers_max=32, head_bytes_max=4096)
    async with listening(Listening(limits=limits)) as port:
        answers = await ask(port, CHUNKED + b"2\r\n{}\r\n0\r\n" + trailers)
    assert answers.statuses == [431]


async def test_chunk_extensions_are_held_to_the_bounds_of_heads() -> None:
    limits = DoorLimits(head_bytes_max=4096)
    async with listening(Listening(limits=limits)) as port:
        answers = await ask(port, CHUNKED, b"2;" + b"x" * 20_000)
    assert answers.statuses == [431]


async def test_many_pipelined_requests_are_answered_in_order() -> None:
    app = Listening()
    sent = b"".join(b"GET /%d HTTP/1.1\r\n%b\r\n" % (number, HEAD) for number in range(3000))
    async with listening(app) as port:
        answers = await ask(port, sent)
    assert answers.bodies == [b"GET /%d " % number for number in range(3000)]


async def test_few_pipelined_requests_wait_parsed() -> None:
    held = asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await held.wait()
        await echo(exchange)

    app = Listening(hold)
    async with listening(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"".join(b"GET /%d HTTP/1.1\r\n%b\r\n" % (number, HEAD) for number in range(20_000)))
        while not app.opened:
            await asyncio.sleep(0.01)
        assert app.listener is not None
        (connection,) = app.listener._state.connections
        assert len(connection._queue) < 500  # type: ignore[union-attr]
        held.set()
        async with asyncio.timeout(30):
            while len(app.opened) < 20_000:
                await reader.read(1 << 20)
        writer.close()


async def test_a_caller_that_sends_no_more_gets_its_answer() -> None:
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        with exchange.hang_up_cancels():
            await go_on.wait()
        await echo(exchange)

    async with listening(Listening(slow)) as port:
        asked = asyncio.create_task(ask(port, NEXT))
        asyncio.get_running_loop().call_later(1.2, go_on.set)  # longer than it takes to see whether it has gone
        answers = await asked
    assert answers.bodies == [b"GET /next "]
    assert b"100 Continue" in answers.raw


@pytest.mark.parametrize("resets", [True, False])
async def test_a_caller_that_goes_cancels_at_once(resets: bool) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        try:
            with exchange.hang_up_cancels():
                started.set()
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            assert exchange.hung_up
            cancelled.set()

    async with listening(Listening(wait)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(NEXT)
        await started.wait()
        if resets:
            writer.transport.abort()
        else:
            writer.close()
        async with asyncio.timeout(30):
            await cancelled.wait()


async def test_a_caller_that_goes_inside_a_stream_cancels_at_once() -> None:
    cancelled = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        try:
            with exchange.hang_up_cancels():
                await exchange.begin(200, [(b"content-type", b"text/event-stream")])
                await exchange.write(b"data: a\n\n")
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()

    async with listening(Listening(stream)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(NEXT)
        await reader.readuntil(b"data: a\n\n")
        writer.close()
        async with asyncio.timeout(30):
            await cancelled.wait()


async def test_a_caller_that_goes_over_http_1_0_cancels_at_once() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(exchange: Exchange) -> None:
        try:
            with exchange.hang_up_cancels():
                started.set()
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()

    async with listening(Listening(wait)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.0\r\n" + HEAD + b"\r\n")
        await started.wait()
        writer.close()
        async with asyncio.timeout(30):
            await cancelled.wait()


async def test_an_answer_that_is_shorter_than_it_says_ends_its_connection() -> None:
    async def short(exchange: Exchange) -> None:
        await exchange.begin(200, [(b"content-length", b"10")])
        await exchange.end(b"abc")

    async with listening(Listening(short)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(NEXT + NEXT)
        got = b""
        with suppress(ConnectionResetError):
            got = await reader.read()
        assert got.count(b"HTTP/1.1") <= 1
        writer.close()


async def test_a_body_that_was_not_asked_for_ends_its_connection() -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.whole(403, [], b"no")

    async with listening(Listening(refuse)) as port:
        answers = await ask(port, POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n", half_closes=False)
    assert answers.headers[0]["connection"] == "close"


async def test_a_caller_that_goes_inside_its_body_is_told_to_its_reader() -> None:
    gone = asyncio.Event()

    async def read(exchange: Exchange) -> None:
        try:
            await exchange.body(1000)
        finally:
            gone.set()

    async with listening(Listening(read)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"Content-Length: 10\r\n\r\n{")
        await writer.drain()
        writer.close()
        async with asyncio.timeout(30):
            await gone.wait()


async def test_a_body_that_does_not_come_in_time_is_answered_and_ends_its_connection() -> None:
    async def begin(exchange: Exchange) -> None:
        await exchange.begin(200, [(b"content-type", b"text/plain")])
        with suppress(Problem):
            await exchange.body(1000)
        await exchange.write(b"whole")
        await exchange.end()

    for respond, status in ((echo, 408), (begin, 200)):
        for begun in (b"Content-Length: 10\r\n\r\n{", b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"):
            async with listening(Listening(respond, limits=DoorLimits(body_seconds_max=0.3))) as port:
                answers = await ask(port, POST + begun, half_closes=False)
            assert answers.statuses == [status], "and then it is closed"
            if status == 200:
                assert answers.bodies == [b"whole"]
                continue
            assert answers.headers[0]["connection"] == "close"
            error = json.loads(answers.bodies[0])["error"]
            assert (error["code"], error["type"]) == ("body_too_slow", "invalid_request_error")
            assert "within 0.3 s" in error["message"]


async def _trickle(writer: asyncio.StreamWriter, data: bytes) -> None:
    while True:
        writer.write(data)
        await asyncio.sleep(0.05)


async def test_bare_line_ends_keep_no_place_before_or_between_requests() -> None:
    limits = DoorLimits(head_seconds_max=0.3, keep_alive_seconds_max=0.3)
    app = Listening(limits=limits)
    async with listening(app) as port, asyncio.timeout(30):
        for first in (b"", NEXT):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(first + b"\r\n")
            trickle = asyncio.create_task(_trickle(writer, b"\r\n"))
            await reader.read()
            trickle.cancel()
            writer.close()


async def test_a_body_is_asked_for_only_where_somebody_reads_it() -> None:
    async with listening(Listening()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(30):
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(b"{}")
            writer.write_eof()
            assert Answers(await reader.read()).bodies == [b"POST /a {}"]
        writer.close()


async def test_a_stream_to_an_http_1_0_caller_has_no_chunks() -> None:
    async def stream(exchange: Exchange) -> None:
        await exchange.begin(200, [(b"content-type", b"text/event-stream")])
        await exchange.write(b"data: a\n\n")
        await exchange.end(b"data: [DONE]\n\n")

    async with listening(Listening(stream)) as port:
        old = await ask(port, b"GET / HTTP/1.0\r\n" + HEAD + b"\r\n")
        new = await ask(port, NEXT)
    assert "transfer-encoding" not in old.headers[0]
    assert old.bodies == new.bodies == [b"data: a\n\ndata: [DONE]\n\n"]
    assert new.headers[0]["transfer-encoding"] == "chunked"


async def test_a_head_asks_for_no_body() -> None:
    async with listening(Listening()) as port:
        answers = await ask(port, b"HEAD /a HTTP/1.1\r\n" + HEAD + b"\r\n")
    assert answers.raw.endswith(b"\r\n\r\n")
    assert b"content-length: 8\r\n" in answers.raw


async def test_a_header_that_can_not_be_sent_is_a_fault_that_is_told() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(200, [(b"x", b"a\nb")], b"")

    async with listening(Listening(answer)) as port:
        assert (await ask(port, NEXT)).statuses == [500]


async def test_an_address_that_fails_is_told_once_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(_: Exchange) -> None:
        raise KeyError("x")

    async with listening(Listening(fail)) as port:
        answers = await ask(port, NEXT + NEXT)
    assert answers.statuses == [500, 500]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["an address failed"] * 2


async def test_an_address_that_fails_inside_its_answer_breaks_it_off() -> None:
    async def fail(exchange: Exchange) -> None:
        await exchange.begin(200, [])
        await exchange.write(b"half")
        raise KeyError("x")

    async with listening(Listening(fail)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(NEXT)
        got = b""
        with suppress(ConnectionResetError):
            got = await reader.read()
        assert not got.endswith(b"0\r\n\r\n")
        writer.close()
