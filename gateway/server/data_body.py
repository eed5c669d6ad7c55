"""A data set, or a file of rows, as the body of a request. It is read as it arrives, with its own limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

from starlette.requests import ClientDisconnect, Request

from gateway.errors import Problem
from gateway.server.deadline import Deadline
from monitoring.evaluation.dataset import DatasetError

DATA_KINDS = frozenset({"application/x-ndjson", "application/jsonl", "application/jsonlines"})
SILENCE_SECONDS_MAX = 60.0
UPLOAD_SECONDS_MAX = 3600.0
PIECE_BYTES = 1 << 14
"""Bytes of an upload that are read before other requests get the event loop."""


async def receive_data(request: Request, bytes_max: int, take: Callable[[bytes], Awaitable[None]]) -> None:
    """Give the body to `take`, piece by piece. Raises Problem: 400 for a DatasetError of `take`, with the line at
    fault, 413 too long, 415 not declared as JSON lines."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in DATA_KINDS:
        raise Problem("unsupported_media_type", "Send the data as `Content-Type: application/x-ndjson`.")
    try:
        await receive_bytes(request, bytes_max, "evaluation.bytes_max", take)
    except DatasetError as error:
        raise Problem("invalid_value", str(error), "data") from None


async def receive_bytes(
    request: Request, bytes_max: int, setting: str, take: Callable[[bytes], Awaitable[None]]
) -> None:
    """Give the body to `take`, piece by piece. Raises Problem: 413 too long for this setting, 400 where it breaks off
    or falls silent; and what `take` raises."""
    too_long = Problem("body_too_large", f"The data have more than {bytes_max} bytes ({setting}).")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > bytes_max:
        raise too_long
    size_bytes = 0
    try:
        async with asyncio.timeout(UPLOAD_SECONDS_MAX), aclosing(request.stream()) as body:
            while True:
                with Deadline(SILENCE_SECONDS_MAX):
                    piece = await anext(body, None)
                if piece is None:
                    break
                size_bytes += len(piece)
                if size_bytes > bytes_max:
                    raise too_long
                for at in range(0, len(piece), PIECE_BYTES):
                    await take(piece[at : at + PIECE_BYTES])
    except ClientDisconnect:
        raise Problem("invalid_value", "The upload was interrupted before its end: send it again.") from None
    except TimeoutError:
        text = f"The upload was silent for {SILENCE_SECONDS_MAX:g} s, or took over an hour: send it"
        raise Problem("invalid_value", f"{text} again over a faster connection.") from None
