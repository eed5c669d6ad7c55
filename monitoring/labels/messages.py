"""The messages between a gateway and the process that reports on ratings: the job, and the report."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

VoteName = Literal["majority", "dawid_skene"]


class Rating(NamedTuple):
    """The value that a rater gave to an item, and the item's class, if it is known."""

    item: str
    rater: str
    value: str
    class_name: str | None = None


class RatingsJob(msgspec.Struct, frozen=True, kw_only=True):
    """The subject of a report: ratings with the known values of items (`gold`), or the text of a rater file."""

    ratings: list[Rating] = []
    gold: dict[str, str] = {}
    text: str | None = None
    agreement_min: float


class RatingsFault(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a rater file can't be read."""

    fault: str


class Agreement(msgspec.Struct, frozen=True, kw_only=True):
    """Agreement over the `items` with two or more ratings, `ratings` in all. `same` is the share of these items on
    which all agree. `alpha` is None if all ratings have the same value."""

    items: int = 0
    ratings: int = 0
    same: float | None = None
    alpha: float | None = None
    low: float | None = None
    high: float | None = None


class RaterReport(msgspec.Struct, frozen=True, kw_only=True):
    """A rater's agreement with others. Of `gold` answers to items with a known value, `gold_right` were right."""

    rater: str
    agreement: Agreement
    labels: int = 0
    gold: int = 0
    gold_right: int = 0


class ClassReport(msgspec.Struct, frozen=True, kw_only=True):
    """The agreement on a class; `is_ambiguous`: it is too low, on enough items."""

    class_name: str
    agreement: Agreement
    is_ambiguous: bool


class VoteReport(msgspec.Struct, frozen=True, kw_only=True):
    """Both votes: numbers of items for each value, the accuracy on items with a known value (None: there are none), and
    items with different votes."""

    recommended: VoteName
    because: str
    values: dict[VoteName, dict[str, int]]
    ties: int
    accuracy: dict[VoteName, float | None]
    different: int
    different_items: list[str]


class RatingsReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report on ratings and raters. `agreed_only`: agreement is so low that only agreed labels count."""

    items: int
    ratings: int
    agreement: Agreement
    agreement_min: float
    agreed_only: bool
    classes: list[ClassReport]
    raters: list[RaterReport]
    votes: VoteReport | None
    words: list[str]
