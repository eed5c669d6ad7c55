"""The verdict on a canary: promote, roll back, hold or continue, from its outcomes and the active version's.

A plan sets the required certainty. Every outcome of either arm goes through `observe`, every judged shadow pair through
`observe_pair`. Any gateway may ask for the `verdict` at any time: it depends on the state alone, not on when or how
often somebody looked. No caller and no rater decides alone: the evidence is the least that remains when any one is left
out (`leave_one_out.py`). Pure functions over frozen data that go through JSON unchanged; docs/explanation/judging.md
has the guarantee and its limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from operator import sub
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from monitoring.ids import name_rater
from monitoring.quality.detectors import guards, leave_one_out, sequential
from monitoring.quality.detectors.guards import GROUPS
from monitoring.quality.detectors.leave_one_out import GiverRoll, LeaveOneOut
from monitoring.quality.detectors.sequential import Bets
from monitoring.quality.phrases import format_evidence

CanarySignal = Literal["error", "contract", "latency", "feedback", "shadow"]
CanaryArm = Literal["canary", "active"]
CanaryAction = Literal["promote", "roll_back", "hold", "continue"]

SIGNALS: tuple[CanarySignal, ...] = ("error", "contract", "latency", "feedback", "shadow")
SHADOW_SHARE = 0.5
# A small number: if an outage of both arms is paired with earlier values, an e-value of 1 rises to 7 at most.
WAITING_MAX = 4
SECONDS_MAX = 90 * 86_400
WORSE: Mapping[CanarySignal, str] = {
    "error": "errors are more than {points} points more frequent than with the active version",
    "contract": "broken contracts are more than {points} points more frequent than with the active version",
    "latency": "more than half of its answers take over {ratio:g} times as long as the active version's",
    "feedback": "feedback is more than {points} points worse than the active version's",
    "shadow": "on the same inputs it is wrong more than {points} points more often than the active version",
}


class CanaryPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan by which a canary is judged. Raises ValueError if a value is out of its bounds.

    alpha: probability, over the whole canary, of ever rolling back a good canary, and of ever promoting a bad one;
        above 0, at most 0.5.
    margin: the greatest difference of rates that counts as no worse (0.02 is 2 points), for errors, broken contracts,
        feedback and shadow pairs; 0 to 0.5. With 0 an equal canary is never shown to be no worse.
    latency_ratio_max: the largest multiple of the active version's latency that counts as no worse; 1 to 100.
    requests_min: canary requests before it may be promoted; 1 to 10,000,000.
    seconds_min: seconds before it may be promoted; 0 or more, at most seconds_max.
    seconds_max: seconds after which on_timeout applies; 1 second to 90 days.
    feedback_metric: name of the feedback metric whose worse labels roll it back; None if feedback does not count.
    feedback_required: whether it is promoted only once that feedback shows it to be no worse.
    on_timeout: the action if there is no verdict after seconds_max.
    shadow_harm_margin: the greatest difference of rates on the same inputs that does not roll it back; 0 to margin.
        0 finds harm soonest: any difference counts.
    shadow_required: whether it is promoted only once shadow pairs show it to be no worse than the margin.
    """

    alpha: float = 0.05
    margin: float = 0.02
    latency_ratio_max: float = 1.5
    requests_min: int = 200
    seconds_min: float = 0.0
    seconds_max: float = 86_400.0
    feedback_metric: str | None = None
    feedback_required: bool = True
    on_timeout: Literal["hold", "roll_back", "promote"] = "hold"
    shadow_harm_margin: float = 0.0
    shadow_required: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError if a value is out of its bounds."""
        _within("alpha", self.alpha, 1e-9, 0.5)
        _within("margin", self.margin, 0.0, 0.5)
        _within("latency_ratio_max", self.latency_ratio_max, 1.0, 100.0)
        _within("requests_min", self.requests_min, 1, 10_000_000)
        _within("seconds_max", self.seconds_max, 1.0, SECONDS_MAX)
        _within("seconds_min", self.seconds_min, 0.0, self.seconds_max)
        _within("shadow_harm_margin", self.shadow_harm_margin, 0.0, self.margin)
        if self.on_timeout not in {"hold", "roll_back", "promote"}:
            raise ValueError(f"on_timeout is {self.on_timeout!r}: write hold, roll_back or promote.")
        if self.feedback_metric == "":
            raise ValueError("feedback_metric is empty: name a metric, or leave it out.")


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one request of an arm. An unknown value is None; raises ValueError if a value can't be.

    error: whether it failed; a value counts as one request of the arm. Late feedback, and a request that its caller
        has ended, have none.
    contract_broken: whether the answer broke the task's contract; None without a contract or an answer.
    latency_seconds: seconds until the answer was complete, or its caller ended it; None for a request that failed.
    badness: the badness by feedback, 0 (good) to 1 (bad).
    caller: the sender of the request, or the giver of the feedback; `rater` is the caller's own name for that person.
    trusted: the feedback is by an operator, a reviewer or a trusted caller: it is never left out.
    """

    arm: CanaryArm
    error: bool | None = None
    contract_broken: bool | None = None
    latency_seconds: float | None = None
    badness: float | None = None
    caller: str = ""
    rater: str | None = None
    trusted: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError if a value is impossible."""
        if self.arm not in {"canary", "active"}:
            raise ValueError(f"arm is {self.arm!r}: write canary or active.")
        if self.latency_seconds is not None:
            _within("latency_seconds", self.latency_seconds, 0.0, 1e9)
        if self.badness is not None:
            _within("badness", self.badness, 0.0, 1.0)


class ShadowPair(msgspec.Struct, frozen=True, kw_only=True):
    """The judgement of both arms' answers to the same input. `callers` are those it rests on: the request's caller, and
    the givers of the right answer."""

    canary_wrong: bool
    active_wrong: bool
    callers: tuple[str, ...] = ()


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence of one signal: its two tests, and values of one arm that wait for a value of the other.

    `unpaired` counts values that were dropped because the other arm had too few.
    """

    harm: Bets
    no_worse: Bets
    canary: tuple[float, ...] = ()
    active: tuple[float, ...] = ()
    unpaired: int = 0


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """The counts of a canary so far, which its verdict rests on: keep them as JSON (msgspec), at most some 40 KB.

    `started_at` is the start of the canary (Unix seconds). `bounds` are the margin, latency_ratio_max and
    shadow_harm_margin of the plan that it was started with. `callers` use either arm, `raters` gave feedback. Each
    signal has its evidence over all, and without each group of callers; feedback also without each group of raters.
    """

    bounds: tuple[float, float, float]
    started_at: float = 0.0
    callers: GiverRoll
    raters: GiverRoll
    canary_requests: int = 0
    active_requests: int = 0
    error: LeaveOneOut[Evidence]
    contract: LeaveOneOut[Evidence]
    latency: LeaveOneOut[Evidence]
    feedback: LeaveOneOut[Evidence]
    shadow: LeaveOneOut[Evidence]


class CanaryVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The action, its reason in a sentence, and the evidence of every signal, ready for JSON."""

    action: CanaryAction
    because: str
    evidence: dict[str, Any]


def start(plan: CanaryPlan, started_at: float = 0.0, callers: GiverRoll | None = None) -> Tally:
    """The state before the first outcome. `callers` are those of the active version until then, so that the first
    caller of a canary is not alone."""
    callers = guards.start_roll("canary") if callers is None else leave_one_out.count_kind(callers, reported=False)
    rate = _evidence(plan.margin, plan.margin, GROUPS)
    return Tally(
        bounds=_bounds(plan),
        started_at=started_at,
        callers=callers,
        raters=guards.start_roll(callers.salt),
        error=rate,
        contract=rate,
        latency=_evidence(0.0, 0.0, GROUPS),
        feedback=_evidence(plan.margin, plan.margin, 2 * GROUPS),
        shadow=_evidence(plan.shadow_harm_margin, plan.margin, GROUPS),
    )


def is_of(state: Tally, plan: CanaryPlan) -> bool:
    """Return whether the state was started with the plan's bounds."""
    return state.bounds == _bounds(plan)


def observe(state: Tally, plan: CanaryPlan, outcome: Outcome, at: float = 0.0) -> Tally:
    """The state after an outcome that came at `at` (Unix seconds). Pass outcomes in the order of arrival.

    Raises ValueError if the plan's bounds moved.
    """
    _see_that_it_is_the_plan(state, plan)
    canary, ratio = outcome.arm == "canary", plan.latency_ratio_max
    if outcome.badness is not None:
        state = _with_feedback(state, canary, outcome, outcome.badness, at)
    if outcome.error is None and outcome.latency_seconds is None:
        return state
    callers = leave_one_out.add_request(state.callers, outcome.caller, at)
    own, believed = (leave_one_out.get_group(callers, outcome.caller),), set(leave_one_out.find_believed(callers))

    def paired(
        groups: LeaveOneOut[Evidence], value: float | None, compare: Callable[[float, float], float]
    ) -> LeaveOneOut[Evidence]:
        if value is None:
            return groups
        return _moved(groups, lambda evidence: _paired(evidence, canary, float(value), compare), own, believed)

    return replace(
        state,
        callers=callers,
        canary_requests=state.canary_requests + (canary and outcome.error is not None),
        active_requests=state.active_requests + (not canary and outcome.error is not None),
        error=paired(state.error, outcome.error, sub),
        contract=paired(state.contract, outcome.contract_broken, sub),
        latency=paired(state.latency, outcome.latency_seconds, lambda c, a: 1.0 if c > ratio * a else -1.0),
    )


