"""The caller's side of a request on the wire: plain ASGI in, plain ASGI out."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from starlette.exceptions import HTTPException

from gateway.errors import Problem

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
WANTED = frozenset({b"authorization", b"content-type", b"content-length", b"traceparent"})
OWN_PREFIX = b"x-apprentice-"
HEADER_CHARACTERS_MAX = 512
WATCH_AFTER_SECONDS = 0.05


class HungUp(Exception):
    """The caller has gone."""


def bounded(scope: Scope, receive: Receive, bytes_max: int) -> Receive:
    """`receive`, but raising HTTPException (413) instead of giving more than `bytes_max` bytes of a body."""
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    size = int(declared) if declared.isdigit() else 0
    got = 0

    async def receive_bounded() -> Message:
        nonlocal got
        if size > bytes_max:
            raise HTTPException(413)
        message = await receive()
        got += len(message.get("body", b""))
        if got > bytes_max:
            raise HTTPException(413)
        return message

    return receive_bounded


def unstored(send: Send) -> Send:
    """`send`, but telling that no answer may be kept by anybody on its way, unless it says itself who may keep it."""

    async def send_unstored(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = list(message.get("headers", ()))
            if all(name != b"cache-control" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"cache-control", b"no-store")]}
        await send(message)

    return send_unstored


class Call:
    """One caller's request: its headers, its body, and the way back. `begun` once a byte of the answer is out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers: dict[str, str] = {
            name.decode("latin-1"): _text(value)
            for name, value in scope["headers"]
            if name in WANTED or name.startswith(OWN_PREFIX)
        }
        self.begun = False
        self.ended = False
        self.hung_up = False
        self.scope = scope
        self._receive = receive
        self._send = send

    def header(self, name: str) -> str | None:
        """A header that a caller may send us, or None. Longer ones than the limit are refused."""
        value = self.headers.get(name)
        if value is None:
            return None
        if len(value) > HEADER_CHARACTERS_MAX:
            raise Problem("invalid_value", f"The header {name} is longer than {HEADER_CHARACTERS_MAX} characters.")
        if not value.isprintable() and CONTROL.search(value):
            raise Problem("invalid_value", f"The header {name} holds control characters.")
        return value

    def traceparent(self) -> str | None:
        """The caller's W3C trace context, if it is well-formed."""
        value = self.headers.get("traceparent")
        return value if value and TRACEPARENT.fullmatch(value) else None

    async def body(self, bytes_max: int) -> bytes:
        """The whole body. Raises Problem (413, 415) before more than `bytes_max` is held, HungUp if it breaks off."""
        if not self.headers.get("content-type", "application/json").lower().startswith("application/json"):
            raise Problem("unsupported_media_type", "Send the body as `Content-Type: application/json`.")
        declared = self.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > bytes_max:
            raise _too_large(bytes_max)
        parts: list[bytes] = []
        size = 0
        more = True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                raise HungUp
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > bytes_max:
                raise _too_large(bytes_max)
            parts.append(part)
            more = message.get("more_body", False)
        if len(parts) == 1:
            return parts[0]
        return b"".join(parts)

    async def begin(self, status: int, headers: Headers) -> None:
        """Send status and headers. From here on the answer belongs to the caller."""
        self.begun = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes) -> None:
        """Send a part of the body; waits while the caller reads slowly."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """Send the last part of the body."""
        self.ended = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer at once."""
        await self.begin(status, [*headers, (b"content-length", b"%d" % len(body))])
        await self.end(body)

    def hang_up_cancels(self) -> Watch:
        """Cancel the present task, inside the block, when the caller hangs up."""
        return Watch(self)

    async def wait_for_hang_up(self, walking: asyncio.Task[Any]) -> None:
        """Wait until the caller has gone, and cancel `walking` if its answer is not over by then."""
        message = await self._receive()
        while message["type"] != "http.disconnect":
            message = await self._receive()
        if not self.ended:
            self.hung_up = True
            walking.cancel()


def _text(value: bytes) -> str:
    """A header's value: UTF-8, as curl and HTTP libraries send it, else Latin-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


class Deadline:
    """`asyncio.timeout` at a third of its price: raises TimeoutError from its block when its time is over."""

    __slots__ = ("_over", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        self._task = _present_task(loop)
        self._timer = loop.call_later(self._seconds, self._end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._over and self._task.uncancel() <= 0 and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _end(self) -> None:
        self._over = True
        self._task.cancel()


class Watch:
    """Cancels the present task, inside its block, when the caller hangs up: looked for from WATCH_AFTER_SECONDS on.

    A task that looks from the first moment costs each short request as much as choosing and recording together.
    """

    __slots__ = ("_call", "_loop", "_task", "_timer", "_watch")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._watch: asyncio.Task[None] | None = None

    def __enter__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = _present_task(self._loop)
        self._timer = self._loop.call_later(WATCH_AFTER_SECONDS, self._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._watch is not None:
            self._watch.cancel()

    def _begin(self) -> None:
        self._watch = self._loop.create_task(self._call.wait_for_hang_up(self._task))


def _present_task(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
    task = asyncio.current_task(loop)
    assert task is not None
    return task


def _too_large(bytes_max: int) -> Problem:
    return Problem("body_too_large", f"The body is longer than {bytes_max} bytes.")
