"""Whose requests are whose: what a degraded version gives away by chance is its previous version's own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from monitoring.quality.signals.child_messages import WatchedVersion
from monitoring.quality.signals.entries import (
    Attempt,
    RecordedFinding,
    RecordEntry,
    get_held_out_version,
    get_labelled_version,
)
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.traffic import MORNING, PLAN, V2, V3, at, errors, said, served, step

SHIFTED: dict[str, Any] = {"version": V2, "led_to": V3, "reason": "degraded", "attempts": [Attempt(V2)]}


def shifted(request: str, **fields: Any) -> RecordEntry:
    """A request of a degraded version that was drawn to go to the version before."""
    return served(request, **{**SHIFTED, **fields})


def test_requests_shifted_to_the_previous_version_count_for_it_and_no_other() -> None:
    records, feedback = [], []
    for number, wrong in enumerate(errors(0.2, 300)):
        name, caller = f"r{number}", f"shop{number % 3}"
        told = {"caller": caller, "contract_kept": True, "language": "en"}
        records.append((at(number * 60), shifted(name, findings=[RecordedFinding("out_of_scope", score=0.5)], **told)))
        feedback.append((at(number * 60 + 9), said(name, not wrong, caller, tags={"kind": "toys"})))
        feedback.append((at(number * 60 + 10), said(name, wrong, caller, metric="complaint")))
    both = step(PLAN, v2=WatchedVersion(task="returns", state="previous_version"))
    found = replay(records, feedback, both, MORNING + 86_400)
    old, new = found[V2], found[V3]
    assert (old.labels, old.requests, new.labels, new.requests) == (300, 300, 0, 0)
    seen = {one.signal for one in old.reports if one.observed}
    assert {"feedback", "contract", "latency", "length", "cost", "coverage", "language"} <= seen
    assert "complaints" in {one.signal for one in old.reports}
    assert "escalation" not in seen


@pytest.mark.parametrize(
    "chosen",
    [
        {"requested_model": V3},
        {"override_id": "rule-1"},
        {"reason": "low_confidence", "attempts": [Attempt(V3), Attempt(V2)]},
        {"attempts": [Attempt(V3), Attempt(V2)]},
        {"reason": "out_of_scope"},
    ],
)
def test_what_was_not_drawn_to_the_previous_version_is_none_of_its(chosen: dict[str, Any]) -> None:
    assert get_labelled_version(shifted("r0", **chosen)) is None


def test_general_answer_after_a_failed_previous_version_is_no_draw_of_general() -> None:
    failed = shifted("r0", version=None, attempts=[Attempt(V2, "timeout"), Attempt(None)])
    assert (get_held_out_version(failed), get_labelled_version(failed)) == (None, None)
    drawn = msgspec.structs.replace(failed, attempts=[Attempt(None)])
    assert get_held_out_version(drawn) == V3
