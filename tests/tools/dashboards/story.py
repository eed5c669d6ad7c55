"""A made-up day of two gateways, told in our own metrics: what dashboards are asked of, and drawn from.

Most of it is well. At six tenths of the time the rules of the task `returns` change: its version v1 becomes wrong,
the monitor finds it suspect and then degraded, and moves its share to general, step by step. Before that a canary of
`contracts` is promoted, and an engine is away for a while.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from monitoring.metrics import Meters
from monitoring.quality.signal_table import LABELLED, UNLABELLED
from tests.tools.dashboards.engine_story import Engine

INTERVAL_SECONDS = 30
CHANGED, SUSPECT, DEGRADED = 0.6, 0.66, 0.7
"""Times of the change of rules and of the verdict, as shares of the day."""
KEPT = ((0.7, 0.5), (0.74, 0.2), (0.78, 0.05))
PROMOTED = 0.3
AWAY, BACK = 0.4, 0.44
"""The time without small-1; its breaker is half-open for as long again."""
FLEET = (("small", "small-0"), ("small", "small-1"), ("general", "general-0"))


@dataclass(frozen=True, slots=True)
class Told:
    """A version of the story: its task, its share of the task's requests, and how often it is right."""

    name: str
    task: str
    per_second: float
    right: float
    labelled: float
    review_in_days: float


VERSIONS = (
    Told("returns@v1", "returns", 8.0, 0.95, 0.04, 40),
    Told("returns@v2", "returns", 0.8, 0.96, 0.04, 90),
    Told("contracts@v3", "contracts", 3.0, 0.9, 0.01, -2),
)


@dataclass
class Gateway:
    """One gateway of the story: its meters, and how far it has come (0 to 1)."""

    instance: str
    draw: random.Random
    meters: Meters = field(default_factory=Meters)
    states: dict[str, str] = field(default_factory=dict)
    """Versions' states in their tasks."""

    def __post_init__(self) -> None:
        self.meters.adapter_info.read_from(
            lambda: {(n.partition("@")[0], n, "small", "0" * 12, state): 1.0 for n, state in self.states.items()}
        )


