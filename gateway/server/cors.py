"""Cross-origin requests (CORS): headers that let web pages of another origin call the gateway from a browser."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Scope

METHODS = "GET, POST, PUT, PATCH, DELETE"
KEPT_SECONDS = 600
"""Seconds for which a browser need not ask again."""
NAMES = re.compile(r"[A-Za-z0-9-]+(\s*,\s*[A-Za-z0-9-]+)*")
NAMES_CHARACTERS_MAX = 2000


def make_headers(origin: str | None) -> list[tuple[str, str]]:
    """The headers of every answer that let pages of this origin (`*`: all) call; empty without an origin."""
    if origin is None:
        return []
    return [("access-control-allow-origin", origin), ("access-control-expose-headers", "*")]


def make_preflight_routes(origin: str | None) -> list[Route]:
    """The routes for a browser that asks whether it may send a request: no key comes with that."""
    return [] if origin is None else [_Preflights("/{path:path}", _preflight, methods=["OPTIONS"])]


class _Preflights(Route):
    """A route of OPTIONS alone: to other methods an address that is not there stays one."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return super().matches(scope) if scope.get("method") == "OPTIONS" else (Match.NONE, {})


async def _preflight(request: Request) -> Response:
    headers = {"access-control-allow-methods": METHODS, "access-control-max-age": str(KEPT_SECONDS)}
    wanted = request.headers.get("access-control-request-headers", "")
    if len(wanted) <= NAMES_CHARACTERS_MAX and NAMES.fullmatch(wanted):
        headers["access-control-allow-headers"] = wanted
    return Response(None, 204, headers)
