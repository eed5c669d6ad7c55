"""Inferences and datapoints from TensorZero's tables or API, converted to the keys of our rows."""

from __future__ import annotations

from typing import Any

from monitoring.evaluation.dataset import (
    DatasetError,
    read_arguments,
    read_calling,
    see_that_it_is_text,
    write_as_text,
    write_canonically,
)

TEXT_BLOCKS = ("text", "raw_text", "template", None)
TEXT_KEYS = ("text", "value", "arguments")
"""The keys of a block's text: as it is, in older releases, and as the arguments of a template."""
TOOL_FIELDS = ("tools", "additional_tools", "dynamic_tools")
"""The fields of a row's tools: in OpenAI's form, in the API, and in the table."""


def from_inference(entry: dict[str, Any], at: int) -> dict[str, Any]:
    """Convert an inference or a datapoint. An episode's inferences are one group. Raises DatasetError."""
    request, output = decode_column(entry["input"]), decode_column(entry["output"])
    if not isinstance(request, dict) or "messages" not in request:
        named = {name: value for name, value in entry.items() if name not in ("input", "output")}
        return named | {"text": request, "expected": output}
    if entry.get("staled_at") or entry.get("is_deleted") in (True, 1):
        raise DatasetError(f"Line {at}: it was changed or deleted in TensorZero: leave it out.")
    messages = [{"role": "system", "content": write_as_text(request["system"])}] if request.get("system") else []
    for message in request["messages"] if isinstance(request["messages"], list) else []:
        if not isinstance(message, dict):
            raise DatasetError(f"Line {at}: a message of its input is not an object with role and content.")
        messages += _turns_of(message, at)
    offer, answer = _offer_of(entry), _answer_of(output, at)
    if "tool_calls" in answer and "tools" not in offer:
        name = answer["tool_calls"][0]["function"]["name"]
        raise DatasetError(f"Line {at}: its answer calls {name!r}, but it has no tools: add them as `tools`.")
    own: dict[str, Any] = offer | {
        "messages": messages,
        "expected": answer if "tool_calls" in answer else answer["content"],
        "id": entry.get("id") or entry.get("inference_id"),
        "group": entry.get("episode_id"),
        "at": entry.get("timestamp"),
        "label": entry.get("label"),
    }
    worse = decode_column(entry.get("dispreferred_outputs") or [])
    if worse:
        for each in (answer, rejected := _answer_of(decode_column(worse[0]), at)):
            see_that_it_is_text(each, at)
        own["rejected"] = rejected["content"]
    return {name: value for name, value in own.items() if value is not None}


def decode_column(value: Any) -> Any:
    """The value of a table's column, which may hold it as JSON."""
    is_json = isinstance(value, str) and value.lstrip().startswith(("{", "["))
    return read_arguments(value) if is_json else value


def _offer_of(entry: dict[str, Any]) -> dict[str, Any]:
    """The tools that a row offers (older releases: in `tool_params`); empty if it offers none."""
    older = decode_column(entry.get("tool_params"))
    older = older if isinstance(older, dict) else {}
    of_newer = (decode_column(entry[name]) for name in TOOL_FIELDS if entry.get(name))
    tools = next((each for each in of_newer if each), older.get("tools_available"))
    if not tools:
        return {}
    if isinstance(tools, list):
        tools = [_tool_of(decode_column(tool)) for tool in tools]
    given = {"tool_choice": entry.get("tool_choice"), "parallel_tool_calls": entry.get("parallel_tool_calls")}
    offer = {"tools": tools} | {name: older.get(name) if value is None else value for name, value in given.items()}
    choice = decode_column(offer["tool_choice"])
    if isinstance(choice, dict) and "specific" in choice:
        choice = {"type": "function", "function": {"name": choice["specific"]}}
    return offer | {"tool_choice": choice}


def _tool_of(tool: Any) -> Any:
    """A tool in OpenAI's form; any other value unchanged."""
    if not isinstance(tool, dict) or "name" not in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _turns_of(message: dict[str, Any], at: int) -> list[dict[str, Any]]:
    """The messages of one TensorZero message: first one for each result of a tool, then the rest."""
    texts, calls, results = _divide(message.get("content"), at)
    turns = [{"role": "tool", "tool_call_id": each.get("id"), "content": each.get("result")} for each in results]
    if calls:
        return [*turns, _calling(calls, texts)]
    return [*turns, {"role": message.get("role"), "content": "\n".join(texts)}] if texts or not turns else turns


def _answer_of(output: Any, at: int) -> dict[str, Any]:
    """The assistant's message of an output: a chat function's blocks, or a JSON function's raw answer."""
    if isinstance(output, dict) and ("raw" in output or "parsed" in output):
        parsed = output.get("parsed")
        return {"content": output.get("raw") or ("" if parsed is None else write_canonically(parsed))}
    texts, calls, results = _divide(output, at)
    if results:
        raise DatasetError(f"Line {at}: its output has the result of a tool: that belongs into its input.")
    return _calling(calls, texts) if calls else {"content": "\n".join(texts)}


def _calling(calls: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    named = [
        {
            "id": call.get("id"),
            "name": call.get("raw_name") or call.get("name"),
            "arguments": call.get("raw_arguments") or call.get("arguments") or {},
        }
        for call in calls
    ]
    return read_calling({"content": "\n".join(texts) or None, "tool_calls": named}) or {}


def _divide(content: Any, at: int) -> tuple[list[str], list[dict[str, Any]], list[dict[str, Any]]]:
    """The texts, calls and results in a content. Thoughts are skipped. Raises DatasetError for other blocks."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for part in content if isinstance(content, list) else [content]:
        block = part if isinstance(part, dict) else {"text" if isinstance(part, str) else "type": part}
        kind, text = block.get("type"), next((block[key] for key in TEXT_KEYS if block.get(key) is not None), None)
        if kind in TEXT_BLOCKS and text is not None:
            texts.append(write_as_text(text))
        elif kind in ("tool_call", "tool_result"):
            (calls if kind == "tool_call" else results).append(block)
        elif kind != "thought":
            what = f"it has a block of the type {str(kind)[:40]!r}"
            raise DatasetError(f"Line {at}: {what}: only texts and calls of tools can be taken: leave it out.")
    return texts, calls, results
