"""Judging answers by their task's checks, before or after they are sent."""

from __future__ import annotations

from gateway.formats.request_body import RequestBody
from gateway.path.answer import Answer
from gateway.path.ledger import Ledger
from gateway.services import Services
from router.answers import Terms
from router.check_loop import judge_answer
from router.findings import CheckName


def judge_now(services: Services, body: RequestBody, answer: Answer, ledger: Ledger) -> CheckName | None:
    """Judge the answer so far, before it is committed. Returns the check that rejects it, or None.

    An incomplete stream is judged now only if a check is enforced on its first tokens, else after it was sent.
    """
    demands = answer.demands
    if demands is None or answer.reading is None:
        return None
    whole = not body.stream or answer.finished
    if not whole and not (demands.terms.enforces("low_confidence") and answer.tokens_wanted > 1):
        return None
    return _judge(services, body, answer, ledger, demands.terms, whole)


def judge_sent(services: Services, body: RequestBody, answer: Answer, ledger: Ledger) -> None:
    """Judge an answer that was sent completely, by the checks that need all of it. They only observe."""
    if answer.demands is not None and answer.reading is not None and not answer.judged_whole:
        _judge(services, body, answer, ledger, answer.demands.terms, True)


def _judge(
    services: Services, body: RequestBody, answer: Answer, ledger: Ledger, terms: Terms, whole: bool
) -> CheckName | None:
    assert answer.reading is not None
    answered = answer.reading.answered(whole, answer.mixed)
    offered = None
    if "refusal" in terms.checks and body.wire_format.has_tools:
        called = frozenset(call.name for each in answered.alternatives for call in each.calls)
        if called or body.read.tool_choice not in (None, "auto", "none"):
            offered = services.terms.offered(body, called)
    judgement = judge_answer(answered, terms, offered, answer.judged_by)
    ledger.note_findings(judgement.findings)
    answer.judged_by |= frozenset(finding.check for finding in judgement.findings)
    answer.judged_whole = whole
    if judgement.contract_kept is not None:
        ledger.record.contract_kept = judgement.contract_kept
    return judgement.rejected_by
