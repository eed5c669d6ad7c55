"""Answers of OpenAI's Responses API: items with content, and their events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Raw

from gateway.errors import Problem
from gateway.formats.answer_writer import AnswerBlock, AnswerWriter
from gateway.formats.fields import NULL, RAW_FIELDS

LOGPROBS = "message.output_text.logprobs"
"""The value of `include` that requests logprobs."""


class ResponseWriter(AnswerWriter):
    """An answer as a response with items."""

    id_prefix = "resp_"

    def __init__(self, raw: bytes) -> None:
        """`raw` is the request's body."""
        super().__init__()
        raw_fields = {name: value for name, value in RAW_FIELDS.decode(raw).items() if value != NULL}
        self._echoed = {name: raw_fields.get(name, default) for name, default in ECHOED.items()}
        self.has_logprobs = _asks_for_logprobs(raw_fields)
        self._began_at = int(time.time())
        self._event_count = 0

    def final(self) -> dict[str, Any]:
        is_cut = self.finish_reason in ("length", "content_filter")
        reason = "max_output_tokens" if self.finish_reason == "length" else "content_filter"
        response = self._response("incomplete" if is_cut else "completed")
        response["incomplete_details"] = {"reason": reason} if is_cut else None
        response["output"] = [self._item(block, self._status_of(block)) for block in self.blocks]
        usage = self.usage
        if usage.prompt_tokens is not None:
            answered = usage.completion_tokens or 0
            response["usage"] = {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
                "output_tokens": answered,
                "output_tokens_details": {"reasoning_tokens": usage.reasoned},
                "total_tokens": usage.prompt_tokens + answered,
            }
        return response | ({"apprentice": self.details} if self.details else {})

    def begin(self) -> Iterator[dict[str, Any]]:
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response("in_progress"))

    def open_block(self, block: AnswerBlock) -> Iterator[dict[str, Any]]:
        item = self._item(block, "in_progress")
        if "content" in item:
            item["content"] = []
        yield self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind != "tool":
            yield self._of_part(block, "response.content_part.added", part=_part(AnswerBlock(block.kind, 0)))

    def add_text(self, block: AnswerBlock, text: str) -> Iterator[dict[str, Any]]:
        if block.kind == "tool":
            yield self._of_item(block, "response.function_call_arguments.delta", delta=text)
            return
        yield self._of_part(block, f"{EVENT_NAMES[block.kind]}.delta", delta=text, **_logprobs(block, block.added))

    def close_block(self, block: AnswerBlock) -> Iterator[dict[str, Any]]:
        item = self._item(block, self._status_of(block))
        if block.kind == "tool":
            call = {"name": block.name, "arguments": item["arguments"]}
            yield self._of_item(block, "response.function_call_arguments.done", **call)
        else:
            text = {"refusal" if block.kind == "refusal" else "text": block.text}
            yield self._of_part(block, f"{EVENT_NAMES[block.kind]}.done", **text, **_logprobs(block, block.logprobs))
            yield self._of_part(block, "response.content_part.done", part=_part(block))
        yield self._event("response.output_item.done", output_index=block.index, item=item)

    def finish(self) -> Iterator[dict[str, Any]]:
        response = self.final()
        yield self._event(f"response.{response['status']}", response=response)

    def fail(self, problem: Problem) -> Iterator[dict[str, Any]]:
        yield self._event("error", code=problem.code, message=problem.message, param=problem.param)
        error = {"code": "server_error", "message": problem.message}  # Codex reads this event alone
        yield self._event("response.failed", response=self._response("failed") | {"error": error})

    def _status_of(self, block: AnswerBlock) -> str:
        """The status of a block's item. The last item of a cut answer is incomplete."""
        return "incomplete" if block is self.blocks[-1] and self.finish_reason == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._event_count += 1
        return {"type": kind, "sequence_number": self._event_count - 1, **fields}

    def _of_item(self, block: AnswerBlock, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._item_id(block), output_index=block.index, **fields)

    def _of_part(self, block: AnswerBlock, kind: str, **fields: Any) -> dict[str, Any]:
        return self._of_item(block, kind, content_index=0, **fields)

    def _item_id(self, block: AnswerBlock) -> str:
        return (
            f"{ITEM_PREFIXES[block.kind]}_{self.name_answer(self.answer.id).removeprefix(self.id_prefix)}_{block.index}"
        )

    def _item(self, block: AnswerBlock, status: str) -> dict[str, Any]:
        item: dict[str, Any] = {"id": self._item_id(block), "status": status}
        if block.kind == "tool":
            arguments = block.text or ("{}" if status == "completed" else "")  # clients read them as JSON
            call = {"call_id": block.call_id, "name": block.name, "arguments": arguments}
            return item | {"type": "function_call"} | call
        if block.kind == "reasoning":
            return item | {"type": "reasoning", "summary": [], "content": [_part(block)]}
        return item | {"type": "message", "role": "assistant", "content": [_part(block)]}

    def _response(self, status: str) -> dict[str, Any]:
        return {
            "id": self.name_answer(self.answer.id),
            "object": "response",
            "created_at": self.answer.created or self._began_at,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self.answer.model,
            "output": [],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **self._echoed,
        }


ECHOED: Mapping[str, Any] = {
    **dict.fromkeys(("instructions", "max_output_tokens", "temperature", "top_p", "user")),
    "metadata": {},
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
}
"""Fields of the request that its answer repeats, with their default values."""
EVENT_NAMES: Mapping[str, str] = {
    "text": "response.output_text",
    "refusal": "response.refusal",
    "reasoning": "response.reasoning_text",
}
ITEM_PREFIXES: Mapping[str, str] = {"text": "msg", "refusal": "msg", "reasoning": "rs", "tool": "fc"}


def _asks_for_logprobs(raw_fields: Mapping[str, Raw]) -> bool:
    """True if these fields of a request ask for logprobs."""
    is_included = f'"{LOGPROBS}"'.encode() in bytes(raw_fields.get("include", NULL))
    return is_included or raw_fields.get("top_logprobs", NULL) not in (NULL, Raw(b"0"))


def _logprobs(block: AnswerBlock, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    """The field with logprobs, which only events of text have."""
    return {"logprobs": logprobs} if block.kind == "text" else {}


def _part(block: AnswerBlock) -> dict[str, Any]:
    if block.kind == "refusal":
        return {"type": "refusal", "refusal": block.text}
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": block.logprobs}
