"""docs/reference/reasons.md, from the words for reasons and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from gateway.features.requests.explanation import REASON_WORDS
from router.checks import CHECKS, AnswerCheck, Check
from router.findings import FallbackName
from router.refusals import REFUSAL_LENGTH_MAX, WORDINGS
from router.routing_data import REASONS, WITHOUT_FALLBACKS
from tools.reference.markdown import code, codes, page, table

INTRODUCTION = """
Every request that was sent to an engine has one reason: in the header `x-apprentice-reason`, in the record, and as a
label of metrics. A reason that names a failure is on the answer that was given instead.
"""
CHECKS_TEXT = """
After rules and pins, checks on the request come in this order, up to the first enforced one that fires. Those on the
answer follow, before it is committed. [What each needs](../guides/contracts-and-checks.md).
"""
FALLBACKS: Mapping[FallbackName, str] = {
    "general": "The task's `fallback_pool`, with the general prompt of the version that it stands in for.",
    "previous_version": "The version that led before, if it is healthy.",
    "needs_human": "Nobody: the caller gets the error `needs_human` (422). It must be last.",
}


def reasons_page() -> str:
    """The page: reasons, checks, fallbacks, and the languages of refusals."""
    reasons = [(code(reason), REASON_WORDS[reason]) for reason in REASONS]
    fallbacks = [(code(name), FALLBACKS[name]) for name in get_args(FallbackName)]
    return page(
        "Reasons, checks and fallbacks",
        INTRODUCTION,
        table(("Reason", "Meaning"), reasons),
        "## Checks",
        CHECKS_TEXT,
        table(("Check", "Looks at", "Its number"), map(_check, CHECKS)),
        f"`refusal` compares the beginning of answers of at most {REFUSAL_LENGTH_MAX} characters with phrases in "
        f"{', '.join(WORDINGS)} (`router/refusals.py`).",
        "## Fallbacks",
        f"`tasks.TASK.fallbacks` lists for each reason, but {codes(sorted(WITHOUT_FALLBACKS))}, where its requests "
        "go, in order. Unset, that is `[general]`.",
        table(("Fallback", "What answers"), fallbacks),
    )


def _check(check: Check) -> tuple[str, ...]:
    looks_at = "answer" if isinstance(check, AnswerCheck) else "request"
    return code(check.name), looks_at, code(check.share) if check.share else ""
