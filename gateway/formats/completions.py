"""OpenAI's completions: prompts without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from gateway.formats.fields import KNOWN_ANYWHERE, NEUTRAL, OPENAI_ANYWHERE, Fields, Message
from gateway.formats.selectors import select_from_text
from gateway.formats.wire_format import WireFormat

OF_COMPLETIONS = frozenset({"prompt", "suffix", "best_of"})


class CompletionsFormat(WireFormat):
    """`POST /v1/completions`: one prompt or several, each answered by a text."""

    name = "completions"
    title = "Completion"
    path = "/v1/completions"
    engine_path = "/completions"
    required = "prompt"
    conversation_fields = frozenset({"prompt"})
    known_fields = KNOWN_ANYWHERE | OF_COMPLETIONS
    openai = OPENAI_ANYWHERE | OF_COMPLETIONS | {"echo"}
    neutral = MappingProxyType({**NEUTRAL, "add_special_tokens": (True,)})
    logprobs_alone = 0
    event_object = "text_completion"

    def messages(self, read: Fields) -> Sequence[Message]:
        return ()

    def text(self, read: Fields) -> str:
        return " ".join(_prompts(read))

    def selected(self, read: Fields, selector: str) -> str:
        return select_from_text(selector, "\n".join(_prompts(read)))

    def conversation(self, read: Fields) -> str:
        return self.text(read)

    def alternatives(self, read: Fields) -> int:
        return (read.n or 1) * (len(read.prompt) if isinstance(read.prompt, list) else 1)

    def asks_for_logprobs(self, read: Fields) -> bool:
        return read.logprobs is not None and read.logprobs is not False and not read.echo

    def asks_for_prompt_logprobs(self, read: Fields) -> bool:
        return read.logprobs is not None and read.logprobs is not False

    def add_system(self, fields: dict[str, Any], read: Fields, system: str, after: bool) -> None:
        prompts = fields["prompt"] if isinstance(fields["prompt"], str | list) else read.prompt
        if isinstance(prompts, str):
            fields["prompt"] = f"{system}\n\n{prompts}"
        else:
            fields["prompt"] = [f"{system}\n\n{text}" for text in prompts or []]


def _prompts(read: Fields) -> list[str]:
    return [read.prompt] if isinstance(read.prompt, str) else read.prompt or []


COMPLETIONS = CompletionsFormat()
