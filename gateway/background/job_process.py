"""Helper processes: each does one job that would block the gateway's event loop."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, TypeVar

import msgspec
from redis.exceptions import RedisError

from gateway.background.child_process import run_child
from gateway.errors import Problem
from monitoring.helper_process import ERROR_MARK, ProgressStep

NOTE_INTERVAL_SECONDS = 0.25
Result = TypeVar("Result")


def make_command(module: str) -> tuple[str, ...]:
    """The command that runs a module as a process that calls `monitoring.helper_process.run_job`."""
    return (sys.executable, "-P", "-m", module)


async def run_process(
    command: Sequence[str],
    job: object,
    kind: type[Result],
    seconds_max: float | None = None,
    *,
    data: bytes = b"",
    advice: str = "try again",
    turn: AbstractAsyncContextManager[Any] | None = None,
    note: Callable[[ProgressStep], Awaitable[None]] | None = None,
) -> Result:
    """Send a process its job, followed by the data, and return its result, which is of this kind.

    The wait for `turn` comes first, within `seconds_max`. `note` is called with the progress at times; then the kind
    must be tagged. Raises Problem: 504 after `seconds_max`, with `advice` in its message, 503 for a JobError, and 500
    if the process ends without a result.
    """
    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(kind if note is None else ProgressStep | kind)
    try:
        async with asyncio.timeout(seconds_max), turn or nullcontext(), run_child(command) as process:
            await process.give(msgspec.json.encode(job) + b"\n" + data)
            noted_at = 0.0
            while line := await process.read_line():
                if line.startswith(ERROR_MARK):
                    raise Problem("storage_unavailable", line.removeprefix(ERROR_MARK).decode().strip())
                message = await asyncio.to_thread(decoder.decode, line)
                if note is None or not isinstance(message, ProgressStep):
                    result: Result = message
                    return result
                if time.monotonic() - noted_at >= NOTE_INTERVAL_SECONDS:
                    noted_at = time.monotonic()
                    with suppress(RedisError):  # lost progress is no reason to start the work again
                        await note(message)
            code = await process.wait()
    except TimeoutError:
        raise Problem("timeout", f"It took longer than {seconds_max:g} s: {advice}.") from None
    text = f"The process ended with exit code {code}: see the gateway's log"
    raise Problem("internal_error", text + (", and give it less, or more memory." if code < 0 else "."))