def told(begin: float, seconds: float) -> Iterator[str]:
    """The day's samples as OpenMetrics text, line by line, from `begin` (Unix seconds) on."""
    gateways = [Gateway(f"gateway-{number}:8080", random.Random(number)) for number in range(2)]
    engines = [Engine(*place, random.Random(name), 0.2 * name) for name, place in enumerate(FLEET, 1)]
    steps = int(seconds // INTERVAL_SECONDS)
    for step in range(steps + 1):
        at, passed = begin + step * INTERVAL_SECONDS, step / steps
        for gateway in gateways:
            live(gateway, at, passed, begin, seconds)
            yield from sampled(gateway, at)
        for engine in engines:
            up = not is_away(engine.replica, passed)
            engine.live(1 + 0.4 * math.sin(2 * math.pi * passed * seconds / 21_600) if up else 0, INTERVAL_SECONDS)
            yield from engine.sampled(at, up)
    yield "# EOF\n"


def sampled(gateway: Gateway, at: float) -> Iterator[str]:
    """A gateway's metrics at this moment, as Prometheus would scrape them."""
    body, _ = gateway.meters.exposition()
    own = f'instance="{gateway.instance}",job="apprentice"'
    for line in body.decode().splitlines():
        if line.startswith("#"):
            continue
        name, _, value = line.rpartition(" ")
        labelled = f"{name[:-1]},{own}}}" if name.endswith("}") else f"{name}{{{own}}}"
        yield f"{labelled} {value} {at:.3f}\n"


def is_away(replica: str, passed: float) -> bool:
    """True if an engine does not answer at that time."""
    return replica == "small-1" and AWAY <= passed < BACK


def live(gateway: Gateway, at: float, passed: float, begin: float, seconds: float) -> None:
    """Half a minute of a gateway's life."""
    busy = 1 + 0.4 * math.sin(2 * math.pi * passed * seconds / 21_600)
    for version in VERSIONS:
        _serve(gateway, version, busy, passed)
        _judge(gateway, version, busy, passed, begin, seconds)
    _serve_pool(gateway, busy)
    _act(gateway, passed)
    _stand(gateway, busy, at, passed)


def kept(version: Told, passed: float) -> float:
    """The share of its requests that a version keeps at that time."""
    shares = [share for since, share in KEPT if passed >= since]
    return shares[-1] if shares and version.name == "returns@v1" else 1.0


def right(version: Told, passed: float) -> float:
    """The share of right answers of a version at that time."""
    return 0.62 if version.name == "returns@v1" and passed >= CHANGED else version.right


def _serve(gateway: Gateway, version: Told, busy: float, passed: float) -> None:
    meters, draw, task = gateway.meters, gateway.draw, version.task
    asked = max(0, round(draw.gauss(version.per_second * busy * INTERVAL_SECONDS / 2, 4)))
    share = kept(version, passed)
    for _ in range(asked):
        if draw.random() >= share:
            way, pool, reason = "", "general", "degraded"
        elif draw.random() < 0.04:
            way, pool, reason = "", "general", draw.choice(("out_of_scope", "low_confidence", "contract"))
            meters.fallbacks.add(1, task, version.name, "general", reason)
            meters.check_fired.add(1, task, version.name, reason, "enforce")
        else:
            way, pool = version.name, "small"
            reason = "canary" if version.name.endswith("v2") else "adapter"
        _answer(gateway, task, way, pool, reason)
    if draw.random() < 0.05:
        meters.check_fired.add(1, task, version.name, "holdout", "observe")
        meters.check_unjudged.add(1, task, version.name, "predicted_gain")
        meters.fallback_capped.add(1, task, "out_of_scope")


def _answer(gateway: Gateway, task: str, version: str, pool: str, reason: str) -> None:
    meters, draw = gateway.meters, gateway.draw
    fate = draw.random()
    outcome = "ok" if fate < 0.992 else "refused" if fate < 0.997 else "cancelled" if fate < 0.9993 else "failed"
    meters.requests.add(1, task, version, pool, reason, outcome)
    if outcome in {"refused", "failed"}:
        meters.refusals.add(1, "invalid_value" if outcome == "refused" else "engine_error")
    meters.attempts.add(1, pool, "answered" if outcome != "failed" else "engine_error")
    slow = 3.0 if pool == "general" else 1.0
    tokens = draw.randrange(10, 60)
    first, each = 0.04 * slow * draw.lognormvariate(0, 0.4), 0.006 * slow * draw.lognormvariate(0, 0.2)
    meters.time_to_first_token_seconds.observe(first, task, pool)
    meters.time_per_output_token_seconds.observe(each, task, pool)
    meters.request_duration_seconds.observe(first + each * tokens, task, pool)
    meters.overhead_seconds.observe(0.0008 * draw.lognormvariate(0, 0.7), task, pool)
    meters.tokens.add(300, task, version, pool, "prompt")
    meters.tokens.add(tokens, task, version, pool, "completion")
    price = 30 if pool == "general" else 1
    meters.cost_usd.add(price * (300 * 0.02 + tokens * 0.08) / 1e6, task, version, pool, "serve")
    if version:
        meters.saved(task, 29 * (300 * 0.02 + tokens * 0.08) / 1e6)


def _serve_pool(gateway: Gateway, busy: float) -> None:
    """Requests for a pool by its name, and what is turned away."""
    meters, draw = gateway.meters, gateway.draw
    for _ in range(round(12 * busy)):
        _answer(gateway, "", "", "general", "pinned")
    meters.queue_seconds.observe(draw.expovariate(20), "interactive")
    meters.queue_length.set(draw.choice((0, 0, 1, 2)), "interactive")
    meters.queue_length.set(draw.choice((0, 1, 4)), "batch")
    if draw.random() < 0.02:
        meters.requests_shed.add(1, draw.choice(("queue_timeout", "caller_busy")))
        meters.refusals.add(1, "overload")
    if draw.random() < 0.01:
        meters.cost_unknown.add(1, "general")
        meters.cost_usd.add(0.001, "", "", "general", "wasted")


def _judge(gateway: Gateway, version: Told, busy: float, passed: float, begin: float, seconds: float) -> None:
    """The monitor's summary of a version, the same at every gateway."""
    meters, task, name = gateway.meters, version.task, version.name
    bad = name == "returns@v1"
    verdict = 0 if not bad or passed < SUSPECT else 1 if passed < DEGRADED else 2
    since = begin + (SUSPECT if verdict == 1 else DEGRADED if verdict == 2 else 0) * seconds
    labels = version.per_second * version.labelled * passed * seconds
    by_gauge = {
        "verdict": verdict,
        "verdict_since_seconds": since,
        "kept_ratio": kept(version, passed),
        "label_coverage_ratio": version.labelled * (1 + 0.1 * math.sin(40 * passed)),
        "labels_per_day": version.per_second * version.labelled * busy * 86_400,
        "labels": labels,
        "feedback_delay_seconds": 1_800 + 300 * math.sin(9 * passed),
        "complaints_expected": 0.3 * labels,
        "complaints_seen": 0.3 * labels * (1 + (2 * max(0.0, passed - CHANGED) if bad else 0)),
        "version_stale": float(bad and passed > 0.75),
        "version_review_by_seconds": begin + seconds + version.review_in_days * 86_400,
    }
    for gauge, value in by_gauge.items():
        getattr(meters, gauge).set(value, task, name)
    rarely = math.inf if version.labelled < 0.02 and passed < 0.1 else 86_400 * 0.02 / version.labelled
    meters.time_to_detect_seconds.set(4 * rarely, task, name, "5")
    meters.time_to_detect_seconds.set(rarely, task, name, "10")
    meters.labels_wanted.set(30, task)
    _tell_evidence(gateway, version, passed)
    _tell_quality(gateway, version, passed, labels)


def _tell_evidence(gateway: Gateway, version: Told, passed: float) -> None:
    bad = version.name == "returns@v1" and passed >= CHANGED
    for place, stream in enumerate((*LABELLED, *UNLABELLED)):
        noise = math.exp(1.2 * math.sin((60 + 7 * place) * passed + place))
        felt = stream in LABELLED or stream in {"coverage", "confidence"}
        grown = math.exp(min(25.0, 220 * (passed - CHANGED))) if bad and felt else 1.0
        gateway.meters.e_value.set(min(1e12, noise * grown), version.task, version.name, stream)
        threshold = 40_000.0 if stream in LABELLED else 4_000.0
        gateway.meters.e_value_threshold.set(threshold, version.task, version.name, stream)


def _tell_quality(gateway: Gateway, version: Told, passed: float, labels: float) -> None:
    late = min(1.0, max(0.0, (passed - CHANGED) / 0.12))
    own = version.right + (right(version, passed) - version.right) * late
    for arm, mean in (("version", own), ("general", 0.81), ("previous_version", 0.88)):
        half = min(0.2, 1.96 * math.sqrt(mean * (1 - mean) / max(20.0, labels)))
        for bound, value in (("low", mean - half), ("mean", mean), ("high", mean + half)):
            gateway.meters.quality_ratio.set(min(1.0, value), version.task, version.name, arm, bound)


def _act(gateway: Gateway, passed: float) -> None:
    """Feedback, shadows, reviews, and what the monitor does."""
    meters, draw = gateway.meters, gateway.draw
    suspicious = passed >= SUSPECT
    for version in VERSIONS:
        for _ in range(round(version.per_second * version.labelled * INTERVAL_SECONDS / 2 + draw.random())):
            meters.feedback.add(1, version.task, version.name, "correct", draw.choice(("created", "created", "same")))
        pairs = ("agreed", "agreed", "agreed", "differed", "unjudged")
        for _ in range(draw.randrange(3 if suspicious and version.task == "returns" else 2)):
            meters.pairs.add(1, version.task, version.name, draw.choice(pairs))
            meters.cost_usd.add(0.0004, version.task, "", "general", "shadow")
    for task in ("returns", "contracts"):
        meters.shadow_share_ratio.set(0.1 if suspicious and task == "returns" else 0.02, task)
        meters.judge_agreement_ratio.set(0.93 + 0.01 * math.sin(12 * passed), task)
        meters.tuning_cost_usd.set(20 if task == "returns" else 2, task)
        meters.retraining_open.set(float(task == "returns" and passed >= DEGRADED), task)
        meters.reviews_waiting.set(round(6 + 5 * math.sin(20 * passed)), task)
        if draw.random() < 0.1:
            meters.reviews.add(1, task, draw.choice(("drawn", "given", "answered", "answered")))
            meters.review_cost_usd.add(0.02, task)
    _move(gateway, passed)


def _move(gateway: Gateway, passed: float) -> None:
    """Actions of the first gateway, which had the job. A series begins at 0 at the first step."""
    meters, moment = gateway.meters, 1e-9
    if not gateway.instance.startswith("gateway-0"):
        return
    kinds = {"verdict": (SUSPECT, DEGRADED), "shadow": (SUSPECT,), "shift": tuple(since for since, _ in KEPT)}
    for kind, times in {**kinds, "retrain": (DEGRADED,)}.items():
        done = meters.monitor_actions.cell("returns", kind)
        done.add(sum(passed + moment >= since for since in times) - done.value)
    rolled = meters.canary_verdicts.cell("contracts", "promote")
    rolled.add(float(passed >= PROMOTED) - rolled.value)


def _stand(gateway: Gateway, busy: float, at: float, passed: float) -> None:
    """Metrics of every gateway, about itself and the fleet."""
    meters, draw = gateway.meters, gateway.draw
    for pool, replica in FLEET:
        away = is_away(replica, passed)
        meters.replica_up.set(int(not away), pool, replica)
        recovers = is_away(replica, passed - (BACK - AWAY))
        meters.breaker_state.set(2 if away else int(recovers), pool, replica)
        meters.in_flight.set(draw.randrange(1, 2 + round(5 * busy)), pool, replica)
    for replica, share in (("small-0", 0.38), ("small-1", 0.5)):
        meters.adapter_working_set_ratio.set(share, "small", replica)
    for version in VERSIONS:
        meters.adapter_placements.set(2, version.name, "ready")
    promoted = passed >= PROMOTED
    gateway.states |= {"returns@v1": "active", "returns@v2": "canary"}
    gateway.states["contracts@v2"] = "previous_version" if promoted else "active"
    gateway.states["contracts@v3"] = "active" if promoted else "canary"
    if draw.random() < 0.05:
        meters.adapter_load_seconds.observe(draw.uniform(0.1, 0.6), "small")
    for _ in range(30):
        meters.event_loop_lag_seconds.observe(0.0006 * draw.lognormvariate(0, 0.8))
    meters.records_pending.set(draw.choice((0, 0, 0, 0, 0, 1, 3)))
    meters.snapshot_age_seconds.set(0.3 + 0.1 * draw.random())
    meters.redis_up.set(1)
    meters.build_info.set(1, "0.1.0")
    meters.monitor_judged_at_seconds.set(at - draw.random())
    meters.monitor_unjudged.set(0)
    meters.monitor_behind_seconds.set(2 * draw.random())
    meters.shadow_queue_length.set(draw.randrange(20))
    meters.shadow_queue_max.set(256)
