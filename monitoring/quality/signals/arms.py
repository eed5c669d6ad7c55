"""The quality of a version, and the advantage of another arm on the same requests, from judged and labelled pairs.

If a label leaves an answer open (`noted_pairs.py`), it counts for the version in the lower bound of the other arm's
advantage. It counts for the other arm in the upper bound, and in no quality. A judge's guess on both answers adds to
the labels (`estimates.py`). It replaces them if there are none, or if they leave too much open.

Labels that leave an answer open show no arm to be better, however many there are. So they replace a judge that rates
both answers only once enough of them are complete. Until then the advantage is by that judge alone: its errors affect
both arms, and largely cancel. A person's label of one answer is never compared with the judge's guess on the other.
Nothing would cancel there: an arm would look better or worse by the difference between judge and people. The number of
complete labels decides which of both counts, and never their content.

Callers mostly give feedback on wrong answers, so the arm that answered looks worse than it is. Labels of reviewers and
trusted callers are kept apart from feedback, and go first. Other feedback counts only if it judges at least half of the
pairs, and only as far as it would without any one caller.

Pairs are summed in blocks by the time of their request. The newest blocks have 8 pairs, older ones twice as many after
every third of a size (M. Datar and others, "Maintaining stream statistics over sliding windows", 2002). So an estimate
can cover the time since a version began to degrade.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import partial, reduce
from operator import add, sub
from typing import Any

import msgspec
from msgspec.structs import astuple, replace

from monitoring.quality.detectors import estimates
from monitoring.quality.detectors.estimates import Estimate, Sums
from monitoring.quality.signals.noted_pairs import Right

BLOCK_PAIRS = 8
BLOCKS_PER_SIZE = 3
BLOCKS_MAX = 22
"""Some 4,000 pairs: older ones are deleted."""
LABELS_MIN = 20
LATELY_LABELS = 1000
LATELY_JUDGED = 2000
"""An estimate uses the newest blocks with about this number of labels, or of pairs that only the judge has seen. With
fewer, a bound that always holds would begin again too often."""
TOLD_SHARE_MIN = 0.5
"""Feedback on a smaller share of the pairs is a sample of complaints."""
KNOWN_SHARE_MIN = 0.5
"""An arm's quality is known if at least this share of the labels says whether its own answer was right."""
OPEN_SHARE_MAX = 0.1
"""If a larger share of labels leaves an answer open, they don't replace a judge that rates both answers. Open answers
count against either arm, so the bounds of such labels are never closer than this share."""
GROUPS = 4
ALPHA = 0.025
"""The error probability of each bound. Together with the bets of `arm_bets.py`, an arm that is no better is taken in 2
to 3.5% of cases (`benchmarks.looking`)."""


