from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.answers.relay import choice_headers
from gateway.door.wire import HEADER_CHARACTERS_MAX, Call, Deadline, HungUp
from gateway.errors import Problem
from gateway.ledger import Ledger, trace_of
from monitoring.ids import RequestIds
from monitoring.records import AttemptRecord, Record

BYTES_MAX = 1024
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ID = RequestIds(b"secret").make("c")


class Wire:
    """The caller's side: what it sends, and what it has been sent."""

    def __init__(self, *parts: bytes, headers: dict[str, str] | None = None, breaks_off: bool = False) -> None:
        self.sent: list[dict[str, Any]] = []
        self.read = 0
        self._messages: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": number < len(parts) or breaks_off}
            for number, part in enumerate(parts, 1)
        ]
        self.call = Call(
            {"path": "/v1/chat/completions", "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()]},
            self._receive,
            self._send,
        )

    async def _receive(self) -> dict[str, Any]:
        self.read += 1
        return self._messages.pop(0) if self._messages else {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(dict(message))


async def refused(wire: Wire) -> str:
    with pytest.raises(Problem) as raised:
        await wire.call.body(BYTES_MAX)
    return raised.value.code


async def test_a_body_is_read_whole_however_it_comes() -> None:
    assert await Wire(b"{}").call.body(BYTES_MAX) == b"{}"
    assert await Wire(b"{", b"", b"}").call.body(BYTES_MAX) == b"{}"
    assert await Wire(b"").call.body(BYTES_MAX) == b""
    assert await Wire(b"x" * BYTES_MAX).call.body(BYTES_MAX) == b"x" * BYTES_MAX


@pytest.mark.parametrize(
    "parts", [(b"x" * 1025,), (b"x" * 1000, b"x" * 25), (b"x" * 1025, b""), (b"x",) * 1025], ids=range(4)
)
async def test_a_body_that_is_too_long_is_refused_however_it_comes(parts: tuple[bytes, ...]) -> None:
    wire = Wire(*parts)
    assert await refused(wire) == "body_too_large"


async def test_a_body_that_says_that_it_is_too_long_is_not_read_at_all() -> None:
    wire = Wire(b"x", headers={"content-length": "1025"})
    assert await refused(wire) == "body_too_large"
    assert wire.read == 0


@pytest.mark.parametrize("length", ["", "x", "-1", "1e3", "0x10"])
async def test_a_length_that_is_no_number_does_no_harm(length: str) -> None:
    assert await Wire(b"{}", headers={"content-length": length}).call.body(BYTES_MAX) == b"{}"


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"])
async def test_json_is_taken(kind: str) -> None:
    assert await Wire(b"{}", headers={"content-type": kind}).call.body(BYTES_MAX) == b"{}"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", ""])
async def test_what_is_declared_as_something_else_is_refused(kind: str) -> None:
    assert await refused(Wire(b"{}", headers={"content-type": kind})) == "unsupported_media_type"


@pytest.mark.parametrize("parts", [(), (b"{",), (b"{", b"}")], ids=range(3))
async def test_a_caller_who_goes_while_sending_has_hung_up(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(HungUp):
        await Wire(*parts, breaks_off=True).call.body(BYTES_MAX)


async def test_only_the_headers_that_matter_are_kept() -> None:
    wire = Wire(headers={"cookie": "a=b", "authorization": "Bearer x", "x-apprentice-session": "s", "x-other": "y"})
    assert wire.call.headers == {"authorization": "Bearer x", "x-apprentice-session": "s"}
    assert wire.call.header("cookie") is None


async def test_a_header_that_is_too_long_is_refused() -> None:
    fits = Wire(headers={"x-apprentice-session": "s" * HEADER_CHARACTERS_MAX})
    assert fits.call.header("x-apprentice-session") == "s" * HEADER_CHARACTERS_MAX
    with pytest.raises(Problem, match=r"x-apprentice-session is longer than 512"):
        Wire(headers={"x-apprentice-session": "s" * 513}).call.header("x-apprentice-session")


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), None),
        (TRACE[:-1], None),
        (TRACE + "0", None),
        ("01" + TRACE[2:], None),
        ("", None),
        (TRACE + "\r\nx: y", None),
    ],
)
async def test_a_trace_context_is_taken_only_where_it_is_well_formed(said: str, taken: str | None) -> None:
    assert Wire(headers={"traceparent": said}).call.traceparent() == taken