def observe_pair(state: Tally, plan: CanaryPlan, pair: ShadowPair) -> Tally:
    """The state after a judged shadow pair. Raises ValueError if the plan's bounds moved."""
    _see_that_it_is_the_plan(state, plan)
    callers, difference = state.callers, float(pair.canary_wrong - pair.active_wrong)
    for caller in pair.callers:
        callers = leave_one_out.meet(callers, caller)
    own = {leave_one_out.get_group(callers, caller) for caller in pair.callers}
    believed = set(leave_one_out.find_believed(callers))
    shadow = _moved(state.shadow, lambda evidence: _seen(evidence, difference), own, believed)
    return replace(state, callers=callers, shadow=shadow)


def judge_canary(state: Tally, plan: CanaryPlan, seconds_running: float) -> CanaryVerdict:
    """The verdict after `seconds_running`. Raises ValueError if the plan's bounds moved.

    Harm that was ever shown rolls back, whatever came later. Promotion needs the present evidence.
    """
    _see_that_it_is_the_plan(state, plan)
    shares = split_alpha(plan)
    required = _required(state, plan)
    evidence = {
        "alpha": plan.alpha,
        "seconds_running": seconds_running,
        "canary_requests": state.canary_requests,
        "active_requests": state.active_requests,
        "signals": {name: _shown(name, state, plan, shares[name], name in required) for name in SIGNALS},
    }
    harmful = [name for name in SIGNALS if _harm_excess(state, plan, shares, name) >= 0]
    if harmful:
        worst = max(harmful, key=lambda name: _harm_excess(state, plan, shares, name))
        return CanaryVerdict(action="roll_back", because=_harm_words(worst, state, plan, shares), evidence=evidence)
    missing = _missing(state, plan, required, seconds_running)
    if not missing:
        because = f"After {state.canary_requests} requests it is shown to be no worse: {', '.join(required)}."
        return CanaryVerdict(action="promote", because=because, evidence=evidence)
    alone = [name for name in SIGNALS if _rests_on_one(state, plan, shares[name], name)]
    if alone:
        missing.append(f"one caller or rater alone shows it to be worse, which is not enough: {', '.join(alone)}")
    waits = "; ".join(missing)
    if seconds_running >= plan.seconds_max:
        because = f"No verdict after {plan.seconds_max:g} s ({waits}): the plan says {plan.on_timeout}."
        return CanaryVerdict(action=plan.on_timeout, because=because, evidence=evidence)
    return CanaryVerdict(action="continue", because=f"No harm is shown, and it waits: {waits}.", evidence=evidence)


def split_alpha(plan: CanaryPlan) -> dict[CanarySignal, float]:
    """The split of alpha over the signals that can roll back: half for shadow pairs, the other half in equal parts.

    Feedback has a part only if the plan names its metric; else its share is 0.
    """
    others: list[CanarySignal] = ["error", "contract", "latency"]
    if plan.feedback_metric is not None:
        others.append("feedback")
    part = (1 - SHADOW_SHARE) / len(others)
    return {name: SHADOW_SHARE if name == "shadow" else part if name in others else 0.0 for name in SIGNALS}


# ---- pairs ---------------------------------------------------------------------------------------


