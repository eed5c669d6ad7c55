"""The table of checks: each row decides whether a request stays at its adapter, or whether an answer is sent. Pure.

Everything else that lists checks reads this table. Some checks use the models in `scope_model.py`, `gain_model.py` and
`confidence_model.py`. The checks before an answer run in order until an enforced one fires. Scope comes before the
predicted gain, because the gain model knows nothing of topics without labels. The holdout between them is drawn from
all requests in scope. The checks after an answer run before its commit; `router/attempts.py` decides what follows.

To add a check, add its name to `router/findings.py`, its row and its judge here, and its section to
`gateway/configuration/tasks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from router.answers import AnswerAlternative, Offered, ReceivedAnswer, Terms
from router.contract import Contract
from router.findings import CheckName, CheckPolicy, Finding
from router.fitted import OTHER_SELECTOR, ModelKind
from router.gain_budget import get_threshold, is_fitted_elsewhere
from router.policy import AUTO, AUTO_SELECTOR, UNWATCHED, Alias, Policy, TaskPolicy
from router.refusals import is_refusal
from router.routing_data import Moment, Scores
from router.version_choice import place_for_arm
from serving.fleet_view import VersionView

if TYPE_CHECKING:
    from router.gain_model import GainModel

Need = Literal["scope", "whole_answer"]
"""Input of a check besides its own model: the request's scope score, or the whole answer."""
StandsIn = Literal["never", "if_closed", "if_full"]
"""Cases in which the adapter answers after all: never; if all fallbacks are closed or absent; or also if full."""

NO_CONTRACT, NOT_WHOLE, A_CALL, NO_ANSWER = "no contract", "not whole", "a tool call", "no answer"


class CheckedRequest(NamedTuple):
    """A request for `version`, with all that its checks read."""

    task: TaskPolicy
    alias: Alias
    version: VersionView
    scores: Scores
    policy: Policy
    moment: Moment
    session: str | None


class ContractResult(NamedTuple):
    """`kept`: the answer keeps its contract (None: not known). `note` says how the answer breaks it, or why `kept` is
    not known."""

    note: str
    kept: bool | None


RequestJudge: TypeAlias = Callable[[CheckPolicy, CheckedRequest], tuple[Finding, float | None]]
"""Returns the finding, and the probability of the draw behind it (None: nothing was drawn)."""
AnswerJudge: TypeAlias = Callable[[CheckPolicy, ReceivedAnswer, Terms, Offered | None, ContractResult], Finding]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check.

    `share` is the key of its number in `tasks.TASK.checks` (None: it has none). `model` is the fitted model whose score
    is compared with a threshold. `reason` says why a request went to the fallback; `fired`, `kept` and `unjudged` are
    its results in words. A note in `notes_unjudged` means that it could not judge. A note in `notes_lacking` means that
    it never can until an operator acts. `is_random`: it measures, and says nothing against the adapter.
    `judges_fallbacks`: a fallback's answer must pass it too.
    """

    name: CheckName
    reason: str
    fired: str
    kept: str
    unjudged: str = "nothing is known of it yet"
    share: str | None = None
    model: ModelKind | None = None
    needs: frozenset[Need] = frozenset()
    notes_unjudged: frozenset[str] = frozenset()
    notes_lacking: frozenset[str] = frozenset()
    stands_in: StandsIn = "never"
    is_random: bool = False
    judges_fallbacks: bool = False

    @property
    def reads_text(self) -> bool:
        """True if a fitted model has to read the request's text."""
        return self.model in ("scope", "gain") or "scope" in self.needs

    def could_not_judge(self, threshold: float | None, note: str) -> bool:
        """True if, by its threshold and note, a finding that did not fire only means that the check could not judge."""
        return note in self.notes_unjudged if self.model is None else threshold is None

    def lacks_basis(self, threshold: float | None, note: str) -> bool:
        """True if a finding that did not fire lacks a model or a contract, which an operator has to provide."""
        return note in self.notes_lacking if self.model is None else threshold is None


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCheck(Check):
    """A check between a request and its adapter."""

    judge: RequestJudge


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCheck(Check):
    """A check between an answer and its caller."""

    judge: AnswerJudge


