"""Draft of a manifest from examples: the contract that all answers keep, and a general prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monitoring.evaluation.dataset import has_tool_call, read_answer, read_calling, write_calls

SHOWN_MAX = 6
"""The most examples in a drafted general prompt."""
SHOWN_CHARACTERS_MAX = 600
CHOICES_MAX = 50
"""More different answers, or values of a field, are not a closed list."""
ROWS_OF_A_CHOICE_MIN = 3
TOKENS_MAX = 512
SYSTEM_BYTES_MAX, PROMPT_BYTES_MAX, CHOICE_LENGTH_MAX, CONTRACT_BYTES_MAX = 100_000, 20_000, 1000, 64 << 10
"""Longer texts are left out of a draft, which so keeps the limits of a manifest (serving/adapters/manifest.py)."""


@dataclass(frozen=True)
class ExampleRow:
    """A request and its right answer. `system` is the system message, empty if there is none. An answer may call tools;
    contracts are about other answers."""

    system: str
    request: str
    answer: str
    calls: bool = False


def read_row(row: dict[str, Any]) -> ExampleRow | None:
    """The row of a fine-tuning file, or of a table with text and expected; None if it has no answer."""
    messages, calls, answer = row.get("messages"), False, row.get("expected")
    if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
        by_role = {str(message.get("role")): read_answer(message.get("content")) for message in messages}
        answer = by_role.get("assistant") if answer is None else answer
        request, system = by_role.get("user"), by_role.get("system")
        if calls := bool(messages) and has_tool_call(messages[-1]):
            answer = write_calls(messages[-1])
    else:
        answer = row.get("label") if answer is None else answer
        request, system = row.get("text") or row.get("prompt"), ""
    if row.get("tools") and (calling := read_calling(answer)) is not None:
        answer, calls = write_calls(calling), True
    if answer is None or not isinstance(request, str):
        return None
    text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
    return ExampleRow(system if isinstance(system, str) else "", request, text, calls)


def draft_manifest(task: str, rows: Sequence[ExampleRow]) -> dict[str, Any]:
    """A manifest for a task's first version. People who know the task should edit it."""
    sampling = {"temperature": 0, "max_tokens": _tokens_of(rows)}
    askable = [row for row in rows if row.request.strip() and _measure(row.request) <= PROMPT_BYTES_MAX]
    return {
        "task": task,
        "contract": draft_contract([row.answer for row in rows if not row.calls]),
        "sampling": sampling,
        "general_prompt": {"system": _draft_prompt(rows), "sampling": dict(sampling)},
        "golden": [{"prompt": row.request} for row in _spread(askable, 3)],
    }


def draft_contract(answers: Sequence[str]) -> dict[str, Any] | None:
    """The contract that all answers keep: the fields of JSON objects, or a closed list of texts; None for free text."""
    objects = [_object_of(answer) for answer in answers]
    if objects and all(read is not None for read in objects):
        contract = _schema_of([read for read in objects if read is not None])
        return contract if _measure(contract) <= CONTRACT_BYTES_MAX else None
    return {"choices": sorted(set(answers))} if answers and _is_closed_list(answers) else None


def _is_closed_list(values: Sequence[str]) -> bool:
    """True if few short texts repeat."""
    different = {*values}
    is_short = all(0 < len(value) <= CHOICE_LENGTH_MAX for value in different)
    return is_short and len(different) <= CHOICES_MAX and ROWS_OF_A_CHOICE_MIN * len(different) <= len(values)


def _schema_of(objects: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    names = list(objects[0])
    if not names or any(set(read) != set(names) for read in objects):
        return None
    properties = {name: _property_of([read[name] for read in objects]) for name in names}
    schema = {"type": "object", "additionalProperties": False, "required": names, "properties": properties}
    return {"json_schema": schema}


def _property_of(values: Sequence[Any]) -> dict[str, Any]:
    """The schema of a field: a closed list of texts if its values repeat, else their type."""
    if all(isinstance(value, str) for value in values):
        return {"enum": sorted({*values})} if _is_closed_list(values) else {"type": "string"}
    if all(isinstance(value, bool) for value in values):
        return {"type": "boolean"}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {"type": "number"}
    return {}


def _draft_prompt(rows: Sequence[ExampleRow]) -> str:
    """The system message that all rows share; else an instruction with a few examples."""
    systems = {row.system for row in rows}
    if len(systems) == 1 and (shared := systems.pop()).strip() and _measure(shared) <= SYSTEM_BYTES_MAX:
        return shared
    shown = [
        f"{row.request[:SHOWN_CHARACTERS_MAX]}\n{_show_answer(row)[:SHOWN_CHARACTERS_MAX]}"
        for row in _spread(rows, SHOWN_MAX)
    ]
    # A model that is shown calls as JSON writes that JSON, and calls nothing.
    how = "by calling a tool where they do" if any(row.calls for row in rows) else "and with nothing else"
    return f"Answer each message as in these examples, {how}.\n\n" + "\n\n".join(shown)


def _show_answer(row: ExampleRow) -> str:
    """An answer in the form for a prompt: calls by their names and arguments."""
    calling = read_calling(row.answer) if row.calls else None
    functions = [call["function"] for call in calling["tool_calls"]] if calling else []
    return "\n".join(f"{each['name']}({each['arguments']})" for each in functions) or row.answer


def _spread(rows: Sequence[ExampleRow], count: int) -> list[ExampleRow]:
    """At most `count` rows in the file's order, first those with different answers."""
    first = list({row.answer: row for row in reversed(rows)}.values())[::-1]
    return (first + [row for row in rows if row not in first])[:count]


def _measure(value: Any) -> int:
    """The bytes of a value as JSON."""
    return len(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))


def _object_of(answer: str) -> dict[str, Any] | None:
    if not answer.lstrip().startswith("{"):
        return None
    try:
        read = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) else None


def _tokens_of(rows: Sequence[ExampleRow]) -> int:
    """A bound for an answer's tokens: each has at least one character, most have three."""
    longest = max((len(row.answer) for row in rows), default=0)
    return max(16, min(TOKENS_MAX, longest))