def _with_feedback(state: Tally, canary: bool, outcome: Outcome, badness: float, at: float) -> Tally:
    """The state after feedback, which rests on its caller and rater unless they are trusted."""
    own: tuple[int, ...] = ()
    callers, rater_roll = state.callers, state.raters
    if not outcome.trusted:
        name = name_rater(outcome.caller, outcome.rater)
        callers, rater_roll = (
            leave_one_out.add_label(callers, outcome.caller, at=at),
            leave_one_out.add_label(rater_roll, name, at=at),
        )
        own = (leave_one_out.get_group(callers, outcome.caller), GROUPS + leave_one_out.get_group(rater_roll, name))
    state = replace(state, callers=callers, raters=rater_roll)
    believed = _believed(state, "feedback")
    feedback = _moved(state.feedback, lambda evidence: _paired(evidence, canary, badness, sub), own, believed)
    return replace(state, feedback=feedback)


def _believed(state: Tally, name: CanarySignal) -> set[int]:
    """The groups that may not be left out of a signal's evidence."""
    groups = set(leave_one_out.find_believed(state.callers))
    if name == "feedback":
        groups |= {GROUPS + place for place in leave_one_out.find_believed(state.raters)}
    return groups


def _moved(
    groups: LeaveOneOut[Evidence], move: Callable[[Evidence], Evidence], own: Collection[int], believed: Collection[int]
) -> LeaveOneOut[Evidence]:
    """The evidence after something from these groups, with its evidence of harm: now, and the largest so far."""
    return leave_one_out.judge(leave_one_out.move(groups, move, own), _log_e_of_harm, believed)


def _paired(evidence: Evidence, canary: bool, value: float, compare: Callable[[float, float], float]) -> Evidence:
    """Pair a value with the other arm's oldest waiting one, or let it wait. Of too many the oldest is dropped."""
    other = evidence.active if canary else evidence.canary
    if other:
        difference = compare(value, other[0]) if canary else compare(other[0], value)
        return Evidence(
            harm=sequential.observe(evidence.harm, difference),
            no_worse=sequential.observe(evidence.no_worse, difference),
            canary=evidence.canary if canary else evidence.canary[1:],
            active=evidence.active[1:] if canary else evidence.active,
            unpaired=evidence.unpaired,
        )
    waiting = (*(evidence.canary if canary else evidence.active), value)
    dropped = len(waiting) > WAITING_MAX
    return Evidence(
        harm=evidence.harm,
        no_worse=evidence.no_worse,
        canary=waiting[dropped:] if canary else (),
        active=() if canary else waiting[dropped:],
        unpaired=evidence.unpaired + dropped,
    )


def _seen(evidence: Evidence, difference: float) -> Evidence:
    harm, no_worse = [sequential.observe(test, difference) for test in (evidence.harm, evidence.no_worse)]
    return replace(evidence, harm=harm, no_worse=no_worse)


def _evidence(harm_margin: float, margin: float, groups: int) -> LeaveOneOut[Evidence]:
    whole = Evidence(harm=sequential.start("above", harm_margin), no_worse=sequential.start("below", margin))
    return leave_one_out.start(whole, groups)


# ---- evidence, shown and missing ------------------------------------------------------------------


def _required(state: Tally, plan: CanaryPlan) -> list[CanarySignal]:
    """The signals that must show "no worse" before a promotion."""
    contract = state.contract.whole
    required: Mapping[CanarySignal, bool] = {
        "error": True,
        "contract": bool(contract.harm.observed or contract.canary or contract.active),
        "latency": True,
        "feedback": plan.feedback_metric is not None and plan.feedback_required,
        "shadow": plan.shadow_required,
    }
    return [name for name in SIGNALS if required[name]]


def _missing(state: Tally, plan: CanaryPlan, required: list[CanarySignal], seconds_running: float) -> list[str]:
    reasons = []
    if state.canary_requests < plan.requests_min:
        reasons.append(f"{state.canary_requests} of {plan.requests_min} canary requests were seen")
    if seconds_running < plan.seconds_min:
        reasons.append(f"{seconds_running:.0f} of {plan.seconds_min:g} s have passed")
    open_signals = [name for name in required if _log_e_of_no_worse(state, name) < -math.log(plan.alpha)]
    if open_signals:
        reasons.append(f"not yet shown to be no worse: {', '.join(open_signals)}")
    return reasons


