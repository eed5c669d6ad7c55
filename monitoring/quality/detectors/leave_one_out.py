"""Leave one out: the evidence of a signal is the part that remains whoever is left out.

Beside the detector over all there is one without each group of callers (or raters, or who else gives it what it sees),
and the evidence is the least of them. The first who are met are a group each; those after them share the groups by
their hash. A `Roll` knows who is in which group, and a `LeaveOneOut` holds the detectors, whichever these are: its
places are those of one roll, or of several, one behind the other.

One rule says who may be left out: everybody beside whom all others together have at least `OTHERS_MIN` of the requests
or of the labels that are counted. If one alone uses a version, leaving it out would leave nothing: its labels count,
and a single request of somebody else does not change that. Nobody counts for more than 1,000 requests and 500 labels,
and what others have counts less with time alone: so no flood, however large, makes its sender the only one.

Only what this gateway served counts for that, with its labels: requests that are reported cost nothing. Where nothing
was served for a week reports count among themselves.

Each of the detectors has its claim on what it sees, so the least of them has it too. Pure functions over frozen data
that go through JSON unchanged.
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
"""Where others have a twentieth, this number of requests all come from one in 3% of all cases."""
Z_SHOWN = 1.645
FADING_LABELS = 1.0 - 1.0 / 500
FADING_REQUESTS = 1.0 - 1.0 / 1000
FADING_SECONDS = 7 * 86_400.0
"""The time in which counts fade to 1/e."""
AGED_SECONDS = 3600.0
"""Counts fade in steps of at least this time: the rounding of smaller ones would add up."""
DIGITS = 3
NAME_BYTES = 8
REPORTS_COUNT_AFTER_SECONDS = 7 * 86_400.0
"""For so long nothing was served, where reports decide who may be left out."""


class CountsLabels(Protocol):
    """A part of the evidence that knows the number of its labels."""

    @property
    def labels(self) -> float:
        """The number of labels."""
        ...


Detector = TypeVar("Detector")
Part = TypeVar("Part", bound=CountsLabels)


class GiverRoll(msgspec.Struct, frozen=True, kw_only=True):
    """The known givers, and their parts of the latest requests and labels. `salt` keeps digests of names apart between
    versions.

    `known` are the digests of those who were met first, a group each, of `groups`. `requests` and `labels` are the
    faded counts of each group's, empty where none are counted: of what was served here last at `served_at` (Unix
    seconds; None: never), or of what was `reported`. `aged_at` is up to when they have faded with time, in Unix
    seconds (0: they have not yet). `seen` counts requests, or labels without any, up to ALONE_MIN, and does not fade.
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
    """The detector over all, and those without a group each: None while the group has given nothing, since leaving it
    out changes nothing yet. `log_now` is the evidence after the last that was judged, `log_max` the largest so far,
    and `believed` are the groups that could not be left out then."""

    whole: Detector
    without: tuple[Detector | None, ...]
    log_now: float = LOG_FLOOR
    log_max: float = LOG_FLOOR
    believed: tuple[int, ...] = ()


# ---- who ---------------------------------------------------------------------------------------------


def make_digest(roll: GiverRoll, name: str) -> str:
    """The digest by which a giver is known."""
    return hashlib.blake2b(f"{roll.salt}\n{name}".encode(), digest_size=NAME_BYTES).hexdigest()


def get_group(roll: GiverRoll, name: str) -> int:
    """The group that somebody is left out with."""
    return get_group_of_digest(roll, make_digest(roll, name))


def get_group_of_digest(roll: GiverRoll, known_by: str) -> int:
    """The same by a digest."""
    return roll.known.index(known_by) if known_by in roll.known else int(known_by, 16) % roll.groups


def meet(roll: GiverRoll, name: str) -> GiverRoll:
    """Somebody was met: the first have a group each."""
    known_by = make_digest(roll, name)
    if known_by in roll.known or len(roll.known) >= roll.groups:
        return roll
    return replace(roll, known=(*roll.known, known_by))


def add_request(roll: GiverRoll, name: str, at: float = 0.0, reported: bool = False) -> GiverRoll:
    """Somebody's request was answered at `at` (Unix seconds), here or as is `reported`. The counts begin again where
    they were of the other kind; a report beside what is served here is not counted."""
    last = roll.served_at
    if reported and not roll.reported and last is not None and at - last < REPORTS_COUNT_AFTER_SECONDS:
        return meet(roll, name)
    roll = fade(meet(count_kind(roll, reported), name), at)
    requests = _counted(roll, roll.requests, name, FADING_REQUESTS)
    count = min(ALONE_MIN, roll.seen + 1)
    return replace(roll, requests=requests, served_at=last if reported else at, seen=count)


def add_label(roll: GiverRoll, name: str, reported: bool = False, at: float = 0.0) -> GiverRoll:
    """Somebody gave a label at `at` (Unix seconds), of a request that was served here or is `reported`: it counts if
    such requests do."""
    roll = fade(meet(roll, name), at)
    if reported != roll.reported:
        return roll
    count = roll.seen if roll.requests else min(ALONE_MIN, roll.seen + 1)
    return replace(roll, labels=_counted(roll, roll.labels, name, FADING_LABELS), seen=count)


def fade(roll: GiverRoll, at: float) -> GiverRoll:
    """The roll at a later time (Unix seconds): all counts have faded alike."""
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
    """The roll once what is served here counts, or what is `reported`."""
    if roll.reported == reported:
        return roll
    return replace(roll, reported=reported, requests=(), labels=(), seen=0)