# ---- judges of requests -------------------------------------------------------------------------


def _judge_degraded(used: CheckPolicy, request: CheckedRequest) -> tuple[Finding, float | None]:
    name = request.version.name
    shift = request.policy.shifts.get(name)
    if shift is None:
        return Finding("degraded", used.mode, fired=False, version=name), None
    share = max(used.share, shift.kept)
    explored = place_for_arm(request.session, request.alias.salt, request.moment.draw, "explored") < share
    note = "kept by the exploration share" if explored else ""
    finding = Finding("degraded", used.mode, not explored, None, share, (), note, name)
    return finding, share if explored else 1.0 - share


def _judge_scope(used: CheckPolicy, request: CheckedRequest) -> tuple[Finding, None]:
    name, policy = request.version.name, request.policy
    fitted = policy.fitted.get(name)
    score = request.scores.scope if request.scores.version == name else None
    if fitted is None or fitted.scope is None or score is None:
        note = _why_unread(None if fitted is None else fitted.scope_selector, request.task, "no scope model")
        return Finding("out_of_scope", used.mode, fired=False, note=note, version=name), None
    widened = policy.watched.get(request.task.name, UNWATCHED).deferral_factor
    threshold = fitted.scope.threshold(min(1.0, used.share * widened))
    near = tuple(neighbour.id for neighbour in score.neighbours)
    if threshold == -math.inf:
        note = "too few training prompts for so small a share"
        return Finding("out_of_scope", used.mode, False, score.score, None, near, note, name), None
    if score.score >= threshold or not score.language:
        fired = score.score < threshold
        return Finding("out_of_scope", used.mode, fired, score.score, threshold, near, "", name), None
    note = f"it is in another language: {score.language}"
    return Finding("out_of_scope", used.mode, True, score.score, threshold, near, note, name, "other_language"), None


def _judge_holdout(used: CheckPolicy, request: CheckedRequest) -> tuple[Finding, float]:
    point = place_for_arm(request.session, request.alias.salt, request.moment.draw, "holdout")
    held_out = point < used.share
    finding = Finding("holdout", used.mode, held_out, None, used.share, version=request.version.name)
    return finding, used.share if held_out else 1.0 - used.share


def _judge_gain(used: CheckPolicy, request: CheckedRequest) -> tuple[Finding, None]:
    name = request.version.name
    fitted = request.policy.fitted.get(name)
    gain = request.scores.gain if request.scores.version == name else None
    if fitted is None or fitted.gain is None or gain is None:
        note = _why_unread(None if fitted is None else fitted.gain_selector, request.task, "no model of the gain")
        return Finding("predicted_gain", used.mode, fired=False, note=note, version=name), None
    if not fitted.gain.shown_to_help:
        return Finding("predicted_gain", used.mode, False, gain, note="not shown to help", version=name), None
    budget = request.moment.gain_budgets.get(name)
    least = get_least_gain(fitted.gain, used.share)
    threshold = get_threshold(budget, least)
    if is_fitted_elsewhere(budget, least, used.share):
        return Finding("predicted_gain", used.mode, False, gain, note="fitted on other traffic", version=name), None
    return Finding("predicted_gain", used.mode, gain > threshold, gain, threshold, version=name), None


def get_least_gain(model: GainModel, share: float) -> float:
    """The gain above which requests go to general, at least 0: of requests like the fitting's, this share goes."""
    return max(0.0, model.threshold(share))


def _why_unread(selector: str | None, task: TaskPolicy, otherwise: str) -> str:
    """The reason why no model scored the text. `selector` is the model's selector (None: there is no model)."""
    return otherwise if selector in (None, task.selector) else OTHER_SELECTOR


