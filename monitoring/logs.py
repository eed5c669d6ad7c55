"""The gateway's log: one line per event, on standard error, for machines (JSON) or people (text).

It contains neither keys nor people's texts. Keys are cut down to their public part anywhere in a line, and the values
of fields named in UNLOGGED are left out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

UNLOGGED = frozenset(
    {"answer", "body", "comment", "completion", "content", "demonstration", "messages", "prompt", "text"}
)
LINE_LENGTH_MAX = 16_384
LOGGERS_OF_LIBRARIES = ("uvicorn", "uvicorn.error", "uvicorn.access")
PUBLIC_LENGTH = 12
APPRENTICE_KEY = re.compile(r"sk-app-([\w-]+)")
BEARER_TOKEN = re.compile(r"(?i)(bearer\s+)(?!sk-app-)[\w.~+/-]{8,}=*")
OF_EVERY_RECORD = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "color_message"})


def redact(line: str) -> str:
    """The line with every key cut down to its public part (`sk-app-<public>-…`) and every bearer token removed."""
    return BEARER_TOKEN.sub(r"\1…", APPRENTICE_KEY.sub(_public_part, line))


Form = Literal["json", "text"]


def configure(level: str = "INFO", form: Form = "json", stream: TextIO | None = None) -> None:
    """Send all logging of the process through one handler, in the given form. Call it once, at start.

    `level` is a name such as `INFO`. Raises ValueError for an unknown level or form.
    """
    if form not in ("json", "text"):
        raise ValueError(f"The log form {form!r} is unknown: give json or text.")
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    root = logging.getLogger()
    root.setLevel(level.upper())
    root.handlers[:] = [handler]
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each poll of each replica helps nobody
    for name in LOGGERS_OF_LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True


class JsonLines(logging.Formatter):
    """A JSON object a line: `at` (UTC), `level`, `logger`, `message`, the fields given as `extra`,
    `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line of JSON."""
        line: dict[str, object] = {
            "at": _at(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = _cut(self.formatException(record.exc_info))
        return redact(json.dumps(line | _extra(record) | line, default=str, ensure_ascii=False))


class TextLines(logging.Formatter):
    """A line for people, followed by tracebacks. Line breaks in a message are escaped, so it can't fake a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as text."""
        extra = "".join(f" {name}={value!r}" for name, value in _extra(record).items())
        message = _cut(record.getMessage()).replace("\r", "\\r").replace("\n", "\\n")
        line = f"{_at(record)} {record.levelname:<7} {record.name}: {message}{extra}"
        if record.exc_info:
            line += "\n" + _cut(self.formatException(record.exc_info))
        return redact(line)


def _public_part(match: re.Match[str]) -> str:
    key = match.group(1)
    public, secret = key[:PUBLIC_LENGTH], key[PUBLIC_LENGTH:]
    if not public.isalnum() or len(public) < PUBLIC_LENGTH or (secret and not secret.startswith("-")):
        return "sk-app-…"
    return f"sk-app-{public}-…" if secret else f"sk-app-{public}"


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {
        name: "[not logged]" if name in UNLOGGED else _cut(value) if isinstance(value, str) else value
        for name, value in vars(record).items()
        if name not in OF_EVERY_RECORD
    }


def _cut(text: str) -> str:
    return text if len(text) <= LINE_LENGTH_MAX else f"{text[:LINE_LENGTH_MAX]}… ({len(text)} characters)"


def _at(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
