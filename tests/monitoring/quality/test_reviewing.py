"""The probability of a review keeps to the weekly budget."""

from __future__ import annotations

import random

import pytest

from benchmarks.reviews import time_cut
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Pin, TaskQuality, VersionQuality
from monitoring.quality.verdicts.reviewing import (
    aim_reviews,
    are_raised,
    compute_review_share,
    count_requests_per_week,
    find_weekly_budget,
)
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.test_reported import REPORTED
from tests.monitoring.quality.traffic import MORNING, V3, at, held_out, served, step

PLAN = MonitorPlan(reviews_per_week=100, reviews_per_week_suspect=400, responses=["reviews"])


def test_the_share_aims_a_standard_deviation_below_the_budget() -> None:
    for budget in (1, 5, 20, 100, 1000):
        aimed = aim_reviews(budget)
        assert aimed + aimed**0.5 == pytest.approx(budget)
    assert compute_review_share(PLAN, 10_000, suspect=False) == pytest.approx(aim_reviews(100) / 10_000)
    assert compute_review_share(PLAN, 10_000, suspect=True) == pytest.approx(aim_reviews(400) / 10_000)


def test_the_share_is_of_all_requests_that_may_be_drawn_whatever_answers_them() -> None:
    """A degraded version keeps one of twenty of its requests, general answers the others; and some are reported."""
    records = [
        (at(600.0 * n), served(f"r{n}") if n % 20 == 0 else held_out(f"r{n}", reason="degraded")) for n in range(1_008)
    ]
    records += [(at(600.0 * n + 1), served(f"x{n}", **REPORTED)) for n in range(1_008)]
    records += [(at(600.0 * n + 2), served(f"p{n}", requested_model=V3)) for n in range(1_008)]
    judgements = replay(records, [], step(), MORNING + 7 * 86_400, {})
    assert count_requests_per_week(judgements.values()) == pytest.approx(1_008, rel=0.02)


def test_few_requests_are_all_drawn_and_none_without_data_or_wanted_reviews() -> None:
    assert compute_review_share(PLAN, 10, suspect=False) == 1.0
    assert compute_review_share(PLAN, 0, suspect=True) == 0.0
    assert compute_review_share(MonitorPlan(), 10, suspect=True) == 0.0
    assert find_weekly_budget(MonitorPlan(reviews_per_week=9), suspect=True) == 9


@pytest.mark.parametrize("requests", [-1.0, float("nan"), float("inf")])
def test_an_expectation_that_is_none_is_refused(requests: float) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        compute_review_share(PLAN, requests, suspect=False)


def test_budget_rises_while_a_watched_version_is_suspect_if_plan_and_admins_allow() -> None:
    suspect = VersionQuality(verdict="suspect")
    held = VersionQuality(verdict="degraded", pin=Pin(verdict=None, by="a", reason="wait", at=1.0))
    health = TaskQuality(versions={"returns@v1": VersionQuality(), "returns@v2": suspect, "returns@v3": held})
    assert are_raised(health, ["returns@v1", "returns@v2"], PLAN)
    assert not are_raised(health, ["returns@v1", "returns@v3", "returns@v9"], PLAN)
    assert not are_raised(health, ["returns@v2"], MonitorPlan(reviews_per_week_suspect=4))
    undone = TaskQuality(versions={"returns@v2": suspect}, undone=("reviews",))
    assert not are_raised(undone, ["returns@v2"], PLAN)


def test_the_time_in_which_the_budget_is_spent_is_that_of_simulated_weeks() -> None:
    chance, budget = random.Random(5), 20
    expected = aim_reviews(budget)
    now, spent, cut, seen = 0.0, list[float](), 0, 0
    while now < 4000.0:
        now += chance.expovariate(expected)
        spent = [at for at in spent if at > now - 1.0]
        seen += 1
        if len(spent) >= budget:
            cut += 1
        else:
            spent.append(now)
    assert cut / seen == pytest.approx(time_cut(expected, budget), abs=0.01)
    assert time_cut(expected, budget) < 0.1
