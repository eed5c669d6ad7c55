"""The budgets and times of a task's reviews, from its settings. The monitor may raise the budget."""

from __future__ import annotations

from gateway.configuration.monitor import ReviewSettings
from gateway.features.reviews.state import Reviews
from monitoring.quality.verdicts.reviewing import are_raised, find_weekly_budget


def settings_of(reviews: Reviews, task: str) -> ReviewSettings:
    """The task's settings of reviews; the defaults for a task that is no longer configured."""
    settings = reviews.services.settings.tasks.get(task)
    return settings.monitor.reviews if settings is not None else ReviewSettings()


def find_retention(reviews: Reviews, task: str) -> float:
    """The time for which the task's reviews are kept after the judgement."""
    return 86_400.0 * settings_of(reviews, task).retention_days


def find_waiting_seconds(reviews: Reviews, task: str) -> float:
    """The time for which the task's reviews wait, at most as long as their requests can be judged."""
    return min(find_retention(reviews, task), reviews.services.settings.records.retention_seconds)


def budget_of(reviews: Reviews, task: str) -> int:
    """The number of the task's requests that may be drawn in seven days, by the monitor's present state."""
    plan = reviews.services.settings.plan(task)
    return find_weekly_budget(plan, is_raised(reviews, task))


def is_raised(reviews: Reviews, task: str) -> bool:
    """Return whether the raised budget is in force."""
    snapshot = reviews.services.snapshot.current
    quality, alias = snapshot.quality.get(task), snapshot.aliases.get(task)
    if quality is None or alias is None:
        return False
    canary = [alias.canary.version] if alias.canary is not None else []
    return are_raised(quality, [alias.leading, *canary], reviews.services.settings.plan(task))
