"""docs/reference/reasons.md, from the words for reasons and checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from gateway.features.requests.explanation import REASON_WORDS
from router.checks import CHECKS, AnswerCheck, Check
from router.decision import REASONS, WITHOUT_FALLBACKS
from router.findings import FallbackName
from router.refusals import REFUSAL_LENGTH_MAX, WORDINGS
from tools.reference.markdown import code, codes, page, table

INTRODUCTION = """
Every request that was sent to an engine has one reason. It is in the header `x-apprentice-reason`, in the record, and
a label of metrics. The first check that applies decides. A reason that names a failure is on the answer that was
given instead.
"""
CHECKS_TEXT = """
Each check of a task is `off` (the default), `observe` (decided and recorded, not acted on) or `enforce`. Those on
the request come first, in this order, up to the first enforced one that fires. Those on the answer follow, before it is
committed. A check without a model or a contract can't judge, and never fires. Pins and rules
come before all checks.
"""
FALLBACKS: Mapping[FallbackName, str] = {
    "general": "The task's fallback pool, with the general prompt of the version that it stands in for.",
    "previous_version": "The version that led before. Never the version that may not answer itself.",
    "needs_human": "Nobody: the error `needs_human` (422), so that a person answers. It is always last.",
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
        table(("Check", "Looks at", "Its number", "Fires", "Else"), map(_check, CHECKS)),
        f"`refusal` compares the beginning of answers of at most {REFUSAL_LENGTH_MAX} characters with phrases in "
        f"{', '.join(WORDINGS)} (`router/refusals.py`).",
        "## Fallbacks",
        f"`tasks.TASK.fallbacks` names, for each reason but {codes(sorted(WITHOUT_FALLBACKS))}, where its requests "
        f"go, in "
        "order. A fallback that is missing, has no replica, is capped or may not get the text is passed over.",
        table(("Fallback", "What answers"), fallbacks),
    )


def _check(check: Check) -> tuple[str, ...]:
    looks_at = "answer" if isinstance(check, AnswerCheck) else "request"
    return code(check.name), looks_at, code(check.share) if check.share else "", check.fired, check.kept
