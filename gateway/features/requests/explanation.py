"""The explanation of a request's route in words. Operators and admins see scores; the request's caller does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from monitoring.records import REPORTED, FindingRecord, Record
from router.checks import AFTER_THE_ANSWER, CHECK_BY_NAME
from router.choice import NO_INDEX
from router.routing_data import REASONS

OTHER_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "override": "an admin's rule decided",
        "pinned": "the caller asked for it by name",
        "other_language": "the input is in a language that is not among the training prompts'",
        "adapter": "it is the task's version",
        "canary": "the task's alias gives this version a share",
        "no_replica": "no replica of the version could take it",
        "overload": "every replica of the version was full or said that it was",
        "timeout": "the version's engine was silent for too long",
        "engine_error": "the version's engine failed",
        "context_length": "the prompt was too long for the version's engine",
    }
)
REASON_WORDS: Mapping[str, str] = MappingProxyType(
    {reason: CHECK_BY_NAME[reason].reason if reason in CHECK_BY_NAME else OTHER_REASONS[reason] for reason in REASONS}
)
"""The words for each reason; docs/reference/reasons.md has them."""
NO_TASK = "the input is in the scope of no task that the key may use"
DID: Mapping[str, str] = MappingProxyType({"ok": "answered it", "truncated": "began to answer it"})
"""The words for the last attempt, by its outcome."""


def explain(record: Record, in_full: bool = False) -> list[str]:
    """One sentence for each step: the checks, the route with its reason, earlier failures, and the outcome.

    `in_full`, for operators and admins: with scores, thresholds, neighbours and what admins' rules would have done.
    """
    sentences = list(describe_findings(record.findings, in_full))
    if record.fallback_capped:
        sentences.append("The task had sent as much to its fallback as it may: that fallback was closed to it.")
    if record.purpose == REPORTED:
        sentences.append("Another gateway served it, and reported it: what checks say here changed nothing.")
    elif record.pool is None:
        why = describe_reason(record.reason, record.task, record.findings)
        ended = record.error_code or "the caller went away"
        sentences.append(f"It was not sent to any engine: {ended}{f' ({why})' if why else ''}.")
    else:
        answerer = record.version or f"the base model of the pool {record.pool}"
        why = describe_reason(record.reason, record.task, record.findings) or "unknown"
        did = DID.get(record.outcome, "was to answer it")
        sentences.append(f"{answerer} {did} on {record.replica}: {why} ({record.reason}).")
    if record.probability < 1:
        sentences.append(f"Chance decided where it went: this had the probability {record.probability:.4g}.")
    if record.general_prompt:
        sentences.append(
            "The version's general prompt was added, since a general model does not know the task by itself."
        )
    sentences += [
        f"Attempt {number} at {attempt.replica} ({attempt.version or 'base'}): "
        f"{attempt.fault or 'answered'} after {attempt.seconds:.3f} s."
        for number, attempt in enumerate(record.attempts, 1)
    ]
    if record.continued:
        sentences.append("The next engine continued the answer that the failed one had begun.")
    if record.skipped_events:
        sentences.append(
            f"{record.skipped_events} events of the stream could not be read: a part of the answer may be missing."
        )
    error = f" ({record.error_code})" if record.error_code else ""
    sentences.append(f"It ended as {record.outcome} with status {record.status}{error}.")
    return sentences


def describe_reason(reason: str | None, task: str | None, findings: Iterable[FindingRecord]) -> str:
    """The reason of a request of this task (None: no task) in words; empty without a reason."""
    if reason == "out_of_scope" and task is None:
        return NO_INDEX if any(finding.note == NO_INDEX for finding in findings) else NO_TASK
    return REASON_WORDS.get(reason or "", "")


def describe_findings(findings: list[FindingRecord], in_full: bool) -> Iterator[str]:
    """A sentence for each check that was done."""
    for finding in findings:
        if finding.check in CHECK_BY_NAME:
            yield f"{finding.check}: {_words(finding)}{_whose(finding)}{_figures(finding) if in_full else ''}."
        elif in_full:
            yield f"{_rule_words(finding)}: {finding.note}."


def redact_record(record: Record) -> Record:
    """The record for its caller: checks without scores, thresholds, neighbours and notes."""
    return msgspec.structs.replace(record, findings=list(map(redact_finding, select_findings(record.findings))))


def select_findings(findings: list[FindingRecord]) -> Iterator[FindingRecord]:
    """The findings of checks, without those of admins' rules, which only admins see."""
    return (finding for finding in findings if finding.check in CHECK_BY_NAME)


def redact_finding(finding: FindingRecord) -> FindingRecord:
    """The parts of a finding that a caller may see."""
    return FindingRecord(check=finding.check, mode=finding.mode, fired=finding.fired, version=finding.version)


def describe_finding(finding: FindingRecord, in_full: bool) -> dict[str, Any]:
    """A finding for `POST /v1/route`: its verdict in words and, `in_full`, its figures."""
    fields: dict[str, Any] = {
        "check": finding.check,
        "mode": finding.mode,
        "fired": finding.fired,
        "words": _words(finding),
        "version": finding.version,
    }
    names = ("score", "threshold", "neighbours", "note") if in_full else ()
    return fields | {name: getattr(finding, name) for name in names}


def _whose(finding: FindingRecord) -> str:
    """The arm whose answer a finding is about: a version, or the fallback's base model."""
    if finding.check not in AFTER_THE_ANSWER:
        return ""
    return f" ({finding.version}'s answer)" if finding.version else " (the fallback's answer)"


def _rule_words(finding: FindingRecord) -> str:
    added = finding.mode == "enforce"
    return "An admin's rule added its message" if added else "A rule that is only observed would have decided"


def _words(finding: FindingRecord) -> str:
    check = CHECK_BY_NAME.get(finding.check)
    if check is None:
        words = _rule_words(finding)
        return words[0].lower() + words[1:]
    if finding.fired:
        return check.fired + (" (only observed: it changed nothing)" if finding.mode == "observe" else "")
    return check.unjudged if check.could_not_judge(finding.threshold, finding.note) else check.kept


def _figures(finding: FindingRecord) -> str:
    numbers = (("score", finding.score), ("threshold", finding.threshold))
    figures = [f"{name} {value:.4g}" for name, value in numbers if value is not None]
    if finding.neighbours:
        figures.append(f"nearest {', '.join(finding.neighbours)}")
    if finding.note:
        figures.append(finding.note)
    return f" [{'; '.join(figures)}]" if figures else ""