class Ends(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The other's rightness less the version's: the least, with open answers for the version, and the greatest."""

    low: Sums = Sums()
    high: Sums = Sums()


class Sides(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The rightness of the version and of the other arm in pairs where it is known, and the difference in all pairs."""

    version: Sums = Sums()
    other: Sums = Sums()
    difference: Ends = Ends()


class JudgeSums(msgspec.Struct, frozen=True, array_like=True):
    """The judge's opinions on both answers of `pairs` pairs, and their difference: sums, and sums of squares."""

    pairs: int
    version: float
    other: float
    difference: float
    version_squares: float
    other_squares: float
    difference_squares: float


class Block(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Pairs of requests from `begins` (Unix seconds) on.

    `sure` has the labels of reviewers and trusted callers, `told` those of all other callers; both have the judge's
    guess on all other pairs. `by_group` has the differences by each group of callers. `outright` has the judge's
    guesses on all pairs in which it rates both answers, labelled or not. `agreements` counts pairs of which the judge
    only says how alike the answers are.
    """

    begins: float
    pairs: int = 0
    sure: Sides = Sides()
    told: Sides = Sides()
    by_group: tuple[Ends, ...] = (Ends(),) * GROUPS
    outright: JudgeSums | None = None
    agreements: int = 0


class Arm(msgspec.Struct, frozen=True, kw_only=True):
    """The pairs of a version with one other arm, in blocks, oldest first. `other` is a version, or `general`.

    `against` is the other arm's digest (None: not known). `givers` are the digests of the first callers that gave
    labels. Each is a group of its own; later ones share the groups by their hash.
    """

    other: str
    against: str | None = None
    givers: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()


def compare_with(arm: Arm, digest: str | None) -> Arm:
    """The arm with this digest; begun again if it had another one (`fingerprints.py`)."""
    if digest is None or digest == arm.against:
        return arm
    if arm.against is None:
        return replace(arm, against=digest)
    return Arm(other=arm.other, against=digest)


def add_pair(arm: Arm, at: float, guessed: tuple[float, float] | None, says_right: bool = False) -> Arm:
    """The arm after a pair that only the judge has seen; without a guess the pair is only counted.

    `says_right`: the guess is on the answers' rightness, not on their likeness.
    """
    blocks = _open(arm.blocks, at)
    block = blocks[-1]
    if guessed is not None:
        block = replace(
            block,
            sure=_judged(block.sure, guessed),
            told=_judged(block.told, guessed),
            outright=_add_judge_sums((block.outright, _judge_sums(*guessed))) if says_right else block.outright,
            agreements=block.agreements + (not says_right),
        )
    block = replace(block, pairs=block.pairs + 1)
    return replace(arm, blocks=(*blocks[:-1], block))


def add_label(
    arm: Arm, begins: float, right: Right, guessed: tuple[float, float] | None, givers: tuple[str, ...] = ()
) -> Arm:
    """The arm after a person's label on a pair of the block that began at `begins`.

    `givers` are the callers who gave the label; none: a reviewer or a trusted caller did. A pair of a deleted block is
    passed over.
    """
    place = bisect_right(arm.blocks, begins, key=lambda block: block.begins) - 1
    if place < 0:
        return arm
    block, first_givers = arm.blocks[place], arm.givers
    if givers:
        digests = sorted(
            {hashlib.blake2b(f"{arm.other}\n{giver}".encode(), digest_size=8).hexdigest() for giver in givers}
        )
        first_givers = tuple(dict.fromkeys((*first_givers, *digests)))[:GROUPS]
        own = {first_givers.index(digest) if digest in first_givers else int(digest, 16) % GROUPS for digest in digests}
        guess = None if guessed is None else guessed[1] - guessed[0]
        by_group = tuple(
            _apart(ends, right, guess) if group in own else ends for group, ends in enumerate(block.by_group)
        )
        block = replace(block, told=_labelled(block.told, right, guessed), by_group=by_group)
    else:
        block = replace(block, sure=_labelled(block.sure, right, guessed))
    return replace(arm, givers=first_givers, blocks=(*arm.blocks[:place], block, *arm.blocks[place + 1 :]))


class ArmComparison(msgspec.Struct, frozen=True, kw_only=True):
    """The estimates of a version and of another arm, if known, and the bounds of the other's advantage.

    Each bound holds with 97.5%, at whatever number of pairs one looks. `labels` counts pairs that people have judged,
    `pairs` those with the judge's guess alone. The bounds rest on these, or else on the guesses alone on `words` pairs,
    labelled ones included.
    """

    version: Estimate | None
    other: Estimate | None
    advantage_low: float
    advantage_high: float
    labels: int
    pairs: int
    words: int


def compare(arm: Arm, since: float | None) -> ArmComparison | None:
    """Compare both arms on the requests since `since`, if given; None if fewer than 20 are labelled or judged.

    If there are enough labels of reviewers and trusted callers, these count, with the judge's guess. Else those of
    other callers count, if they cover at least half of the pairs; else the judge's guess alone. A judge that rates both
    answers also decides the advantage alone, if fewer than 20 labels, or than nine tenths of them, rate both.
    """
    blocks = get_newest_blocks(arm, since)
    outright, labelled = _outright(blocks), _labelled_sides(blocks)
    if labelled is None:
        return _by_the_judge(blocks, outright)
    sides, without = labelled
    labels = sides.difference.low.labelled
    known_min = max(LABELS_MIN, KNOWN_SHARE_MIN * labels)
    by_judge = outright is not None and not _is_complete(sides)
    all_ends = [outright.difference] if outright is not None and by_judge else [sides.difference, *without]
    return ArmComparison(
        version=estimates.estimate(sides.version) if sides.version.labelled >= known_min else None,
        other=estimates.estimate(sides.other) if sides.other.labelled >= known_min else None,
        advantage_low=min(_bounds(ends.low)[0] for ends in all_ends),
        advantage_high=max(_bounds(ends.high)[1] for ends in all_ends),
        labels=labels,
        pairs=sides.difference.low.unlabelled,
        words=outright.difference.low.labelled if outright is not None and by_judge else 0,
    )


def _labelled_sides(blocks: Sequence[Block]) -> tuple[Sides, list[Ends]] | None:
    """The labels that count, with the judge's guess, and their difference without each group of callers; None if there
    are too few."""
    sides, by_callers = _whole([block.sure for block in blocks]), _whole([block.told for block in blocks])
    if sides.difference.low.labelled >= LABELS_MIN:
        return sides, []
    if by_callers.difference.low.labelled < max(LABELS_MIN, TOLD_SHARE_MIN * sum(block.pairs for block in blocks)):
        return None
    groups = [_all_ends(block.by_group[group] for block in blocks) for group in range(GROUPS)]
    several = sum(ends.low.labelled > 0 for ends in groups) > 1
    return by_callers, [_without(by_callers.difference, ends) for ends in groups if several and ends.low.labelled]


def _is_complete(sides: Sides) -> bool:
    """Return whether enough of the labels rate both answers. Each rates at least one."""
    labels = sides.difference.low.labelled
    complete = sides.version.labelled + sides.other.labelled - labels
    return complete >= LABELS_MIN and labels - complete <= OPEN_SHARE_MAX * labels


def _outright(blocks: Sequence[Block]) -> Sides | None:
    """The guesses of a judge that rates both answers, as if they were labels; None without such a judge, or if it has
    judged too few pairs. A contract that both break rates both too, but only in a few pairs."""
    sums = _add_judge_sums(block.outright for block in blocks)
    if sums is None or sums.pairs < max(LABELS_MIN, sum(block.agreements for block in blocks)):
        return None
    apart = Sums(labelled=sums.pairs, y=sums.difference, yy=sums.difference_squares)
    return Sides(
        version=Sums(labelled=sums.pairs, y=sums.version, yy=sums.version_squares),
        other=Sums(labelled=sums.pairs, y=sums.other, yy=sums.other_squares),
        difference=Ends(apart, apart),
    )


def _by_the_judge(blocks: Sequence[Block], outright: Sides | None) -> ArmComparison | None:
    """Compare both arms by the judge alone; None if it has judged too few pairs."""
    sides = outright or _taken_for_labels(_whole([block.sure for block in blocks]))
    judged = sides.difference.low.labelled
    if judged < LABELS_MIN:
        return None
    knows = outright is not None or not any(block.agreements for block in blocks)
    low, high = _bounds(sides.difference.low)
    return ArmComparison(
        version=estimates.estimate(sides.version) if knows else None,
        other=estimates.estimate(sides.other) if knows else None,
        advantage_low=low,
        advantage_high=high,
        labels=0,
        pairs=judged,
        words=judged,
    )


def _bounds(difference: Sums) -> tuple[float, float]:
    """The least and the greatest advantage of the other arm: -1 and 1 if there are too few labels."""
    bounds = estimates.bound_always(difference, ALPHA) if difference.labelled >= LABELS_MIN else None
    return (-1.0, 1.0) if bounds is None else bounds


def _judged(sides: Sides, guessed: tuple[float, float]) -> Sides:
    own, other = guessed
    ends, apart = sides.difference, other - own
    return Sides(
        version=estimates.add_guess(sides.version, own),
        other=estimates.add_guess(sides.other, other),
        difference=Ends(estimates.add_guess(ends.low, apart), estimates.add_guess(ends.high, apart)),
    )


def _judge_sums(own: float, other: float) -> JudgeSums:
    apart = other - own
    return JudgeSums(1, own, other, apart, own * own, other * other, apart * apart)


def _labelled(sides: Sides, right: Right, guessed: tuple[float, float] | None) -> Sides:
    ends, (low, high) = sides.difference, find_differences(right)
    own, other, guess = (None, None, None) if guessed is None else (*guessed, guessed[1] - guessed[0])
    return Sides(
        version=_with_guess(sides.version, right[0], own),
        other=_with_guess(sides.other, right[1], other),
        difference=Ends(_with_guess(ends.low, low, guess), _with_guess(ends.high, high, guess)),
    )


def _with_guess(sums: Sums, y: float | None, guessed: float | None) -> Sums:
    """The sums after a person's label on a row that the judge may have seen; unchanged if the label leaves it open."""
    if y is None:
        return sums
    return estimates.add_label(sums, y) if guessed is None else estimates.replace_guess(sums, y, guessed)


def find_differences(right: Right) -> tuple[float, float]:
    """The least and the greatest of the other answer's rightness less the version's."""
    own, other = right
    low = (0.0 if other is None else other) - (1.0 if own is None else own)
    return low, (1.0 if other is None else other) - (0.0 if own is None else own)


def _apart(ends: Ends, right: Right, guess: float | None) -> Ends:
    low, high = find_differences(right)
    return Ends(estimates.add_label(ends.low, low, guess), estimates.add_label(ends.high, high, guess))


def _whole(sides: Sequence[Sides]) -> Sides:
    return Sides(
        version=add_up(part.version for part in sides),
        other=add_up(part.other for part in sides),
        difference=_all_ends(part.difference for part in sides),
    )


def _add_judge_sums(some: Iterable[JudgeSums | None]) -> JudgeSums | None:
    rows = [astuple(each) for each in some if each is not None]
    return JudgeSums(*[sum(values) for values in zip(*rows, strict=True)]) if rows else None


def _all_ends(some: Iterable[Ends]) -> Ends:
    parts = list(some)
    return Ends(add_up(ends.low for ends in parts), add_up(ends.high for ends in parts))


def _without(whole: Ends, part: Ends) -> Ends:
    """The whole without the rows of `part`, which are all labelled."""
    return Ends(_combine(sub, whole.low, part.low), _combine(sub, whole.high, part.high))


def add_up(sums: Iterable[Sums]) -> Sums:
    """The total of these sums."""
    return reduce(partial(_combine, add), sums, Sums())


def _combine(operation: Callable[[Any, Any], Any], whole: Sums, part: Sums) -> Sums:
    return Sums(*map(operation, astuple(whole), astuple(part)))


def _taken_for_labels(sides: Sides) -> Sides:
    """The judge's guesses on the rows that only it has seen, as if they were labels."""
    version, other, apart = [
        Sums(labelled=sums.unlabelled, y=sums.other_f, yy=sums.other_ff)
        for sums in (sides.version, sides.other, sides.difference.low)
    ]
    return Sides(version=version, other=other, difference=Ends(apart, apart))


def get_newest_blocks(arm: Arm, since: float | None) -> list[Block]:
    """The newest blocks with enough labels or judged pairs, newest first. All their pairs came after `since`, if
    given."""
    newest: list[Block] = []
    labels = judged = 0
    for block in reversed(arm.blocks):
        if labels >= LATELY_LABELS or (not labels and judged >= LATELY_JUDGED):
            break
        if since is not None and block.begins < since:
            break
        newest.append(block)
        labels += max(block.sure.difference.low.labelled, block.told.difference.low.labelled)
        judged += block.sure.difference.low.unlabelled
    return newest


def _open(blocks: tuple[Block, ...], at: float) -> tuple[Block, ...]:
    """The blocks, with an open one at the end for a pair of this time."""
    if blocks and blocks[-1].pairs < BLOCK_PAIRS:
        return blocks
    begins = max(at, blocks[-1].begins + 0.001) if blocks else at
    made = [*blocks, Block(begins=begins)]
    size, end = BLOCK_PAIRS, len(made) - 1
    while True:
        same = [place for place in range(end) if size <= made[place].pairs < 2 * size]
        if len(same) <= BLOCKS_PER_SIZE:
            break
        older, newer = made[same[0]], made.pop(same[0] + 1)
        made[same[0]] = _joined(older, newer)
        size, end = 2 * size, same[0] + 1
    return tuple(made[-BLOCKS_MAX:])


def _joined(older: Block, newer: Block) -> Block:
    return Block(
        begins=older.begins,
        pairs=older.pairs + newer.pairs,
        sure=_whole((older.sure, newer.sure)),
        told=_whole((older.told, newer.told)),
        by_group=tuple(_all_ends(both) for both in zip(older.by_group, newer.by_group, strict=True)),
        outright=_add_judge_sums((older.outright, newer.outright)),
        agreements=older.agreements + newer.agreements,
    )
