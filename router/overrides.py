"""Rules that an admin sets at runtime. A model's learned behaviour can't be edited, so rules overrule it.

Rules are tried in order. A rule applies if all its conditions that are set hold. The first rule that decides ends the
search. A rule that adds a system message does not end it, and a rule in the mode `observe` is only recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import re2

OverrideAction = Literal["general", "version", "refuse", "system"]
OverrideMode = Literal["observe", "enforce"]
PATTERN_BYTES_MAX = 1 << 20
"""Memory of one compiled pattern."""
PROGRAM_BYTES_MAX = 1 << 18
"""Memory in which a new pattern must compile. So a pattern that is too large is found within a millisecond."""
PATTERN_STEPS_MAX = 4000
"""Most steps of a new pattern's program."""
PATTERN_WORK_MAX = 1_000_000_000
"""Most bytes of text times steps for one pattern: 2 to 10 seconds at worst."""
PIECE_CHARACTERS_MAX = 1 << 15
"""Characters of a text that are read in one go, so that other threads wait for at most about 0.3 ms."""
ADDED_MAX = 8
"""Most messages that rules add to one request; further ones are only noted."""
HELD_WORK_MAX = 100_000
"""Characters times weights up to which any patterns read a text in about a millisecond."""


@dataclass(frozen=True, slots=True)
class Override:
    """One rule. A rule without conditions matches each of the task's requests.

    `contains` is searched for in the text of the conversation, both in the form that `fold` gives. `pattern` is a
    regular expression of RE2, which takes linear time; it is searched for in the unchanged text. `starts_at` and
    `expires_at` are in Unix seconds; a rule that has not begun, or has expired, matches nothing. `version` belongs to
    the action `version`, `message` to `refuse`, and `system` is the message that the action `system` adds.
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
    starts_at: float | None = None
    expires_at: float | None = None
    mode: OverrideMode = "enforce"
    compiled: Any = field(init=False, repr=False, compare=False, default=None)
    weight: int = field(init=False, repr=False, compare=False, default=0)
    """The worst cost of one character of a text: for a pattern the steps of its program."""

    def __post_init__(self) -> None:
        if self.contains is not None:  # folded once here, not for each request
            object.__setattr__(self, "contains", fold(self.contains))
            object.__setattr__(self, "weight", 1)
        if self.pattern is not None:
            object.__setattr__(self, "compiled", _compiled(self.pattern))
            object.__setattr__(self, "weight", self.weight + (self.compiled.programsize if self.compiled else 0))

    @property
    def reads_text(self) -> bool:
        """True if the rule reads the text of a request."""
        return self.contains is not None or self.pattern is not None

    def is_in_force(self, now_unix: float) -> bool:
        """True if the rule has begun, and has not expired."""
        if self.starts_at is not None and self.starts_at > now_unix:
            return False
        return self.expires_at is None or self.expires_at > now_unix


@dataclass(frozen=True, slots=True)
class Subject:
    """The part of a request that rules compare, beside its text: a request's task, caller and metadata."""

    task: str | None
    caller: str
    metadata: Mapping[str, str]


class Ruled(NamedTuple):
    """The rules that apply to a request: the one that decides, those that add a message (at most ADDED_MAX), and those
    that are only noted."""

    deciding: Override | None = None
    adding: tuple[Override, ...] = ()
    observed: tuple[Override, ...] = ()


NO_RULE = Ruled()


def apply_rules(rules: tuple[Override, ...], subject: Subject, texts: frozenset[str], now_unix: float) -> Ruled:
    """Apply the rules to a request. `texts` are the ids of rules whose conditions on the text hold."""
    adding: tuple[Override, ...] = ()
    observed: tuple[Override, ...] = ()
    task = subject.task
    for rule in rules:
        if (rule.task is not None and rule.task != task) or not _holds(rule, subject, texts, now_unix):
            continue
        if rule.mode == "observe" or (rule.action == "system" and len(adding) >= ADDED_MAX):
            observed = (*observed, rule)
        elif rule.action == "system":
            adding = (*adding, rule)
        else:
            return Ruled(rule, adding, observed)
    return Ruled(None, adding, observed) if adding or observed else NO_RULE