# ---- judges of answers --------------------------------------------------------------------------


def judge_contract(answer: ReceivedAnswer, contract: Contract | None) -> ContractResult:
    """Compare the texts of an answer with the contract."""
    if contract is None:
        return ContractResult(NO_CONTRACT, None)
    if not answer.whole:
        return ContractResult(NOT_WHOLE, None)
    texts = [alternative for alternative in answer.alternatives if not alternative.calls]
    if not texts:
        return ContractResult(A_CALL if answer.alternatives else NO_ANSWER, None)
    for alternative in texts:
        broken = contract.broken_by(alternative.text, alternative.finish_reason == "length")
        if broken is not None:
            return ContractResult(broken, False)
    return ContractResult("", True)


def _judge_contract(
    used: CheckPolicy, answer: ReceivedAnswer, terms: Terms, offered: Offered | None, contract: ContractResult
) -> Finding:
    return Finding("contract", used.mode, contract.kept is False, note=contract.note)


def _judge_confidence(
    used: CheckPolicy, answer: ReceivedAnswer, terms: Terms, offered: Offered | None, contract: ContractResult
) -> Finding:
    model = terms.confidence
    unknown = ""
    if model is None:
        unknown = terms.unjudged
    elif answer.mixed:
        unknown = "another engine went on with it"
    elif not terms.logprobs_asked:
        unknown = "logprobs could not be asked for"
    elif not answer.whole and (model.tokens is None or answer.tokens < model.tokens):
        unknown = "calibrated for another prefix"
    if model is None or unknown:
        return Finding("low_confidence", used.mode, fired=False, note=unknown)
    if terms.scope is None and model.weighs_scope:  # any value in its place would void the certificate
        return Finding("low_confidence", used.mode, True, 0.0, terms.threshold, note="scope is not known")
    scores = (model.score(alternative.logprobs, terms.scope, contract.kept) for alternative in answer.alternatives)
    score = min(scores, default=0.0)
    if terms.threshold is None:
        return Finding("low_confidence", used.mode, True, score, note="no threshold can be certified")
    complete = answer.alternatives and all(alternative.logprobs for alternative in answer.alternatives)
    note = "" if complete else "no logprobs came"
    return Finding("low_confidence", used.mode, score < terms.threshold, score, terms.threshold, note=note)


def _judge_refusal(
    used: CheckPolicy, answer: ReceivedAnswer, terms: Terms, offered: Offered | None, contract: ContractResult
) -> Finding:
    note = _find_refusal(answer, offered, contract.kept)
    return Finding("refusal", used.mode, bool(note), note=note)


def _find_refusal(answer: ReceivedAnswer, offered: Offered | None, contract_kept: bool | None) -> str:
    """A few words that say why the answer is a refusal, without quoting it; empty if it is not a refusal."""
    for alternative in answer.alternatives:
        if alternative.refusal:
            return "it has a refusal"
        if alternative.finish_reason == "content_filter":
            return "a content filter ended it"
        if not alternative.calls and contract_kept is not True:
            if not alternative.text.strip():
                return "it is empty"
            if is_refusal(alternative.text):
                return "it begins as refusals do"
        wrong = _find_wrong_call(alternative, offered) if offered is not None else ""
        if wrong:
            return wrong
    return "" if answer.alternatives else "it is empty"


def _find_wrong_call(alternative: AnswerAlternative, offered: Offered) -> str:
    if alternative.calls and not offered.may_call:
        return "it calls a tool, and none was allowed"
    if not alternative.calls:
        return "it calls no tool, and one was required" if offered.must_call else ""
    for call in alternative.calls:
        if call.name not in offered.tools:
            return "it calls a tool that was not offered"
        if offered.must_call_tool is not None and call.name != offered.must_call_tool:
            return "it calls another tool than was required"
        arguments = offered.tools[call.name]
        if arguments is not None and call.arguments is not None and not arguments.fit(call.arguments):
            return "its arguments do not fit the tool's parameters"
    return ""


