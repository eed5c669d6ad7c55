"""Characters that an engine splits: the halves of a surrogate pair, written as escapes in two events."""

from __future__ import annotations

import json
import re
from typing import Any

HALF = "A text holds half of a surrogate pair, which is not a character: cut texts between characters."
HALVES = re.compile(rb"(?<!\\)(?:\\\\)*\\u(?:[dD][89abAB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB]..\\u)[dD][c-fC-F])")
"""A half without its other half, in JSON."""


class Halves:
    """First halves of characters that wait for their second half in a later event of the same stream."""

    __slots__ = ("_lost", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[str, str] = {}
        """First halves by the place of their text: the choice's index and the field's name."""
        self._lost = 0

    def join(self, payload: bytes) -> tuple[bytes, int]:
        """Move a first half that ends a text to the beginning of the next one.

        Returns the event's JSON with only whole characters, and the number of lost halves.
        Raises ValueError or RecursionError if the payload is not a JSON object of the expected form.
        """
        event = json.loads(payload, parse_constant=_refuse)
        choices = (event.get("choices") or []) if isinstance(event, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise ValueError("an event is an object whose choices are a list of objects")
        self._lost = 0
        for choice in choices:
            place = f"{choice.get('index', 0)}"
            for name in ("delta", "text"):
                if name in choice:
                    choice[name] = self._walk(f"{place}.{name}", choice[name])
            if choice.get("finish_reason"):
                self._end(f"{place}.")
        joined = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return joined.encode(errors="replace"), self._lost

    def _walk(self, place: str, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(place, value) if value else value
        if isinstance(value, dict):
            return {name: self._walk(f"{place}.{name}", item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._walk(f"{place}.{_number(item, number)}", item) for number, item in enumerate(value)]
        return value

    def _text(self, place: str, text: str) -> str:
        text = self.waiting.pop(place, "") + text
        if "\ud800" <= text[-1] <= "\udbff":
            self.waiting[place] = text[-1]
            text = text[:-1]
        encoded = text.encode("utf-16-le", "surrogatepass")
        try:
            return encoded.decode("utf-16-le")
        except UnicodeDecodeError:
            self._lost += 1
            return encoded.decode("utf-16-le", "replace")

    def _end(self, place: str) -> None:
        """Drop and count the first halves of a choice that has ended without their second half."""
        for name in [name for name in self.waiting if name.startswith(place)]:
            del self.waiting[name]
            self._lost += 1


def _number(value: Any, number: int) -> Any:
    """The index of a list's item. Tool calls have their own index."""
    return value.get("index", number) if isinstance(value, dict) else number


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
