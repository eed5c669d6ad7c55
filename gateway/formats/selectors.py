"""The part of a conversation that fitted models read: a task's selector, the same for requests and training prompts.

| selector | reads |
|---|---|
| `last_user` | the last user message |
| `user_turns` | all user messages, so that "yes, the blue one" is read with what it answers |
| `dialogue` | all messages but the system's |
| `field:PATH` | a field of the last user message, which is JSON; the whole message if it has no such field |
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Raw

from gateway.formats.fields import RAW_FIELDS, Message
from router.clipping import clip_passage

SYSTEM_ROLES = ("system", "developer")
FIELD = "field:"
JSON_BYTES_MAX = 1 << 18
"""In a longer text no field is searched: the whole text is used."""
LIST = msgspec.json.Decoder(list[Raw])


def select_from_messages(selector: str, messages: Sequence[Message]) -> str:
    """The part of a conversation that a selector names. Of a long text, only both ends: models read no more."""
    if selector == "dialogue":
        return clip_passage("\n".join(text_of(message) for message in messages if message.role not in SYSTEM_ROLES))
    turns = [message for message in messages if message.role == "user"]
    if selector == "user_turns":
        return clip_passage("\n".join(text_of(message) for message in turns))
    return select_from_text(selector, text_of(turns[-1]) if turns else "")


def select_from_text(selector: str, text: str) -> str:
    """The part of a single text, such as a prompt, that a selector names."""
    if not selector.startswith(FIELD):
        return clip_passage(text)
    field = _field(text, selector.removeprefix(FIELD))
    return clip_passage(text if field is None else field)


def text_of(message: Message) -> str:
    """A message's text, its parts one below the other."""
    if isinstance(message.content, list):
        return "\n".join(part.text or "" for part in message.content)
    return message.content or ""


def _field(text: str, path: str) -> str | None:
    """The field at a dotted path (`order.lines.0.name`), as text or else as JSON. None: the field does not exist."""
    if len(text) > JSON_BYTES_MAX:
        return None
    value = Raw(text.encode(errors="replace"))
    try:
        for step in path.split("."):
            raw = memoryview(value).tobytes().lstrip()
            value = LIST.decode(raw)[int(step)] if raw[:1] == b"[" else RAW_FIELDS.decode(raw)[step]
        written = memoryview(value).tobytes()
        return msgspec.json.decode(written, type=str) if written[:1] == b'"' else written.decode()
    except (msgspec.DecodeError, KeyError, IndexError, ValueError, RecursionError):
        return None
