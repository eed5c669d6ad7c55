"""Rules that an admin sets at runtime: what a model has learned can't be edited, so it can be overruled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

OverrideAction = Literal["general", "version", "refuse"]


@dataclass(frozen=True, slots=True)
class Override:
    """One rule. Every condition that is set must hold; a rule with none matches each of the task's requests.

    `contains` is searched for in the text of the conversation, both in the form that `fold` gives. `expires_at` is in
    Unix seconds; an expired rule matches nothing. `version` goes with the action `version`, `message` with `refuse`.
    """

    id: str
    action: OverrideAction
    task: str | None = None
    contains: str | None = None
    caller: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    message: str | None = None
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if self.contains is not None:  # folded once here, not for each request
            object.__setattr__(self, "contains", fold(self.contains))


@dataclass(frozen=True, slots=True)
class Subject:
    """What a rule is held against: a request's task, caller, metadata and text (case-folded, joined)."""

    task: str | None
    caller: str
    metadata: Mapping[str, str]
    text: str


def first_match(rules: tuple[Override, ...], subject: Subject, now_unix: float) -> Override | None:
    """The first rule, in order, whose every condition holds for the subject and which has not expired."""
    for rule in rules:
        if _holds(rule, subject, now_unix):
            return rule
    return None


def needs_text(rules: tuple[Override, ...]) -> bool:
    """Whether any rule looks at the text, so that it need not be gathered where none does."""
    return any(rule.contains for rule in rules)


def fold(text: str) -> str:
    """The form in which texts are compared: case folded, each run of white space as one space."""
    return " ".join(text.split()).casefold()


def _holds(rule: Override, subject: Subject, now_unix: float) -> bool:
    if rule.expires_at is not None and rule.expires_at <= now_unix:
        return False
    if rule.task is not None and rule.task != subject.task:
        return False
    if rule.caller is not None and rule.caller != subject.caller:
        return False
    if any(subject.metadata.get(key) != value for key, value in rule.metadata.items()):
        return False
    return rule.contains is None or rule.contains in subject.text
