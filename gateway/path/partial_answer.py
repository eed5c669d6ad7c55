"""The part of an answer before its engine failed, and the request by which another engine continues it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Raw

from gateway.formats.answer_reading import Reading
from gateway.formats.fields import GOES_ON
from gateway.formats.request_body import RequestBody
from gateway.formats.server_sent_events import Progress, TokenDetails, Usage, payload_of
from router.routing_data import Choice

HEAD = ("id", "model", "created")
"""Fields that all events of one stream have in common."""
LOGPROBS = frozenset({"logprobs"})
"""Fields that the gateway adds to a request for its checks, and may send to the next engine too."""


@dataclass(frozen=True, slots=True)
class PartialAnswer:
    """The begun part of an answer: its `text`, its number of `tokens`, and the `held_events` not sent yet.

    `head` has the fields common to its events. Another engine's events are rewritten to the same id and model.
    """

    text: str
    tokens: int
    head: Mapping[str, Any]
    held_events: tuple[bytes, ...]
    committed: bool
    reading: Reading | None = None
    """The reading of this part for checks, which the next engine's part continues; None if no check needs it."""
    versions: frozenset[str | None] = frozenset()
    """The versions that wrote the text; None is a pool's base."""
    skipped: int = 0
    """Events that could not be read and may have held a token."""

    def body(self, body: RequestBody, choice: Choice, added: Mapping[str, Any] | None = None) -> bytes | None:
        """The request to this choice's engine to continue the text; None if that can't be requested.

        The tokens so far count against the request's token limits. Of the fields `added`, only logprobs are possible.
        """
        fields = body.fields_for(choice, added)
        if not fields.keys() - (added or {}).keys() <= GOES_ON or not (added or {}).keys() <= LOGPROBS:
            return None  # fields of the version or the general prompt count too: some can't be met in mid-answer
        body.wire_format.go_on(fields, self.text)
        for name, least in (("max_tokens", 1), ("max_completion_tokens", 1), ("min_tokens", 0)):
            value = _number(fields.get(name))
            if value is not None:
                fields[name] = max(value - self.tokens, 0)
                if fields[name] < least:
                    return None
        return msgspec.json.encode(fields)

    def spliced(self, events: list[bytes]) -> list[bytes]:
        """Another engine's events, rewritten as events of this stream, without its opening event."""
        rewritten = []
        for event in b"".join(events).split(b"\n\n"):
            payload = payload_of(event + b"\n\n")
            if payload is None:
                continue
            parsed = msgspec.json.decode(payload)
            choices = parsed.get("choices") or []
            empty = bool(choices)
            for choice in choices:
                delta = choice.get("delta") or {}
                delta.pop("role", None)
                empty = empty and choice.get("finish_reason") is None and not any(delta.values())
            if not empty:
                rewritten.append(b"data: " + msgspec.json.encode({**parsed, **self.head}) + b"\n\n")
        return rewritten

    def total(self, rest: Progress) -> Progress:
        """The whole answer's progress: this part, and `rest`, which another engine added.

        That engine counted this part's text as its prompt. Here the text counts as completion.
        """
        total = Progress()
        total.answer_id = self.head.get("id")
        total.finish_reason = rest.finish_reason
        total.ended = rest.ended
        total.chunks = self.tokens + rest.chunks
        total.skipped = self.skipped + rest.skipped
        total.done = rest.done
        usage = rest.usage
        if usage is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            return total
        prompt, completion = max(usage.prompt_tokens - self.tokens, 0), usage.completion_tokens + self.tokens
        details = usage.prompt_tokens_details
        cached = details.cached_tokens if details is not None else None
        total.usage = Usage(prompt, completion, None if cached is None else TokenDetails(min(cached, prompt)))
        if rest.usage_payload is not None:
            parsed = msgspec.json.decode(rest.usage_payload)
            counted = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
            total.usage_payload = msgspec.json.encode({**parsed, **self.head, "usage": counted})
        return total


def head_of(event: bytes) -> dict[str, Any]:
    """The fields of a stream's first event that all its events share."""
    payload = payload_of(event.partition(b"\n\n")[0] + b"\n\n")
    fields = msgspec.json.decode(payload) if payload else {}
    return {name: fields[name] for name in HEAD if name in fields}


def _number(value: Any) -> int | None:
    value = msgspec.json.decode(value) if isinstance(value, Raw) else value
    return value if isinstance(value, int) else None
