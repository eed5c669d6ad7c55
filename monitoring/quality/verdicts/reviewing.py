"""The probability that a request is drawn for a review, so that a weekly budget of reviews is used and not exceeded.

Draws are uniform and independent, so their number in a week is about a Poisson number. The store of reviews stops at
the budget, and nothing is drawn until it goes on. So that this is rare, the probability aims one standard deviation
below the budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Judgement, TaskQuality

DAYS_A_WEEK = 7


def find_weekly_budget(plan: MonitorPlan, suspect: bool) -> int:
    """The budget: the most requests of the task that may be drawn in seven days."""
    return max(plan.reviews_per_week, plan.reviews_per_week_suspect) if suspect else plan.reviews_per_week


def aim_reviews(budget: int) -> float:
    """The expected draws a week: with one standard deviation (of a Poisson number) more, they are the budget."""
    if budget <= 0:
        return 0.0
    return ((math.sqrt(1.0 + 4.0 * budget) - 1.0) / 2.0) ** 2


def count_requests_per_week(judgements: Iterable[Judgement]) -> float:
    """The requests of a week that may be drawn, from the judgements of a task's versions. Chance led them to a version,
    though general may have answered."""
    return DAYS_A_WEEK * math.fsum(judgement.led_per_day for judgement in judgements)


def compute_review_share(plan: MonitorPlan, requests_per_week: float, suspect: bool) -> float:
    """The probability that a request is drawn, from 0 to 1, at the expected requests of a week.

    0 if none is expected: with unknown traffic any share could spend the week's budget at once. Raises ValueError if
    the expectation is negative or not finite.
    """
    if not (requests_per_week >= 0.0 and math.isfinite(requests_per_week)):
        raise ValueError(f"{requests_per_week} requests a week: a number of at least 0.")
    if requests_per_week == 0.0:
        return 0.0
    return min(1.0, aim_reviews(find_weekly_budget(plan, suspect)) / requests_per_week)


def are_raised(quality: TaskQuality, watched: Iterable[str], plan: MonitorPlan) -> bool:
    """Return whether the raised budget is in force: one of these versions is looked into, and the plan lets the monitor
    raise the reviews."""
    if "reviews" not in plan.responses or "reviews" in quality.undone:
        return False
    return bool(quality.looked_into(watched))
