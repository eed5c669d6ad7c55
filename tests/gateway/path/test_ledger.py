"""The ledger: what is a fallback, and from where."""

from __future__ import annotations

import pytest

from gateway.path.ledger import Ledger
from monitoring.records import Record
from router.policy import TaskPolicy
from router.routing_data import Choice, Reason
from serving.fleet_view import VersionView
from tests.router.situations import usual_fleet, version

V1, V2 = version("returns@v1"), version("returns@v2")


@pytest.mark.parametrize(
    ("reason", "answers", "led_to", "fallback_from"),
    [
        ("out_of_scope", None, V2, "small"),
        ("engine_error", V1, V2, "small"),
        ("out_of_scope", V2, V2, None),
        ("predicted_gain", V2, V2, None),
        ("adapter", V2, V2, None),
        ("no_replica", None, None, ""),
    ],
)
def test_a_version_that_answers_after_all_is_no_fallback(
    reason: Reason, answers: VersionView | None, led_to: VersionView | None, fallback_from: str | None
) -> None:
    ledger = Ledger(Record(id="a", at=0.0, endpoint="chat", caller="c", requested_model="returns"), 0.0)
    pool = usual_fleet().pools["small" if answers else "general"]
    task = TaskPolicy("returns", "general")
    ledger.note_choice(Choice(task, answers, pool, pool.replicas[0], reason, led_to=led_to), "stack")
    assert ledger.fallback_from == fallback_from
    assert ledger.record.led_to == (led_to.name if led_to else None)