async def test_an_answer_goes_out_in_order_and_knows_whether_it_has_begun() -> None:
    wire = Wire()
    call = wire.call
    assert not call.begun
    await call.begin(200, [(b"content-type", b"text/event-stream")])
    await call.write(b"a")
    assert (call.begun, call.ended) == (True, False)
    await call.end(b"b")
    assert call.ended
    assert wire.sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]},
        {"type": "http.response.body", "body": b"a", "more_body": True},
        {"type": "http.response.body", "body": b"b", "more_body": False},
    ]


async def test_a_whole_answer_says_how_long_it_is() -> None:
    wire = Wire()
    await wire.call.whole(503, [(b"retry-after", b"1")], b"{}")
    assert wire.sent[0]["headers"] == [(b"retry-after", b"1"), (b"content-length", b"2")]
    assert wire.sent[1]["body"] == b"{}"


async def test_a_caller_who_goes_cancels_the_walk() -> None:
    gone = asyncio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def walk() -> Call:
        call = Call({"path": "/", "headers": []}, receive, Wire()._send)
        gone.set()
        try:
            with call.hang_up_cancels():
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            return call
        raise AssertionError("not cancelled")

    call = await asyncio.create_task(walk())
    assert call.hung_up


async def test_a_caller_who_goes_after_the_end_cancels_nothing() -> None:
    wire = Wire()
    task = asyncio.current_task()
    assert task is not None
    await wire.call.end()
    await wire.call.wait_for_hang_up(task)
    assert not wire.call.hung_up
    assert not task.cancelling()


async def test_a_deadline_ends_its_block_and_nothing_after_it() -> None:
    with pytest.raises(TimeoutError), Deadline(0.01):
        await asyncio.Event().wait()
    with Deadline(0.01):
        pass
    later = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_later(0.03, later.set_result, None)
    await later


async def test_a_cancellation_from_elsewhere_is_no_deadline() -> None:
    async def work() -> None:
        with Deadline(10):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_outer_deadline_passes_an_inner_one() -> None:
    with pytest.raises(TimeoutError), Deadline(0.01), Deadline(10):
        await asyncio.Event().wait()


def ledger(**fields: Any) -> Ledger:
    return Ledger(Record(id=ID, at=0.0, endpoint="chat", caller="c", model_asked="returns", **fields), 0.0, TRACE)


def test_an_answer_says_where_it_came_from_and_why() -> None:
    attempts = [AttemptRecord("small", "small-0", "returns@v3", "silent", 1.0)] * 2
    found = choice_headers(
        ledger(
            task="returns",
            version="returns@v3",
            pool="small",
            reason="adapter",
            attempts=attempts,
            overhead_seconds=0.0012345,
        )
    )
    assert dict(found) == {
        b"x-request-id": ID.encode(),
        b"x-apprentice-attempts": b"2",
        b"x-apprentice-task": b"returns",
        b"x-apprentice-version": b"returns@v3",
        b"x-apprentice-pool": b"small",
        b"x-apprentice-reason": b"adapter",
        b"traceparent": TRACE.encode(),
        b"x-apprentice-overhead-ms": b"1.234",
    }
    assert len(found) == len(dict(found))


def test_an_answer_says_nothing_that_it_does_not_know() -> None:
    assert dict(choice_headers(ledger())).keys() == {b"x-request-id", b"x-apprentice-attempts", b"traceparent"}


def test_a_request_without_a_trace_gets_one_of_its_own() -> None:
    trace = trace_of(ID)
    assert len(trace) == len(TRACE)
    assert trace.startswith("00-" + ID.replace("-", "")[:32] + "-")
    assert Wire(headers={"traceparent": trace}).call.traceparent() == trace
