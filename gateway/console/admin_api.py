"""Client of this gateway's own API, inside the process. It calls as the signed-in person, so that the console has the
same roles, gate, audit and errors as every other client."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any
from urllib.parse import quote

import httpx

from gateway.callers import Caller
from gateway.endpoint_parts import SIGNED_IN
from gateway.server.asgi_messages import Receive, Scope, Send

ASKED_SECONDS_MAX = 120.0
DOTS = frozenset({".", ".."})


class Declined(Exception):
    """The API's refusal: its status, its code, its message, and the faulty field, if there is one."""

    def __init__(self, status: int, code: str, text: str, param: str = "") -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text
        self.param = param

    def at_field(self, names: Collection[str]) -> tuple[str, str]:
        """The faulty field of a form (empty: none of these), and the message to show there."""
        named, sign, words = self.text.partition(": ")
        name = (self.param or named).rpartition(".")[2]
        if name not in names:
            return "", self.text
        return name, words[:1].upper() + words[1:] if sign and named.rpartition(".")[2] == name else self.text


class PersonalApi:
    """A client of the application, as one caller."""

    def __init__(self, gateway: Any, caller: Caller, peer: tuple[str, int]) -> None:
        async def as_caller(scope: Scope, receive: Receive, send: Send) -> None:
            await gateway({**scope, SIGNED_IN: caller}, receive, send)

        self._transport = httpx.ASGITransport(as_caller, raise_app_exceptions=False, client=peer)

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON at an address. Empty values of the query are left out. Raises Declined."""
        return await self.send("GET", path, query={name: value for name, value in query.items() if value})

    async def find(self, path: str) -> Any:
        """The JSON at an address; None for a 404. Raises Declined for all other refusals."""
        try:
            return await self.get(path)
        except Declined as refused:
            if refused.status == 404:
                return None
            raise

    async def send(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer. Raises Declined."""
        try:  # the transport has no time limit of its own
            async with (
                asyncio.timeout(ASKED_SECONDS_MAX),
                httpx.AsyncClient(transport=self._transport, base_url="http://console", trust_env=False) as http,
            ):
                answer = await http.request(method, path, json=body, params=query)
        except TimeoutError:
            raise Declined(504, "timeout", f"It took longer than {ASKED_SECONDS_MAX:g} s. Try again later.") from None
        if answer.status_code >= 400:
            try:
                error = answer.json()["error"]
                raise Declined(
                    answer.status_code, str(error["code"]), str(error["message"]), str(error.get("param") or "")
                )
            except (ValueError, KeyError, TypeError):
                raise Declined(answer.status_code, "", "The gateway gave no reason.") from None
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text


def fill_address(template: str, /, **names: str) -> str:
    """An address with these names in it, each escaped. Raises Declined (404) for `.` and `..`."""
    if not DOTS.isdisjoint(names.values()):
        raise Declined(404, "not_found", "There is nothing of this name.")
    return template.format(**{name: quote(value, safe="@") for name, value in names.items()})