# ---- the table ----------------------------------------------------------------------------------

REQUEST_CHECKS: tuple[RequestCheck, ...] = (
    RequestCheck(
        name="degraded",
        judge=_judge_degraded,
        share="explored_share",
        reason="the version is degraded, or its requests come back to it in steps",
        fired="the version is degraded, or its requests come back to it in steps",
        kept="the version may answer",
    ),
    RequestCheck(
        name="out_of_scope",
        judge=_judge_scope,
        share="deferred_share",
        model="scope",
        stands_in="if_closed",
        reason="the input is unlike what the version was trained on",
        fired="the input is unlike what the version was trained on",
        kept="the input is like what the version was trained on",
    ),
    RequestCheck(
        name="holdout",
        judge=_judge_holdout,
        share="share",
        stands_in="if_full",
        is_random=True,
        reason="a random share goes there so that both arms stay measurable",
        fired="it fell into the random share",
        kept="it did not fall into the random share",
    ),
    RequestCheck(
        name="predicted_gain",
        judge=_judge_gain,
        share="general_share_max",
        model="gain",
        stands_in="if_full",
        reason="the other arm is expected to do better",
        fired="general is expected to do better",
        kept="general is not expected to do better",
    ),
)
ANSWER_CHECKS: tuple[AnswerCheck, ...] = (
    AnswerCheck(
        name="contract",
        judge=_judge_contract,
        needs=frozenset({"whole_answer"}),
        notes_unjudged=frozenset({NO_CONTRACT, NOT_WHOLE, A_CALL, NO_ANSWER}),
        notes_lacking=frozenset({NO_CONTRACT}),
        judges_fallbacks=True,
        reason="the version's answer broke the task's contract",
        fired="the answer broke the contract",
        kept="the answer kept the contract",
        unjudged="there is no contract, or no text to hold to it",
    ),
    AnswerCheck(
        name="low_confidence",
        judge=_judge_confidence,
        share="wrong_share_max",
        model="confidence",
        needs=frozenset({"scope"}),
        reason="the version's answer was not sure enough",
        fired="the answer was not sure enough",
        kept="the answer was sure enough",
    ),
    AnswerCheck(
        name="refusal",
        judge=_judge_refusal,
        needs=frozenset({"whole_answer"}),
        reason="the version's answer was a refusal or empty",
        fired="the answer was a refusal, empty or not usable",
        kept="the answer was an answer",
    ),
)
REQUEST_JUDGES = tuple((check.name, check.judge) for check in REQUEST_CHECKS)
CHECKS: tuple[Check, ...] = (*REQUEST_CHECKS, *ANSWER_CHECKS)
CHECK_BY_NAME: Mapping[str, Check] = MappingProxyType({check.name: check for check in CHECKS})


def list_names(wanted: Callable[[Check], bool]) -> frozenset[CheckName]:
    """The names of the checks for which `wanted` returns True."""
    return frozenset(check.name for check in CHECKS if wanted(check))


AFTER_THE_ANSWER = list_names(lambda check: isinstance(check, AnswerCheck))
READERS = list_names(lambda check: check.reads_text)
"""Checks for which a fitted model has to read the request's text."""
SCOPE_READERS = list_names(lambda check: check.model == "scope" or "scope" in check.needs)
"""Checks that need the scope score: to judge by it, or as a feature of the confidence."""
ABOUT_THE_REQUEST = list_names(lambda check: check.reads_text or isinstance(check, AnswerCheck))
"""Checks whose result depends on the request or its answer. Others depend on chance or on the present verdict."""


def get_selector(policy: Policy, model: str) -> str | None:
    """The selector of the text that fitted models read of a request for `model`; None if no model reads any."""
    task = policy.tasks.get(model.partition("@")[0])
    if task is not None:
        return None if task.checks.keys().isdisjoint(READERS) else task.selector
    return AUTO_SELECTOR if policy.index is not None and model == AUTO else None