def _of(state: Tally, name: CanarySignal) -> LeaveOneOut[Evidence]:
    evidence: LeaveOneOut[Evidence] = getattr(state, name)
    return evidence


def _log_e_of_harm(evidence: Evidence) -> float:
    return sequential.log_e(evidence.harm)


def _log_e_of_no_worse(state: Tally, name: CanarySignal) -> float:
    """The present evidence that it is no worse: the least, whoever is left out."""
    return leave_one_out.find_least(
        _of(state, name), lambda evidence: sequential.log_e(evidence.no_worse), _believed(state, name)
    )


def _harm_excess(state: Tally, plan: CanaryPlan, shares: Mapping[CanarySignal, float], name: CanarySignal) -> float:
    """The log of the largest evidence of harm as a multiple of its threshold; negative if it never reached it."""
    share = shares[name]
    return _of(state, name).log_max + math.log(share * plan.alpha) if share else -math.inf


def _rests_on_one(state: Tally, plan: CanaryPlan, share: float, name: CanarySignal) -> bool:
    """Return whether all evidence shows harm, but not without one caller or rater alone: somebody should look."""
    if not share:
        return False
    enough, believed = -math.log(share * plan.alpha), _believed(state, name)
    return bool(leave_one_out.rests_on(_of(state, name), _log_e_of_harm, enough, believed, GROUPS))


def _harm_words(name: CanarySignal, state: Tally, plan: CanaryPlan, shares: Mapping[CanarySignal, float]) -> str:
    harm = _of(state, name).whole.harm
    fault = WORSE[name].format(points=f"{100 * harm.margin:g}", ratio=plan.latency_ratio_max)
    if name == "latency":
        amount = f"{100 * _share_slower(harm):.0f} % of {harm.observed} pairs"
    else:
        amount = f"{100 * (sequential.find_mean(harm) or 0.0):+.1f} points in {harm.observed} pairs"
    e_value, threshold = (
        format_evidence(sequential.round_e_value(value))
        for value in (_of(state, name).log_max, -math.log(shares[name] * plan.alpha))
    )
    return f"It is shown that {fault} ({amount}; e-value {e_value}, threshold {threshold})."


def _shown(name: CanarySignal, state: Tally, plan: CanaryPlan, share: float, required: bool) -> dict[str, Any]:
    """One signal's evidence for JSON. A threshold of None: the signal can't roll back under this plan."""
    guarded = _of(state, name)
    evidence, no_worse = guarded.whole, _log_e_of_no_worse(state, name)
    threshold = -math.log(share * plan.alpha) if share else None
    described: dict[str, Any] = {
        "pairs": evidence.harm.observed,
        "unpaired": evidence.unpaired,
        "waiting": len(evidence.canary) + len(evidence.active),
        "mean_difference": sequential.find_mean(evidence.harm),
        "required": required,
        "harm": {
            "margin": evidence.harm.margin,
            "e_value": sequential.round_e_value(
                leave_one_out.find_least(guarded, _log_e_of_harm, _believed(state, name))
            ),
            "e_value_max": sequential.round_e_value(max(0.0, guarded.log_max)),
            "threshold": None if threshold is None else sequential.round_e_value(threshold),
            "shown": threshold is not None and guarded.log_max >= threshold,
            "rests_on_one": _rests_on_one(state, plan, share, name),
        },
        "no_worse": {
            "margin": evidence.no_worse.margin,
            "e_value": sequential.round_e_value(no_worse),
            "threshold": sequential.round_e_value(-math.log(plan.alpha)),
            "shown": no_worse >= -math.log(plan.alpha),
        },
    }
    if name == "latency":
        described["share_slower"] = _share_slower(evidence.harm) if evidence.harm.observed else None
        described["ratio"] = plan.latency_ratio_max
    return described


def _share_slower(bets: Bets) -> float:
    return (1 + (sequential.find_mean(bets) or 0.0)) / 2


# ---- bounds --------------------------------------------------------------------------------------


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}: it must lie within {low:g} and {high:g}.")


def _bounds(plan: CanaryPlan) -> tuple[float, float, float]:
    return (float(plan.margin), float(plan.latency_ratio_max), float(plan.shadow_harm_margin))


def _see_that_it_is_the_plan(state: Tally, plan: CanaryPlan) -> None:
    if not is_of(state, plan):
        raise ValueError("The plan's margins or latency ratio moved: start the canary's judgement afresh.")
