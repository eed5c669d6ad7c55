"""Pairs of both arms on the same request, and of what was held out at the time: their streams, and arms' quality."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from tests.monitoring.quality.reckoned import judged, stream, together
from tests.monitoring.quality.traffic import (
    PLAN,
    V3,
    at,
    held_out,
    paired_traffic,
    said,
    served,
    step,
)

# ---- pairs and arms ------------------------------------------------------------------------------


def test_demonstrations_judge_both_arms_of_a_shadowed_request() -> None:
    found = judged(paired_traffic(400, 0.3, 0.1))
    arms = {one.arm: one for one in found.arms}
    assert arms.keys() == {"version", "general"}
    assert arms["version"].mean == pytest.approx(0.7, abs=0.08)
    assert arms["general"].mean == pytest.approx(0.9, abs=0.06)
    assert arms["general"].labels >= 200
    assert arms["general"].advantage_low is not None
    assert arms["general"].advantage_high is not None
    assert 0.0 < arms["general"].advantage_low < 0.2 < arms["general"].advantage_high < 0.4
    assert (arms["version"].advantage_low, arms["version"].version, arms["general"].version) == (None, V3, None)


def test_an_arm_that_is_no_better_has_no_advantage_and_few_pairs_tell_nothing() -> None:
    general = {one.arm: one for one in judged(paired_traffic(400, 0.1, 0.1)).arms}["general"]
    assert general.advantage_low is not None
    assert general.advantage_low < 0
    assert judged(paired_traffic(19, 0.5, 0.0)).arms == []


def test_it_does_not_matter_whether_the_label_or_the_pair_comes_first() -> None:
    records, feedback = paired_traffic(60, 0.3, 0.1)
    late = [(at(10_000 + n), one) for n, (_, one) in enumerate(r for r in records if r[1].purpose == "shadow")]
    first = [one for one in records if one[1].purpose != "shadow"]
    usual, turned = (judged(one, baselines={V3: {}}).arms for one in ((records, feedback), ([*first, *late], feedback)))
    assert [(one.arm, one.mean, one.labels) for one in usual] == [(one.arm, one.mean, one.labels) for one in turned]


def test_what_a_label_leaves_open_counts_for_the_version_and_is_in_no_quality() -> None:
    records, feedback = paired_traffic(60, 1.0, 0.0)
    bare = [(name, msgspec.structs.replace(one, demonstration_digests={})) for name, one in feedback]
    arms = {one.arm: one for one in judged((records, bare)).arms}
    general = arms["general"]
    assert (general.mean, general.low, general.high) == (None, None, None)
    assert (general.labels, arms["version"].mean) == (60, 0.0)
    assert general.advantage_low is not None
    assert general.advantage_high is not None
    assert general.advantage_low <= 0.0 < general.advantage_high


def test_how_alike_answers_are_is_no_quality() -> None:
    """A judge that compares texts, and no person: it says how often both arms agree, and which is right of neither."""
    scored: dict[str, Any] = {"judge": "normal", "score": 1.0, "served_score": 1.0}
    for pair, known in ((scored, None), ({**scored, "judge": "model", "right": True, "served_right": True}, 1.0)):
        found = {one.arm: one for one in judged((paired_traffic(60, 0.1, 0.1, **pair)[0], [])).arms}
        assert {name: (one.mean, one.labels, one.pairs) for name, one in found.items()} == {
            "version": (known, 0, 60),
            "general": (known, 0, 60),
        }


def test_where_reviewers_judge_only_their_word_judges_pairs() -> None:
    plan = msgspec.structs.replace(PLAN, reviews_per_week=50)
    records, feedback = paired_traffic(60, 0.3, 0.0)
    assert judged((records, feedback), step(plan)).arms == []
    reviewed = [(name, msgspec.structs.replace(one, reviewed=True)) for name, one in feedback]
    assert len(judged((records, reviewed), step(plan)).arms) == 2


def test_judge_alone_works_without_labels_and_labels_measure_its_agreement() -> None:
    scored: dict[str, Any] = {"judge": "model", "right": True, "served_right": False}
    records, feedback = paired_traffic(40, 0.3, 0.0, **scored)
    alone = judged((records, []))
    general = {one.arm: one for one in alone.arms}["general"]
    assert (general.mean, general.labels, general.pairs) == (1.0, 0, 40)
    assert general.advantage_low is not None
    assert general.advantage_low > 0.5
    assert alone.judge_agreement is None
    told = [(name, msgspec.structs.replace(one, demonstration_digests={"model": "right"})) for name, one in feedback]
    both = judged((records, told), baselines={V3: {}})
    assert both.judge_agreement == pytest.approx(0.3, abs=0.2)
    assert {one.arm: one for one in both.arms}["version"].labels == 40


def test_the_estimate_is_of_the_time_since_the_evidence_began() -> None:
    found = judged(together(paired_traffic(600, 0.04, 0.1), paired_traffic(80, 0.6, 0.1, 2, begin=600)))
    assert stream(found, "feedback").alarming
    arms = {one.arm: one for one in found.arms}
    assert arms["version"].mean is not None
    assert arms["version"].mean < 0.7, "and not 0.9, as over all 680: the first of two streams began 55 pairs too early"
    assert arms["general"].advantage_low is not None
    assert arms["general"].advantage_low > 0.05


def test_pairs_that_worsen_against_general_alarm_and_another_general_restarts_them() -> None:
    usual, worse = paired_traffic(300, 0.05, 0.15), paired_traffic(260, 0.4, 0.15, 2, begin=300)
    found = stream(judged(together(usual, worse)), "shadow")
    assert found.alarming
    assert found.baseline["difference"]
    records, feedback = worse
    renewed = [
        (name, msgspec.structs.replace(one, fingerprint="general-2") if one.purpose == "shadow" else one)
        for name, one in records
    ]
    afresh = stream(judged(together(usual, (renewed, feedback))), "shadow")
    assert (afresh.alarming, afresh.observed, afresh.baseline["against"]) == (False, 241.0, "general-2"), (
        "19 were passed over"
    )


def test_the_upper_end_without_one_is_known_of_pairs_that_no_caller_has_judged() -> None:
    scored: dict[str, Any] = {"judge": "model", "right": True, "served_right": True}
    records, feedback = paired_traffic(80, 0.1, 0.1)
    by_model = stream(judged((paired_traffic(60, 0.1, 0.1, **scored)[0], [])), "shadow")
    assert by_model.high_without_one is not None
    assert by_model.high_without_one == by_model.high
    reviewed = [(name, msgspec.structs.replace(one, reviewed=True)) for name, one in feedback]
    by_reviewers = stream(judged((records, reviewed)), "shadow")
    assert by_reviewers.high_without_one == by_reviewers.high
    assert stream(judged((records, feedback)), "shadow").high_without_one is None
    of_one = [(name, msgspec.structs.replace(one, caller="only") if one.caller else one) for name, one in records]
    own = [(name, msgspec.structs.replace(one, caller="only")) for name, one in feedback]
    alone = stream(judged((of_one, own)), "shadow")
    assert alone.high_without_one == alone.high


def test_feedback_is_held_against_what_was_held_out_at_the_time() -> None:
    """All labels get worse at once, the holdout's too: raters have become stricter, and the paired test is silent."""
    for degraded in (False, True):
        draw, records, feedback = random.Random(3), [], []
        for number in range(3000):
            name, when, out = f"r{number}", number * 60.0, draw.random() < 0.3
            late = number >= 1500
            rate = 0.05 if not late else 0.45 if degraded and not out else 0.05
            records.append((at(when), (held_out if out else served)(name, f"shop{number % 3}")))
            feedback.append((at(when + 9), said(name, draw.random() >= rate, f"shop{number % 3}")))
        found = stream(judged((records, feedback)), "holdout")
        assert found.alarming is degraded
        assert found.observed > 500
