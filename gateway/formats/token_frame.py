"""The bytes that all token events of a stream share. They identify a token event without decoding its JSON."""

from __future__ import annotations

from collections.abc import Callable

NAMES = (b'"content":"', b'"content": "', b'"text":"', b'"text": "')
"""Beginnings of the field that holds an event's text: of chat, of completions."""


class TokenFrame:
    """The bytes before an event's text, and those after it."""

    __slots__ = ("_after", "_after_bytes", "_before", "_before_bytes")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._before_bytes = len(before)
        self._after_bytes = len(after)

    def text_of(self, event: bytes) -> str | None:
        """The text of an event in this frame; None for any other event, and for a text that needs a JSON decoder."""
        if not event.startswith(self._before) or not event.endswith(self._after):
            return None
        try:
            text = event[self._before_bytes : len(event) - self._after_bytes].decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() and '"' not in text and "\\" not in text else None


def find_frame(event: bytes, text: str, read_text: Callable[[bytes], str | None]) -> TokenFrame | None:
    """The frame of an event with this text; None if it has no frame.

    `read_text` reads the event with a test text in the text's place. If it finds the test text, the place is right.
    """
    raw = text.encode()
    for name in NAMES:
        before, separator, rest = event.partition(name + raw + b'"')
        if separator and read_text(before + name + b'x"' + rest) == "x":
            return TokenFrame(before + name, b'"' + rest)
    return None
