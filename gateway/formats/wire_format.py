"""A wire format: its address, its fields, and the reading and writing of its own parts.

A format is one module with a subclass and one row in gateway/formats/format_table.py. The base class reads and writes
answers as OpenAI's chat completions and completions have them: with `choices`, and streams that end in [DONE].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from typing import Any, ClassVar

import msgspec
from msgspec import Raw

from gateway.errors import Problem
from gateway.formats.answer_reading import Reading
from gateway.formats.answer_writer import AnswerWriter
from gateway.formats.fields import NEUTRAL, WHOLE_NUMBERS, Fields, Message
from gateway.formats.selectors import select_from_messages, text_of
from gateway.formats.server_sent_events import DONE, WHOLE, Progress, is_aborted, see_that_it_is_text
from serving.errors import Failed, from_inside, make_abort

WHOLE_MAX = 1 << 53
"""The greatest whole number that every reader of JSON takes exactly from 4.0's form."""


class WireFormat(ABC):
    """One format of requests and answers. It is stateless: a request's data are arguments."""

    # The request.
    name: ClassVar[str]
    """Its name in records and reports."""
    title: ClassVar[str]
    """Its name in the document at /openapi.json."""
    path: ClassVar[str]
    """The address that callers use."""
    id_header: ClassVar[bytes | None] = None
    """A header in which the API's own clients look for the request's id, beside ours."""
    engine_path: ClassVar[str]
    """The address below an engine's base URL."""
    fields: ClassVar[type[Fields]] = Fields
    """The fields with types and bounds."""
    whole_numbers: ClassVar[frozenset[str]] = WHOLE_NUMBERS
    """Fields that hold whole numbers."""
    required: ClassVar[str]
    """The field that has to be there beside `model`."""
    known_fields: frozenset[str]
    """Fields that need no permission."""
    openai: ClassVar[frozenset[str]]
    """Fields for an engine of which only OpenAI's API is known."""
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL
    """Neutral values of fields, which change nothing."""
    token_limits: ClassVar[tuple[str, ...]] = ("max_tokens", "max_completion_tokens", "min_tokens")
    """Fields that hold numbers of tokens of an answer."""
    token_limit_required: ClassVar[bool] = False
    """True if a request has to name one: clients then send a number of their own, so one over the bound is bounded."""
    has_tools: ClassVar[bool] = False
    """True if an answer may call tools."""
    has_template: ClassVar[bool] = False
    """True if engines put the request into their chat template."""
    conversation_fields: ClassVar[frozenset[str]]
    """Fields that hold the conversation, or the prompts: they may be long."""
    request_type: ClassVar[type[msgspec.Struct] | None] = None
    """The fields of a request of another API, which is translated; None where `fields` are those that callers send."""
    for_pools_alone: ClassVar[bool] = False
    """True if no task takes it: its answers are no text that a task's checks could judge."""
    logprobs_alone: ClassVar[bool | int | None] = None
    """The value of `logprobs` for those of the answer's tokens and no others; None: they can't be requested."""
    # The answer.
    answer_field: ClassVar[str] = "text"
    """The field of a choice that holds a whole answer."""
    event_object: ClassVar[str] = ""
    """`object` in each event of a stream."""
    last_event: ClassVar[bytes] = DONE

    def __init__(self) -> None:
        self.decoder = msgspec.json.Decoder(self.fields)

    @property
    def schema_name(self) -> str:
        """The name of its answers in the document at /openapi.json."""
        return self.title.title().replace(" ", "")

    def translate(self, raw: bytes) -> tuple[bytes, WireFormat]:
        """A caller's body as engines get it and the request path reads it, and its format there.

        Raises Problem (400), msgspec.DecodeError.
        """
        return raw, self

    def writer(self, raw: bytes) -> AnswerWriter | None:
        """The writer of the answer to the body `raw`; None where callers get it as the engine sent it."""
        return None

    @abstractmethod
    def messages(self, read: Fields) -> Sequence[Message]:
        """The request as a conversation; empty for one that is not a conversation."""

    def text(self, read: Fields) -> str:
        """All text of the request, for rules."""
        return "\n".join(text_of(message) for message in self.messages(read))

    def selected(self, read: Fields, selector: str) -> str:
        """The part of the request that a task's selector names, for fitted models."""
        return select_from_messages(selector, self.messages(read))

    def conversation(self, read: Fields) -> str:
        """The text of the request, each message with its role."""
        return "\n\n".join(f"{message.role}: {text_of(message)}" for message in self.messages(read))

    def alternatives(self, read: Fields) -> int:
        """Number of alternatives that are requested."""
        return read.n or 1

    def answer_tokens(self, read: Fields) -> int | None:
        """Most tokens of one alternative; None if the request sets no limit."""
        return read.max_completion_tokens or read.max_tokens

    def asks_for_logprobs(self, read: Fields) -> bool:
        """True if the caller itself asks for the logprobs of the answer's tokens."""
        return bool(read.logprobs)

    def asks_for_prompt_logprobs(self, read: Fields) -> bool:
        """True if `echo` makes vLLM compute the logprobs of the prompt."""
        return True

    def may_go_on(self, read: Fields) -> bool:
        """True if another engine can be asked to continue a part of the answer."""
        return False

    def json_schema(self, schema: Any) -> Mapping[str, Any]:
        """The fields that request an answer by this JSON schema; empty if the format has no such fields."""
        return {}

    @abstractmethod
    def add_system(self, fields: dict[str, Any], read: Fields, system: str, after: bool) -> None:
        """Add instructions to `fields`: before those of the caller, or after them."""

    def go_on(self, fields: dict[str, Any], text: str) -> None:
        """Change `fields` so that the engine continues `text`. A format defines it together with `may_go_on`."""
        raise TypeError(f"no engine goes on with an answer of {self.name}")

    def note_whole(self, body: bytes, choices: int, progress: Progress) -> None:
        """Note a whole answer in `progress`. Raises Failed if it is invalid, or has less than `choices` answers."""
        try:
            see_that_it_is_text(body)
            read = WHOLE.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Failed("the engine's answer is not JSON of the expected form") from error
        answers = read.choices or []
        if read.error is not None or not answers:
            raise from_inside("the engine answered with an error inside a 200", body)
        if is_aborted(answers):
            raise make_abort(body)
        if len(answers) < choices or any(getattr(choice, self.answer_field) is None for choice in answers):
            raise Failed("the engine's answer has fewer alternatives than were asked for, or one that says nothing")
        progress.answer_id = read.id
        progress.usage = read.counted()
        progress.finish_reason = answers[0].finish_reason or None

    def read_answer(self, parts: Sequence[bytes], stream: bool) -> Reading:
        """Read a sent answer from its bytes. Unreadable parts are left out."""
        reading, whole = Reading(strips=False), b"".join(parts)
        if stream:
            reading.take([whole])
        else:
            reading.take_whole(whole)
        return reading

    def empty_event(self, answer_id: str, created: int, model: str) -> bytes:
        """The JSON of an event without a choice, for the gateway's details at a stream's end."""
        fields = {"id": answer_id, "object": self.event_object, "created": created, "model": model, "choices": []}
        return msgspec.json.encode(fields)

    def error_event(self, problem: Problem) -> bytes:
        """The event that ends a stream which broke after it had begun. Nothing follows it."""
        return b"data: " + self.error_body(problem) + b"\n\n"

    def error_body(self, problem: Problem) -> bytes:
        """A problem in the format's shape of errors."""
        return problem.body()

    def answer_schema(self) -> dict[str, Any]:
        """The JSON schema of a whole answer, as far as the gateway reads it."""
        content = {self.answer_field: {"type": "string" if self.answer_field == "text" else "object"}}
        counts = {"prompt_tokens": {"type": ["integer", "null"]}, "completion_tokens": {"type": ["integer", "null"]}}
        return {
            "type": "object",
            "properties": {
                "id": {"type": ["string", "null"]},
                "model": {"type": "string", "description": "What answered."},
                "choices": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": content}},
                "usage": {"type": ["object", "null"], "properties": counts},
            },
            "required": ["choices"],
        }


def read_fields(decoder: msgspec.json.Decoder[Any], whole: Set[str], body: bytes, fields: dict[str, Raw]) -> Any:
    """The values of a body's `fields`. Those in `whole` may have the form 4.0: then they are changed in `fields` too.

    Raises msgspec.ValidationError.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        try:
            changed = {name: _whole(msgspec.json.decode(raw)) for name, raw in fields.items() if name in whole}
        except msgspec.DecodeError:  # a number such as 1e400: the first error names its field
            raise error from None
        if not changed:
            raise
        fields |= {name: Raw(msgspec.json.encode(value)) for name, value in changed.items()}
        return decoder.decode(msgspec.json.encode(fields))


def _whole(value: Any) -> Any:
    """A number without a fraction as an integer, also in a list. Any other value is unchanged."""
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= WHOLE_MAX else value


def decode_list(value: Any) -> list[Any]:
    """A list of a body's fields, whose JSON may still be as it came."""
    return value if isinstance(value, list) else _LIST.decode(value)


_LIST = msgspec.json.Decoder(list[Raw])
