"""Raw requests over a connection, and their answers."""

from __future__ import annotations

import asyncio

from tests.gateway.server.listening import KEY, Answers

AUTHORIZATION = f"Authorization: {KEY}\r\n".encode()
HEAD = b"Host: gateway\r\n" + AUTHORIZATION
POST = b"POST /a HTTP/1.1\r\n" + HEAD
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: A\r\n"
OURS = b"X-Apprentice-Session: a\r\n"
NEXT = b"GET /next HTTP/1.1\r\n" + HEAD + b"\r\n"


async def ask(port: int, *segments: bytes, half_closes: bool = True, seconds: float = 60) -> Answers:
    """Send bytes, in these segments, then no more; all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(seconds):
            for segment in segments:
                writer.write(segment)
                await writer.drain()
                await asyncio.sleep(0.02 if len(segments) > 1 else 0)  # a segment of its own
            if half_closes:
                writer.write_eof()
            return Answers(await reader.read())
    finally:
        writer.close()
