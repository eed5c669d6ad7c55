"""The rules of readiness, each with its evidence, and the answer: fine-tune, not yet, never or retire. Pure.

An unknown fact is reported as unknown: it is evidence neither for tuning nor against it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import msgspec

from monitoring.readiness.break_even import BreakEven, Costs, find_break_even
from monitoring.readiness.evidence import CurvePoint, Facts, Interval, LiveVersion, Traffic

State = Literal["for", "against", "never", "unknown"]
AnswerName = Literal["fine_tune", "not_yet", "never", "retire"]
GAIN_MAX = 0.02
"""If twice the rows would add more than this, more rows are the cheapest improvement."""
GROUPS_MIN = 50
UNSEEN_MAX = 0.02
THIN_SHARE_MAX = 0.05
AGREEMENT_MIN = 0.667
"""Krippendorff's own bound for tentative conclusions."""
AGREED_ITEMS_MIN = 20
DROP_MAX = 0.02
QUESTIONS: Mapping[str, str] = MappingProxyType(
    {
        "examples": "Are there enough examples?",
        "cases": "Do the examples cover the range of cases?",
        "agreement": "Do people agree on the answers?",
        "stability": "Does the job stay the same over time?",
        "breadth": "Is the job narrow?",
        "prompting": "Does a prompt reach as much?",
        "volume": "Are there enough requests to pay for it?",
        "flexibility": "What does a change of the rules cost?",
    }
)
"""The rules by name."""


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One rule: the question, its state for or against fine-tuning, the evidence, and the next step, if any."""

    name: str
    question: str
    state: State
    evidence: str
    next: str = ""


class RuleEvidence(NamedTuple):
    """The evidence of one rule: its state, the words, and the next step, if any."""

    state: State
    text: str
    next: str = ""


class Prompted(msgspec.Struct, frozen=True, kw_only=True):
    """The accuracy of a prompt without tuning, measured by an evaluation: its best prompted arm. `tuned` is that of the
    `version` on the same rows, if it was asked."""

    evaluation: str
    arm: str
    right: Interval
    version: str
    tuned: Interval | None = None


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a task beside its examples: its traffic, its leading version, and the agreement of people who judged
    its answers without seeing each other's."""

    task: str
    traffic: Traffic | None = None
    version: LiveVersion | None = None
    reviewed: Interval | None = None


class ReadinessReport(msgspec.Struct, frozen=True, kw_only=True):
    """The answer with its reason, the rules in their order, and the facts and costs behind them."""

    answer: AnswerName
    because: str
    rules: tuple[Rule, ...]
    facts: Facts
    costs: Costs
    break_even: BreakEven
    live: Live | None = None


def answer_readiness(
    facts: Facts, costs: Costs, goal: float | None = None, prompted: Prompted | None = None, live: Live | None = None
) -> ReadinessReport:
    """The answer for these rows and costs. `goal` is the share of right answers that the task needs."""
    break_even = find_break_even(costs)
    evidence = {
        "examples": _tell_unread(facts, _examples(facts, goal)),
        "cases": _cases(facts),
        "agreement": _agreement(facts, live),
        "stability": _stability(facts, live),
        "breadth": _breadth(facts),
        "prompting": _prompting(facts, prompted),
        "volume": _volume(costs, break_even, live),
        "flexibility": _flexibility(costs, break_even),
    }
    rules = tuple(
        Rule(name=name, question=QUESTIONS[name], state=said.state, evidence=said.text, next=said.next)
        for name, said in evidence.items()
    )
    answer, because = _retirement(evidence, prompted, live) or _answer(rules)
    return ReadinessReport(
        answer=answer, because=because, rules=rules, facts=facts, costs=costs, break_even=break_even, live=live
    )


def _retirement(
    evidence: Mapping[str, RuleEvidence], prompted: Prompted | None, live: Live | None
) -> tuple[AnswerName, str] | None:
    """The answer to retire the leading version, with the reason; None if it may stay, or none leads."""
    if live is None or live.version is None or live.traffic is None:
        return None
    volume, prompting = evidence["volume"], evidence["prompting"]
    if volume.state in ("against", "never"):
        return "retire", f"{live.version.name} costs more than it saves. {volume.text}"
    is_measured = prompted is not None and prompted.tuned is not None and prompted.version == live.version.name
    if is_measured and prompting.state == "against" and volume.state != "for":
        return "retire", f"A prompt does as well as {live.version.name}. {prompting.text}"
    return None


def _answer(rules: Sequence[Rule]) -> tuple[AnswerName, str]:
    never = [rule for rule in rules if rule.state == "never"]
    if never:
        return "never", " ".join(rule.evidence for rule in never)
    against = [rule for rule in rules if rule.state == "against"]
    if against:
        return "not_yet", " ".join(rule.next or rule.evidence for rule in against)
    lacking = [rule for rule in rules if rule.name in ("examples", "prompting", "volume") and rule.state == "unknown"]
    if lacking:
        return "not_yet", "Not enough is known. " + " ".join(rule.next for rule in lacking)
    return "fine_tune", "No rule speaks against it, and examples, prompting and volume speak for it."


