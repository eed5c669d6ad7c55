"""Settings of the monitor that contradict each other: refused by their key, with what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from monitoring.quality.explanations.caveats import STOPPED_SECONDS
from tests.gateway.configuration.test_settings import POOL, loaded, said

METRICS = {
    "correct": {"kind": "boolean"},
    "topic": {"kind": "category", "categories": ["a", "b"]},
    "minutes": {"kind": "float"},
}
KEY = "tasks.returns.monitor"
ENFORCED = {"mode": "enforce"}


def with_monitor(monitor: dict[str, Any], degraded: dict[str, Any] | None = None) -> dict[str, Any]:
    """A task that is watched so."""
    task = {"monitor": monitor, "checks": {"degraded": degraded or {}}}
    return {"pools": {"general": POOL}, "feedback_metrics": METRICS, "tasks": {"returns": task}}


@pytest.mark.parametrize(
    ("monitor", "degraded", "told"),
    [
        ({"feedback_metric": "topic"}, {}, f"{KEY}.feedback_metric: 'topic' is a category, which has no order"),
        ({"complaint_metric": "topic"}, {}, f"{KEY}.complaint_metric: 'topic' is a category, which has no order"),
        ({"feedback_metric": "minutes"}, {}, f"{KEY}.feedback_metric: 'minutes' is a float without a minimum and a"),
        ({"kept_steps": [0.2, 0.5]}, {}, f"{KEY}.kept_steps: each step keeps less than the one before: [0.5, 0.2]"),
        ({"kept_steps": [0.5, 0.5]}, {}, f"{KEY}.kept_steps: each step keeps less than the one before: [0.5]"),
        ({"kept_steps": [0.5, 0.01]}, {}, f"{KEY}.kept_steps: 0.01 is less than explored_share (0.05)"),
        ({"kept_steps": [0.2]}, {"explored_share": 0.3}, f"{KEY}.kept_steps: 0.2 is less than explored_share (0.3)"),
        ({}, {**ENFORCED, "explored_share": 0}, "tasks.returns.checks.degraded.explored_share: it must be above 0"),
        ({"judge": {"fields": ["decision"]}}, {}, f"{KEY}.judge.fields: kind is normal, which reads no fields"),
        ({"judge": {"pool": "general"}}, {}, f"{KEY}.judge.pool: kind is normal, and only a model is asked"),
        ({"judge": {"prompt": "Be strict."}}, {}, f"{KEY}.judge.prompt: kind is normal, and only a model is asked"),
        (
            {"reviews": {"per_week": 5, "retention_days": 0.005}},
            {},
            f"{KEY}.reviews.lease_seconds: 600 s is longer than retention_days (432 s)",
        ),
        (
            {"reviews": {"per_week": 10, "per_week_suspect": 5}},
            {},
            f"{KEY}.reviews.per_week_suspect: 5 is less than per_week (10)",
        ),
        (
            {"shadow_share": 0.2, "shadow_share_suspect": 0.1},
            {},
            f"{KEY}.shadow_share_suspect: 0.1 is less than shadow_share (0.2)",
        ),
    ],
)
def test_a_contradiction_is_refused_by_its_key(
    tmp_path: Path, monitor: dict[str, Any], degraded: dict[str, Any], told: str
) -> None:
    text = said(tmp_path, with_monitor(monitor, degraded))
    assert told in text
    assert len(text.splitlines()) == 2


def test_no_interval_makes_a_running_monitor_look_stopped(tmp_path: Path) -> None:
    """A judgement may be shown one step and one reading after it was due."""
    content: dict[str, Any] = {"pools": {"general": POOL}, "monitor": {"interval_seconds": STOPPED_SECONDS / 3}}
    assert loaded(tmp_path, content).monitor.interval_seconds == STOPPED_SECONDS / 3
    content["monitor"]["interval_seconds"] = STOPPED_SECONDS / 2
    assert "monitor.interval_seconds: " in said(tmp_path, content)


def test_a_key_that_signs_what_is_sent_nowhere_is_refused(tmp_path: Path) -> None:
    content = {"pools": {"general": POOL}, "monitor": {"webhook_key": "secret"}}
    text = said(tmp_path, content)
    assert "monitor.webhook_key: nothing is sent that it could sign: set monitor.webhook_url" in text


@pytest.mark.parametrize(
    ("monitor", "degraded"),
    [
        ({}, {**ENFORCED, "explored_share": 0.3}),
        ({}, {"mode": "observe", "explored_share": 0}),
        ({"kept_steps": []}, ENFORCED),
        ({"kept_steps": [0.5, 0.05]}, ENFORCED),
        ({"shadow_share": 1.0}, {}),
        ({"shadow_share": 0.2, "shadow_share_suspect": 0.2}, {}),
        ({"reviews": {"per_week": 10, "per_week_suspect": 10}}, {}),
        ({"reviews": {"per_week": 10, "per_week_suspect": 0}}, {}),
        ({"reviews": {"retention_days": 0.005, "lease_seconds": 432}}, {}),
        ({"judge": {"kind": "fields", "fields": ["decision"]}}, {}),
        ({"judge": {"kind": "model", "pool": "general", "prompt": "Be strict."}}, {}),
    ],
)
def test_what_agrees_or_stands_by_default_is_taken(
    tmp_path: Path, monitor: dict[str, Any], degraded: dict[str, Any]
) -> None:
    assert loaded(tmp_path, with_monitor(monitor, degraded)).tasks


def test_steps_by_default_end_at_what_is_explored(tmp_path: Path) -> None:
    settings = loaded(tmp_path, with_monitor({}, {**ENFORCED, "explored_share": 0.3}))
    assert settings.plan("returns").kept_steps == (0.5,)
