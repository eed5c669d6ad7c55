"""Leave one out: the evidence of a signal is the part that remains whoever is left out.

Beside the detector over all there is one without each group of callers, raters or other givers. The evidence is the
least of them. The first givers met have a group each; later ones share the groups by their hash. A `GiverRoll` knows
each giver's group. A `LeaveOneOut` holds the detectors, of any kind. Its places are those of one roll, or of several in
a row.

One rule says who may be left out: everybody beside whom all others together have at least `OTHERS_MIN` of the counted
requests or labels. If one giver alone uses a version, leaving it out would leave nothing. So its labels count, and a
single request of somebody else does not change that. Nobody counts for more than 1,000 requests and 500 labels, and the
counts of others fade with time alone. So no flood, however large, makes its sender the only one.

Only requests that this gateway served count for this rule, with their labels: reports cost their sender nothing. If
nothing was served for a week, reports count among themselves.

Each detector's claim holds for the labels it sees, so the claim holds for the least of them too. Pure functions over
frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR, find_threshold

OTHERS_MIN = 0.05
ALONE_MIN = 66
"""If others have a twentieth, this number of requests all come from one giver in 3% of cases."""
Z_SHOWN = 1.645
FADING_LABELS = 1.0 - 1.0 / 500
FADING_REQUESTS = 1.0 - 1.0 / 1000
FADING_SECONDS = 7 * 86_400.0
"""The time in which counts fade to 1/e."""
AGED_SECONDS = 3600.0
"""Counts fade in steps of at least this time: the rounding of smaller steps would add up."""
DIGITS = 3
NAME_BYTES = 8
REPORTS_COUNT_AFTER_SECONDS = 7 * 86_400.0
"""The time without a served request after which reports decide who may be left out."""


class CountsLabels(Protocol):
    """A part of the evidence with its number of labels."""

    @property
    def labels(self) -> float:
        """The number of labels."""
        ...


Detector = TypeVar("Detector")
Part = TypeVar("Part", bound=CountsLabels)


class GiverRoll(msgspec.Struct, frozen=True, kw_only=True):
    """The known givers, and their parts of the latest requests and labels. `salt` makes digests of names differ between
    versions.

    `known` are the digests of the first givers met, one for each of `groups`. `requests` and `labels` are each group's
    faded counts, empty if none are counted. They are about requests served here, last at `served_at` (Unix seconds;
    None: never), or about `reported` ones. `aged_at` is the time up to which they have faded (Unix seconds; 0: not
    yet). `seen` counts requests, or labels if there are no requests, up to ALONE_MIN, and does not fade.
    """

    salt: str
    groups: int
    known: tuple[str, ...] = ()
    requests: tuple[float, ...] = ()
    labels: tuple[float, ...] = ()
    reported: bool = False
    served_at: float | None = None
    aged_at: float = 0.0
    seen: int = 0


class LeaveOneOut(msgspec.Struct, Generic[Detector], frozen=True, kw_only=True):
    """The detector over all, and those without a group each. One is None while its group has given nothing: leaving it
    out changes nothing yet. `log_now` is the evidence when it was last judged, `log_max` the largest so far. `believed`
    are the groups that could not be left out then."""

    whole: Detector
    without: tuple[Detector | None, ...]
    log_now: float = LOG_FLOOR
    log_max: float = LOG_FLOOR
    believed: tuple[int, ...] = ()


# ---- givers ------------------------------------------------------------------------------------------


def make_digest(roll: GiverRoll, name: str) -> str:
    """The digest of a giver's name."""
    return hashlib.blake2b(f"{roll.salt}\n{name}".encode(), digest_size=NAME_BYTES).hexdigest()


def get_group(roll: GiverRoll, name: str) -> int:
    """The group that a giver is left out with."""
    return get_group_of_digest(roll, make_digest(roll, name))


def get_group_of_digest(roll: GiverRoll, known_by: str) -> int:
    """The group of a giver by its digest."""
    return roll.known.index(known_by) if known_by in roll.known else int(known_by, 16) % roll.groups


