"""Judgement of reports: whether one may be stored, the terms for its answer, and its record with findings."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from gateway.callers import Caller
from gateway.errors import Problem
from gateway.features.reported.reports import Report
from gateway.formats.selectors import select_from_messages, select_from_text
from gateway.path.ledger import make_finding_record
from gateway.services import Services
from monitoring.evaluation.answer_metrics import normalize
from monitoring.feedback import handle_of
from monitoring.ids import digest
from monitoring.records import Record
from router.answers import AnswerAlternative, ReceivedAnswer, Terms
from router.check_loop import judge_answer, judge_request
from router.checks import ABOUT_THE_REQUEST, AFTER_THE_ANSWER, SCOPE_READERS, CheckedRequest
from router.findings import CheckName, CheckPolicy, Finding
from router.fitted import NO_CALIBRATION, NOTHING_FITTED, OTHER_SCOPE, Fitted
from router.policy import Alias, Policy, TaskPolicy
from router.routing_data import Moment, Scores
from serving.fleet_view import VersionView

AHEAD_SECONDS_MAX = 60.0
"""Greatest lead of another gateway's clock over ours."""


@dataclass(frozen=True, slots=True)
class Due:
    """A report that may be stored, with all that its judgement needs. Without a `version` it is not judged. `source` is
    its name in Redis, `report_digest` its digest."""

    report: Report
    task: TaskPolicy
    version: VersionView | None
    fitted: Fitted
    terms: Terms | None
    policy: Policy
    source: str
    report_digest: str


def due_of(services: Services, caller: Caller, report: Report) -> Due:
    """A report with all that its judgement needs. Raises Problem (400, 403, 404)."""
    policy = services.snapshot.current.policy
    task = policy.tasks.get(report.task)
    if caller.models.isdisjoint(("*", report.task, report.version)):
        raise Problem(
            "model_not_allowed", f"This key may not use the task {report.task!r}. Ask an admin for it.", "task"
        )
    if task is None:
        raise Problem("model_not_found", f"There is no task {report.task!r}.", "task")
    _see_that_it_fits(services, report)
    view = services.fleet.view().versions
    alias = policy.aliases.get(task.name)
    version = view.get(report.version or (alias.leading if alias is not None else ""))
    fitted = policy.fitted.get(version.name, NOTHING_FITTED) if version is not None else NOTHING_FITTED
    return Due(
        report,
        task,
        version,
        fitted,
        _terms(services, report, task, version, fitted),
        policy,
        handle_of(services.digest_secret, caller.public, "source", report.source_id),
        digest(services.digest_secret, msgspec.json.encode(report)),
    )


def _see_that_it_fits(services: Services, report: Report) -> None:
    """Raises Problem (400, 404) for a version or pool that does not exist here, or an impossible time."""
    if report.version is not None and (
        report.version.partition("@")[0] != report.task or report.version not in services.snapshot.current.versions
    ):
        raise Problem("model_not_found", f"The task {report.task!r} has no version {report.version!r}.", "version")
    if report.pool is not None and report.pool not in services.settings.pools:
        raise Problem("model_not_found", f"There is no pool {report.pool!r}.", "pool")
    if report.messages is not None and report.prompt is not None:
        raise Problem("invalid_value", "It has either messages or a prompt.", "prompt")
    now, kept_seconds = time.time(), services.settings.records.retention_seconds
    if report.at > now + AHEAD_SECONDS_MAX:
        raise Problem("invalid_value", "at is in the future: give the Unix seconds at which it was served.", "at")
    if report.at < now - kept_seconds:
        text = f"at is longer ago than records can be judged (records.retention_seconds: {kept_seconds} s)."
        raise Problem("invalid_value", text, "at")


def _terms(
    services: Services, report: Report, task: TaskPolicy, version: VersionView | None, fitted: Fitted
) -> Terms | None:
    """The terms of an answer; None without an answer. An answer of a general model has no confidence."""
    if version is None or report.answer is None or report.status >= 400:
        return None
    checks = {name: check for name, check in _observed(task).items() if name in AFTER_THE_ANSWER}
    if report.version is None:
        checks.pop("low_confidence", None)
    model = fitted.confidence_for(task.selector) if "low_confidence" in checks else None
    unjudged = OTHER_SCOPE if model is None and fitted.confidence is not None else NO_CALIBRATION
    threshold = None
    if model is not None:
        threshold = services.terms.threshold(version.name, model, checks["low_confidence"].share)
    contract = services.terms.contract_of(version)
    has_logprobs = report.logprobs is not None
    return Terms(checks, contract, model, threshold, logprobs_asked=has_logprobs, unjudged=unjudged)


