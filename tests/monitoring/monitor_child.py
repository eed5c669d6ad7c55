"""The monitor's child as its tests have it: steps that it is given, and traffic for it to read."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
from redis import Redis as Client
from redis.asyncio import Redis

from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import Feedback, FeedbackStore
from monitoring.metric_values import Metric
from monitoring.quality.signals.child_messages import (
    WATCH_KEY,
    Begin,
    JudgedStep,
    MonitorStep,
    WatchedTask,
    WatchedVersion,
)
from monitoring.quality.signals.run import Monitor
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Judgement, SignalReport
from monitoring.records import REPORTED_STREAM_KEY, STREAM_KEY, AttemptRecord, Record
from tests.monitoring.test_records import RETENTION_SECONDS, record, stream_of

V3 = "returns@v3"
PLAN = MonitorPlan(feedback_metric="correct", complaint_metric="complaint")
METRICS = {"correct": Metric(kind="boolean"), "complaint": Metric(kind="boolean", better="lower")}
STEP = MonitorStep(
    tasks={"returns": WatchedTask(plan=PLAN)},
    versions={V3: WatchedVersion(task="returns", state="active")},
    metrics=METRICS,
)
COMMAND = [sys.executable, "-P", "-m", "monitoring.quality.signals.run"]


@contextmanager
def child(begin: Begin, command: list[str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command or COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        process.stdin.write(msgspec.json.encode(begin) + b"\n")
        process.stdin.flush()
        try:
            yield process
        finally:
            process.kill()


def asked(process: subprocess.Popen[bytes], step: MonitorStep = STEP) -> JudgedStep | None:
    """Its answer; None where it ends instead."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(msgspec.json.encode(step) + b"\n")
    process.stdin.flush()
    line = process.stdout.readline()
    return msgspec.json.decode(line, type=JudgedStep) if line else None


def to_the_end(monitor: Monitor, step: MonitorStep = STEP) -> dict[str, Judgement]:
    """The newest judgements once all is read: what came in this very millisecond is for the next step."""
    found: dict[str, Judgement] = {}
    while True:
        judged = monitor.step(step)
        assert not judged.error
        found |= judged.judgements
        if not judged.more and int(judged.at * 1000) > newest(monitor):
            return found


def newest(monitor: Monitor) -> int:
    """When the newest entry came, in milliseconds of Redis's clock."""
    found = [monitor._redis.xrevrange(name, count=1) for name in (STREAM_KEY, REPORTED_STREAM_KEY, FEEDBACK_STREAM_KEY)]
    return max([int(rows[0][0].partition(b"-")[0]) for rows in found if rows], default=0)


def served(caller: str = "caller1", **fields: Any) -> Record:
    usual: dict[str, Any] = {
        "led_to": V3,
        "reason": "adapter",
        "outcome": "ok",
        "attempts": [AttemptRecord("small", "small-0", V3, None, 0.1)],
        "completion_tokens": 12,
        "duration_seconds": 0.2,
        "cost_usd": 0.0001,
        "language": "en",
    }
    return record(caller, **{**usual, **fields})


def store_of(redis: Redis) -> FeedbackStore:
    return FeedbackStore(redis, RETENTION_SECONDS, 1_000_000)


def said(value: Any = True, name: str = "f1", **fields: Any) -> Feedback:
    usual: dict[str, Any] = {"metric": "correct", "at": time.time(), "caller": "caller1"}
    return Feedback(feedback_id=name, value=value, **{**usual, **fields})


async def some_traffic(redis: Redis, count: int, wrong: float = 0.1, seed: int = 1, purpose: str = "serve") -> None:
    """Requests of three callers, most of them judged, some twice or by complaint."""
    draw, store = random.Random(seed), store_of(redis)
    for first in range(0, count, 20):
        made = [served(f"caller{draw.randrange(3)}", purpose=purpose) for _ in range(min(20, count - first))]
        await stream_of(redis).append(made)
        for one in made:
            for number in range(draw.choice((0, 1, 1, 2))):
                told = said(draw.random() > wrong, f"f{number}", caller=one.caller, rater=f"r{number}")
                await store.give(one.id, told, one.caller, young=True)
            if draw.random() < 0.1:
                await store.give(one.id, said(metric="complaint", name="c"), one.caller, young=True)


def watch_of(redis: Client, version: str = V3) -> dict[str, Any]:
    raw = redis.get(WATCH_KEY + version)
    assert raw is not None
    found: dict[str, Any] = json.loads(raw)
    return {**found, "epoch": ""}


def forget(client: Client) -> None:
    """As if no child had ever run."""
    names = [*client.scan_iter("apprentice:monitor:*")]
    client.delete(*names)


def feedback_of(judgement: Judgement) -> SignalReport:
    (found,) = [one for one in judgement.reports if one.signal == "feedback"]
    return found
