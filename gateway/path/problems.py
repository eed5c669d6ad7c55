"""Problems for requests without an answer: no engine gave one, or checks rejected all of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.errors import Problem
from monitoring.records import Record
from router.attempts import Failure, GiveUp
from serving.errors import EngineError, TooLong

PARAM_CHARACTERS_MAX = 200
ENGINE_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")
"""The form of an engine's own error code that is passed on. vLLM's code is often only the status."""

FIELD_FAULT = re.compile(r"""'type': '(\w+)', 'loc': 'body\.([^']+)', 'msg': (?:'([^']*)'|"([^"]*)")""")
"""A field that vLLM's model of a request rejects: the type of the fault, its place, and its message."""


def explain_failures(
    step: GiveUp, error: EngineError, failures: Sequence[Failure], field: str, whole_seconds: float | None = None
) -> Problem:
    """The problem after the last of `failures`, which was `error`, with the engine's own code beside ours.

    `field` is the field that holds the prompt. `whole_seconds` is the time limit of an answer that is not streamed.
    A problem with a status of 500 or more is final: all attempts were made, so clients need not retry.
    """
    problem = refusal_of(error, field) if step.because == "refused" else _given_up(step, error, failures, whole_seconds)
    problem.final = problem.final or problem.status >= 500
    problem.engine_code = engine_code_of(error)
    return problem


def _given_up(step: GiveUp, error: EngineError, failures: Sequence[Failure], whole_seconds: float | None) -> Problem:
    if step.because == "needs_human":
        return Problem("needs_human", f"A person has to answer this request: its adapter could not ({step.reason}).")
    if step.because == "fallback_capped":
        return Problem("fallback_capped", "The task has sent as much to its fallback as it may. Try again later.")
    if all(failure.kind == "unserved" for failure in failures):
        return Problem("engine_refused", f"{error}: name another model.", "model")
    if error.kind == "silent" and whole_seconds is not None:
        late = f"No engine gave its whole answer within {whole_seconds:g} s (limits.answer_timeout_seconds)."
        return Problem("timeout", f"{late} Stream it (`stream`: true), or ask for fewer tokens (`max_tokens`).")
    return _exhausted(step, error, failures)


def explain_time_limit(record: Record | None) -> Problem:
    """The problem at the end of a request's time. If it is not streamed, a long answer may be the cause."""
    whole = record is not None and bool(record.attempts) and not record.stream
    advice = "Ask for fewer tokens (`max_tokens`)." if whole else "Try again later."
    return Problem("timeout", f"The request's time limit is over. {advice}")


def explain_rejected_answer(step: GiveUp) -> Problem:
    """The problem if a check rejected the answer and there is no other."""
    why = f"its adapter's answer was rejected before it was sent ({step.reason})"
    if step.because == "needs_human":
        return Problem("needs_human", f"A person has to answer this request: {why}.")
    if step.because == "fallback_capped":
        return Problem(
            "fallback_capped", f"The task has sent as much to its fallback as it may, and {why}. Try again later."
        )
    if step.because == "rejected":
        return Problem("contract_violation", "The answer breaks the task's contract, and nobody has another one.")
    if step.because == "overload":
        return Problem("overload", f"Every replica that could answer the request is full, and {why}. Try again later.")
    if step.because == "exhausted":
        return Problem("timeout", f"The request's time limit is over, and {why}. Try again later.")
    return Problem("no_replica", f"No replica that could answer the request is there now, and {why}. Try again later.")


def _exhausted(step: GiveUp, error: EngineError, failures: Sequence[Failure]) -> Problem:
    if error.kind == "late":
        return Problem("timeout", f"{error}. Try again later, or ask for a shorter answer.")
    if error.kind == "silent":
        return Problem("timeout", "No engine answered within the time limit. Try again later.")
    if error.kind == "oversize":
        return Problem("engine_error", "The engine's answer is longer than the gateway takes. Ask for a shorter one.")
    if error.kind == "overloaded":
        return Problem("overload", "Every engine is busy. Try again later.", None, step.retry_after_seconds)
    if all(failure.kind == "unreachable" for failure in failures):
        return Problem("no_replica", "No engine can be reached now. Try again later.", None, step.retry_after_seconds)
    if len({failure.replica for failure in failures if failure.may_be_its_form}) > 1:
        text = "Two engines failed at the form of the answer that it asks for (`response_format`, `tools` or such)"
        advice = "They may not be able to compile it: simplify it."
    else:
        text = "Every attempt at an engine failed"
        advice = "An operator has to fix that." if error.kind == "key_refused" else "Try again later."
    return Problem("engine_error", f"{text}. The last one: {error}. {advice}")


def refusal_of(error: EngineError, field: str) -> Problem:
    """The engine's refusal of a request, in its words and our shape. `field` is the field that holds the prompt."""
    content = _content(error)
    message = str(content.get("message") or content.get("detail") or "The engine refused the request.")[:2000]
    text = f"{content.get('code') or content.get('type')} {message}".lower()
    param = str(content["param"])[:PARAM_CHARACTERS_MAX].removeprefix("body.") if content.get("param") else None
    if isinstance(error, TooLong):
        return Problem("context_length_exceeded", message, param or field)
    if "content_policy" in text or "content_filter" in text or "content policy" in text:
        return Problem("content_policy", message, param)
    return Problem("engine_refused", _explain_fields(message, param), param)


def _explain_fields(message: str, param: str | None) -> str:
    """A refusal by vLLM's model of requests, as a sentence. vLLM lists a fault for each type that a field may have."""
    faults = [each for each in FIELD_FAULT.findall(message) if each[1] == param]
    texts = [quoted or doubled for kind, _, quoted, doubled in faults if not kind.endswith("_type")]
    texts = texts or [quoted or doubled for _, _, quoted, doubled in faults]
    return f"The engine refuses {param!r}: {', or '.join(dict.fromkeys(texts))}." if texts else message


def engine_code_of(error: EngineError) -> str | None:
    """The engine's own code of an error; None if it gave no code, or only a number."""
    code = _content(error).get("code")
    return code if isinstance(code, str) and ENGINE_CODE.fullmatch(code) else None


def _content(error: EngineError) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(error.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    body = body[0] if isinstance(body, list) and body else body  # as Gemini writes it
    content = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(content, str):  # as Ollama and TGI do
        return {"message": content}
    return content if isinstance(content, dict) else {}
