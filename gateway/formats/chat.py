"""OpenAI's chat completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gateway.formats.fields import HINTS, KNOWN_ANYWHERE, NEUTRAL, OPENAI_ANYWHERE, Fields, Message
from gateway.formats.permissions import has_media
from gateway.formats.selectors import SYSTEM_ROLES, text_of
from gateway.formats.wire_format import WireFormat, decode_list

OF_CHAT = frozenset({"messages", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort"})


class ChatFormat(WireFormat):
    """`POST /v1/chat/completions`: a conversation, answered by a message."""

    name = "chat"
    title = "Chat completion"
    path = "/v1/chat/completions"
    engine_path = "/chat/completions"
    required = "messages"
    conversation_fields = frozenset({"messages"})
    known_fields = KNOWN_ANYWHERE | OF_CHAT
    openai = OPENAI_ANYWHERE | OF_CHAT | HINTS | {"max_completion_tokens", "response_format"}
    neutral = MappingProxyType({**NEUTRAL, "add_special_tokens": (False,)})
    has_tools = has_template = logprobs_alone = True
    answer_field = "message"
    event_object = "chat.completion.chunk"

    def messages(self, read: Fields) -> Sequence[Message]:
        return read.messages or ()

    def may_go_on(self, read: Fields) -> bool:
        messages = self.messages(read)
        return messages[-1].role == "user" and not any(has_media(message) for message in messages)

    def json_schema(self, schema: Any) -> Mapping[str, Any]:
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}

    def add_system(self, fields: dict[str, Any], read: Fields, system: str, after: bool) -> None:
        messages, first = decode_list(fields["messages"]), self.messages(read)[0]
        fields["messages"] = messages
        if isinstance(messages[0], dict):  # there is one that was added already
            text = messages[0]["content"]
        elif first.role in SYSTEM_ROLES:
            text = text_of(first)
        else:
            messages.insert(0, {"role": "system", "content": system})
            return
        messages[0] = {"role": "system", "content": f"{text}\n\n{system}" if after else f"{system}\n\n{text}"}

    def go_on(self, fields: dict[str, Any], text: str) -> None:
        fields["messages"] = [*decode_list(fields["messages"]), {"role": "assistant", "content": text}]
        fields["continue_final_message"], fields["add_generation_prompt"] = True, False


CHAT = ChatFormat()