def meet(roll: GiverRoll, name: str) -> GiverRoll:
    """The roll after a giver was met: the first givers have a group each."""
    known_by = make_digest(roll, name)
    if known_by in roll.known or len(roll.known) >= roll.groups:
        return roll
    return replace(roll, known=(*roll.known, known_by))


def add_request(roll: GiverRoll, name: str, at: float = 0.0, reported: bool = False) -> GiverRoll:
    """The roll after a giver's request at `at` (Unix seconds), answered here or, if `reported`, elsewhere. The counts
    begin again if they were of the other kind. A report does not count while requests are served here."""
    last = roll.served_at
    if reported and not roll.reported and last is not None and at - last < REPORTS_COUNT_AFTER_SECONDS:
        return meet(roll, name)
    roll = fade(meet(count_kind(roll, reported), name), at)
    requests = _counted(roll, roll.requests, name, FADING_REQUESTS)
    count = min(ALONE_MIN, roll.seen + 1)
    return replace(roll, requests=requests, served_at=last if reported else at, seen=count)


def add_label(roll: GiverRoll, name: str, reported: bool = False, at: float = 0.0) -> GiverRoll:
    """The roll after a giver's label at `at` (Unix seconds), of a request that was served here or is `reported`. It
    counts if such requests do."""
    roll = fade(meet(roll, name), at)
    if reported != roll.reported:
        return roll
    count = roll.seen if roll.requests else min(ALONE_MIN, roll.seen + 1)
    return replace(roll, labels=_counted(roll, roll.labels, name, FADING_LABELS), seen=count)


def fade(roll: GiverRoll, at: float) -> GiverRoll:
    """The roll at a later time (Unix seconds), with all counts faded alike."""
    elapsed = at - roll.aged_at
    if elapsed < AGED_SECONDS:
        return roll
    if not roll.aged_at:
        return replace(roll, aged_at=at)
    left = math.exp(-elapsed / FADING_SECONDS)
    requests, labels = (
        tuple([round(left * count, DIGITS) for count in counts]) for counts in (roll.requests, roll.labels)
    )
    return replace(roll, requests=requests, labels=labels, aged_at=at)


def count_kind(roll: GiverRoll, reported: bool) -> GiverRoll:
    """The roll once requests served here count or, if `reported`, reported ones."""
    if roll.reported == reported:
        return roll
    return replace(roll, reported=reported, requests=(), labels=(), seen=0)


def find_believed(roll: GiverRoll) -> Iterator[int]:
    """The groups that may not be left out, since no others count beside them."""
    parts = _list_counts(roll)
    return (place for place in range(roll.groups) if not _others_count(roll, parts, place))


def find_alone(roll: GiverRoll) -> str | None:
    """The digest of a giver beside whom no others count; None if others do, or nobody was met."""
    parts = _list_counts(roll)
    return next((known_by for place, known_by in enumerate(roll.known) if not _others_count(roll, parts, place)), None)


def _counted(roll: GiverRoll, counts: tuple[float, ...], name: str, fading: float) -> tuple[float, ...]:
    """The counts with one more of this group. Only its own count fades: many requests of one giver do not show that
    others are gone. Counts are rounded, to be short in JSON."""
    own = get_group(roll, name)
    counts = counts or (0.0,) * roll.groups
    return (*counts[:own], round(fading * counts[own] + 1.0, DIGITS), *counts[own + 1 :])


def _list_counts(roll: GiverRoll) -> list[tuple[tuple[float, ...], float]]:
    """The counts of requests and of labels with their sums, each if there are any."""
    return [(counts, total) for counts in (roll.requests, roll.labels) if (total := sum(counts)) > 0.0]


def _others_count(roll: GiverRoll, counted: list[tuple[tuple[float, ...], float]], own: int) -> bool:
    """Return whether all other groups have enough of the requests, or of the labels, for their evidence to count.

    They also have enough until requests or labels show that their share is less: if there are few, chance may have
    given others none. So nobody is alone before some 66 requests or labels.
    """
    parts = [(total - counts[own], total) for counts, total in counted]
    if any(others >= OTHERS_MIN * total for others, total in parts):
        return True
    if roll.seen >= ALONE_MIN and not any(others > 1e-9 for others, _ in parts):
        return not parts
    return not any(_find_most(others) < OTHERS_MIN * total for others, total in parts)


