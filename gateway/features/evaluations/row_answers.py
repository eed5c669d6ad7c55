"""An engine's whole answer, as an evaluation reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from monitoring.evaluation.dataset import has_tool_call, write_calls
from monitoring.evaluation.results import RowAnswer, Sureness
from router.contract import Contract
from router.refusals import is_refusal


def read_answer(body: bytes, contract: Contract | None) -> RowAnswer:
    """The answer's text, its logprobs where the engine told them, and whether it keeps the version's contract.

    A refusal is what an engine marks as one, or what begins as refusals do and does not keep the contract. The text of
    an answer that calls tools is its calls as JSON; a contract is about texts alone.
    """
    try:
        choice: Mapping[str, Any] = msgspec.json.decode(body)["choices"][0]
        message = choice.get("message")
        text = message.get("content") if isinstance(message, Mapping) else choice.get("text")
        marked = isinstance(message, Mapping) and bool(message.get("refusal"))
    except (msgspec.DecodeError, RecursionError, LookupError, TypeError, AttributeError):
        return RowAnswer(text=None, fault="failed")
    text = text if isinstance(text, str) else ""
    if isinstance(message, Mapping) and has_tool_call(message):
        return RowAnswer(text=write_calls(message), logprobs=_logprobs(choice.get("logprobs")))
    cut = choice.get("finish_reason") == "length"
    form_kept = None if contract is None else contract.broken_by(text, cut) is None
    refused = marked or choice.get("finish_reason") == "content_filter" or (form_kept is not True and is_refusal(text))
    logprobs = _logprobs(choice.get("logprobs"))
    return RowAnswer(
        text=text, refused=refused, contract_kept=form_kept, logprobs=logprobs, sureness=_sureness(logprobs)
    )


def _sureness(logprobs: Sequence[float]) -> Sureness | None:
    """The features that the check `low_confidence` reads of a whole answer, by the same arithmetic."""
    from router.confidence_model import compute_features  # noqa: PLC0415 - numpy, 12 MB, where rows are answered

    features = compute_features(logprobs, None, None)
    return Sureness(features.minimum, features.quantile_10, features.mean, features.length) if features.length else None


def _logprobs(reported: Any) -> list[float]:
    """Those of the answer's tokens, in nats; empty where any of them is missing."""
    if not isinstance(reported, Mapping):
        return []
    content = reported.get("content")
    if isinstance(content, list):
        values = [value.get("logprob") if isinstance(value, Mapping) else None for value in content]
    else:
        values = reported.get("token_logprobs") or []
    numbers = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return numbers if len(numbers) == len(values) else []
