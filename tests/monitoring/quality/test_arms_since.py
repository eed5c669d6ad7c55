"""Since when pairs count for the estimates of arms: since the first evidence that makes the version degraded still."""

from __future__ import annotations

import random

import msgspec

from monitoring.quality.detectors import leave_one_out
from monitoring.quality.phases import Phase, Verdict
from monitoring.quality.signals import arms, label_signal, signal_changes, version_judgement, version_watch
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.version_judgement import Budget
from monitoring.quality.verdicts.quality import ArmReport, SignalReport
from tests.monitoring.quality.reckoned import GATE
from tests.monitoring.quality.traffic import MORNING, PLAN, V3

BUDGET = Budget(false_alarms_per_month=1.0, labelled=2, unlabelled=0)
EVERY_SECONDS = 600.0


class Labelled:
    """A watch with labels in two streams, and each time a pair, of which general's answer is right."""

    def __init__(self) -> None:
        self.watch = signal_changes.hold_against(
            version_watch.start(V3, "returns", "e"), {"reviewed": GATE, "feedback": GATE}
        )
        self.draw, self.count = random.Random(2), 0
        self.roll = leave_one_out.add_request(self.watch.roll, "app", MORNING)

    @property
    def now(self) -> float:
        return MORNING + self.count * EVERY_SECONDS

    def take(self, count: int, reviewed: float, feedback: float, pairs: float = 0.4) -> None:
        """So many labels of either stream, and pairs, of which these shares are wrong."""
        for _ in range(count):
            self.count += 1
            self.watch = msgspec.structs.replace(
                self.watch,
                reviewed=self._label(self.watch.reviewed, reviewed, trusted=True),
                feedback=self._label(self.watch.feedback, feedback, trusted=False),
            )
            right = (float(self.draw.random() >= pairs), 1.0)
            arm = arms.add_pair(self.watch.general, self.now, None)
            arm = arms.add_label(arm, arm.blocks[-1].begins, right, None)
            self.watch = msgspec.structs.replace(self.watch, general=arm)

    def _label(self, track: label_signal.LabelSignal, wrong: float, trusted: bool) -> label_signal.LabelSignal:
        label = Label(badness=float(self.draw.random() < wrong), caller="app", trusted=trusted)
        return track.take(label, self.now, self.roll, self.watch.course.is_degraded)

    def tell(self, verdict: Verdict) -> None:
        self.watch = signal_changes.follow(self.watch, Phase(own=verdict), self.now)

    def judged(self) -> tuple[dict[str, SignalReport], dict[str, ArmReport]]:
        found = version_judgement.judge(self.watch, PLAN, BUDGET, self.now)
        return {one.signal: one for one in found.reports}, {one.arm: one for one in found.arms}


def test_recovered_signal_no_longer_moves_the_time_of_the_pairs_to_the_present() -> None:
    one = Labelled()
    one.take(300, reviewed=0.4, feedback=0.03)
    one.take(100, reviewed=0.4, feedback=0.35)
    one.tell("degraded")
    one.take(800, reviewed=0.4, feedback=0.03)
    streams, found = one.judged()
    assert (streams["feedback"].alarming, streams["feedback"].recovered) == (True, True)
    assert (streams["reviewed"].alarming, streams["reviewed"].recovered) == (True, False)
    assert found["general"].labels > 800
    assert found["general"].advantage_low is not None
    assert found["general"].advantage_low > 0.2


def test_of_several_streams_pairs_count_since_the_first_of_them_began() -> None:
    one = Labelled()
    one.take(600, reviewed=0.03, feedback=0.03, pairs=0.0)
    one.take(300, reviewed=0.4, feedback=0.03)
    one.take(60, reviewed=0.4, feedback=0.6)
    streams, found = one.judged()
    assert streams["reviewed"].alarming
    assert streams["feedback"].alarming
    assert found["general"].labels > 150
    assert found["general"].labels < 500


def test_evidence_that_is_gone_or_recovered_from_takes_no_pairs_away() -> None:
    for verdict in ("healthy", "degraded"):
        one = Labelled()
        one.take(300, reviewed=0.03, feedback=0.03)
        one.take(60, reviewed=0.03, feedback=0.5)
        one.tell(verdict)
        one.take(800, reviewed=0.03, feedback=0.02)
        streams, found = one.judged()
        assert streams["feedback"].alarming, "once it has, it does"
        assert streams["feedback"].recovered is (verdict == "degraded")
        assert found["general"].labels > 900
