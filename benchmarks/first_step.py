"""How soon does traffic leave a degraded version? `python -m benchmarks.first_step [--json]`.

A version is degraded, and no other arm is known to be better. Callers fill one engine, which both versions share, to
`--load` of its places. Some of their answers are labelled, most labels with the right answer. The monitor's own code
takes every record and label, judges, and responds, every `--interval`. Answers take 1 on average: the unit of time.

first    every request is drawn for shadows, which may take `--room` of the engine before callers
beside   every request is drawn, and shadows run only where callers leave room
usual    a tenth is drawn, and shadows run only where callers leave room

`answers` is the median number of answers between the verdict and the first step. `shown` is how often that step is
taken within `--answers`. `waited` is the mean wait of callers for a place, `longest` the longest of a run at the
median. In an equal world no step is right; how often one is taken in the end is measured by `benchmarks.looking`.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import statistics
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from benchmarks.canary import rate_of
from benchmarks.harness import Goal, conclude, options, say, table
from gateway.features.shadows.draws import FIRST_QUEUE_MAX
from gateway.path.own_requests import LOAD_SHARE_MAX, WAITING_MAX
from monitoring.metric_values import Metric
from monitoring.quality.phases import Phase
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.signals.entries import Attempt, FeedbackEntry, Pair, RecordEntry
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles

TASK, PREVIOUS, LEADING = "returns", "returns@v1", "returns@v2"
BEGAN = 1_800_000_000.0
ROLES = Roles(active=LEADING, previous_version=PREVIOUS, there=(LEADING, PREVIOUS))
METRICS = {"correct": Metric(kind="boolean")}
RESPONSES = ["shadow", "reviews", "widen", "shift", "roll_back", "pause_canary", "retrain"]
WARM_UP = 20
"""Requests of callers for each place, before the verdict."""
GOAL_ANSWERS = 60.0
AIMED_POINTS = 0.3
"""The goal is for versions that are so much worse than the other arm, and callers of whom none is most of them."""
GOALS = (Goal("answers_low", at_most=GOAL_ANSWERS),)


@dataclass(frozen=True, slots=True)
class World:
    """How often either version is wrong, and who sends requests: the callers' shares.

    `labelled` is the share of answers with a label, `shown` that of labels with the right answer; `reviewed`: labels
    are reviewers'.
    """

    name: str
    wrong: float
    other_wrong: float
    callers: tuple[float, ...] = (1.0,) * 8
    labelled: float = 0.9
    shown: float = 0.9
    reviewed: bool = False


WORLDS = (
    World("demo: 46% wrong, 8% before", 0.46, 0.08),
    World("four callers", 0.46, 0.08, (1.0,) * 4),
    World("one caller of 90%", 0.46, 0.08, (0.9, 0.04, 0.04, 0.02)),
    World("reviewed", 0.40, 0.10, labelled=1.0, shown=1.0, reviewed=True),
    World("equal: both 46% wrong", 0.46, 0.46),
)
POLICIES = ("first", "beside", "usual")


def plan_of(policy: str, room: float) -> MonitorPlan:
    """The settings of a task under a policy."""
    usual = MonitorPlan(feedback_metric="correct", responses=list(RESPONSES), enforced=True)  # type: ignore[arg-type]
    match policy:
        case "first":
            return msgspec.structs.replace(usual, shadow_room_share=room)
        case "beside":
            return msgspec.structs.replace(usual, shadow_room_share=0.0, shadow_share_suspect=1.0)
        case _:
            return msgspec.structs.replace(usual, shadow_room_share=0.0)


@dataclass(slots=True)
class Run:
    """One verdict and what follows: the engine's places, who waits for them, and the monitor."""

    world: World
    plan: MonitorPlan
    places: int
    draw: random.Random
    now: float = BEGAN
    events: list[tuple[float, int, str, Any]] = field(default_factory=list)
    waiting: deque[tuple[float, RecordEntry]] = field(default_factory=deque)
    shadows: deque[RecordEntry] = field(default_factory=deque)
    callers_held: int = 0
    shadows_held: int = 0
    sent: int = 0
    answers: int = 0
    waited: list[float] = field(default_factory=list)
    right: dict[str, tuple[bool, bool]] = field(default_factory=dict)
    count: int = 0
    quality: TaskQuality = field(default_factory=TaskQuality)
    monitor: Watches | None = None

    def begin(self) -> None:
        """The version is degraded from now on."""
        self.sent, self.answers, self.waited = 0, 0, []
        degraded = VersionQuality(verdict="degraded", since=self.now, alarmed=("feedback",))
        self.quality = TaskQuality(versions={LEADING: degraded})
        self.monitor = Watches("benchmark")
        step = MonitorStep(
            tasks={TASK: WatchedTask(plan=self.plan, previous_version=PREVIOUS)},
            versions={
                LEADING: WatchedVersion(task=TASK, state="active", phase=Phase(own="degraded"), since=self.now),
                PREVIOUS: WatchedVersion(task=TASK, state="active"),
            },
            metrics=METRICS,
        )
        self.monitor.begin(step, {})
        self.respond()

    def after(self, seconds: float, kind: str, what: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (self.now + seconds, self.count, kind, what))

    def respond(self) -> bool:
        """Judge and respond; whether the first step was taken."""
        assert self.monitor is not None, "it has begun"
        judged = self.monitor.judged([LEADING, PREVIOUS], self.now)
        self.quality, _ = respond(self.quality, judged, ROLES, self.plan, self.now)
        return self.quality.versions[LEADING].to is not None

    # ---- the engine

    def arrive(self) -> None:
        """A caller sends a request."""
        self.sent += 1
        name, world = f"r{self.sent}", self.world
        caller = self.draw.choices(range(len(world.callers)), world.callers)[0]
        self.right[name] = self.draw.random() >= world.wrong, self.draw.random() >= world.other_wrong
        self.waiting.append((self.now, request_of(name, f"caller {caller}")))
        self.fill()

    def fill(self) -> None:
        """Give free places to who is next."""
        while self.callers_held + self.shadows_held < self.places:
            room = max(1, int(self.plan.shadow_room_share * self.places)) if self.plan.shadow_room_share else 0
            if self.shadows and self.shadows_held < room and len(self.waiting) <= WAITING_MAX * self.places:
                self.shadows_held += 1
                self.after(self.draw.expovariate(1.0), "shadow", self.shadows.popleft())
            elif self.waiting:
                since, request = self.waiting.popleft()
                self.waited.append(self.now - since)
                self.callers_held += 1
                self.after(self.draw.expovariate(1.0), "answer", request)
            else:
                return

    def answered(self, request: RecordEntry) -> None:
        """A caller has an answer: it may be labelled, and a shadow may answer too."""
        self.callers_held -= 1
        self.answers += 1
        if self.monitor is None:
            self.fill()
            return
        request.placed_at = self.now
        self.monitor.take_record(request, self.now)
        own, other = self.right[request.id]
        if self.draw.random() < self.world.labelled:
            shown = {"fields": "right"} if self.draw.random() < self.world.shown else {}
            given = FeedbackEntry(
                metric="correct", value=own, caller=request.caller, request=request.id,
                reviewed=self.world.reviewed, demonstration_digests=shown,
            )  # fmt: skip
            self.monitor.take_feedback(given, request, self.now)
        if self.draw.random() < self.quality.shadow_share:
            pair = Pair(
                version=LEADING, caller=request.caller, arm="version", judge="fields",
                digest="right" if other else "other", served_digest="right" if own else "wrong",
                score=float(own and other), served_score=float(own and other),
            )  # fmt: skip
            shadow = request_of(
                f"s{request.id}", "", purpose="shadow", shadow_of=request.id, version=PREVIOUS, pair=pair
            )
            self.offer(shadow)
        self.fill()

    def offer(self, shadow: RecordEntry) -> None:
        """Have a shadow answer too: in line where shadows come first, else at once or not at all."""
        if self.plan.shadow_room_share:
            if len(self.shadows) < FIRST_QUEUE_MAX:
                self.shadows.append(shadow)
        elif not self.waiting and self.callers_held + self.shadows_held + 1 <= LOAD_SHARE_MAX * self.places:
            self.shadows_held += 1
            self.after(self.draw.expovariate(1.0), "shadow", shadow)


