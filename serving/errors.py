"""The faults of engines, as one tree. The HTTP client's errors are translated here and nowhere else.

EngineError                the engine did not give a usable answer
 ├─ Unreachable            no connection
 ├─ Dropped                the connection broke after the request was sent, and before an answer
 ├─ Silent                 connected, and nothing came within the limit
 ├─ Overloaded             429 or 503: it says that it is too busy
 ├─ KeyRefused             401: it does not take the gateway's key
 ├─ Failed                 any other status that is not the caller's fault, an error inside a 200, or no answer at all
 ├─ Missing                404: a model that we know it has, or a path
 ├─ Unserved               403, 404, 405, 501: it does not serve this path, or not with this model
 ├─ Truncated              the answer ended before it was whole
 ├─ Late                   the answer was not whole within the time for which it may be held back: our own bound
 ├─ Oversize               the answer, or an event of it, is longer than we take: our own bound
 └─ RefusedByEngine        400, 409, 422, 451: the caller's own mistake, in the engine's words
     └─ TooLong            the prompt does not fit this model; a larger one may take it
"""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime
from typing import ClassVar

import msgspec

from serving.fleet_view import FaultKind


class EngineError(Exception):
    """An engine's fault. The router decides on `kind`; `status` is the engine's HTTP status (None: there was none)."""

    kind: ClassVar[FaultKind] = "failed"

    def __init__(
        self, message: str, status: int | None = None, body: bytes = b"", retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.retry_after_seconds = retry_after


class Unreachable(EngineError):
    kind = "unreachable"


class Dropped(EngineError):
    kind = "dropped"


class Silent(EngineError):
    kind = "silent"


class Overloaded(EngineError):
    kind = "overloaded"


class KeyRefused(EngineError):
    kind = "key_refused"


class Failed(EngineError):
    kind = "failed"


class Missing(EngineError):
    kind = "missing"


class Unserved(EngineError):
    kind = "unserved"


class Truncated(EngineError):
    kind = "truncated"


class Late(EngineError):
    kind = "late"


class Oversize(EngineError):
    kind = "oversize"


class RefusedByEngine(EngineError):
    kind: ClassVar[FaultKind] = "refused"


class TooLong(RefusedByEngine):
    kind = "too_long"


TOO_LONG_WORDS = (b"context_length", b"maximum context length", b"max_model_len")
"""vLLM's and OpenAI's messages on a prompt that is too long contain one of these."""


UNSERVED_WORDS = (b"not supported in", b"only supported in", b"does not support", b"not allowed to generate")
"""Messages of OpenAI's API and of engines on a model that can't serve a path contain one of these."""
OF_CALLER = frozenset({400, 409, 422, 451})
"""Statuses of the caller's own mistakes. Others (405, 411, 413, 421, 426, 431, 499, those of our own key or address)
are about the engine or the way to it, and no caller can change that."""


def from_status(status: int, body: bytes, retry_after: str | None) -> EngineError:
    """The error for an engine's answer with this status (anything but 2xx)."""
    message = f"the engine answered {status}"
    seconds = _seconds(retry_after)
    if status in (429, 503):
        return Overloaded(message, status, body, seconds)
    if status == 401:
        return KeyRefused(f"{message}: it refuses the gateway's own key", status, body)
    if status == 404:
        return Missing(f"{message}: it has no such model, or does not serve this path", status, body)
    if status == 408:
        return Silent(message, status, body)
    if status in (400, 413) and any(words in body.lower() for words in TOO_LONG_WORDS):
        return TooLong(message, status, body)
    return (RefusedByEngine if status in OF_CALLER else Failed)(message, status, body)


def as_unserved(error: EngineError, path: str, is_known: bool) -> EngineError:
    """The error, turned into Unserved if the path is at fault, as when a chat model is asked for embeddings.

    If the address `is_known` to lead to an engine, a status without the name of a model is enough.
    """
    said = error.body.lower()
    names_path = error.status in (405, 501) or (error.status == 404 and b"model" not in said)
    if (is_known and names_path) or (error.status in (403, 404) and any(words in said for words in UNSERVED_WORDS)):
        return Unserved(f"The engine of this model does not serve {path} with it", error.status, error.body)
    return error


class _ErrorCode(msgspec.Struct):
    code: int | None = None


class _ErrorBody(_ErrorCode):
    error: _ErrorCode | None = None


_ERROR_BODY = msgspec.json.Decoder(_ErrorBody)


def from_inside(message: str, body: bytes) -> EngineError:
    """The error that an engine sends inside a 200, before a token: vLLM checks most of a streamed request only then.

    Its code decides, if that is a status which says more than that the engine failed.
    """
    try:
        read = _ERROR_BODY.decode(body)
        code = (read.error or read).code
    except msgspec.DecodeError:  # a code in words
        code = None
    if code is None or code not in OF_CALLER | {404, 429, 503}:
        return Failed(message, body=body)
    return from_status(code, body, None)


def make_abort(body: bytes) -> Failed:
    """The fault of an engine that ends an answer early and runs on, as vLLM does when it is paused."""
    return Failed("the engine aborted the answer before it was whole", 200, body)


def _seconds(retry_after: str | None) -> float | None:
    """`Retry-After` in seconds, or None. A date in the past is ignored: the engine's clock may be behind ours."""
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        seconds = _seconds_until(retry_after)
        return min(seconds, 3600.0) if seconds > 0 else None
    return min(max(seconds, 0.0), 3600.0) if math.isfinite(seconds) else None


def _seconds_until(date: str) -> float:
    """Seconds until an HTTP date, as sent by proxies before an engine; below 0 if it is past or invalid."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError):
        return -1.0
