"""The console's URLs in the application. The first visit loads the console, in a thread beside the event loop.
A gateway whose console nobody visits has none of it in memory."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from gateway.configuration.sections import ConsoleSettings
from gateway.server.asgi_messages import Receive, Scope, Send
from gateway.server.listener import CONSOLE


def list_console_routes(gateway: Any, settings: ConsoleSettings) -> list[BaseRoute]:
    """The routes of this application's console; none if the console is off."""
    if not settings.enabled:
        return []
    return [Route(CONSOLE, _lead_to_beginning, include_in_schema=False), Mount(CONSOLE, app=ConsoleDoor(gateway))]


async def _lead_to_beginning(_: Request) -> Response:
    """Redirect from the address without a slash to the first page."""
    return RedirectResponse(f"{CONSOLE}/", 308)


class ConsoleDoor:
    """The console as an ASGI application that the first request loads."""

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._site: Any = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._site is None:
            self._site = await asyncio.to_thread(lambda: import_module("gateway.console.site").Site(self._gateway))
        await self._site(scope, receive, send)
