"""Made-up traffic of one task: entries of both streams, as the child reads them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from monitoring.metric_values import Metric
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.signals.entries import Attempt, FeedbackEntry, Pair, RecordedFinding, RecordEntry
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

V3, V2 = "returns@v3", "returns@v2"
MORNING = 1_767_250_800.0
METRICS = {
    "correct": Metric(kind="boolean"),
    "complaint": Metric(kind="boolean", better="lower"),
    "stars": Metric(kind="float", minimum=1, maximum=5),
}
PLAN = MonitorPlan(feedback_metric="correct", complaint_metric="complaint", class_tag="kind")
Traffic = tuple[list[tuple[str, RecordEntry]], list[tuple[str, FeedbackEntry]]]


def step(plan: MonitorPlan = PLAN, v3: WatchedVersion | None = None, v2: WatchedVersion | None = None) -> MonitorStep:
    """A step of a task with one version, or with the one before besides."""
    named = {V3: v3 or WatchedVersion(task="returns", state="active")} | ({V2: v2} if v2 is not None else {})
    return MonitorStep(tasks={"returns": WatchedTask(plan=plan)}, versions=named, metrics=METRICS)


def at(seconds: float, number: int = 0) -> str:
    """The name of an entry that came so many seconds after the morning."""
    return f"{round((MORNING + seconds) * 1000)}-{number}"


def served(request: str, caller: str = "shop", **fields: Any) -> RecordEntry:
    """A record of a request that its version answered."""
    usual: dict[str, Any] = {
        "requested_model": "returns",
        "task": "returns",
        "led_to": V3,
        "version": V3,
        "reason": "adapter",
        "outcome": "ok",
        "attempts": [Attempt(V3)],
        "completion_tokens": 12,
        "cost_usd": 0.0001,
        "saving_usd": 0.001,
        "duration_seconds": 0.4,
    }
    return RecordEntry(id=request, caller=caller, **{**usual, **fields})


def held_out(request: str, caller: str = "shop", **fields: Any) -> RecordEntry:
    """A record of a request that chance has sent to general."""
    general: dict[str, Any] = {
        "version": None,
        "reason": "holdout",
        "attempts": [Attempt(None)],
        "fingerprint": "general-1",
    }
    return served(request, caller, **{**general, **fields})


def shadow(of: str, **fields: Any) -> RecordEntry:
    """A record of general's answer to a request that the version has answered."""
    told = {"version": V3, "arm": "general", "judge": "normal", "digest": "a", "served_digest": "a"}
    pair = Pair(**{**told, **fields.pop("pair", {})})
    usual: dict[str, Any] = {"purpose": "shadow", "version": None, "cost_usd": 0.002, "fingerprint": "general-1"}
    return served(f"shadow-{of}", "", shadow_of=of, pair=pair, **{**usual, **fields})


def said(
    request: str, value: Any = True, caller: str = "shop", metric: str = "correct", **fields: Any
) -> FeedbackEntry:
    """A feedback."""
    return FeedbackEntry(metric=metric, value=value, caller=caller, request=request, **fields)


def labelled_traffic(
    errors: Iterable[bool],
    every_seconds: float = 60.0,
    delay_seconds: float = 600.0,
    caller: Callable[[int], str] = lambda number: f"shop{number % 3}",
    begin: int = 0,
    **fields: Any,
) -> tuple[list[tuple[str, RecordEntry]], list[tuple[str, FeedbackEntry]]]:
    """A request at every interval, each with a label after a while: bad where `errors` says so."""
    records, feedback = [], []
    for number, wrong in enumerate(errors, begin):
        name, when = f"r{number}", number * every_seconds
        records.append((at(when), served(name, caller(number))))
        feedback.append((at(when + delay_seconds), said(name, not wrong, caller(number), **fields)))
    return records, feedback


def errors(rate: float, count: int, seed: int = 1) -> list[bool]:
    """So many answers of which this share is wrong."""
    draw = random.Random(seed)
    return [draw.random() < rate for _ in range(count)]


def with_findings(request: str, **scores: float) -> RecordEntry:
    """A record on which checks left their scores."""
    return served(request, findings=[RecordedFinding(check, score=score) for check, score in scores.items()])


def paired_traffic(
    count: int, wrong: float, general_wrong: float, seed: int = 1, begin: int = 0, **pair: Any
) -> Traffic:
    """Requests that both arms answer, and a person gives the right answer to: digest `right`."""
    draw = random.Random(seed)
    records, feedback = [], []
    for number in range(begin, begin + count):
        name, when = f"p{number}", number * 60.0
        own = "right" if draw.random() >= wrong else "wrong"
        other = "right" if draw.random() >= general_wrong else "odd"
        records.append((at(when), served(name, f"shop{number % 3}")))
        records.append((at(when + 1), shadow(name, pair={"digest": other, "served_digest": own, **pair})))
        told = said(name, own == "right", f"shop{number % 3}", demonstration_digests={"normal": "right"})
        feedback.append((at(when + 30), told))
    return records, feedback
