"""Conversion of foreign rows into our own form: from OpenAI, Hugging Face, TensorZero, Alpaca and ShareGPT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from datetime import UTC, datetime
from typing import Any

from monitoring.datasets.tensorzero_rows import from_inference
from monitoring.evaluation.dataset import (
    OFFER_FIELDS,
    DatasetError,
    object_of,
    read_answer,
    see_that_it_is_text,
    write_as_text,
)

ROLES: Mapping[str, str] = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
}  # fmt: skip
"""The roles of ShareGPT's speakers."""
TURN_ROLES = ("user", "assistant")
SHAREGPT_FIELDS = frozenset({"conversations", "system"})
CHOICE_FIELDS = frozenset({"chosen", "rejected"})
ANSWERS = ("output", "response", "expected")
ALPACA_FIELDS = frozenset({"instruction", "input", "context", "output", "response", "system", "history", "text"})
"""The fields that are read, and `text`, which in some files repeats all of them."""
ITEM_FIELDS = frozenset({"item", "sample"})
"""The fields of a row of OpenAI's Evals: the case with its expected answer, and a model's answer."""


def as_own_form(entry: dict[str, Any], at: int) -> dict[str, Any]:
    """The object on line `at` with our rows' keys; an object in our form stays unchanged. Raises DatasetError."""
    entry = open_item(entry)
    if "messages" in entry and not entry.keys() >= CHOICE_FIELDS:
        return entry
    translate = next((form for fields, form in FORMS if fields <= entry.keys()), None)
    return entry if translate is None else translate(entry, at)


def read_own_object(line: bytes, at: int) -> dict[str, Any]:
    """Read the object on line `at` and convert it to our rows' keys. Raises DatasetError."""
    return as_own_form(object_of(line, at), at)


def open_item(entry: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row of OpenAI's Evals, which are in its `item`; any other object unchanged."""
    item = entry.get("item")
    return item if isinstance(item, dict) and entry.keys() <= ITEM_FIELDS else entry


def _from_turns(entry: dict[str, Any], at: int) -> dict[str, Any]:
    """A conversation of ShareGPT."""
    turns, messages = entry["conversations"], _system_turn(entry)
    for turn in turns if isinstance(turns, list) else []:
        role = ROLES.get(str(turn.get("from"))) if isinstance(turn, dict) else None
        if role is None:
            roles = ", ".join(ROLES)
            raise DatasetError(f"Line {at}: a turn of its conversations is `from` none of {roles}.")
        messages.append({"role": role, "content": turn.get("value")})
    return {name: value for name, value in entry.items() if name not in SHAREGPT_FIELDS} | {"messages": messages}


def _from_instruction(entry: dict[str, Any], at: int) -> dict[str, Any]:
    """A row of Alpaca or Dolly: the instruction, its input, and earlier turns."""
    messages, history = _system_turn(entry), entry.get("history") or []
    for turn in history if isinstance(history, list) else [history]:
        if not isinstance(turn, list) or len(turn) != len(TURN_ROLES):
            raise DatasetError(f"Line {at}: a turn of its history is not a pair of a question and an answer.")
        messages += [{"role": role, "content": text} for role, text in zip(TURN_ROLES, turn, strict=True)]
    question = "\n\n".join(
        write_as_text(entry[name]) for name in ("instruction", "input", "context") if entry.get(name)
    )
    messages.append({"role": "user", "content": question})
    own = {name: value for name, value in entry.items() if name not in ALPACA_FIELDS}
    return own | {"messages": messages, "expected": next((entry[name] for name in ANSWERS if name in entry), None)}


def _system_turn(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "system", "content": entry["system"]}] if entry.get("system") else []


def _from_preference(entry: dict[str, Any], at: int) -> dict[str, Any]:
    request = entry["input"]
    messages = request.get("messages") if isinstance(request, dict) else None
    if not isinstance(messages, list) or not messages:
        raise DatasetError(f"Line {at}: its input has no messages.")
    own = {name: value for name, value in entry.items() if name not in ("input", "preferred_output")}
    own |= {name: request[name] for name in OFFER_FIELDS if request.get(name) is not None}
    rejected = own.pop("non_preferred_output", None)
    own["messages"] = [*messages, {"role": "assistant", "content": _last_text(entry["preferred_output"], at)}]
    return own | ({"rejected": _last_text(rejected, at)} if rejected else {})


def _from_ideal(entry: dict[str, Any], at: int) -> dict[str, Any]:
    """A sample of the repository openai/evals: a text or messages, and the ideal answer."""
    asked, ideal = entry["input"], entry["ideal"]
    answers = ideal if isinstance(ideal, list) else [ideal]
    if len(answers) != 1:
        raise DatasetError(f"Line {at}: its ideal has {len(answers)} answers: leave the one that is right.")
    own = {name: value for name, value in entry.items() if name not in ("input", "ideal")}
    return own | {"messages" if isinstance(asked, list) else "text": asked, "expected": answers[0]}


def _from_choice(entry: dict[str, Any], at: int) -> dict[str, Any]:
    """A preference pair of Hugging Face. Its prompt is a text, messages, or the beginning of the chosen answer."""
    prompt, chosen = entry.get("prompt"), entry["chosen"]
    turns = prompt if isinstance(prompt, list) else chosen[:-1] if isinstance(chosen, list) else []
    if not turns and prompt:
        turns = [{"role": "user", "content": write_as_text(prompt)}]
    if not turns:
        raise DatasetError(f"Line {at}: it asks nothing: give a prompt beside chosen and rejected.")
    own = {name: value for name, value in entry.items() if name not in CHOICE_FIELDS | {"prompt", "messages"}}
    answer = {"role": "assistant", "content": _last_text(chosen, at)}
    return own | {"messages": [*turns, answer], "rejected": _last_text(entry["rejected"], at)}


def _last_text(output: Any, at: int) -> str:
    """The assistant's text in an output of a preference pair."""
    last = output[-1] if isinstance(output, list) and output else output
    if isinstance(last, dict):
        see_that_it_is_text(last, at)
    content = read_answer(last.get("content") if isinstance(last, dict) else last)
    if not content:
        raise DatasetError(f"Line {at}: an output of it is not text: give a list with one message of the assistant.")
    return content


def time_of(value: Any) -> float | None:
    """Unix seconds of a number or of a time in ISO 8601; None for anything else."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        if isinstance(value, datetime):
            moment = value
        elif isinstance(value, str) and not value.replace(".", "", 1).isdigit():
            moment = datetime.fromisoformat(value)
        else:
            return float(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


FORMS: tuple[tuple[Set[str], Callable[[dict[str, Any], int], dict[str, Any]]], ...] = (
    ({"conversations"}, _from_turns),
    ({"instruction", "output"}, _from_instruction),
    ({"instruction", "context"}, _from_instruction),
    ({"input", "preferred_output"}, _from_preference),
    ({"input", "ideal"}, _from_ideal),
    (CHOICE_FIELDS, _from_choice),
    ({"input", "output"}, from_inference),
)
"""Foreign forms, each with the fields that identify it. The first match counts."""
