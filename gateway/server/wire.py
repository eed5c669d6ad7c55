"""A request on its way: the types of plain ASGI, the caller who may go, and the time that it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from starlette.exceptions import HTTPException

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class HungUp(Exception):
    """The caller has gone."""


def bound_body(scope: Scope, receive: Receive, bytes_max: int) -> Receive:
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


def forbid_storing(send: Send) -> Send:
    """`send`, but telling that no answer may be kept by anybody on its way, unless it says itself who may keep it."""

    async def send_unstored(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = list(message.get("headers", ()))
            if all(name != b"cache-control" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"cache-control", b"no-store")]}
        await send(message)

    return send_unstored


class Deadline:
    """`asyncio.timeout` at a third of its price: raises TimeoutError from its block when its time is over."""

    __slots__ = ("_loop", "_over", "_seconds", "_task", "_timer")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """`loop` is the running one, for those who have it at hand."""
        self._seconds = seconds
        self._loop = loop
        self._over = False

    def __enter__(self) -> None:
        loop = self._loop or asyncio.get_running_loop()
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


def _present_task(loop: asyncio.AbstractEventLoop) -> asyncio.Task[Any]:
    task = asyncio.current_task(loop)
    assert task is not None
    return task
