"""Runs a task's checks in order: on a request before it is sent, on an answer before its commit. Pure."""

from __future__ import annotations

from typing import NamedTuple

from router.answers import Offered, ReceivedAnswer, Terms
from router.checks import ANSWER_CHECKS, REQUEST_JUDGES, CheckedRequest, judge_contract
from router.findings import CheckName, Finding, RequestReason


class RequestJudgement(NamedTuple):
    """The findings on a request. `sent_away` is the reason of the first enforced check that fired. `probability` is
    that of the draws for a request that is led to this version; over all possible outcomes it adds up to 1."""

    findings: tuple[Finding, ...]
    sent_away: RequestReason | None
    probability: float


class AnswerJudgement(NamedTuple):
    """The findings on an answer. `rejected_by` is the first enforced check that fired; `contract_kept` is None if there
    is no contract, or no text to compare with it."""

    findings: tuple[Finding, ...]
    rejected_by: CheckName | None
    contract_kept: bool | None


NO_FINDINGS = RequestJudgement((), None, 1.0)


def judge_request(request: CheckedRequest) -> RequestJudgement:
    """Run the checks of a request's task, up to the first that sends the request away."""
    checks = request.task.checks
    if not checks:
        return NO_FINDINGS
    findings: list[Finding] = []
    probability = 1.0
    for name, judge in REQUEST_JUDGES:
        used = checks.get(name)
        if used is None:
            continue
        finding, chance = judge(used, request)
        findings.append(finding)
        if used.mode != "enforce":
            continue
        if chance is not None:
            probability *= chance
        if finding.fired:
            return RequestJudgement(tuple(findings), finding.reason or name, probability)
    return RequestJudgement(tuple(findings), None, probability)


def judge_answer(
    answer: ReceivedAnswer, terms: Terms, offered: Offered | None = None, left_out: frozenset[str] = frozenset()
) -> AnswerJudgement:
    """Run the checks in an answer's terms, except those in `left_out`. Total: it accepts any answer of an engine.

    An incomplete answer is judged only by checks that don't need all of it. `offered` is None if calls are not checked.
    """
    contract = judge_contract(answer, terms.contract)
    findings: list[Finding] = []
    rejected: CheckName | None = None
    for check in ANSWER_CHECKS:
        used = terms.checks.get(check.name)
        if used is None or check.name in left_out or not (answer.whole or "whole_answer" not in check.needs):
            continue
        finding = check.judge(used, answer, terms, offered, contract)
        findings.append(finding)
        if finding.fired and used.mode == "enforce":
            rejected = rejected or check.name
    return AnswerJudgement(tuple(findings), rejected, contract.kept)
