"""The data path to an engine: one POST, and its answer as it comes. A small interface of ours over aiohttp."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, Self

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from serving.errors import EngineError, Silent, Truncated, Unreachable, from_status

ERROR_BODY_BYTES_MAX = 65_536
READ_BUFFER_BYTES = 1 << 18
KEEP_ALIVE_SECONDS = 4.0
"""Less than vLLM's own 5 s: a connection that the engine closes just as it is used again costs a try."""


class EngineAnswer(Protocol):
    """An answer that has begun: status below 400, headers read, body still to come. Its holder closes it once."""

    content_type: str

    async def next_chunk(self) -> bytes:
        """What has arrived of the body; empty at its end. Raises Truncated if it broke, Silent if nothing came."""
        ...

    async def read(self) -> bytes:
        """The whole body. Raises as `next_chunk` does."""
        ...

    def close(self) -> None:
        """Give the connection back after a whole body; else drop it, which cancels the engine's work."""
        ...


class EngineClient(Protocol):
    """Posts requests to engines."""

    async def post(
        self, engine_url: str, path: str, body: bytes, headers: Mapping[str, str], silence_seconds: float
    ) -> EngineAnswer:
        """Send `body` and wait for the headers; nothing may be silent for longer than `silence_seconds`.

        Raises an EngineError for whatever is not an answer: no connection, silence, or a status other than 2xx.
        """
        ...


class AiohttpEngineClient:
    """EngineClient over kept-alive aiohttp connections. One per gateway; whoever opened it closes it."""

    def __init__(self, connect_timeout_seconds: float, answer_bytes_max: int) -> None:
        self._connect_timeout_seconds = connect_timeout_seconds
        self._answer_bytes_max = answer_bytes_max
        self._urls: dict[tuple[str, str], URL] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            read_bufsize=READ_BUFFER_BYTES,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(
        self, engine_url: str, path: str, body: bytes, headers: Mapping[str, str], silence_seconds: float
    ) -> EngineAnswer:
        assert self._session is not None, "the client is used inside `async with`"
        url = self._urls.get((engine_url, path))
        if url is None:
            url = self._urls[engine_url, path] = URL(engine_url + path)
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=self._connect_timeout_seconds, sock_read=silence_seconds
        )
        try:
            response = await self._post_once_more(url, body, CIMultiDict(headers), limits)
        except aiohttp.ConnectionTimeoutError as error:
            raise Unreachable("the engine did not accept a connection in time") from error
        except TimeoutError as error:
            raise Silent(f"no answer within {silence_seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise Unreachable(f"no answer from the engine: {type(error).__name__}") from error
        if response.status >= 300:
            raise await _refused(response)
        return _AiohttpAnswer(response, silence_seconds, self._answer_bytes_max)

    async def _post_once_more(
        self, url: URL, body: bytes, headers: CIMultiDict[str], limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """Post; where a connection was closed before a byte of the answer, once more: it had been kept too long."""
        assert self._session is not None
        try:
            return await self._session.post(url, data=body, headers=headers, timeout=limits, allow_redirects=False)
        except aiohttp.ServerDisconnectedError:
            return await self._session.post(url, data=body, headers=headers, timeout=limits, allow_redirects=False)


class _AiohttpAnswer:
    def __init__(self, response: aiohttp.ClientResponse, silence_seconds: float, bytes_max: int) -> None:
        self._response = response
        self._silence_seconds = silence_seconds
        self._bytes_left = bytes_max
        self._whole = False
        self.content_type = response.headers.get("Content-Type", "")

    async def next_chunk(self) -> bytes:
        try:
            chunk = await self._response.content.readany()
        except TimeoutError as error:
            raise Silent(f"nothing came for {self._silence_seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise Truncated(f"the connection broke inside the answer: {type(error).__name__}") from error
        self._bytes_left -= len(chunk)
        if self._bytes_left < 0:
            raise Truncated("the answer is longer than the gateway's limit")
        self._whole = not chunk
        return chunk

    async def read(self) -> bytes:
        parts: list[bytes] = []
        while chunk := await self.next_chunk():
            parts.append(chunk)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        if self._whole:
            self._response.release()
        else:
            self._response.close()


async def _refused(response: aiohttp.ClientResponse) -> EngineError:
    body = b""
    try:
        while len(body) < ERROR_BODY_BYTES_MAX and (part := await response.content.readany()):
            body += part
    except (aiohttp.ClientError, TimeoutError):
        pass  # what has come of it is told
    finally:
        response.close()
    return from_status(response.status, body, response.headers.get("Retry-After"))
