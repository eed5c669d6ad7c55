"""A task's plan for its monitor, from the operator's settings: how its versions are judged, and the responses."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

ResponseName = Literal["shadow", "reviews", "widen", "shift", "roll_back", "pause_canary", "retrain"]
"""The monitor's own responses. It raises the share of shadows or reviews, widens the deferral, or shifts the share of a
degraded version to a better arm. It rolls back, pauses a canary, or opens a retraining request."""
RESPONSES: tuple[ResponseName, ...] = get_args(ResponseName)


class MonitorPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A task's settings for its monitor (docs/reference/settings.md, under tasks.TASK.monitor).

    `enforced`: the check `degraded` is enforced, so that shares may be shifted. `explored_share` is the least share of
    a degraded version. `judges_itself`: the fallback's own model judges pairs. `judge_pool` is its pool (None: no model
    judges). `agreed_only`: its reviewers agree so little that only labels of two who agree count. `has_webhook`: a
    webhook gets the actions. Shares lie within 0 and 1, times are in seconds, money in US dollars.
    """

    feedback_metric: str | None = None
    complaint_metric: str | None = None
    labels_min: int = 30
    class_tag: str | None = None
    trusted_callers: list[str] = []
    responses: list[ResponseName] = []
    enforced: bool = False
    shadow_share: float = 0.0
    shadow_share_suspect: float = 0.1
    shadow_room_share: float = 0.6
    shadow_usd_per_ticket: float = 1.0
    shadow_pairs_per_ticket: int = 2000
    shadow_saving_share_max: float = 0.25
    deferral_factor_suspect: float = 2.0
    kept_steps: tuple[float, ...] = (0.5, 0.2)
    explored_share: float = 0.05
    step_seconds: float = 60.0
    suspect_clears_seconds: float = 86_400.0
    reviews_per_week: int = 0
    reviews_per_week_suspect: int = 0
    false_alarms_per_month: float = 1.0
    judges_itself: bool = False
    judge_pool: str | None = None
    agreed_only: bool = False
    has_webhook: bool = True
