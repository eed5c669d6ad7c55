"""What is counted of swaps under load: whose an answer is, read off its text, and whether that version might answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

FAULTS = ("refused", "broken", "mixed", "stale", "of_neither", "mislabelled", "fallbacks")
LIKENESS_MIN = 0.5


@dataclass(slots=True)
class Answer:
    """One request as its caller saw it: times in seconds of one clock, chunks of text, and what went wrong."""

    stream: bool
    prompt: int
    sent_at: float
    began_at: float = 0.0
    ended_at: float = 0.0
    status: int = 0
    chunks: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    pool: str = ""
    request_id: str = ""
    broken: str = ""
    lag_seconds: float = 0.0
    """How long after a swap's confirmation its door may still send to the version of before."""


@dataclass(frozen=True, slots=True)
class Swap:
    """One swap as the admin saw it."""

    number: int
    sent_at: float
    done_at: float


# ---- whose chunk is it? -------------------------------------------------------------------------


class Reference(Protocol):
    """Knows what each version says to one prompt."""

    def whose(self, place: int, text: str) -> frozenset[int]:
        """The versions that say this text as the piece at this place of an answer."""
        ...


@dataclass(frozen=True, slots=True)
class Tokens:
    """The fake engine's answers, token by token: a word may be in both, but not at the same place."""

    said: Mapping[int, Sequence[str]]

    def whose(self, place: int, text: str) -> frozenset[int]:
        """By place."""
        return frozenset(number for number, said in self.said.items() if place < len(said) and said[place] == text)


@dataclass(frozen=True, slots=True)
class Nearest:
    """A real engine's answers, of adapters that have no word in common. Batching varies a greedy text, so that where a
    piece stands does not matter; the version is that in whose text more of it is found."""

    said: Mapping[int, str]

    def whose(self, place: int, text: str) -> frozenset[int]:
        """By likeness; both if it is the same, nobody if less than half of the piece is found anywhere."""
        alike = {number: likeness(text.strip(), said) for number, said in self.said.items()}
        most = max(alike.values())
        return frozenset(number for number, value in alike.items() if value == most >= LIKENESS_MIN)


def likeness(piece: str, said: str) -> float:
    """The longest part of a piece that a text has, as a share of the piece; 1 of an empty one."""
    for length in range(len(piece), 0, -1):
        if any(piece[start : start + length] in said for start in range(len(piece) - length + 1)):
            return length / len(piece)
    return 0.0 if piece else 1.0


def tokens_of(text: str) -> list[str]:
    """A text in pieces: words with the blanks before them. They are what the fake engine takes for tokens."""
    return re.findall(r"\s*\S+|\s+$", text)


@dataclass(frozen=True, slots=True)
class Class:
    """Whose answer it was. `number`: None if no version's; `mixed`: it began as one's and went on otherwise."""

    number: int | None
    mixed: bool


def class_of(reference: Reference, chunks: Iterable[str]) -> Class:
    """Class every chunk, and by them the answer. A chunk that all versions say decides nothing.

    An answer that begins as nobody's stays nobody's: single words of it may be anybody's by chance.
    """
    owners: list[int | None] = []
    for place, piece in enumerate(piece for chunk in chunks for piece in tokens_of(chunk)):
        found = reference.whose(place, piece)
        if len(found) <= 1:
            owners.append(next(iter(found), None))
    if not owners or owners[0] is None:
        return Class(None, mixed=False)
    return Class(None, mixed=True) if len(set(owners)) > 1 else Class(owners[0], mixed=False)


# ---- counting -----------------------------------------------------------------------------------


def may_be(swaps: Sequence[Swap], first: int, answer: Answer) -> set[int]:
    """The versions that may answer a request: the one that stood when it was sent, and any that came up to its start.

    A whole answer starts, for its caller, when it is there: until then nobody can tell when it was admitted.
    """
    allowed = {first}
    for swap in swaps:
        if swap.done_at + answer.lag_seconds <= answer.sent_at:
            allowed = {swap.number}
        elif swap.sent_at <= answer.began_at:
            allowed.add(swap.number)
    return allowed


def fault_of(answer: Answer, classed: Class, allowed: set[int], model_of: str) -> str | None:
    """What is wrong with an answer, the gravest first; None if nothing is."""
    if answer.status and not 200 <= answer.status < 300:
        return "refused"
    if answer.broken:
        return "broken"
    if answer.pool == "general":
        return "fallbacks"
    if classed.mixed or len(answer.models) > 1:
        return "mixed"
    if classed.number is None:
        return "of_neither"
    if classed.number not in allowed:
        return "stale"
    return "mislabelled" if model_of and answer.models != {model_of.format(classed.number)} else None


def count(
    found: Sequence[Answer], swaps: Sequence[Swap], references: Sequence[Reference], first: int, model_of: str
) -> dict[str, Any]:
    """What became of the requests. `model_of` makes the model's name of a version's number; empty: names tell nothing.

    `answers_that_could_be_stale` are those that one version alone might give: whose request was sent, and whose answer
    began, between two swaps. `older_within_lag` are not faults: they would be stale but for their door's lag.
    """
    counted = {"answers": len(found), **dict.fromkeys((*FAULTS, "answers_that_could_be_stale", "older_within_lag"), 0)}
    for answer in found:
        classed, allowed = class_of(references[answer.prompt], answer.chunks), may_be(swaps, first, answer)
        fault = fault_of(answer, classed, allowed, model_of)
        if fault is not None:
            counted[fault] += 1
        if fault in (None, "stale", "mislabelled"):
            counted["answers_that_could_be_stale"] += len(allowed) == 1
        if fault is None and answer.lag_seconds:
            counted["older_within_lag"] += classed.number not in may_be(swaps, first, replace(answer, lag_seconds=0))
    return counted | {"chunks": sum(len(answer.chunks) for answer in found)}


def quantile(values: Iterable[float], share: float) -> float | None:
    """A quantile by nearest rank; None of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else None


def latencies(found: Iterable[Answer], name: str) -> dict[str, float | None]:
    """Milliseconds of the good answers: to a stream's first byte, to its end, and of a whole answer."""
    good = [answer for answer in found if not answer.broken and answer.status == 200]
    kinds = {
        "first_byte": [answer.began_at - answer.sent_at for answer in good if answer.stream],
        "stream": [answer.ended_at - answer.sent_at for answer in good if answer.stream],
        "whole": [answer.ended_at - answer.sent_at for answer in good if not answer.stream],
    }
    told: dict[str, float | None] = {}
    for kind, seconds in kinds.items():
        for part, share in (("p50", 0.5), ("p99", 0.99)):
            value = quantile(seconds, share)
            told[f"{kind}_{part}_{name}_ms"] = None if value is None else value * 1000
    return told