def _observed(task: TaskPolicy) -> dict[CheckName, CheckPolicy]:
    return {name: replace(check, mode="observe") for name, check in task.checks.items() if name in ABOUT_THE_REQUEST}


def records_of(services: Services, caller: Caller, due: Sequence[Due], moment: Moment) -> list[Record]:
    """The reports' records, with the checks' findings. Runs in a thread, since a score takes time."""
    return [_record(services, caller, due_report, moment) for due_report in due]


def _record(services: Services, caller: Caller, due: Due, moment: Moment) -> Record:
    report, secret = due.report, services.digest_secret
    record = Record(
        id=services.ids.make(caller.public),
        at=report.at,
        endpoint="chat" if report.prompt is None else "completions",
        caller=caller.public,
        requested_model=report.task,
        purpose="reported",
        stream=report.first_token_seconds is not None,
        task=report.task,
        version=report.version,
        pool=report.pool,
        status=report.status,
        finish_reason=report.finish_reason,
        probability=report.probability,
        policy_generation=due.policy.generation,
        request_digest=due.report_digest,
        handles=[due.source, handle_of(secret, caller.public, "answer", report.source_id)],  # in `list_sessions`' order
        prompt_tokens=report.prompt_tokens,
        completion_tokens=report.completion_tokens,
        cost_usd=report.cost_usd,
        duration_seconds=report.duration_seconds,
        first_token_seconds=report.first_token_seconds,
    )
    record.outcome = "ok" if report.status < 400 else "refused"
    if report.status >= 500:
        record.outcome = "failed"
    if report.session is not None:
        record.handles.append(handle_of(secret, caller.public, "session", report.session))
    if report.subject is not None:
        record.handles.append(handle_of(secret, caller.public, "subject", report.subject))
    if report.answer is not None:
        record.text_digest = digest(secret, normalize(report.answer))
    _judge(due, moment, record)
    return record


def _judge(due: Due, moment: Moment, record: Record) -> None:
    """Judge a report by the task's checks, all as if they only observed. Runs in a thread, since a score takes
    time."""
    version, terms = due.version, due.terms
    if version is None:
        return
    findings, scope = _before(due, version, moment)
    if terms is not None:
        report = due.report
        alternative = AnswerAlternative(
            report.answer or "", report.finish_reason, logprobs=tuple(report.logprobs or ())
        )
        judgement = judge_answer(ReceivedAnswer((alternative,)), replace(terms, scope=scope))
        findings += judgement.findings
        record.contract_kept = judgement.contract_kept
    record.findings = [make_finding_record(finding, version.name) for finding in findings]


def _before(due: Due, version: VersionView, moment: Moment) -> tuple[list[Finding], float | None]:
    """The findings of the checks before the answer, if the report has the text; and the text's scope score."""
    report, task, fitted = due.report, due.task, due.fitted
    if report.messages is None and report.prompt is None:
        return [], None
    checks = _observed(task)
    if report.messages is not None:
        selected = select_from_messages(task.selector, report.messages)
    else:
        selected = select_from_text(task.selector, report.prompt or "")
    scope = gain = None
    covering, gaining = fitted.scope_for(task.selector), fitted.gain_for(task.selector)
    if covering is not None and not checks.keys().isdisjoint(SCOPE_READERS):
        scope = covering.score(selected)
    if gaining is not None and "predicted_gain" in checks:
        gain = gaining.score(selected)
    scores = Scores(version.name, scope, gain)
    alias = due.policy.aliases.get(task.name) or Alias(task.name, 0, {version.name: 1.0})
    request = CheckedRequest(replace(task, checks=checks), alias, version, scores, due.policy, moment, report.session)
    return list(judge_request(request).findings), scope.score if scope is not None else None
