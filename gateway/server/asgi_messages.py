"""Messages of plain ASGI: their types, a caller's hang-up, bounded bodies, and answers that must not be stored."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]


class HungUp(Exception):
    """The caller hung up."""


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
    """`send` with a header that forbids caches to store the answer, unless the answer has its own rule."""

    async def send_unstored(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers: Headers = list(message.get("headers", ()))
            if all(name != b"cache-control" for name, _ in headers):
                message = {**message, "headers": [*headers, (b"cache-control", b"no-store")]}
        await send(message)

    return send_unstored