def _tell_unread(facts: Facts, examples: RuleEvidence) -> RuleEvidence:
    if not facts.unread:
        return examples
    more = f"{facts.unread:,} more rows of the data set were not read: the limits are in `evaluation`."
    return examples._replace(text=f"{examples.text} {more}")


def _examples(facts: Facts, goal: float | None) -> RuleEvidence:
    if facts.rows == 0:
        return RuleEvidence("unknown", f"Unknown: {facts.no_curve}.", "Give a file of examples.")
    if facts.groups < GROUPS_MIN:
        more = f"Collect {GROUPS_MIN - facts.groups} more rows, at least."
        text = f"{facts.rows:,} rows say as much as {facts.groups}: those of a session or group, and equal ones, count"
        return RuleEvidence("against", f"{text} once.", more)
    if facts.curve is None:
        more = "Train on half of the rows and on all, and compare both in an evaluation."
        return RuleEvidence("unknown", f"{facts.rows:,} rows; no learning curve: {facts.no_curve}.", more)
    now, twice = facts.curve.extrapolated[0], facts.curve.extrapolated[1]
    text = (
        f"{facts.rows:,} rows teach a cheap model {now.right:.1%} (95% interval {now.low:.1%} to {now.high:.1%}); "
        f"twice as many would {twice.right:.1%} ({twice.low:.1%} to {twice.high:.1%})."
    )
    if goal is not None:
        return _against_goal(facts.rows, facts.curve.extrapolated, goal, text)
    gain = twice.right - now.right
    more = f"Collect more rows: twice as many would add about {100 * gain:.1f} points." if gain > GAIN_MAX else ""
    return RuleEvidence("against" if more else "for", text, more)


def _against_goal(rows: int, points: Sequence[CurvePoint], goal: float, text: str) -> RuleEvidence:
    now, reached = points[0], next((point for point in points if point.right >= goal), None)
    if (now.low or 0.0) >= goal:
        return RuleEvidence("for", f"{text} The goal is {goal:.1%}.")
    if reached is None:
        text += f" No number of rows up to {points[-1].rows:,} reaches {goal:.1%} with it."
        more = "An adapter may do better than the cheap model: measure one, or lower the goal."
        return RuleEvidence("unknown", text, more)
    if reached is now:
        text += f" The goal of {goal:.1%} lies within the interval."
        return RuleEvidence("unknown", text, "Collect more rows to be sure.")
    more = f"Collect about {reached.rows - rows:,} more rows: the curve reaches {goal:.1%} before {reached.rows:,}."
    return RuleEvidence("against", text, more)


def _cases(facts: Facts) -> RuleEvidence:
    if facts.classes is None or facts.unseen is None:
        return RuleEvidence("unknown", f"Unknown: {facts.no_curve}.")
    thin = "1 class has" if facts.thin_classes == 1 else f"{facts.thin_classes} classes have"
    text = (
        f"{facts.classes} classes; about {facts.unseen:.1%} of requests are of a class that no row has; "
        f"{thin} fewer than 10 rows ({facts.thin_share:.1%} of all rows)."
    )
    if facts.spellings:
        return RuleEvidence("against", text, facts.spellings)
    if facts.unseen <= UNSEEN_MAX and facts.thin_share <= THIN_SHARE_MAX:
        return RuleEvidence("for", text)
    named = ", ".join(f"{thin[:60]} ({count})" for thin, count in facts.thin.items())
    return RuleEvidence("against", text, f"Collect rows of the thin classes: {named}.")


def _agreement(facts: Facts, live: Live | None) -> RuleEvidence:
    alpha, reviewed = facts.agreement, live.reviewed if live is not None else None
    how = "were labelled twice or more"
    if reviewed is not None and (alpha is None or reviewed.of > alpha.of):
        alpha, how = reviewed, "several reviewers judged"
    more = "Have two people label the same 50 requests, unseen by each other."
    if alpha is None or alpha.of < AGREED_ITEMS_MIN:
        count = alpha.of if alpha is not None else 0
        text = f"Unknown: {count} requests {how}, and it takes {AGREED_ITEMS_MIN}."
        return RuleEvidence("unknown", text, more)
    text = (
        f"Krippendorff's alpha is {alpha.value:.3f} (95% interval {alpha.low:.3f} to {alpha.high:.3f}) over "
        f"{alpha.of:,} requests that {how}."
    )
    if alpha.high < AGREEMENT_MIN:
        return RuleEvidence("against", text, "Settle what is right first: no model can be better than its labels.")
    return RuleEvidence("for", text) if alpha.low >= AGREEMENT_MIN else RuleEvidence("unknown", text, more)