def request_of(name: str, caller: str, **more: Any) -> RecordEntry:
    """A record of a request that was led to the degraded version."""
    usual: dict[str, Any] = {"version": LEADING, "reason": "adapter", "attempts": [Attempt(LEADING)]}
    return RecordEntry(
        id=name, caller=caller, requested_model=TASK, task=TASK, led_to=LEADING, outcome="ok", **{**usual, **more}
    )  # fmt: skip


def follow(run: Run, load: float, interval: float, answers_max: int) -> float:
    """The number of answers until the first step; infinity where none was taken."""
    rate = load * run.places
    run.after(run.draw.expovariate(rate), "arrive", None)
    while run.monitor is None or run.answers < answers_max:
        if run.monitor is None and run.sent >= WARM_UP * run.places:
            run.begin()
            run.after(interval, "judge", None)
        run.now, _, kind, what = heapq.heappop(run.events)
        match kind:
            case "arrive":
                run.arrive()
                run.after(run.draw.expovariate(rate), "arrive", None)
            case "answer":
                run.answered(what)
            case "shadow":
                assert run.monitor is not None, "shadows are drawn since the verdict"
                run.shadows_held -= 1
                what.placed_at = run.now
                run.monitor.take_record(what, run.now)
                run.fill()
            case _:
                if run.respond():
                    return float(run.answers)
                run.after(interval, "judge", None)
    return math.inf


# ---- the report ------------------------------------------------------------------------------------------


