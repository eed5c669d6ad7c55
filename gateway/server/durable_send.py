"""Delayed answers to admins: an answer that confirms a change is sent after the change is durable."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gateway.errors import Problem
from gateway.server.asgi_messages import Message, Send
from gateway.state.durability import Durability, NotSettled, explain_not_settled


class DurableSend:
    """`send` for an admin's change. It sends a success answer after the change is durable and all processes of this
    gateway were notified."""

    def __init__(self, durability: Durability, send: Send, refused: Any, notify: Callable[[], Awaitable[None]]) -> None:
        self._durability = durability
        self._send = send
        self._refused = refused
        self._notify = notify
        self._mark = durability.mark()
        self._unsettled = False

    async def __call__(self, message: Message) -> None:
        """Pass a message on. If the change did not become durable in time, send a 503 instead of the answer."""
        if message["type"] == "http.response.start" and 200 <= message["status"] < 300:
            try:
                await self._durability.settle(self._mark)
                await self._notify()
            except NotSettled as error:
                self._unsettled = True
                await self._tell(explain_not_settled(error))
        if not self._unsettled:
            await self._send(message)

    async def _tell(self, problem: Problem) -> None:
        self._refused.add(1, problem.code)
        await self._send({"type": "http.response.start", "status": problem.status, "headers": problem.headers()})
        await self._send({"type": "http.response.body", "body": problem.body()})