def _stability(facts: Facts, live: Live | None) -> RuleEvidence:
    leading = live.version if live is not None else None
    if leading is not None and leading.verdict == "degraded":
        text = f"{leading.name} is degraded: {leading.because or 'see `apprentice why`'}"
        return RuleEvidence("against", text, "Find out what has changed, and train on rows since then.")
    if facts.drop is None:
        return RuleEvidence("unknown", f"Unknown: {facts.no_drop}.", "Give rows their time as `at`.")
    points = ", ".join(f"{100 * value:+.1f}" for value in (facts.drop.low, facts.drop.high))
    text = (
        f"On the latest {facts.drop.of:,} rows, what was learned before them is {100 * facts.drop.value:.1f} points "
        f"worse than what was learned from rows of all times (95% interval {points})."
    )
    if facts.drop.low > DROP_MAX:
        more = "Train on rows since the last change alone, and plan to train again: a prompt changes in minutes."
        return RuleEvidence("against", text, more)
    return RuleEvidence("for" if facts.drop.high <= 2.5 * DROP_MAX else "unknown", text)


def _breadth(facts: Facts) -> RuleEvidence:
    if facts.classes is None:
        text = f"Unknown: {facts.no_curve}; {facts.different_answers:,} different answers to {facts.rows:,} rows."
        return RuleEvidence("unknown", text)
    text = (
        f"{facts.classes} classes ({facts.class_source}), as hard to tell apart as {facts.effective_classes:g} equal "
        "ones: a closed list of answers."
    )
    return RuleEvidence("for", text)


def _prompting(facts: Facts, prompted: Prompted | None) -> RuleEvidence:
    if prompted is None:
        more = "Evaluate the base and general with a good prompt first: it is the cheapest thing to try."
        return RuleEvidence("unknown", "Unknown: no evaluation.", more)
    text = f"In {prompted.evaluation} the arm {prompted.arm} was right on {_told(prompted.right)}."
    tuned = prompted.tuned
    if tuned is not None:
        text += f" {prompted.version} was on {_told(tuned)}."
    elif facts.curve is not None:
        now = facts.curve.extrapolated[0]
        tuned = Interval(now.right, now.low or 0.0, now.high or 1.0, facts.rows)
        text += f" A cheap model reaches {now.right:.1%} on these rows, and an adapter mostly more."
    else:
        return RuleEvidence("unknown", text)
    if prompted.right.low >= tuned.high:
        return RuleEvidence("against", text, "Use the prompt: tuning can win on price alone.")
    return RuleEvidence("for" if prompted.right.high < tuned.low else "unknown", text)


def _volume(costs: Costs, point: BreakEven, live: Live | None) -> RuleEvidence:
    if point.margin_usd is not None and point.margin_usd <= 0:
        text = f"Each request would cost {-1000 * point.margin_usd:.4g} US dollars a thousand more than at general."
        return RuleEvidence("never", text)
    if point.requests_per_month is None or costs.requests_per_month is None:
        text = f"Unknown: {', '.join(point.unknown) or 'the margin'}."
        if point.margin_usd is not None:
            text += f" A thousand requests would save {1000 * point.margin_usd:.4g} US dollars."
        if point.requests_per_month is not None:
            text += f" It pays from {point.requests_per_month:,.0f} requests a month on."
        more = "Give volume and costs as options" + ("." if live is not None else ", or run it on a live task.")
        return RuleEvidence("unknown", text, more)
    text = (
        f"It pays from {point.requests_per_month:,.0f} requests a month on, retraining included; there are "
        f"{costs.requests_per_month:,.0f}, a thousand of which save {1000 * (point.margin_usd or 0):.4g} US dollars."
    )
    if costs.requests_per_month < point.requests_per_month:
        more = f"It costs {-(point.net_usd_per_month or 0):,.2f} US dollars a month more than it saves: use general."
        return RuleEvidence("against", text, more)
    return RuleEvidence("for", f"{text} It has paid after {point.months or 0.0:.1f} months.")


def _flexibility(costs: Costs, point: BreakEven) -> RuleEvidence:
    if point.change_usd is None or point.lifetime_months_min is None or costs.lifetime_months is None:
        text = "Unknown: a prompt is changed in minutes, an adapter has to be trained again."
        return RuleEvidence("unknown", text)
    text = (
        f"Each change costs a training, {point.change_usd:,.2f} US dollars, where a prompt costs an edit. A version "
        f"has to live for {point.lifetime_months_min:.1f} months to pay for itself; {costs.lifetime_months:g} are "
        "expected."
    )
    if point.lifetime_months_min <= costs.lifetime_months:
        return RuleEvidence("for", text)
    return RuleEvidence("against", text, "Keep it in a prompt while the rules change so often.")


def _told(interval: Interval) -> str:
    return f"{interval.value:.1%} (95% interval {interval.low:.1%} to {interval.high:.1%})"
