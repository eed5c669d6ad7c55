"""The returns policy as exact code: five facts about a case give one decision and the rule that made it.

The rules are tried in order; the first that applies decides. A limit counts its last day: day 30 is inside
`window-30`, day 31 is not. An answer names the facts first, as its model has read them: a person sees what was misread,
and a small model decides by five words in place of a whole message.

In the holiday season the rules and their order stay, and two of them decide otherwise: the shop takes goods back for 60
days, and presents without their receipt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, get_args

Category = Literal[
    "electronics", "clothing", "shoes", "underwear", "cosmetics", "food", "furniture", "books", "toys", "gift card"
]
Condition = Literal["unopened", "opened", "used", "defective"]
Decision = Literal["approve", "deny", "escalate"]
Season = Literal["regular", "holiday"]

CATEGORIES: tuple[Category, ...] = get_args(Category)
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
DECISIONS: tuple[Decision, ...] = get_args(Decision)
SEASONS: tuple[Season, ...] = get_args(Season)
HYGIENE: frozenset[str] = frozenset({"underwear", "cosmetics", "food"})
EU: frozenset[str] = frozenset({
    "Austria", "Belgium", "Bulgaria", "Croatia", "Cyprus", "Czechia", "Denmark", "Estonia", "Finland", "France",
    "Germany", "Greece", "Hungary", "Ireland", "Italy", "Latvia", "Lithuania", "Luxembourg", "Malta", "Netherlands",
    "Poland", "Portugal", "Romania", "Slovakia", "Slovenia", "Spain", "Sweden",
})  # fmt: skip
DECISION_OF_RULE: dict[str, Decision] = {
    "gift-card": "deny",
    "outside-eu": "escalate",
    "defect": "approve",
    "hygiene": "deny",
    "no-receipt": "deny",
    "used": "deny",
    "window-30": "approve",
    "goodwill-60": "escalate",
    "too-late": "deny",
}
HOLIDAY_DECISIONS: dict[str, Decision] = {"no-receipt": "approve", "goodwill-60": "approve"}


@dataclass(frozen=True)
class Facts:
    """A case. `days` are whole days since the purchase, `country` is where the goods were delivered."""

    category: Category
    days: int
    receipt: bool
    condition: Condition
    country: str


def rule_for(facts: Facts) -> str:
    """The id of the first rule that applies."""
    if facts.category == "gift card":
        return "gift-card"
    if facts.country not in EU:
        return "outside-eu"
    if facts.condition == "defective":
        return "defect"
    if facts.category in HYGIENE and facts.condition != "unopened":
        return "hygiene"
    if not facts.receipt:
        return "no-receipt"
    if facts.condition == "used":
        return "used"
    if facts.days <= 30:
        return "window-30"
    if facts.days <= 60:
        return "goodwill-60"
    return "too-late"


def decision_of(rule: str, season: Season = "regular") -> Decision:
    """A rule's decision in a season."""
    regular = DECISION_OF_RULE[rule]
    return HOLIDAY_DECISIONS.get(rule, regular) if season == "holiday" else regular


def describe_facts(facts: Facts) -> str:
    """The facts as far as the rules ask for them, such as `clothing, unopened, receipt, 31-60 days, EU`."""
    receipt = "receipt" if facts.receipt else "no receipt"
    days = "0-30 days" if facts.days <= 30 else "31-60 days" if facts.days <= 60 else "over 60 days"
    return (
        f"{facts.category}, {facts.condition}, {receipt}, {days}, {'EU' if facts.country in EU else 'outside the EU'}"
    )


def label_for(facts: Facts, season: Season = "regular") -> str:
    """The part of an answer that is judged: its decision and its rule, as compact JSON."""
    rule = rule_for(facts)
    return json.dumps({"decision": decision_of(rule, season), "rule": rule}, separators=(",", ":"))


def answer_for(facts: Facts, season: Season = "regular") -> str:
    """The answer that an adapter learns: the facts, then their rule, then its decision, as compact JSON."""
    rule = rule_for(facts)
    answer = {"facts": describe_facts(facts), "rule": rule, "decision": decision_of(rule, season)}
    return json.dumps(answer, separators=(",", ":"))
