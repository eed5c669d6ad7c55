"""An exchange as ASGI. FastAPI answers all requests that are not on the request path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException

from gateway.errors import Problem
from gateway.server.asgi_messages import HungUp, Message, Scope
from gateway.server.exchange import Exchange
from gateway.server.listener import decode_path


def scope_of(exchange: Exchange) -> dict[str, Any]:
    """The ASGI scope of a request; it holds the exchange itself under `exchange`."""
    client, server = exchange.ends
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.0" if exchange.http10 else "1.1",
        "server": server,
        "client": client,
        "scheme": "http",
        "method": exchange.method,
        "root_path": "",
        "path": decode_path(exchange.path),
        "raw_path": exchange.path,
        "query_string": exchange.query,
        "headers": exchange.headers,
        "exchange": exchange,
    }


async def answer_with(app: Any, exchange: Exchange, streams: Callable[[Scope], bool]) -> None:
    """Have an ASGI application answer. `streams` is True for a request whose body goes to disk as it arrives."""
    scope = scope_of(exchange)
    streamed, read = streams(scope), False

    async def receive() -> Message:
        nonlocal read
        if read:
            await exchange.gone()
            return {"type": "http.disconnect"}
        try:
            part, more = await exchange.next_part()
        except HungUp:
            return {"type": "http.disconnect"}
        except Problem as problem:
            raise HTTPException(problem.status) from problem
        read = not more
        if streamed:
            exchange.give_back_read()
        return {"type": "http.request", "body": part, "more_body": more}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            await exchange.begin(message["status"], list(message.get("headers", ())))
        elif message.get("more_body", False):
            await exchange.write(message.get("body", b""))
        else:
            await exchange.end(message.get("body", b""))

    await app(scope, receive, send)
