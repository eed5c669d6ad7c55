"""Tools and tool calls as text."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from monitoring.evaluation.dataset import list_calls, read_calling


def describe_offer(asked: Mapping[str, Any]) -> Iterator[str]:
    """The tools of a request in one line, each with the names of its arguments, and the choice among them."""
    functions = [tool.get("function") or {} for tool in asked.get("tools") or ()]
    if functions:
        yield f"tools: {', '.join(map(_write_signature, functions))}"
    if asked.get("parallel_tool_calls") is False:
        yield "parallel_tool_calls: false"
    if asked.get("tool_choice") not in (None, "auto"):
        yield f"tool_choice: {json.dumps(asked['tool_choice'])}"


def write_message(message: Mapping[str, Any]) -> str:
    """The content of a message, and its calls below it."""
    calls = list_calls(message)
    content = message.get("content")
    return "\n".join([*([str(content)] if content or not calls else []), *map(write_call, calls)])


def write_called(answer: str, asked: Mapping[str, Any]) -> str:
    """An answer in the form that is compared: tool calls as name(arguments)."""
    calling = read_calling(answer) if asked.get("tools") else None
    return answer if calling is None else write_message(calling)


def write_call(call: Mapping[str, Any]) -> str:
    """A call as name(arguments)."""
    function = call["function"] if isinstance(call.get("function"), dict) else call
    return f"{function.get('name')}({function.get('arguments', '')})"


def _write_signature(function: Mapping[str, Any]) -> str:
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    return f"{function.get('name')}({', '.join(properties) if isinstance(properties, dict) else ''})"
