from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gateway.errors import Problem
from gateway.formats.format_table import CHAT, MESSAGES
from gateway.formats.server_sent_events import BOM
from gateway.path.answer_headers import make_choice_headers
from gateway.path.ledger import Ledger, trace_of
from gateway.server.asgi_messages import HungUp
from gateway.server.deadline import Deadline
from gateway.server.exchange import HEADER_CHARACTERS_MAX, Exchange
from gateway.server.shared_capacity import SharedCapacity
from monitoring.ids import RequestIds
from monitoring.records import AttemptRecord, Record

BYTES_MAX = 1024
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ID = RequestIds(b"secret").make("c")


class Caller:
    """The caller's side: what it sends, and what it has been sent."""

    def __init__(self, *parts: bytes, headers: dict[str, str] | None = None, breaks_off: bool = False) -> None:
        self.sent = b""
        self.writes = 0
        self.read = 0
        self.ended = False
        self.loop = asyncio.get_running_loop()
        fields = {name.encode(): value.encode() for name, value in (headers or {}).items()}
        framed = {b"transfer-encoding": b"chunked", **fields}
        self.call = Exchange(self, "POST", b"/", b"", list(fields.items()), framed, True, False)
        self._parts, self._breaks_off = list(parts), breaks_off

    ends = (None, None)
    flows = True

    def send(self, data: bytes) -> None:
        self.sent += data
        self.writes += 1

    async def writable(self) -> None:
        return None

    def server_headers(self) -> bytes:
        return b"date: today\r\n"

    bodies = SharedCapacity(1 << 30)

    def finished(self, _: Exchange) -> None:
        self.ended = True

    def read_on(self) -> None:
        """Send the next part, or hang up, as soon as the reader waits."""
        self.read += 1
        asyncio.get_running_loop().call_soon(self._send_part)

    def _send_part(self) -> None:
        if self._parts:
            self.call.take(self._parts.pop(0))
        if self._parts or self._breaks_off:
            if not self._parts:
                asyncio.get_running_loop().call_soon(self.call.lost)
        else:
            self.call.come()


async def refused(wire: Caller) -> str:
    with pytest.raises(Problem) as raised:
        await wire.call.body(BYTES_MAX)
    return raised.value.code


async def test_a_body_is_read_whole_however_it_comes() -> None:
    assert await Caller(b"{}").call.body(BYTES_MAX) == b"{}"
    assert await Caller(b"{", b"", b"}").call.body(BYTES_MAX) == b"{}"
    assert await Caller(b"").call.body(BYTES_MAX) == b""
    assert await Caller(b"x" * BYTES_MAX).call.body(BYTES_MAX) == b"x" * BYTES_MAX


@pytest.mark.parametrize("bytes_left", [0, 5], ids=["the rest came", "it breaks off"])
async def test_parts_of_a_body_that_failed_end_with_its_fault_and_not_as_a_whole(bytes_left: int) -> None:
    call = Caller(b"{", b"}").call
    assert await call.next_part() == (b"{", True)
    call.fail(Problem("overload", "no room"))
    if not bytes_left:
        call.come()
    with pytest.raises(Problem, match="no room"):
        await call.next_part()


async def test_small_chunks_are_kept_as_one_piece() -> None:
    call = Caller().call
    for _ in range(500):
        call.take(b"{}")
    assert len(call._parts) == 1
    call.come()
    assert await call.body(BYTES_MAX) == b"{}" * 500


@pytest.mark.parametrize(
    "parts", [(b"x" * 1025,), (b"x" * 1000, b"x" * 25), (b"x" * 1025, b""), (b"x",) * 1025], ids=range(4)
)
async def test_a_body_that_is_too_long_is_refused_however_it_comes(parts: tuple[bytes, ...]) -> None:
    wire = Caller(*parts)
    assert await refused(wire) == "body_too_large"


async def test_a_body_that_says_that_it_is_too_long_is_not_read_at_all() -> None:
    wire = Caller(b"x", headers={"content-length": "1025"})
    assert await refused(wire) == "body_too_large"
    assert wire.read == 0


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/json;x=y"])
async def test_json_is_taken(kind: str) -> None:
    assert await Caller(b"{}", headers={"content-type": kind}).call.body(BYTES_MAX) == b"{}"


@pytest.mark.parametrize("parts", [(BOM + b"{}",), (BOM[:1], BOM[1:] + b"{", b"}")], ids=["whole", "cut"])
async def test_a_mark_before_the_body_is_left_out(parts: tuple[bytes, ...]) -> None:
    assert await Caller(*parts).call.body(BYTES_MAX) == b"{}"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "", "application/jsonlines"])
async def test_what_is_declared_as_something_else_is_refused(kind: str) -> None:
    assert await refused(Caller(b"{}", headers={"content-type": kind})) == "unsupported_media_type"


