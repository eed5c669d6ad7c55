"""Watches that take traffic day by day and are told verdicts, and traffic of pairs, complaints and holdouts."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from monitoring.quality.detectors.baselines import Baseline, measure
from monitoring.quality.phases import Phase, Pinned, Verdict, next_phase
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.child_messages import MonitorStep
from monitoring.quality.verdicts.quality import Judgement, SignalReport
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.traffic import (
    MORNING,
    PLAN,
    V3,
    Traffic,
    at,
    held_out,
    said,
    served,
    shadow,
    step,
)

DAY = 86_400.0
GATE = measure("gate", 40, 1000, 1.0, "gate", "evaluation-1")
BY_GATE = {V3: {"reviewed": GATE, "feedback": GATE}}
HELD = {V3: {"feedback": GATE}}


def judged(traffic: Traffic, told: MonitorStep | None = None, baselines: Any = None, days: float = 3.0) -> Judgement:
    """The judgement of the version after some days."""
    return replay(*traffic, told or step(), MORNING + days * 86_400, baselines or BY_GATE)[V3]


def stream(judgement: Judgement, name: str, of_class: str | None = None) -> SignalReport:
    (found,) = [one for one in judgement.reports if (one.signal, one.of_class) == (name, of_class)]
    return found


def together(*traffics: Traffic) -> Traffic:
    return (
        [one for records, _ in traffics for one in records],
        [one for _, feedback in traffics for one in feedback],
    )


class Told:
    """Watches that are told verdicts, and take traffic from where the last ended."""

    def __init__(self, baselines: dict[str, dict[str, Baseline]] = HELD, step: MonitorStep | None = None) -> None:
        self.step, self.baselines, self.day = step or task_step(), baselines, 0.0
        self.watches = Watches("e")
        self.watches.begin(self.step, baselines)

    def tell(self, verdict: Verdict, pinned: bool = False) -> None:
        """Tell it the verdict as of now: the monitor's, or an admin's."""
        phase = next_phase(self.step.versions[V3].phase, Pinned(verdict)) if pinned else Phase(own=verdict)
        self.move(phase=phase, since=self.now)

    def move(self, **fields: Any) -> None:
        """Tell it something else of the version."""
        known = msgspec.structs.replace(self.step.versions[V3], **fields)
        self.step = msgspec.structs.replace(self.step, versions={V3: known})
        self.watches.begin(self.step, self.baselines)

    @property
    def now(self) -> float:
        return MORNING + self.day * DAY

    def take(self, traffic: Traffic) -> None:
        """Requests, each with its feedback, as if they came on a day of their own."""
        placed = {}
        for name, one in traffic[0]:
            when = _seconds(name) + self.day * DAY
            of = None if one.shadow_of is None else f"{one.shadow_of}-{self.day}"
            placed[one.id] = msgspec.structs.replace(one, id=f"{one.id}-{self.day}", shadow_of=of, placed_at=when)
            self.watches.take_record(placed[one.id], when)
        for name, given in traffic[1]:
            known = placed[given.request]
            about = msgspec.structs.replace(given, request=known.id)
            self.watches.take_feedback(about, known, _seconds(name) + self.day * DAY)
        self.day += 1.0

    def judged(self) -> Judgement:
        return self.watches.judged([V3], self.now)[V3]

    def stream(self, name: str) -> SignalReport:
        (found,) = [one for one in self.judged().reports if (one.signal, one.of_class) == (name, None)]
        return found


def task_step(labels_min: int = 20) -> MonitorStep:
    return step(msgspec.structs.replace(PLAN, labels_min=labels_min, complaint_metric=None))


def _seconds(name: str) -> float:
    return float(name.partition("-")[0]) / 1000


def shadowed(rate: float, fingerprint: str = "general-1") -> Traffic:
    """Requests that both arms answered and a person gave the right answer to; general's answers are all right."""
    draw, records, feedback = random.Random(3), [], []
    for number in range(150):
        name, wrong, shop = f"p{number}", draw.random() < rate, f"shop{number % 3}"
        pair = {"digest": "right", "served_digest": "wrong" if wrong else "right"}
        records.append((at(number * 60.0), served(name, shop)))
        records.append((at(number * 60.0 + 1), shadow(name, pair=pair, fingerprint=fingerprint)))
        told = said(name, not wrong, shop, demonstration_digests={"normal": "right"})
        feedback.append((at(number * 60.0 + 9), told))
    return records, feedback


def complained(rate: float) -> Traffic:
    """A day of requests, of which so many are complained about after some minutes."""
    draw, records, feedback = random.Random(4), [], []
    for number in range(1440):
        name, shop = f"c{number}", f"shop{number % 3}"
        records.append((at(number * 60.0), served(name, shop)))
        if draw.random() < rate:
            feedback.append((at(number * 60.0 + 600), said(name, True, shop, metric="complaint")))
    return records, feedback


def beside_general(rate: float, count: int, fingerprint: str = "general-1", seed: int = 9) -> Traffic:
    """Every other request is held out; general is wrong on 5% of its own."""
    draw, records, feedback = random.Random(seed), [], []
    for number in range(count):
        name, out = f"h{number}", number % 2 == 1
        one = held_out(name, f"shop{number % 3}", fingerprint=fingerprint) if out else served(name, f"shop{number % 3}")
        records.append((at(number * 60.0), one))
        bad = draw.random() < (0.05 if out else rate)
        feedback.append((at(number * 60.0 + 9), said(name, not bad, f"shop{number % 3}")))
    return records, feedback