def _find_most(count: float) -> float:
    """The upper bound, at 95%, of the mean of a Poisson count (its root has a steady variance: M. Bartlett, 1936)."""
    return float((math.sqrt(max(0.0, count) + 1.0) + Z_SHOWN / 2.0) ** 2)


# ---- detectors -----------------------------------------------------------------------------------------


def start(whole: Detector, groups: int) -> LeaveOneOut[Detector]:
    """Detectors that have seen nothing from anybody."""
    return LeaveOneOut(whole=whole, without=(None,) * groups)


def move(
    detectors: LeaveOneOut[Detector], move: Callable[[Detector], Detector], own: Collection[int] = ()
) -> LeaveOneOut[Detector]:
    """The detectors after something from these groups. Those without one of these groups do not see it."""
    whole, without = move_each(detectors.whole, detectors.without, move, own)
    return replace(detectors, whole=whole, without=without)


def list_parts(whole: Part, without: Iterable[Part | None]) -> list[Part]:
    """The part of all labels, and the parts without each group that leave at least `OTHERS_MIN` of the labels."""
    enough = OTHERS_MIN * whole.labels
    return [whole, *[part for part in without if part is not None and part.labels >= enough]]


def move_each(
    whole: Detector, without: tuple[Detector | None, ...], move: Callable[[Detector], Detector], own: Collection[int]
) -> tuple[Detector, tuple[Detector | None, ...]]:
    """The same for a detector and those without each group.

    Until a group gives something, the detector without it is the one over all.
    """
    moved = [
        (left or whole) if place in own else None if left is None else move(left) for place, left in enumerate(without)
    ]
    return move(whole), tuple(moved)


def judge(
    detectors: LeaveOneOut[Detector], log_e: Callable[[Detector], float], believed: Collection[int]
) -> LeaveOneOut[Detector]:
    """The detectors with the evidence now, and the largest so far.

    A giver who was believed for want of others may be left out now. Then evidence that rested on that belief is void:
    the largest becomes the evidence without it. No evidence rests on a giver who has given nothing.
    """
    evidence = find_least(detectors, log_e, believed)
    is_void = any(place not in believed and detectors.without[place] is not None for place in detectors.believed)
    log_max = evidence if is_void else max(evidence, detectors.log_max)
    return replace(detectors, log_now=evidence, log_max=log_max, believed=tuple(sorted(believed)))


def find_least(
    detectors: LeaveOneOut[Detector], measure: Callable[[Detector], float], believed: Collection[int]
) -> float:
    """The least of a figure, whoever may be left out. Of a detector's log e-value it is the evidence now."""
    least = [
        measure(left) for place, left in enumerate(detectors.without) if left is not None and place not in believed
    ]
    return min([measure(detectors.whole), *least])


def has_alarmed(detectors: LeaveOneOut[Detector], labels: float, alpha: float) -> bool:
    """Return whether the evidence has ever reached the threshold for this number of labels."""
    return detectors.log_max >= find_threshold(labels, alpha)


def rests_on(
    detectors: LeaveOneOut[Detector],
    log_e: Callable[[Detector], float],
    enough: float,
    believed: Collection[int],
    callers: int,
) -> list[int]:
    """The places of the one caller and the one rater without whom the evidence is not enough; none if it rests on
    several. The first `callers` places are those of callers."""
    if detectors.log_max >= enough or log_e(detectors.whole) < enough:
        return []
    without = [
        (place, left) for place, left in enumerate(detectors.without) if left is not None and place not in believed
    ]
    missed = [place for place, left in without if log_e(left) < enough]
    of_callers = sum(place < callers for place in missed)
    return missed if of_callers <= 1 and len(missed) - of_callers <= 1 else []


def reaches_now(detectors: LeaveOneOut[Detector], labels: float) -> bool:
    """Return whether the evidence now reaches the threshold that chance reaches once in `labels` labels on average, at
    most. It first does when `has_alarmed` first says so."""
    return detectors.log_now >= math.log(labels)
