"""Whose word judges arms, of which pairs, and that a bound which is looked at all the time still holds."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from monitoring.quality.detectors import estimates
from monitoring.quality.signals import arms, noted_pairs
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.arms import Arm, ArmComparison
from monitoring.quality.signals.child_messages import MonitorStep
from monitoring.quality.signals.noted_pairs import NotedPair, Right
from monitoring.quality.verdicts.quality import ArmReport
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.traffic import MORNING, PLAN, V2, V3, Traffic, at, said, served, shadow, step

WORSE, BETTER, SAME = (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)


def judged(rights: Sequence[Right], callers: Sequence[str] = (), begin: float = 0.0) -> Arm:
    """An arm with a pair a second, each judged by a trusted caller, or by one of these callers in turn."""
    arm = Arm(other="general")
    for number, right in enumerate(rights):
        arm = arms.add_pair(arm, begin + number, None)
        givers = (callers[number % len(callers)],) if callers else ()
        arm = arms.add_label(arm, begin + number, right, None, givers)
    return arm


def found(arm: Arm, since: float | None = None) -> ArmComparison:
    one = arms.compare(arm, since)
    assert one is not None
    return one


# ---- bounds that always hold ----------------------------------------------------------------------


def test_equal_arms_are_hardly_ever_shown_better_though_each_pair_is_looked_at() -> None:
    draw, wrongly = random.Random(1), 0
    for _ in range(30):
        arm = Arm(other="general")
        for number in range(400):
            right = (float(draw.random() < 0.7), float(draw.random() < 0.7))
            arm = arms.add_label(arms.add_pair(arm, number, None), number, right, None)
            seen = arms.compare(arm, None)
            if seen is not None and (seen.advantage_low > 0.0 or seen.advantage_high < 0.0):
                wrongly += 1
                break
    assert wrongly <= 4, "10% for both bounds together"


def test_the_bounds_are_those_of_the_paper_with_a_spread_that_is_never_0() -> None:
    same = found(judged([SAME] * 20))
    assert -0.2 < same.advantage_low < -0.1
    assert same.advantage_high == -same.advantage_low
    many = found(judged([SAME, BETTER, WORSE, SAME] * 25))
    assert many.advantage_high == pytest.approx(0.5**0.5 * 0.3057, rel=0.02)
    assert estimates.bound_always(estimates.Sums(labelled=1, y=1.0, yy=1.0)) is None
    with pytest.raises(ValueError, match="alpha"):
        estimates.bound_always(estimates.Sums(), 0.5)


def test_an_arm_that_is_worse_has_an_upper_bound_below_0() -> None:
    assert found(judged([WORSE] * 40)).advantage_high < -0.5
    assert found(judged([BETTER] * 40)).advantage_low > 0.5


def told_by_labels(number: int, draw: random.Random, rates: tuple[float, float], demonstrated: bool = False) -> Right:
    """A pair of which the version and the other are right so often. Each answers half of the requests;
    a label says whether what was answered is right, and right answers are alike in four of five."""
    version, other = (draw.random() < rate for rate in rates)
    own_served = number % 2 == 0
    words = [
        f"right-{draw.random() < 0.2}" if right else f"wrong-{place}-{number}"
        for place, right in enumerate((version, other))
    ]
    shadow, served = (words[1], words[0]) if own_served else (words[0], words[1])
    noted = NotedPair(
        shadow="general" if own_served else V3,
        served=V3 if own_served else "general",
        judge="normal",
        digest=shadow,
        served_digest=served,
    )
    if demonstrated:
        return float(version), float(other)
    right = noted_pairs.judge_by_labels(noted, V3, 1.0 - float(version if own_served else other), None)
    assert right is not None
    return right


def test_labels_of_what_was_answered_never_show_a_better_arm_to_be_worse() -> None:
    """Open labels count for the other arm in the upper bound, and for the version in the lower one."""
    for run in range(200):
        draw, arm = random.Random(f"open {run}"), Arm(other="general")
        for number in range(240):
            right = told_by_labels(number, draw, (0.6, 0.9))
            arm = arms.add_label(arms.add_pair(arm, number, None), number, right, None)
            if number % 40 == 39:
                seen = found(arm)
                assert seen.advantage_high >= 0.3
                assert seen.advantage_low <= 0.3


def test_demonstrations_show_a_worse_arm_to_be_worse_and_a_better_one_better() -> None:
    for rates, side in (((0.9, 0.6), -1), ((0.6, 0.9), 1)):
        draw, arm = random.Random(f"both {side}"), Arm(other="general")
        for number in range(240):
            right = told_by_labels(number, draw, rates, demonstrated=True)
            arm = arms.add_label(arms.add_pair(arm, number, None), number, right, None)
        seen = found(arm)
        assert (seen.advantage_high < 0.0) is (side < 0)
        assert (seen.advantage_low > 0.0) is (side > 0)


def test_the_quality_of_an_arm_is_that_of_labels_of_its_own_answers() -> None:
    arm = judged([(1.0, None), (0.0, None)] * 30)
    seen = found(arm)
    assert seen.version is not None
    assert (seen.version.mean, seen.version.labels, seen.other) == (0.5, 60, None)
    mixed = judged([(1.0, None), (None, 1.0)] * 30)
    assert found(mixed).other is not None, "half of the labels are of its answers"
    few = judged([(1.0, None), (1.0, None), (None, 1.0)] * 30)
    assert found(few).other is None


# ---- whose word counts ----------------------------------------------------------------------------


def test_complaints_about_a_part_of_the_pairs_make_no_arm_better() -> None:
    arm = Arm(other="general")
    for number in range(60):
        arm = arms.add_pair(arm, number, (0.5, 0.5))
    for number in range(25):
        arm = arms.add_label(arm, number, BETTER, (0.5, 0.5), ("shop",))
    seen = found(arm)
    assert (seen.labels, seen.pairs) == (0, 60), "the judge's word alone"
    assert seen.advantage_low < 0.0
    for number in range(25, 30):
        arm = arms.add_label(arm, number, BETTER, (0.5, 0.5), ("shop",))
    assert found(arm).labels == 30, "half of the pairs"


def test_trusted_labels_count_of_however_few_pairs_and_before_all_others() -> None:
    arm = Arm(other="general")
    for number in range(200):
        arm = arms.add_pair(arm, number, None)
    for number in range(200):
        arm = arms.add_label(arm, number, BETTER, None, ("shop",))
    for number in range(0, 200, 10):
        arm = arms.add_label(arm, number, WORSE, None)
    seen = found(arm)
    assert (seen.labels, seen.other.mean) == (20, 0.0)
    assert seen.advantage_high < 0.0


def test_the_advantage_has_to_stand_without_any_one_caller() -> None:
    rights = [BETTER if number % 3 == 0 else SAME for number in range(300)]
    assert found(judged(rights, ["one"])).advantage_low > 0.1, "who is alone counts"
    assert found(judged(rights, ["one", "two", "three"])).advantage_low < 0.0, "one caller finds it better, two don't"
    assert found(judged(rights, ["one", "two", "three", "four", "five"])).advantage_low > 0.05
    few = found(judged([BETTER] * 30, ["one"] * 29 + ["two"]))
    assert (few.advantage_low, few.advantage_high) == (-1.0, 1.0), "too few stay"


# ---- of which pairs -------------------------------------------------------------------------------


def test_no_pair_counts_that_came_before_the_version_began_to_slip() -> None:
    arm = judged([WORSE] * 30)
    for number in range(20):
        when = 90 * 86_400.0 + number
        arm = arms.add_label(arms.add_pair(arm, when, None), when, BETTER, None)
    assert arms.compare(arm, 89 * 86_400.0) is None, "20 came since, of which some are in a block with older ones"
    for number in range(20, 30):
        when = 90 * 86_400.0 + number
        arm = arms.add_label(arms.add_pair(arm, when, None), when, BETTER, None)
    seen = found(arm, 89 * 86_400.0)
    assert (seen.other.mean, seen.version.mean) == (1.0, 0.0)
    assert 20 <= seen.labels < 30


def test_blocks_are_few_and_lose_no_label() -> None:
    arm = judged([BETTER] * 3000)
    assert len(arm.blocks) < arms.BLOCKS_MAX
    assert sum(block.pairs for block in arm.blocks) == 3000
    assert sum(block.sure.difference.low.labelled for block in arm.blocks) == 3000
    assert len(judged([SAME] * 9000, ["one", "two"]).blocks) <= arms.BLOCKS_MAX
    assert msgspec.json.decode(msgspec.json.encode(arm), type=Arm) == arm


def test_another_general_model_begins_anew() -> None:
    arm = arms.compare_with(judged([BETTER] * 30), "general-1")
    assert (found(arm).labels, arms.compare_with(arm, None), arms.compare_with(arm, "general-1")) == (30, arm, arm)
    assert arms.compare_with(arm, "general-2") == Arm(other="general", against="general-2")


# ---- as the streams tell it -----------------------------------------------------------------------


def traffic(
    count: int, begin: int = 0, labels: Any = range(10_000), other: str | None = None, **fields: Any
) -> Traffic:
    """Requests that the version gets wrong and the other arm right; of these labels come, with demonstrations."""
    records, feedback = [], []
    for number in range(begin, begin + count):
        name = f"q{number}"
        pair = {"arm": "general" if other is None else "version", "digest": "right", "served_digest": "wrong"}
        told = {"version": other, "fingerprint": "general-1", "pair": pair} | fields
        records += [(at(number * 60.0), served(name)), (at(number * 60.0 + 1), shadow(name, **told))]
        if number in labels:
            feedback.append((at(number * 60.0 + 9), said(name, False, demonstration_digests={"normal": "right"})))
    return records, feedback


def reports(records: Any, feedback: Any, told: MonitorStep | None = None) -> dict[str, ArmReport]:
    found = replay(records, feedback, told or step(), MORNING + 86_400)[V3]
    return {one.arm: one for one in found.arms}


def test_few_labels_that_come_by_themselves_say_nothing_of_arms_and_reviews_do() -> None:
    records, feedback = traffic(100, labels=range(25))
    assert reports(records, feedback) == {}
    reviewed = [(name, msgspec.structs.replace(one, reviewed=True)) for name, one in feedback]
    assert reports(records, reviewed)["general"].labels == 25
    trusting = step(msgspec.structs.replace(PLAN, trusted_callers=["shop"]))
    assert reports(records, feedback, trusting)["general"].labels == 25
    assert reports(*traffic(40, labels=range(25)))["general"].labels == 25


def test_a_reviewers_word_takes_the_place_of_a_callers_and_not_the_other_way() -> None:
    records, feedback = traffic(50)
    contrary = [
        (at(5_000 + n), said(f"q{n}", True, "desk", reviewed=True, demonstration_digests={"normal": "wrong"}))
        for n in range(50)
    ]
    last = reports(records, [*feedback, *contrary])["general"]
    first = [(at(n * 60.0 + 5), one) for n, (_, one) in enumerate(contrary)]
    assert last.mean == 0.0
    assert reports(records, [*first, *feedback])["general"] == last


def test_pairs_with_a_version_that_stands_by_no_more_are_not_told() -> None:
    records, feedback = traffic(50, other=V2)
    standing = step()
    standing.tasks["returns"] = msgspec.structs.replace(standing.tasks["returns"], previous_version=V2)
    watches = Watches("e")
    watches.begin(standing, {})
    seen = reports(records, feedback, standing)
    assert (seen["previous_version"].version, seen["previous_version"].mean, seen["version"].version) == (V2, 1.0, V3)
    for name, one in records:
        watches.take_record(msgspec.structs.replace(one, placed_at=0.0), int(name.partition("-")[0]) / 1000)
    requests = {one.id: one for _, one in records}
    for name, word in feedback:
        watches.take_feedback(word, requests[word.request], int(name.partition("-")[0]) / 1000)
    assert [one.arm for one in watches.judged([V3], MORNING + 86_400)[V3].arms] == ["version", "previous_version"]
    watches.begin(step(), {})
    assert watches.judged([V3], MORNING + 86_400)[V3].arms == []


def test_the_general_arm_begins_anew_with_another_fingerprint() -> None:
    records, feedback = traffic(50)
    later, more = traffic(60, begin=50, fingerprint="general-2")
    assert reports([*records, *later], [*feedback, *more])["general"].labels == 41, "19 were passed over"
