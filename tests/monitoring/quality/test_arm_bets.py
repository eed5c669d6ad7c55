"""The bets on another arm since a version was degraded: what they show, whom they need, and what they never take."""

from __future__ import annotations

import random

import msgspec
import pytest

from monitoring.quality.detectors import guards, leave_one_out
from monitoring.quality.detectors.leave_one_out import GiverRoll
from monitoring.quality.signals import arm_bets
from monitoring.quality.signals.arm_bets import ArmBets
from monitoring.quality.verdicts.quality import ArmEvidence, ArmReport
from tests.monitoring.quality.reckoned import Told, shadowed

CALLERS = tuple(f"caller {number}" for number in range(8))


def roll_of(*callers: str) -> GiverRoll:
    roll = guards.start_roll("returns@v2")
    for number in range(80):
        roll = leave_one_out.add_request(roll, callers[number % len(callers)], float(number))
    return roll


def bet(differences: list[float], callers: tuple[str, ...] = (), everybody: tuple[str, ...] = CALLERS) -> ArmEvidence:
    """The evidence of pairs, judged by these callers in turn (none: by a judge)."""
    roll, bets = roll_of(*everybody), arm_bets.start(0.0, None, guards.GROUPS)
    for number, difference in enumerate(differences):
        givers = (callers[number % len(callers)],) if callers else ()
        bets = arm_bets.add_difference(arm_bets.add_pair(bets), difference, givers, roll)
    return arm_bets.describe(bets, roll)


def test_an_arm_that_is_right_where_the_version_is_wrong_is_shown_better_soon() -> None:
    assert not bet([1.0] * 4).is_enough
    assert bet([1.0] * 12).is_enough
    assert bet([1.0, 0.0] * 12, CALLERS).is_enough
    assert not bet([1.0, -1.0] * 100, CALLERS).is_enough


@pytest.mark.invariant("No caller shows an arm to be better alone.")
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_one_caller_of_most_requests_shows_no_arm_to_be_better(share: float) -> None:
    draw = random.Random(1)
    roll, bets = guards.start_roll("returns@v2"), arm_bets.start(0.0, None, guards.GROUPS)
    for number in range(1000):
        is_liar = draw.random() < share
        caller = "liar" if is_liar else f"other {number % 3}"
        roll = leave_one_out.add_request(roll, caller, float(number))
        difference = 1.0 if is_liar else draw.choice([-1.0, 0.0, 0.0, 1.0])
        bets = arm_bets.add_difference(arm_bets.add_pair(bets), difference, (caller,), roll)
    found = arm_bets.describe(bets, roll)
    assert found.e_value > 1e6
    assert not found.is_enough


def test_a_caller_who_is_alone_is_believed() -> None:
    assert bet([1.0] * 12, ("one",), ("one",)).is_enough


def test_labels_of_less_than_half_of_the_pairs_show_nothing() -> None:
    roll, bets = roll_of(*CALLERS), arm_bets.start(0.0, None, guards.GROUPS)
    for number in range(60):
        bets = arm_bets.add_pair(bets)
        if number % 3 == 0:
            bets = arm_bets.add_difference(bets, 1.0, (CALLERS[number % 8],), roll)
    assert arm_bets.describe(bets, roll).e_value == 1.0


@pytest.mark.parametrize("judged_every", [1, 2, 10])
def test_a_judge_or_reviewers_show_a_better_arm_where_some_pairs_have_no_opinion(judged_every: int) -> None:
    """A judge that had no room, or reviews of a tenth of the pairs: neither is a sample of complaints."""
    roll, bets = roll_of(*CALLERS), arm_bets.start(0.0, None, guards.GROUPS)
    for number in range(200):
        bets = arm_bets.add_pair(bets)
        if number % judged_every == 0 and number != 7:
            bets = arm_bets.add_difference(bets, 1.0, (), roll)
    evidence = arm_bets.describe(bets, roll)
    assert evidence.unjudged > 0
    assert evidence.is_enough


def test_bets_go_through_json_unchanged() -> None:
    bets = arm_bets.add_difference(arm_bets.start(5.0, "digest", 8), 0.5, ("one",), roll_of("one"))
    assert msgspec.json.decode(msgspec.json.encode(bets), type=ArmBets) == bets


def test_pairs_count_from_the_verdict_on_and_end_with_it() -> None:
    told = Told()
    told.take(shadowed(0.6))
    assert [one.evidence for one in told.judged().arms] == [None, None]
    told.tell("degraded")
    told.take(shadowed(0.6))
    found = {one.arm: one.evidence for one in told.judged().arms}
    assert found["version"] is None
    assert found["general"] is not None
    assert (found["general"].pairs, found["general"].unjudged) == (150, 0)
    assert found["general"].is_enough
    told.tell("healthy")
    assert [one.evidence for one in told.judged().arms] == [None, None]


def test_an_arm_that_is_shown_to_be_worse_is_not_better_by_its_bets() -> None:
    evidence = ArmEvidence(pairs=20, unjudged=0, e_value=50.0, e_value_without_one=20.0)
    arm = ArmReport(arm="general", evidence=evidence)
    assert arm.is_better
    assert not msgspec.structs.replace(arm, advantage_low=-0.3, advantage_high=-0.1).is_better
    assert not msgspec.structs.replace(arm, evidence=msgspec.structs.replace(evidence, e_value=30.0)).is_better