def row_of(world: World, policy: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Many runs of one world under one policy."""
    say(f"{asked.runs} runs: {world.name}, {policy}")
    found, waited, longest = [], [], []
    for number in range(asked.runs):
        draw = random.Random(f"{asked.seed} {world.name} {number}")
        run = Run(world, plan_of(policy, asked.room), asked.places, draw)
        found.append(follow(run, asked.load, asked.interval, asked.answers))
        waited.append(statistics.fmean(run.waited))
        longest.append(max(run.waited))
    median, low, high = bounds_of_median(found)
    shown = rate_of(sum(math.isfinite(one) for one in found), len(found))
    return {
        "answers": median,
        "answers_low": low,
        "answers_high": high,
        "shown": shown["rate"],
        "shown_low": shown["low"],
        "shown_high": shown["high"],
        "waited": statistics.fmean(waited),
        "longest": statistics.median(longest),
    }


def bounds_of_median(values: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    """The median with its 99% interval, by order statistics; None: more than the requests of a run."""
    ordered = sorted(values)
    half = 2.5758 * math.sqrt(len(ordered)) / 2
    places = (len(ordered) / 2, max(0.0, len(ordered) / 2 - half), min(len(ordered) - 1.0, len(ordered) / 2 + half))
    picked = [ordered[int(one)] for one in places]
    return tuple(one if math.isfinite(one) else None for one in picked)  # type: ignore[return-value]


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Every world under every policy."""
    began = time.process_time()
    rows = {world.name: {policy: row_of(world, policy, asked) for policy in POLICIES} for world in asked.worlds}
    aimed = [rows[world.name]["first"] for world in asked.worlds if is_aimed_at(world)]
    lows = [one["answers_low"] if one["answers_low"] is not None else math.inf for one in aimed]
    medians = [one["answers"] for one in aimed]
    figures = {
        "answers": None if None in medians else max(medians, default=None),
        "answers_low": max(lows, default=0.0) if math.isfinite(max(lows, default=0.0)) else 1e9,
    }
    named = ("seed", "runs", "places", "load", "room", "interval", "answers")
    report = {name: getattr(asked, name) for name in named}
    return {**report, "figures": figures, "rows": rows, "cpu_seconds": round(time.process_time() - began, 1)}, []


def is_aimed_at(world: World) -> bool:
    """Return whether the goal is for this world."""
    return world.wrong - world.other_wrong >= AIMED_POINTS and max(world.callers) <= sum(world.callers) / 2


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    head = ["world", "policy", "answers", "99% from", "to", "shown", "waited", "longest"]
    names = ("answers", "answers_low", "answers_high", "shown", "waited", "longest")
    lines = [
        [world, policy, *[row[name] for name in names]]
        for world, of_world in report["rows"].items()
        for policy, row in of_world.items()
    ]
    text = f"{report['runs']} runs each, seed {report['seed']}, {report['cpu_seconds']:g} s of CPU."
    return f"{table(head, lines)}\n\n{text}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "first_step",
        "How soon traffic leaves a degraded version on an engine that callers fill.",
        full="600 runs: 6 minutes of CPU time",
    )
    parser.add_argument("--runs", type=int, help="runs of each world and policy, at least 5 (default 60)")
    parser.add_argument("--places", type=int, default=8, help="requests that the engine holds (default 8)")
    parser.add_argument("--load", type=float, default=0.9, help="share of the engine that callers fill (default 0.9)")
    parser.add_argument(
        "--room", type=float, default=MonitorPlan().shadow_room_share, help="shadow_room_share (as set)"
    )
    parser.add_argument("--interval", type=float, default=0.5, help="time between judgements (default 0.5)")
    parser.add_argument("--answers", type=int, default=300, help="answers after which a run ends (default 300)")
    parser.add_argument(
        "--world", metavar="WRONG:OTHER[:CALLERS]", action="append",
        help="a world of your own, for example 0.3:0.05:12; may be repeated",
    )  # fmt: skip
    asked = parser.parse_args(arguments)
    asked.runs = asked.runs or (600 if asked.full else 60)
    if asked.runs < 5 or asked.places < 1 or not 0 < asked.load < 1 or not 0 < asked.room <= 1:
        parser.error("--runs, --places, --load, --room: at least 5 runs and a place, and shares between 0 and 1")
    try:
        asked.worlds = [world_of(one) for one in asked.world] if asked.world else WORLDS
    except ValueError:
        parser.error("--world: shares of wrong answers of the version and of the other arm, such as 0.3:0.05")
    return conclude("first_step", lambda: measure(asked), GOALS, None if asked.json else show)


def world_of(text: str) -> World:
    """A world as it is named on the command line. Raises ValueError."""
    wrong, other, *callers = text.split(":")
    count = int(callers[0]) if callers else 8
    return World(text, float(wrong), float(other), (1.0,) * max(1, count))


if __name__ == "__main__":
    sys.exit(main())
