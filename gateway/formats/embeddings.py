"""Embeddings: inputs, each answered by a vector. Pools answer them; a task's adapter makes none."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Raw

from gateway.formats.fields import KEPT_HERE, Fields, Message, TokenId
from gateway.formats.selectors import select_from_text
from gateway.formats.server_sent_events import Progress, WholeBody, see_that_it_is_text
from gateway.formats.wire_format import WireFormat
from serving.errors import Failed, from_inside

INPUTS_MAX = 2048
"""Inputs of one request, as in OpenAI's API."""
TOKENS_MAX = 65_536
NO_VECTORS = frozenset({b"null", b"[]", b'""'})


class EmbeddingFields(Fields):
    """The fields of a request for embeddings. An input is a text or its token ids, which LangChain's client sends."""

    input: str | Annotated[list[str | TokenId | list[TokenId]], Meta(min_length=1, max_length=TOKENS_MAX)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(ge=1, le=65_536)] | None = None

    def __post_init__(self) -> None:
        if len(_inputs(self)) > INPUTS_MAX:
            raise ValueError(f"Expected at most {INPUTS_MAX} inputs - at `$.input`")
        if isinstance(self.input, list) and (len(set(map(type, self.input))) > 1 or [] in self.input):
            raise ValueError("Expected texts, token ids, or lists of token ids - at `$.input`")


class EmbeddingItem(msgspec.Struct, gc=False):
    """One vector, which goes on unread."""

    embedding: Raw


class EmbeddingAnswer(WholeBody, gc=False):
    """The fields of an answer that the gateway reads."""

    data: list[EmbeddingItem] | None = None


_ANSWER = msgspec.json.Decoder(EmbeddingAnswer)


class EmbeddingsFormat(WireFormat):
    """`POST /v1/embeddings`: one text or several, each answered by a vector."""

    name = "embeddings"
    title = "Embedding"
    path = "/v1/embeddings"
    engine_path = "/embeddings"
    fields = EmbeddingFields
    whole_numbers = frozenset({"dimensions"})
    required = "input"
    conversation_fields = frozenset({"input"})
    known_fields = KEPT_HERE | {"model", "input", "encoding_format", "dimensions"}
    openai = frozenset({"model", "input", "encoding_format", "dimensions"})
    neutral = MappingProxyType({"stream": (False,)})
    token_limits = ()
    for_pools_alone = True

    def messages(self, read: Fields) -> Sequence[Message]:
        return ()

    def text(self, read: Fields) -> str:
        return "\n".join(text for text in _inputs(read) if isinstance(text, str))

    def selected(self, read: Fields, selector: str) -> str:
        return select_from_text(selector, self.text(read))

    def conversation(self, read: Fields) -> str:
        return self.text(read)

    def alternatives(self, read: Fields) -> int:
        return len(_inputs(read))

    def answer_tokens(self, read: Fields) -> int | None:
        return 0

    def add_system(self, fields: dict[str, Any], read: Fields, system: str, after: bool) -> None:
        """Leave the texts unchanged: other words would have another vector."""

    def note_whole(self, body: bytes, choices: int, progress: Progress) -> None:
        try:
            see_that_it_is_text(body)
            read = _ANSWER.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Failed("the engine's answer holds no embeddings") from error
        if not read.data:
            raise from_inside("the engine answered with an error inside a 200", body)
        if len(read.data) < choices or any(map(_is_empty, read.data)):
            raise Failed("the engine's answer has fewer embeddings than there are inputs", body=body)
        progress.answer_id = read.id
        progress.finish_reason = "stop"
        progress.usage = read.counted()
        if progress.usage is not None:
            progress.usage.completion_tokens = 0

    def answer_schema(self) -> dict[str, Any]:
        vector = {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]}
        item = {"type": "object", "properties": {"index": {"type": "integer"}, "embedding": vector}}
        return {
            "type": "object",
            "properties": {
                "model": {"type": "string", "description": "What answered."},
                "data": {"type": "array", "minItems": 1, "items": item},
                "usage": {"type": ["object", "null"], "properties": {"prompt_tokens": {"type": ["integer", "null"]}}},
            },
            "required": ["data"],
        }


def _is_empty(item: EmbeddingItem) -> bool:
    raw = memoryview(item.embedding)
    return raw.nbytes <= len(b"null") and bytes(raw) in NO_VECTORS


def _inputs(read: Fields) -> list[Any]:
    """The inputs, each a text or a list of token ids."""
    inputs = read.input if isinstance(read, EmbeddingFields) else None
    return inputs if isinstance(inputs, list) and not isinstance(inputs[0], int) else [inputs]


EMBEDDINGS = EmbeddingsFormat()
