"""The checks after the answer: what it says against `contract`, `low_confidence` and `refusal`, in that order. Pure.

Nothing here says what becomes of an answer that a check does not let through: `router/attempts.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from router.arguments import Parameters
from router.checks import AFTER_THE_ANSWER, CHECKS, Check, CheckName, Finding
from router.contract import Contract
from router.fitted import NO_CALIBRATION
from router.refusals import is_refusal

if TYPE_CHECKING:
    from router.confidence import ConfidenceModel

ORDER: tuple[CheckName, ...] = tuple(name for name in CHECKS if name in AFTER_THE_ANSWER)
NO_CONTRACT, NOT_WHOLE, A_CALL, NO_ANSWER = "no contract", "not whole", "a tool call", "no answer"
NOT_HELD = frozenset({NO_CONTRACT, NOT_WHOLE, A_CALL, NO_ANSWER})
"""Notes on answers that could not be held against a contract."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool in an answer; `arguments` are JSON as the engine wrote it, None for a tool that takes text."""

    name: str
    arguments: str | None


@dataclass(frozen=True, slots=True)
class Said:
    """One alternative of an answer: its text, how it ended, and the logprobs (nats) of its tokens as far as told."""

    text: str = ""
    finish_reason: str | None = None
    refusal: str = ""
    calls: tuple[ToolCall, ...] = ()
    logprobs: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Answered:
    """What there is of an answer: all of it, or (`whole` is False) its first tokens.

    `mixed`: a part of it is another model's, which went on with it. `tokens`: how many first tokens there are of every
    alternative that has not ended.
    """

    said: tuple[Said, ...]
    whole: bool = True
    mixed: bool = False
    tokens: float = 0


@dataclass(frozen=True, slots=True)
class Offered:
    """The tools that an answer may call, each with what its arguments must keep (None: nothing).

    `may_call` is False where the caller allows no call; `must_call` where it asks for one, `must_call_tool` for which.
    """

    tools: Mapping[str, Parameters | None] = field(default_factory=dict)
    may_call: bool = True
    must_call: bool = False
    must_call_tool: str | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What an answer is held against. `checks` are those after the answer that are not off.

    `threshold` is the confidence model's for the task, None where it can't certify one; `scope` the request's score;
    `logprobs_asked` whether the engine was asked for them, by us or by the caller. `unjudged`: why there is no
    confidence model.
    """

    checks: Mapping[CheckName, Check]
    contract: Contract | None = None
    confidence: ConfidenceModel | None = None
    threshold: float | None = None
    scope: float | None = None
    logprobs_asked: bool = False
    unjudged: str = NO_CALIBRATION

    @property
    def enforced(self) -> bool:
        """Whether what any check finds is acted on."""
        return any(check.mode == "enforce" for check in self.checks.values())

    def enforces(self, name: CheckName) -> bool:
        """Whether what this check finds is acted on."""
        check = self.checks.get(name)
        return check is not None and check.mode == "enforce"


class Accepted(NamedTuple):
    """What the checks found. `rejected_by` is the first enforced one that fired; `contract_kept` is None where there is
    no contract, or nothing that it could be held against."""

    findings: tuple[Finding, ...]
    rejected_by: CheckName | None
    contract_kept: bool | None


def accept(
    answered: Answered, terms: Terms, offered: Offered | None = None, left_out: frozenset[str] = frozenset()
) -> Accepted:
    """Hold an answer against its terms, but for the checks that are `left_out`. Total: whatever an engine said.

    Of an answer that is not whole, only its confidence can be judged. `offered` is None where tools are not looked at.
    """
    broken, kept = _contract(answered, terms.contract)
    findings: list[Finding] = []
    rejected: CheckName | None = None
    for name in ORDER:
        check = terms.checks.get(name)
        if check is None or name in left_out or not (answered.whole or name == "low_confidence"):
            continue
        if name == "contract":
            finding = Finding("contract", check.mode, kept is False, note=broken)
        elif name == "low_confidence":
            finding = _low_confidence(check, answered, terms, kept)
        else:
            what = _refused(answered, offered, kept)
            finding = Finding("refusal", check.mode, bool(what), note=what)
        findings.append(finding)
        if finding.fired and check.mode == "enforce":
            rejected = rejected or name
    return Accepted(tuple(findings), rejected, kept)


def _contract(answered: Answered, contract: Contract | None) -> tuple[str, bool | None]:
    """How the contract is broken, or why nothing can be said, and whether it is kept."""
    if contract is None:
        return NO_CONTRACT, None
    if not answered.whole:
        return NOT_WHOLE, None
    texts = [said for said in answered.said if not said.calls]
    if not texts:
        return A_CALL if answered.said else NO_ANSWER, None
    for said in texts:
        broken = contract.broken_by(said.text, said.finish_reason == "length")
        if broken is not None:
            return broken, False
    return "", True


def _low_confidence(check: Check, answered: Answered, terms: Terms, kept: bool | None) -> Finding:
    model = terms.confidence
    unknown = ""
    if model is None:
        unknown = terms.unjudged
    elif answered.mixed:
        unknown = "another engine went on with it"
    elif not terms.logprobs_asked:
        unknown = "logprobs could not be asked for"
    elif not answered.whole and (model.tokens is None or answered.tokens < model.tokens):
        unknown = "calibrated for another prefix"
    if model is None or unknown:
        return Finding("low_confidence", check.mode, fired=False, note=unknown)
    if terms.scope is None and model.weighs_scope:  # nothing that stands in for it keeps the promise
        return Finding("low_confidence", check.mode, True, 0.0, terms.threshold, note="scope is not known")
    score = min((model.score(said.logprobs, terms.scope, kept) for said in answered.said), default=0.0)
    if terms.threshold is None:
        return Finding("low_confidence", check.mode, True, score, note="no threshold can be certified")
    note = "" if answered.said and all(said.logprobs for said in answered.said) else "no logprobs came"
    return Finding("low_confidence", check.mode, score < terms.threshold, score, terms.threshold, note=note)


def _refused(answered: Answered, offered: Offered | None, kept: bool | None) -> str:
    """What makes it a refusal, in a few words that quote nothing of it; empty where it is none."""
    for said in answered.said:
        if said.refusal:
            return "it has a refusal"
        if said.finish_reason == "content_filter":
            return "a content filter ended it"
        if not said.calls and kept is not True:
            if not said.text.strip():
                return "it is empty"
            if is_refusal(said.text):
                return "it begins as refusals do"
        wrong = _wrong_call(said, offered) if offered is not None else ""
        if wrong:
            return wrong
    return "" if answered.said else "it is empty"


def _wrong_call(said: Said, offered: Offered) -> str:
    if said.calls and not offered.may_call:
        return "it calls a tool, and none was allowed"
    if not said.calls:
        return "it calls no tool, and one was required" if offered.must_call else ""
    for call in said.calls:
        if call.name not in offered.tools:
            return "it calls a tool that was not offered"
        if offered.must_call_tool is not None and call.name != offered.must_call_tool:
            return "it calls another tool than was required"
        arguments = offered.tools[call.name]
        if arguments is not None and call.arguments is not None and not arguments.fit(call.arguments):
            return "its arguments do not fit the tool's parameters"
    return ""
