"""The evidence, since a version was degraded, that another arm is better on the same requests. Bets valid at any time.

A difference D in [-1, 1] is the other arm's rightness less the version's on one request. If a label leaves it open, D
counts for the version. While the other arm is no better, the capital of bets on D grows by no more than 1 on average
(`detectors/sequential.py`). So the other arm is taken once the e-value of all pairs reaches `E_VALUE_MIN`, and the
e-value without any one caller `E_VALUE_WITHOUT_ONE_MIN`. By chance this happens in at most 3% of all cases, and in at
most 10% whatever one caller says. Unlike the bounds in `arms.py`, the bets need no least number of labels, and see no
pair from before the verdict.

Each pair counts once, by the first opinion on it. Callers label wrong answers more often than the rest. So their labels
count only if they cover at least half of the pairs that nobody else has judged.

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import leave_one_out, sequential
from monitoring.quality.detectors.leave_one_out import GiverRoll, LeaveOneOut
from monitoring.quality.detectors.sequential import Bets
from monitoring.quality.verdicts.quality import ArmEvidence

TOLD_SHARE_MIN = 0.5


class ArmBets(msgspec.Struct, frozen=True, kw_only=True):
    """The bets that another arm is better, on requests from `since` (Unix seconds) on.

    `against` is the digest of that arm (None: not known). `pairs` counts its pairs, `judged` those with an opinion,
    `told` those of them by callers' labels.
    """

    since: float
    against: str | None
    bets: LeaveOneOut[Bets]
    pairs: int = 0
    judged: int = 0
    told: int = 0


def start(since: float, against: str | None, groups: int) -> ArmBets:
    """The bets before the first pair; callers are left out in `groups` groups."""
    return ArmBets(since=since, against=against, bets=leave_one_out.start(sequential.start("above", 0.0), groups))


def move(
    bets: Mapping[str, ArmBets],
    arm: str,
    since: float,
    against: str | None,
    groups: int,
    step: Callable[[ArmBets], ArmBets],
) -> dict[str, ArmBets]:
    """All bets after a step of those on this arm. Bets of an earlier verdict, or on an earlier digest of the arm, end.

    `since` is the time of the present verdict in Unix seconds, `against` the arm's present digest.
    """
    current = {name: entry for name, entry in bets.items() if entry.since == since}
    own = current.get(arm)
    if own is None or own.against != against:
        own = start(since, against, groups)
    return {**current, arm: step(own)}


def add_pair(bets: ArmBets) -> ArmBets:
    """The bets after a pair, whether it is judged or not."""
    return replace(bets, pairs=bets.pairs + 1)


def add_difference(bets: ArmBets, difference: float, givers: Sequence[str], roll: GiverRoll) -> ArmBets:
    """The bets after an opinion on a pair. `givers` are the callers whose labels it rests on; none: a judge's, or a
    trusted person's. Raises ValueError if the difference is outside [-1, 1]."""
    own = {leave_one_out.get_group(roll, giver) for giver in givers}
    moved = leave_one_out.move(bets.bets, lambda test: sequential.observe(test, difference), own)
    told_count = bets.told + bool(givers)
    return replace(bets, bets=moved, judged=bets.judged + 1, told=told_count)


def describe(bets: ArmBets, roll: GiverRoll) -> ArmEvidence:
    """The evidence now. A caller beside whom no others count is not left out."""
    believed = tuple(leave_one_out.find_believed(roll))
    whole = sequential.log_e(bets.bets.whole)
    without = leave_one_out.find_least(bets.bets, sequential.log_e, believed)
    if bets.told and bets.told < TOLD_SHARE_MIN * (bets.pairs - bets.judged + bets.told):
        whole, without = min(whole, 0.0), min(without, 0.0)
    return ArmEvidence(
        pairs=bets.judged,
        unjudged=max(0, bets.pairs - bets.judged),
        e_value=sequential.round_e_value(whole),
        e_value_without_one=sequential.round_e_value(without),
    )
