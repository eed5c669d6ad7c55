"""The state of one version's signals. `watch_events.py` and `watch_pairs.py` move it.

Everything has a fixed size, and goes through JSON unchanged. The same entries in the same order leave the same state,
to the last bit, independent of the batches and of the process. Times are those at which entries came into their
streams, by Redis's clock.

A request's `Note` (`request_notes.py`) is kept beside the watches, for as long as it may be judged. `signal_changes.py`
applies baselines and verdicts to a watch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import guards
from monitoring.quality.detectors.cost_saving import Saving
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.detectors.leave_one_out import GiverRoll
from monitoring.quality.detectors.recent_values import DelayCounts, FadedSums, Marks, Rate
from monitoring.quality.phases import Course
from monitoring.quality.signal_table import LABELLED
from monitoring.quality.signals import label_signal, pair_signal
from monitoring.quality.signals.arm_bets import ArmBets
from monitoring.quality.signals.arms import Arm
from monitoring.quality.signals.complaint_signal import ComplaintSignal
from monitoring.quality.signals.entries import GENERAL
from monitoring.quality.signals.fingerprints import GeneralFingerprint
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.signals.pair_judge import PairJudge
from monitoring.quality.signals.pair_signal import PairSignal
from monitoring.quality.signals.repeats import Latest, Sessions
from monitoring.quality.signals.unlabelled import Languages
from monitoring.quality.verdicts.canary_verdict import Tally

FIRST_REVIEWED = 100
FIRST_FEEDBACK = 200
FIRST_OF_CLASS = 100
CLASSES_MAX = 20
LabelledSignal = LabelSignal | PairSignal | ComplaintSignal


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """All signals of one version and their state; `epoch` is the reading of the streams that it belongs to.

    `form` changes only if earlier states become unreadable (`saved_watches.py`). `roll` knows the version's callers.
    `fingerprint` is the one of general that `shadow`, `holdout` and `general` compare with. `classes` has the signals
    of classes, as `SIGNAL:CLASS`, which `class_tag` names. `course` is the version's phase, and the times from which
    labels count. `led_rate` is the rate of requests that chance led to it here, whatever answered them. `judged` is the
    rate of requests with their first label. `agreed` is the agreement with people of the judge that `judge` knows.
    `shadows` counts the shadows that were requested for it, which cost `shadow_usd`. `saving` is its recent saving and
    the shadows' recent cost. `set_at` has the times of the baselines that admins and evaluations have set, by signal;
    `outdated` are those that were set for another metric. `canary` is its tally while it is a canary with a plan.
    `bets` are on other arms, by their names, while it is degraded.
    """

    form: Literal[3]
    version: str
    task: str
    epoch: str
    roll: GiverRoll
    reviewed: LabelSignal
    feedback: LabelSignal
    shadow: PairSignal
    holdout: PairSignal
    general: Arm
    fingerprint: GeneralFingerprint = msgspec.field(default=GeneralFingerprint(), name="stack")  # as before
    previous_version: Arm | None = None
    metric: str | None = None
    complaint_metric: str | None = None
    class_tag: str | None = None
    classes: dict[str, LabelSignal] = {}
    complaints: ComplaintSignal | None = None
    signals: dict[str, Signal] = {}
    languages: Languages = Languages()
    requests: int = 0
    looked_at: int = 0
    request_rate: Rate | None = None
    request_marks: Marks = ()
    led_rate: Rate | None = None
    labels: int = 0
    label_rate: Rate | None = None
    judged: Rate | None = None
    delays: DelayCounts = DelayCounts()
    agreed: FadedSums = FadedSums()
    judge: PairJudge = PairJudge()
    saving: Saving | None = None
    saving_usd: float = 0.0
    shadow_usd: float = 0.0
    shadows: int = 0
    course: Course = Course()
    set_at: dict[str, float] = msgspec.field(default_factory=dict, name="anew")
    outdated: tuple[str, ...] = ()
    canary: Tally | None = None
    latest: dict[str, Latest] = {}
    sessions: dict[str, Sessions] = {}
    bets: dict[str, ArmBets] = {}


def start(version: str, task: str, epoch: str) -> Watch:
    """The watch of a version without any entries."""
    return Watch(
        form=3,
        version=version,
        task=task,
        epoch=epoch,
        roll=guards.start_roll(version),
        reviewed=label_signal.start(FIRST_REVIEWED, version),
        feedback=label_signal.start(FIRST_FEEDBACK, version),
        shadow=pair_signal.start(version),
        holdout=pair_signal.start(version),
        general=Arm(other=GENERAL),
    )


def get_labelled(watch: Watch) -> dict[str, LabelledSignal]:
    """The labelled signals of a version by name; those of its classes, as `SIGNAL:CLASS`, come last."""
    own: dict[str, LabelledSignal | None] = {name: getattr(watch, name) for name in LABELLED}
    return {**{name: signal for name, signal in own.items() if signal is not None}, **watch.classes}


def replace_labelled(watch: Watch, signals: Mapping[str, LabelledSignal | None]) -> Watch:
    """The watch with these labelled signals, by the names of `get_labelled`. None: the signal begins again."""
    if not signals:
        return watch
    moved: dict[str, Any] = {name: signal for name, signal in signals.items() if ":" not in name}
    classes = {name: signal for name, signal in signals.items() if ":" in name}
    return replace(watch, **moved, classes={**watch.classes, **classes})
