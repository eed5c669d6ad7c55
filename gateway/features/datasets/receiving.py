"""Uploads of files of rows: each is written to disk while it arrives, and stored under its digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from fastapi import Request

from gateway.errors import Problem
from gateway.server.data_body import receive_bytes
from gateway.state.private_files import make_private_folder
from serving.adapters.incoming_folder import append, make_incoming_folder, to_its_end
from serving.adapters.store import FREE_BYTES_MIN

WRITE_BYTES = 1 << 20


async def receive_file(
    request: Request,
    folder: Path,
    bytes_max: int,
    unwrap: Callable[[bytes], bytes] = bytes,
    end: Callable[[], None] = lambda: None,
) -> Path:
    """Store the file in this request's body in `folder`, under its digest. Return the path. `unwrap` extracts the
    file's bytes from a piece of the body, and `end` checks at the end that the body was complete.

    Raises Problem: 413 if it is too long, 503 if the disk is full, 400 if it is empty, breaks off or stalls. Raises
    also the errors of `unwrap` and `end`.
    """
    digest, waiting = hashlib.sha256(), bytearray()
    try:
        await to_its_end(lambda: make_private_folder(folder))
        async with make_incoming_folder(folder) as aside:
            rows = aside / "rows"

            async def write() -> None:
                piece = bytes(waiting)
                waiting.clear()
                digest.update(piece)
                await to_its_end(lambda: append(rows, [piece], len(piece), FREE_BYTES_MIN))

            async def take(piece: bytes) -> None:
                waiting.extend(unwrap(piece))
                if len(waiting) >= WRITE_BYTES:
                    await write()

            await receive_bytes(request, bytes_max, "datasets.file_bytes_max", take)
            await write()
            end()
            if not rows.stat().st_size:
                raise Problem("invalid_value", "The file is empty: send rows.")
            target = folder / digest.hexdigest()
            await to_its_end(lambda: rows.replace(target))
            return target
    except OSError as error:
        text = f"The gateway can't keep the file ({error.strerror}): make room for data sets, or try again later."
        raise Problem("overload", text, retry_after_seconds=60) from error
