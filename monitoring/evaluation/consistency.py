"""Consistency: whether an arm answers a repeated or a paraphrased request alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from monitoring.evaluation.results import RowResult


@dataclass(frozen=True, slots=True)
class Flips:
    """Of `groups` of equal requests, those that got more than one answer, and the chance that two answers differ."""

    groups: int
    flipped: int
    differ: float


def measure_flips(results: Sequence[RowResult]) -> dict[str, Flips | None]:
    """The flips of one arm: over `repeats` of a row, and over `paraphrases`, which are rows of one group that expect
    the same answer. None each where no two such rows were answered."""
    answered = [result for result in results if result.form]
    repeats = _by_key((result.number - result.repeat, result) for result in answered)
    kindred = _by_key(
        ((result.group, result.wanted_form), result) for result in answered if not result.repeat and result.wanted_form
    )
    return {"repeats": _flips_of(repeats), "paraphrases": _flips_of(kindred)}


def _by_key(keyed: Iterable[tuple[Any, RowResult]]) -> list[list[str]]:
    forms: dict[Any, list[str]] = defaultdict(list)
    for key, result in keyed:
        forms[key].append(result.form)
    return [of_key for of_key in forms.values() if len(of_key) > 1]


def _flips_of(groups: Sequence[Sequence[str]]) -> Flips | None:
    if not groups:
        return None
    flipped = sum(len(set(forms)) > 1 for forms in groups)
    return Flips(len(groups), flipped, sum(map(_chance_of_difference, groups)) / len(groups))


def _chance_of_difference(forms: Sequence[str]) -> float:
    pairs = len(forms) * (len(forms) - 1)
    return sum(form != other for form in forms for other in forms) / pairs
