"""Typical situations of a task, with what is told of each: tests/monitoring/quality/reports/ has the texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.quality.explanations.obstacles import ActiveRule, Obstacles
from monitoring.quality.explanations.report import Situation, TaskReport
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import (
    Action,
    ArmReport,
    Changed,
    Judgement,
    Pin,
    SignalReport,
    TaskQuality,
    Ticket,
    VersionQuality,
)
from monitoring.quality.verdicts.shares import Roles

NOW = 1_795_680_000.0
"""2026-11-26 08:00 UTC."""
HOUR, DAY = 3_600.0, 86_400.0
PLAN = MonitorPlan(
    feedback_metric="correct",
    responses=["pause_canary", "retrain", "reviews", "roll_back", "shadow", "shift", "widen"],
    enforced=True,
    reviews_per_week=50,
)
ROLES = Roles(active="returns@v3", previous_version="returns@v2", general=True)
GATE = {
    "kind": "gate",
    "wrong": 12.0,
    "of": 240.0,
    "upper": 0.0816,
    "at": NOW - 30 * DAY,
    "by": "system",
    "source": "3f9c2a71b0d4e865",
}
QUIET = [
    SignalReport(signal=name, labelled=False, observed=12_300, e_value=0.4, threshold=26_000)
    for name in ("coverage", "length")
]
FEEDBACK = SignalReport(
    signal="feedback",
    labelled=True,
    observed=431,
    wrong=22,
    estimate=0.049,
    low=0.031,
    high=0.073,
    baseline=GATE,
    e_value=0.31,
    threshold=26_000,
)
PAIRS = SignalReport(
    signal="shadow",
    labelled=True,
    observed=640,
    wrong=31,
    estimate=-0.021,
    low=-0.05,
    high=0.008,
    baseline={"kind": "own", "wrong": 2.0, "of": 100.0, "upper": 0.04, "at": NOW - 30 * DAY, "difference": True},
    e_value=0.2,
    threshold=26_000,
)
COMPLAINTS = SignalReport(
    signal="complaints",
    labelled=True,
    observed=12_300,
    wrong=4,
    estimate=0.0003,
    high=0.0003,
    baseline={"kind": "own", "learning": False, "rate": 0.0004, "delay_seconds": 2 * DAY},
    e_value=0.1,
    threshold=26_000,
)
RESTS_ON_ONE = {**GATE, "rests_on_one": True}
HOLDOUT = SignalReport(
    signal="holdout",
    labelled=True,
    observed=88,
    wrong=6,
    estimate=0.012,
    low=-0.03,
    high=0.054,
    baseline={"labels": 88, "wanted": 100, "difference": True},
    e_value=0.0,
    threshold=26_000,
)
ALARM = msgspec.structs.replace(
    FEEDBACK, wrong=71, estimate=0.265, low=0.2, high=0.339, e_value=31_400, alarming=True, since=NOW - 2 * DAY
)
JUDGED = Judgement(
    task="returns",
    version="returns@v3",
    at=NOW - 1,
    requests=12_300,
    requests_per_day=1_230,
    led_per_day=1_230,
    labels=431,
    labels_per_day=43,
    label_coverage=0.035,
    feedback_delay_seconds=2.3 * HOUR,
    seconds_to_detect={"5": 6.4 * DAY, "10": 2.2 * DAY},
    reports=[FEEDBACK, *QUIET],
)
UNLABELLED = msgspec.structs.replace(
    JUDGED,
    labels=0,
    labels_per_day=0.0,
    label_coverage=0.0,
    feedback_delay_seconds=None,
    seconds_to_detect={"5": None, "10": None},
    reports=QUIET,
)
SUSPICIOUS = msgspec.structs.replace(
    UNLABELLED,
    labels=12,
    labels_per_day=1.2,
    reports=[msgspec.structs.replace(QUIET[0], e_value=48_000, alarming=True, since=NOW - 7 * HOUR), QUIET[1]],
)
JUDGED_DEGRADED = msgspec.structs.replace(
    JUDGED,
    reports=[ALARM, *QUIET],
    arms=[
        ArmReport(arm="version", mean=0.735, low=0.661, high=0.8, labels=431, pairs=0),
        ArmReport(arm="general", mean=0.861, low=0.804, high=0.912, labels=120, pairs=1_400, advantage_low=0.041),
    ],
    judge_agreement=0.94,
)
UNCOMPARED = msgspec.structs.replace(
    JUDGED_DEGRADED,
    arms=[ArmReport(arm="general", mean=0.72, low=0.61, high=0.82, labels=20, pairs=60, advantage_low=-0.09)],
)
BECAUSE = "It got worse: feedback, 26.5% bad lately against at most 8.2% (e-value 31,400, threshold 26,000)."
HEALTHY = VersionQuality(since=NOW - 20 * DAY)
DEGRADED = VersionQuality(verdict="degraded", since=NOW - 3 * HOUR, because=BECAUSE)


def shifted(kept: float, before: float, at: float, number: int) -> Action:
    """A step of the share to general."""
    return Action(
        id=f"19d5f0a{number}-0",
        at=at,
        kind="shift",
        version="returns@v3",
        because="General is better by at least 4.1 points.",
        before={"kept": before, "to": None if before == 1.0 else "general"},
        after={"kept": kept, "to": "general"},
    )


SHIFTED = TaskQuality(
    versions={"returns@v3": msgspec.structs.replace(DEGRADED, kept=0.2, to="general", stepped_at=NOW - 2 * HOUR)},
    shadow_share=0.1,
    ticket=Ticket(
        id="19d5f0a0",
        version="returns@v3",
        opened_at=NOW - 7 * HOUR,
        because=BECAUSE,
        shadow_usd_max=1.0,
        shadow_usd_spent=0.12,
    ),
    actions=[shifted(0.5, 1.0, NOW - 3 * HOUR, 1), shifted(0.2, 0.5, NOW - 2 * HOUR, 2)],
)


def of(health: TaskQuality, judged: Judgement | None, **more: Any) -> Situation:
    """A situation in which the monitor judged a second ago."""
    judgements = {} if judged is None else {judged.version: judged}
    given = {"plan": PLAN, "roles": ROLES, "judged_at": NOW - 1, **more}
    return Situation(task="returns", now=NOW, quality=health, judgements=judgements, **given)


def single(known: VersionQuality, **more: Any) -> TaskQuality:
    """The health of a task that returns@v3 leads."""
    return TaskQuality(versions={"returns@v3": known}, **more)


SITUATIONS: Mapping[str, Situation] = {
    "healthy_with_many_labels": of(single(HEALTHY), JUDGED),
    "healthy_without_labels": of(single(HEALTHY), UNLABELLED, plan=msgspec.structs.replace(PLAN, reviews_per_week=0)),
    "suspect_by_one_caller": of(
        single(
            VersionQuality(
                verdict="suspect",
                since=NOW - 6 * HOUR,
                because="It got worse by the labels of one caller or rater alone: feedback, 26.5% bad lately "
                "against at most 8.2% (e-value 0.31, threshold 26,000).",
            )
        ),
        msgspec.structs.replace(
            JUDGED,
            reports=[
                msgspec.structs.replace(
                    ALARM, alarming=False, e_value=0.31, since=None, baseline=RESTS_ON_ONE, doubt="one_giver"
                ),
                *QUIET,
            ],
        ),
    ),
    "suspect": of(
        single(
            VersionQuality(
                verdict="suspect",
                since=NOW - 6 * HOUR,
                because="Its traffic or its answers are not as they were: coverage (e-value 48,000).",
            )
        ),
        SUSPICIOUS,
    ),
    "degraded_and_shifted": of(SHIFTED, JUDGED_DEGRADED, retraining=["019d5f0a1c3e00aa"]),
    "passed_over_by_a_rule": of(
        single(
            HEALTHY,
            changed=Changed(
                effective_at=NOW - DAY,
                by="abcdefghijkl",
                note="60 days to return.",
                at=NOW - 2 * DAY,
                override="changed-returns",
            ),
        ),
        JUDGED,
        obstacles=Obstacles(
            rules=[
                ActiveRule(name="changed-returns", action="general", ends_at=NOW + 13 * DAY),
                ActiveRule(name="vases", action="refuse", some=True),
            ],
            ready={"returns@v3": (2, 2), "returns@v2": (0, 1)},
            reviews=12,
        ),
    ),
    "ready_nowhere": of(single(HEALTHY), JUDGED, obstacles=Obstacles(ready={"returns@v3": (0, 2)})),
    "degraded_and_held": of(single(msgspec.structs.replace(DEGRADED, done=("hold_and_alert",))), UNCOMPARED),
    "pinned": of(
        single(
            VersionQuality(
                since=NOW - HOUR,
                because="abcdefghijkl says so: A faulty export of labels.",
                pin=Pin(
                    verdict="healthy",
                    by="abcdefghijkl",
                    reason="A faulty export of labels.",
                    at=NOW - HOUR,
                    until=NOW + DAY,
                ),
            )
        ),
        JUDGED_DEGRADED,
    ),
    "stale": of(
        single(
            msgspec.structs.replace(HEALTHY, stale_from=NOW - DAY),
            changed=Changed(
                effective_at=NOW - DAY,
                by="abcdefghijkl",
                note="The holiday season: 60 days to return.",
                at=NOW - 3 * DAY,
                override="changed-returns",
                retraining="019d5f0a1c3e00aa",
            ),
        ),
        JUDGED,
        review_by={"returns@v3": NOW - 2 * DAY},
        retraining=["019d5f0a1c3e00aa"],
    ),
    "recovered": of(
        single(
            VersionQuality(
                since=NOW - 600,
                because="It has recovered: feedback, 4.0% bad lately (e-value 51,000, threshold 26,000).",
                kept=0.5,
                to="general",
                stepped_at=NOW - 300,
            ),
            actions=[
                msgspec.structs.replace(
                    shifted(0.2, 1.0, NOW - 9 * DAY, 1), undone_at=NOW - 8 * DAY, undone_by="abcdefghijkl"
                ),
                Action(
                    id="19d5f0a3-0",
                    at=NOW - 300,
                    kind="recover",
                    version="returns@v3",
                    because="It has recovered.",
                    before={"kept": 0.2, "to": "general"},
                    after={"kept": 0.5, "to": "general"},
                ),
            ],
        ),
        msgspec.structs.replace(
            JUDGED,
            reports=[
                msgspec.structs.replace(FEEDBACK, recovered=True, e_value=51_000, baseline=RESTS_ON_ONE),
                HOLDOUT,
                PAIRS,
                COMPLAINTS,
            ],
            complaints_seen=4.0,
            complaints_expected=5.25,
        ),
    ),
    "canary_paused": of(
        TaskQuality(
            versions={
                "returns@v3": HEALTHY,
                "returns@v4": msgspec.structs.replace(DEGRADED, done=("pause_canary",), paused_share=0.1),
            },
            actions=[
                Action(
                    id="19d5f0a4-0",
                    at=NOW - 3 * HOUR,
                    kind="pause_canary",
                    version="returns@v4",
                    because=BECAUSE,
                    before={"share": 0.1},
                    after={"share": 0.0},
                )
            ],
        ),
        JUDGED,
        roles=Roles(active="returns@v3", canary="returns@v4", previous_version="returns@v2", general=True),
    ),
    "not_judged": of(TaskQuality(), None, judged_at=None),
    "stopped": of(single(HEALTHY), JUDGED, judged_at=NOW - 3 * HOUR),
    "without_a_version": of(TaskQuality(), None, roles=Roles(general=True)),
}


def text_of(told: TaskReport) -> str:
    """All that is told, a sentence a line."""
    lines = [told.line]
    for name in ("known", "sure", "done", "next", "caveats"):
        lines += ["", f"{name}:", *getattr(told, name)]
    return "\n".join(lines) + "\n"
