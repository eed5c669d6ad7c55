"""Judgements of a task's versions, and what follows from them."""

from __future__ import annotations

from typing import Any

from monitoring.quality.verdicts.monitor_plan import RESPONSES, MonitorPlan
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import (
    ArmReport,
    Judgement,
    SignalReport,
    TaskQuality,
    Ticket,
)
from monitoring.quality.verdicts.shares import Roles

NOW = 1_800_000_000.0
V1, V2, V3 = "returns@v1", "returns@v2", "returns@v3"
ROLES = Roles(active=V2, previous_version=V1, general=True)
PLAN = MonitorPlan(
    feedback_metric="correct",
    responses=list(RESPONSES),
    enforced=True,
    shadow_share=0.02,
    shadow_share_suspect=0.2,
    step_seconds=60.0,
    suspect_clears_seconds=3600.0,
)
BASELINE = {"kind": "gate", "upper": 0.08}


def stream(name: str, alarming: bool = True, recovered: bool = False, **more: Any) -> SignalReport:
    labelled = name in ("reviewed", "feedback", "shadow", "complaints")
    return SignalReport(
        signal=name, labelled=labelled, observed=200, estimate=0.3, low=0.2, high=0.4, baseline=BASELINE,
        e_value=5e3 if alarming else 1.0, threshold=4e3, alarming=alarming, recovered=recovered, **more,
    )  # fmt: skip


def judged(*streams: SignalReport, arms: tuple[ArmReport, ...] = (), version: str = V2, **more: Any) -> Judgement:
    return Judgement(task="returns", version=version, at=NOW, reports=list(streams), arms=list(arms), **more)


def better(arm: Any, by: float = 0.1) -> ArmReport:
    return ArmReport(arm=arm, mean=0.9, low=0.85, high=0.95, labels=100, pairs=400, advantage_low=by)


def after(
    *judgements: Judgement,
    health: TaskQuality | None = None,
    plan: MonitorPlan = PLAN,
    at: float = 0.0,
    roles: Roles = ROLES,
) -> tuple[TaskQuality, list[str]]:
    by_name = {one.version: one for one in judgements}
    found, actions = respond(health or TaskQuality(), by_name, roles, plan, NOW + at, (0.01, 0.05))
    return found, [one.kind for one in actions]


def canaried(share: float) -> Roles:
    return Roles(active=V1, canary=V2, canary_share=share, general=True)


RECOVERED = judged(stream("feedback", recovered=True))


def paused() -> TaskQuality:
    """The health once the monitor has paused a canary that had a tenth of the requests."""
    health, done = after(judged(stream("feedback")), roles=canaried(0.1))
    assert "pause_canary" in done
    return health


def ticket_of(health: TaskQuality) -> Ticket:
    assert health.ticket is not None
    return health.ticket
