"""Rules that an admin sets at runtime: what a model has learned can't be edited, so it can be overruled.

Rules are tried in order, and each condition of a rule that is set must hold. The first rule that decides ends it; one
that adds a system message adds it and lets the later ones be tried; one in the mode `observe` is only noted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import re2

OverrideAction = Literal["general", "version", "refuse", "system"]
OverrideMode = Literal["observe", "enforce"]
PATTERN_BYTES_MAX = 1 << 20
"""Memory of one compiled pattern."""


@dataclass(frozen=True, slots=True)
class Override:
    """One rule. A rule without conditions matches each of the task's requests.

    `contains` is searched for in the text of the conversation, both in the form that `fold` gives; `pattern` is a
    regular expression of RE2, which takes linear time, searched for in the text as it is. `expires_at` is in Unix
    seconds; an expired rule matches nothing. `version` goes with the action `version`, `message` with `refuse`, and
    `system` is the message that the action `system` adds.
    """

    id: str
    action: OverrideAction
    task: str | None = None
    contains: str | None = None
    pattern: str | None = None
    caller: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    version: str | None = None
    message: str | None = None
    system: str | None = None
    expires_at: float | None = None
    mode: OverrideMode = "enforce"
    compiled: Any = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        if self.contains is not None:  # folded once here, not for each request
            object.__setattr__(self, "contains", fold(self.contains))
        if self.pattern is not None:
            object.__setattr__(self, "compiled", _compiled(self.pattern))

    @property
    def reads_text(self) -> bool:
        """Whether it looks at what a request says."""
        return self.contains is not None or self.pattern is not None


@dataclass(frozen=True, slots=True)
class Subject:
    """What a rule is held against beside the text: a request's task, caller and metadata."""

    task: str | None
    caller: str
    metadata: Mapping[str, str]


class Ruled(NamedTuple):
    """What the rules say of a request: the one that decides, those that add a message, and those only noted."""

    deciding: Override | None = None
    adding: tuple[Override, ...] = ()
    observed: tuple[Override, ...] = ()


NO_RULE = Ruled()


def rule(rules: tuple[Override, ...], subject: Subject, texts: frozenset[str], now_unix: float) -> Ruled:
    """Hold a request against the rules. `texts` are the ids of rules whose conditions on the text hold."""
    adding: tuple[Override, ...] = ()
    observed: tuple[Override, ...] = ()
    for one in rules:
        if not _holds(one, subject, texts, now_unix):
            continue
        if one.mode == "observe":
            observed = (*observed, one)
        elif one.action == "system":
            adding = (*adding, one)
        else:
            return Ruled(one, adding, observed)
    return Ruled(None, adding, observed) if adding or observed else NO_RULE


def texts_matched(rules: tuple[Override, ...], text: str) -> frozenset[str]:
    """The ids of the rules that look at the text, and whose conditions on it hold. Linear in the text's length."""
    folded = fold(text) if any(one.contains is not None for one in rules) else ""
    return frozenset(one.id for one in rules if one.reads_text and _holds_in(one, text, folded))


def needs_text(rules: tuple[Override, ...]) -> bool:
    """Whether any rule looks at the text, so that it need not be gathered where none does."""
    return any(one.reads_text for one in rules)


def fold(text: str) -> str:
    """The form in which texts are compared: case folded, each run of white space as one space."""
    return " ".join(text.split()).casefold()


def pattern_fault(pattern: str) -> str | None:
    """What is wrong with a pattern, in a sentence; None where it can be used."""
    try:
        re2.compile(pattern, options=_options())
    except (re2.error, UnicodeEncodeError) as error:
        said = error.args[0] if error.args else ""
        told = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        return (
            f"it is no regular expression of RE2 ({told[:200]}), which has no look-around and no back references, "
            f"and takes at most {PATTERN_BYTES_MAX >> 20} MiB compiled"
        )
    return None


def _holds(one: Override, subject: Subject, texts: frozenset[str], now_unix: float) -> bool:
    if one.expires_at is not None and one.expires_at <= now_unix:
        return False
    if one.task is not None and one.task != subject.task:
        return False
    if one.caller is not None and one.caller != subject.caller:
        return False
    if any(subject.metadata.get(key) != value for key, value in one.metadata.items()):
        return False
    return not one.reads_text or one.id in texts


def _holds_in(one: Override, text: str, folded: str) -> bool:
    if one.contains is not None and one.contains not in folded:
        return False
    if one.pattern is None:
        return True
    return one.compiled is not None and one.compiled.search(text) is not None


def _compiled(pattern: str) -> Any:
    """The pattern, compiled; None for one that can't be used, which then matches nothing."""
    try:
        return re2.compile(pattern, options=_options())
    except (re2.error, UnicodeEncodeError):
        return None


def _options() -> re2.Options:
    options = re2.Options()
    options.max_mem = PATTERN_BYTES_MAX
    options.log_errors = False
    return options
