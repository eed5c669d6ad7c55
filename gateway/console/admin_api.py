"""The API of this gateway, asked in the process as the person who is signed in: its roles, its gate, its audit and its
errors hold for the console as for all others."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import httpx

from gateway.access import SIGNED_IN
from gateway.callers import Caller
from gateway.server.wire import Receive, Scope, Send

ASKED_SECONDS_MAX = 120.0


class Declined(Exception):
    """The API's refusal: its status, its code, and its sentence."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code
        self.text = text


class PersonalApi:
    """A client of the application, as one caller."""

    def __init__(self, gateway: Any, caller: Caller, peer: tuple[str, int]) -> None:
        async def as_caller(scope: Scope, receive: Receive, send: Send) -> None:
            await gateway({**scope, SIGNED_IN: caller}, receive, send)

        self._transport = httpx.ASGITransport(as_caller, raise_app_exceptions=False, client=peer)

    async def get(self, path: str, **query: Any) -> Any:
        """The JSON at an address; of the query, what is not None or empty. Raises Declined."""
        return await self.send("GET", path, query={name: value for name, value in query.items() if value})

    async def find(self, path: str) -> Any:
        """The JSON at an address; None where there is nothing. Raises Declined for all other refusals."""
        try:
            return await self.get(path)
        except Declined as refused:
            if refused.status == 404:
                return None
            raise

    async def send(self, method: str, path: str, body: Any = None, query: dict[str, Any] | None = None) -> Any:
        """The JSON of an answer. Raises Declined."""
        answer = await self._ask(method, path, body, query)
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text

    async def _ask(self, method: str, path: str, body: Any, query: dict[str, Any] | None) -> httpx.Response:
        async with httpx.AsyncClient(
            transport=self._transport, base_url="http://console", trust_env=False, timeout=ASKED_SECONDS_MAX
        ) as http:
            answer = await http.request(method, path, json=body, params=query)
        if answer.status_code >= 400:
            try:
                error = answer.json()["error"]
                raise Declined(answer.status_code, str(error["code"]), str(error["message"]))
            except (ValueError, KeyError, TypeError):
                raise Declined(answer.status_code, "", "The gateway gave no reason.") from None
        return answer


def fill_address(template: str, **names: str) -> str:
    """An address with these names in it, each escaped."""
    return template.format(**{name: quote(value, safe="@") for name, value in names.items()})