def find_believed(roll: GiverRoll) -> Iterator[int]:
    """The groups that may not be left out: beside them no others count."""
    parts = _list_counts(roll)
    return (place for place in range(roll.groups) if not _others_count(roll, parts, place))


def find_alone(roll: GiverRoll) -> str | None:
    """The digest of whom no others count beside; None where there are several, or nobody was met."""
    parts = _list_counts(roll)
    return next((known_by for place, known_by in enumerate(roll.known) if not _others_count(roll, parts, place)), None)


def _counted(roll: GiverRoll, counts: tuple[float, ...], name: str, fading: float) -> tuple[float, ...]:
    """The counts with one more of this group, of which alone some fades for it: who sends many shows that it is there,
    and not that others are gone. They are rounded, so that they take little room as JSON."""
    own = get_group(roll, name)
    counts = counts or (0.0,) * roll.groups
    return (*counts[:own], round(fading * counts[own] + 1.0, DIGITS), *counts[own + 1 :])


def _list_counts(roll: GiverRoll) -> list[tuple[tuple[float, ...], float]]:
    """The counts of requests and of labels, with their sums, where there are any."""
    return [(counts, total) for counts in (roll.requests, roll.labels) if (total := sum(counts)) > 0.0]


def _others_count(roll: GiverRoll, counted: list[tuple[tuple[float, ...], float]], own: int) -> bool:
    """Return whether all but this group have enough of the requests, or of the labels, to be asked for.

    They have, too, until requests or labels show that their share is less: of few of them chance may have given others
    none. So nobody is alone before some 66 requests or labels.
    """
    parts = [(total - counts[own], total) for counts, total in counted]
    if any(others >= OTHERS_MIN * total for others, total in parts):
        return True
    if roll.seen >= ALONE_MIN and not any(others > 1e-9 for others, _ in parts):
        return not parts
    return not any(_find_most(others) < OTHERS_MIN * total for others, total in parts)


def _find_most(count: float) -> float:
    """The upper bound, at 95%, of the mean of a count by chance (its root is steady: M. Bartlett, 1936)."""
    return float((math.sqrt(max(0.0, count) + 1.0) + Z_SHOWN / 2.0) ** 2)


# ---- what they have given ------------------------------------------------------------------------------


def start(whole: Detector, groups: int) -> LeaveOneOut[Detector]:
    """A detector that has seen nothing of anybody."""
    return LeaveOneOut(whole=whole, without=(None,) * groups)


def move(
    detectors: LeaveOneOut[Detector], move: Callable[[Detector], Detector], own: Collection[int] = ()
) -> LeaveOneOut[Detector]:
    """The detectors after something that these groups gave: those that leave one of them out do not see it."""
    whole, without = move_each(detectors.whole, detectors.without, move, own)
    return replace(detectors, whole=whole, without=without)


def list_parts(whole: Part, without: Iterable[Part | None]) -> list[Part]:
    """The part of all labels, and those without each group beside whom others count."""
    enough = OTHERS_MIN * whole.labels
    return [whole, *[part for part in without if part is not None and part.labels >= enough]]


def move_each(
    whole: Detector, without: tuple[Detector | None, ...], move: Callable[[Detector], Detector], own: Collection[int]
) -> tuple[Detector, tuple[Detector | None, ...]]:
    """The same for a detector and those without each group.

    One that leaves out who gives its first is the one over all until then.
    """
    moved = [
        (left or whole) if place in own else None if left is None else move(left) for place, left in enumerate(without)
    ]
    return move(whole), tuple(moved)


def judge(
    detectors: LeaveOneOut[Detector], log_e: Callable[[Detector], float], believed: Collection[int]
) -> LeaveOneOut[Detector]:
    """The detectors with the evidence now, and the largest so far.

    Where somebody who was believed for want of others may be left out now, what rested on that belief is void: the
    largest is what is left without it. Nothing rests on who has given nothing.
    """
    evidence = find_least(detectors, log_e, believed)
    is_void = any(place not in believed and detectors.without[place] is not None for place in detectors.believed)
    log_max = evidence if is_void else max(evidence, detectors.log_max)
    return replace(detectors, log_now=evidence, log_max=log_max, believed=tuple(sorted(believed)))


def find_least(
    detectors: LeaveOneOut[Detector], measure: Callable[[Detector], float], believed: Collection[int]
) -> float:
    """The least of a figure over all whom one may leave out: of a detector's log e-value, the evidence now."""
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
    """The places of the one caller and the one rater without whom the evidence of all is not enough; none where it
    rests on several. The first `callers` places are those of callers."""
    if detectors.log_max >= enough or log_e(detectors.whole) < enough:
        return []
    without = [
        (place, left) for place, left in enumerate(detectors.without) if left is not None and place not in believed
    ]
    missed = [place for place, left in without if log_e(left) < enough]
    of_callers = sum(place < callers for place in missed)
    return missed if of_callers <= 1 and len(missed) - of_callers <= 1 else []


def reaches_now(detectors: LeaveOneOut[Detector], labels: float) -> bool:
    """Return whether the evidence now reaches the threshold that is reached by chance once in `labels` labels on
    average, at most. The first time that it does is the first time that `has_alarmed` says so."""
    return detectors.log_now >= math.log(labels)