@pytest.mark.parametrize("parts", [(), (b"{",), (b"{", b"}")], ids=range(3))
async def test_a_caller_who_goes_while_sending_has_hung_up(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(HungUp):
        await Caller(*parts, breaks_off=True).call.body(BYTES_MAX)


async def test_a_header_that_is_too_long_is_refused() -> None:
    fits = Caller(headers={"x-apprentice-session": "s" * HEADER_CHARACTERS_MAX})
    assert fits.call.header("x-apprentice-session") == "s" * HEADER_CHARACTERS_MAX
    with pytest.raises(Problem, match=r"x-apprentice-session is longer than 512"):
        Caller(headers={"x-apprentice-session": "s" * 513}).call.header("x-apprentice-session")


@pytest.mark.parametrize(
    ("said", "taken"),
    [
        (TRACE, TRACE),
        (TRACE.upper(), None),
        (TRACE[:-1], None),
        (TRACE + "0", None),
        ("01" + TRACE[2:], TRACE),
        ("01" + TRACE[2:] + "-more", TRACE),
        ("ff" + TRACE[2:], None),
        ("", None),
        (TRACE + "\r\nx: y", None),
    ],
)
async def test_a_trace_context_is_taken_only_where_it_is_well_formed(said: str, taken: str | None) -> None:
    assert Caller(headers={"traceparent": said}).call.trace()[0] == taken


async def test_an_answer_goes_out_in_order_and_knows_whether_it_has_begun() -> None:
    caller = Caller()
    call = caller.call
    call.come()
    assert not call.begun
    await call.begin(200, [(b"content-type", b"text/event-stream")])
    await call.write(b"a")
    assert (call.begun, call.ended) == (True, False)
    await call.end(b"b")
    assert (call.ended, caller.ended) == (True, True)
    head = b"HTTP/1.1 200 OK\r\ndate: today\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    assert caller.sent == head + b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"


@pytest.mark.parametrize(("method", "framed"), [("POST", b"1\r\na\r\n"), ("HEAD", b"")])
async def test_a_first_part_goes_out_with_the_head(method: str, framed: bytes) -> None:
    caller = Caller()
    caller.call.come()
    caller.call.method = method
    await caller.call.begin(200, [], b"a")
    assert caller.writes == 1
    assert caller.sent.endswith(b"\r\n\r\n" + framed)


async def test_a_whole_answer_says_how_long_it_is() -> None:
    caller = Caller()
    caller.call.come()
    await caller.call.whole(503, [(b"retry-after", b"1")], b"{}")
    head = b"HTTP/1.1 503 Service Unavailable\r\ndate: today\r\nretry-after: 1\r\ncontent-length: 2\r\n\r\n"
    assert caller.sent == head + b"{}"


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\r\n\r\nb"])
async def test_a_header_with_a_line_end_is_never_sent(value: bytes) -> None:
    caller = Caller()
    with pytest.raises(ValueError, match="line end"):
        await caller.call.whole(200, [(b"x-apprentice-task", value)], b"{}")
    assert caller.sent == b""


async def test_a_caller_who_goes_cancels_the_walk() -> None:
    async def walk() -> Exchange:
        call = Caller().call
        asyncio.get_running_loop().call_soon(call.lost)
        try:
            with call.hang_up_cancels():
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            return call
        raise AssertionError("not cancelled")

    call = await asyncio.create_task(walk())
    assert call.hung_up


async def test_a_caller_who_went_before_the_walk_cancels_it_at_once() -> None:
    async def walk() -> Exchange:
        call = Caller().call
        call.lost()
        try:
            with call.hang_up_cancels():
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            return call
        raise AssertionError("not cancelled")

    call = await asyncio.create_task(walk())
    assert call.hung_up


async def test_a_caller_who_goes_after_the_end_cancels_nothing() -> None:
    call = Caller().call
    task = asyncio.current_task()
    assert task is not None
    await call.end()
    with call.hang_up_cancels():
        call.lost()
    assert not call.hung_up
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
    return Ledger(Record(id=ID, at=0.0, endpoint="chat", caller="c", requested_model="returns", **fields), 0.0, TRACE)


def test_an_answer_says_where_it_came_from_and_why() -> None:
    attempts = [AttemptRecord("small", "small-0", "returns@v3", "silent", 1.0)] * 2
    found = make_choice_headers(
        ledger(
            task="returns",
            version="returns@v3",
            pool="small",
            reason="adapter",
            attempts=attempts,
            overhead_seconds=0.0012345,
        ),
        CHAT,
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
    named = {b"x-request-id", b"x-apprentice-attempts", b"traceparent"}
    assert dict(make_choice_headers(ledger(), CHAT)).keys() == named
    assert dict(make_choice_headers(ledger(), MESSAGES)).keys() == {*named, b"request-id"}


async def test_a_request_without_a_trace_gets_one_of_its_own() -> None:
    trace = trace_of(ID)
    assert len(trace) == len(TRACE)
    assert trace.startswith("00-" + ID.replace("-", "")[:32] + "-")
    assert Caller(headers={"traceparent": trace}).call.trace() == (trace, None)