def match_texts(rules: tuple[Override, ...], text: str) -> frozenset[str]:
    """The ids of the rules that read the text and whose conditions on it hold. Linear in the text's length."""
    folded = fold(text) if any(rule.contains is not None for rule in rules) else ""
    encoded = _encoded(text) if any(rule.compiled is not None for rule in rules) else b""
    return frozenset(rule.id for rule in rules if rule.reads_text and _holds_in(rule, encoded, folded))


def group_by_task(rules: tuple[Override, ...]) -> dict[str | None, tuple[Override, ...]]:
    """The rules by the task that they name (None: they name no task), each group in order."""
    groups: dict[str | None, list[Override]] = {}
    for rule in rules:
        groups.setdefault(rule.task, []).append(rule)
    return {task: tuple(own) for task, own in groups.items()}


def needs_text(rules: tuple[Override, ...]) -> bool:
    """True if any rule reads the text. If not, the text need not be gathered."""
    return any(rule.reads_text for rule in rules)


def fold(text: str) -> str:
    """The form in which texts are compared: case folded, each run of white space as one space."""
    if len(text) <= PIECE_CHARACTERS_MAX:
        return " ".join(text.split()).casefold()
    pieces: list[str] = []
    apart = False
    for piece in _pieces(text):
        folded = " ".join(piece.split()).casefold()
        if pieces and folded and (apart or piece[0].isspace()):
            pieces.append(" ")
        if folded:
            pieces.append(folded)
        apart = piece[-1].isspace()
    return "".join(pieces)


def find_pattern_fault(pattern: str) -> str | None:
    """Find the fault of a pattern, as a sentence; None if it can be used."""
    return compute_pattern_cost(pattern)[1]


def compute_pattern_cost(pattern: str) -> tuple[int, str | None]:
    """The number of steps of the compiled pattern, and its fault (None: the pattern can be used)."""
    try:
        steps = re2.compile(pattern, options=_options(PROGRAM_BYTES_MAX)).programsize
    except (re2.error, UnicodeEncodeError) as error:
        reason = "half of a surrogate pair" if isinstance(error, UnicodeEncodeError) else error.args[0]
        shown_reason = reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        return 0, (
            f"it is not a regular expression of RE2 ({shown_reason[:200]}), which has no look-around and no back "
            f"references, and takes at most {PROGRAM_BYTES_MAX >> 10} KiB compiled"
        )
    if steps > PATTERN_STEPS_MAX:
        fault = f"it takes {steps:,} steps compiled, of at most {PATTERN_STEPS_MAX:,}: repeat less, or use several"
        return steps, fault
    return steps, None


def _holds(rule: Override, subject: Subject, texts: frozenset[str], now_unix: float) -> bool:
    if not rule.is_in_force(now_unix):
        return False
    if rule.caller is not None and rule.caller != subject.caller:
        return False
    for key, value in rule.metadata.items():
        if subject.metadata.get(key) != value:
            return False
    return rule.id in texts or not rule.reads_text


def _holds_in(rule: Override, encoded: bytes, folded: str) -> bool:
    if rule.contains is not None and not _is_in(rule.contains, folded):
        return False
    if rule.pattern is None:
        return True
    if rule.compiled is None:
        return False
    bytes_max = PATTERN_WORK_MAX // max(1, rule.compiled.programsize)
    return rule.compiled.search(encoded if len(encoded) <= bytes_max else encoded[:bytes_max]) is not None


def _pieces(text: str) -> Iterator[str]:
    return (text[start : start + PIECE_CHARACTERS_MAX] for start in range(0, len(text), PIECE_CHARACTERS_MAX))


def _encoded(text: str) -> bytes:
    return b"".join(piece.encode(errors="replace") for piece in _pieces(text))


def _is_in(part: str, text: str) -> bool:
    if len(text) <= PIECE_CHARACTERS_MAX:
        return part in text
    whole = PIECE_CHARACTERS_MAX + len(part)  # a match across two pieces is then inside one of them
    return any(part in text[start : start + whole] for start in range(0, len(text), PIECE_CHARACTERS_MAX))


def _compiled(pattern: str) -> Any:
    """The compiled pattern; None if it can't be used, which then matches nothing."""
    try:
        return re2.compile(pattern, options=_options(PATTERN_BYTES_MAX))
    except (re2.error, UnicodeEncodeError):
        return None


def _options(bytes_max: int) -> re2.Options:
    options = re2.Options()
    options.max_mem = bytes_max
    options.log_errors = False
    return options
