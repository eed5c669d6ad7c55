"""The quality of a task's versions, and the monitor's actions: one object per task in the object store `health`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import msgspec

from monitoring.quality.phases import Phase, Verdict
from monitoring.quality.verdicts.monitor_plan import RESPONSES, ResponseName

OTHER_CLASS = "*"
"""The class of all labels whose class has no signal of its own. No tag names it."""
NoteName = Literal["verdict", "recover", "hold_and_alert", "pin", "release", "changed", "undo"]
ActionKind = ResponseName | NoteName
"""An entry of the monitor's notes: one of its responses, a verdict that moved, a share given back, that no arm is known
to be better; or an admin's step: a pin, its release, the announcement of a change, an action undone."""
ACTION_KINDS: frozenset[str] = frozenset((*RESPONSES, *get_args(NoteName)))
ACTIONS_MAX = 100
"""The newest actions that are kept with a task; the audit has all of them."""
E_VALUE_MIN, E_VALUE_WITHOUT_ONE_MIN = 1 / 0.03, 10.0
"""The evidence at which another arm counts as better: of all pairs, and whichever caller is left out."""


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """An admin's verdict on a version, which holds instead of the monitor's.

    `verdict` None: the monitor's verdict holds, and nothing is done about it. `until` is in Unix seconds (None: until
    it is released). `instead_of` is the monitor's own verdict when admins began to pin, and `alarmed` are the signals
    that had alarmed by then. `VersionQuality.phase` says what both verdicts are now.
    """

    verdict: Verdict | None
    by: str
    reason: str
    at: float
    until: float | None = None
    instead_of: Verdict | None = None
    alarmed: tuple[str, ...] = ()


class VersionQuality(msgspec.Struct, frozen=True, kw_only=True):
    """A version's verdict that holds, with its time (Unix seconds), reason and evidence, and its share of requests.

    Share: `kept` is the part of its requests that it answers. `to` is the arm that gets the rest (None: nothing is
    shifted), `to_version` the version of that arm, if it is one. `stepped_at` is when the share last moved.
    `paused_share` is the share that a canary had when the monitor paused it (None: not paused, or an admin has set
    another one since). The canary gets it back once it is healthy.

    Degraded: `alarmed` are the labelled signals (`feedback`, or `feedback:CLASS`) that made it degraded, or have
    alarmed since. Suspect: `observed` is the number of labels of each labelled signal when it became suspect (None: not
    known). `quiet_since` is when its last alarm ended (None: one goes on), without the alarms of `cleared`: those of
    unlabelled signals that labels have refuted.

    `done` are the actions that are done once while a verdict holds. `stale_from` is when the organisation's rules
    become others than those that it was trained on, in Unix seconds.
    """

    verdict: Verdict = "healthy"
    since: float = 0.0
    because: str = ""
    evidence: dict[str, Any] = {}
    kept: float = 1.0
    to: Literal["general", "previous_version"] | None = None
    to_version: str | None = None
    stepped_at: float = 0.0
    pin: Pin | None = None
    stale_from: float | None = None
    cleared: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    alarmed: tuple[str, ...] = ()
    observed: dict[str, float] | None = None
    quiet_since: float | None = None
    paused_share: float | None = None
    undone: tuple[str, ...] = ()
    """Actions of the monitor that an admin has undone. They are not repeated before the version is healthy."""

    @property
    def phase(self) -> Phase:
        """The monitor's own verdict, and the pinned one. It moves by `phases.next_phase` alone."""
        if self.pin is None or self.pin.verdict is None:
            return Phase(own=self.verdict)
        if self.verdict == "degraded" and self.alarmed:  # labels have confirmed the pin
            return Phase(own="degraded", pinned=self.verdict)
        return Phase(own=self.pin.instead_of or self.verdict, pinned=self.verdict)

    @property
    def looked_into(self) -> bool:
        """Return whether it is suspect or degraded, and no admin holds the monitor off it."""
        return self.verdict != "healthy" and (self.pin is None or self.pin.verdict is not None)

    @property
    def held(self) -> bool:
        """Return whether it is degraded and nothing is shifted, as no other arm is known to be better."""
        return "hold_and_alert" in self.done and self.to is None


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A suspicion that is looked into: why, since when, and what the raised shadows may cost and have cost.

    Since then the shadows have cost `shadow_usd_spent`, and `shadows_asked` of them were asked, as was noted last;
    `usd_before` and `shadows_before` are what those of each version had come to by then, since it was seen first
    (`usd_before` None: not known). `shadow_usd_before` is the sum of it when the ticket was opened.
    """

    id: str
    version: str
    opened_at: float
    because: str
    shadow_usd_max: float
    shadow_usd_before: float = 0.0
    usd_before: dict[str, float] | None = None
    shadows_before: dict[str, int] = {}
    shadow_usd_spent: float = 0.0
    shadows_asked: int = 0
    closed_at: float | None = None


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was done, with its evidence and with what was there before, so that it can be undone.

    `kind` is an ActionKind; one that a newer gateway noted may be another, and is kept as it is. `failed` says why it
    was not carried out (None: it was, or is about to be), and `again` how often it had failed before it was last tried,
    which was `at`.
    """

    id: str
    at: float
    kind: str
    version: str
    because: str
    evidence: dict[str, Any] = {}
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    by: str = "system"
    undone_at: float | None = None
    undone_by: str | None = None
    failed: str | None = None
    again: int = 0


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """The organisation's own word that the task has changed: from when on (Unix seconds), and what was set for it.

    `stale_before` says of the versions that it marks from when on each was stale before anything was said (None: it was
    not): a change that replaces another keeps that from before the first.
    """

    effective_at: float
    by: str
    note: str
    at: float
    override: str | None = None
    retraining: str | None = None
    stale_before: dict[str, float | None] = {}


class TaskQuality(msgspec.Struct, frozen=True, kw_only=True):
    """All that the monitor has found of a task and set for it.

    `shadow_share` and `review_share` are the probabilities with which a request is drawn for them; `deferral_factor` is
    how many times deferred_share is sent away. `actions` are the newest ones, oldest first; `undone` are responses that
    an admin has undone: they are not given again until the version that leads, and the canary, are healthy (those about
    one version: `VersionQuality.undone`). `raised` says which of `shadow`, `reviews` and `widen` are above what is
    usual, in answer to a verdict.
    """

    versions: dict[str, VersionQuality] = {}
    shadow_share: float = 0.0
    review_share: float = 0.0
    deferral_factor: float = 1.0
    ticket: Ticket | None = None
    changed: Changed | None = None
    actions: list[Action] = []
    undone: tuple[str, ...] = ()
    raised: tuple[str, ...] = ()

    def looked_into(self, watched: Iterable[str]) -> list[str]:
        """Those of these versions that the monitor looks into, and does something about."""
        return [name for name in watched if name in self.versions and self.versions[name].looked_into]


Doubt = Literal["one_giver", "one_session", "first_day", "days_differ", "reviewers", "labellers"]
"""Why evidence that would alarm makes a version suspect at most.

- `one_giver`: it rests on the caller or rater who gave most of the labels.
- `one_session`: it rests on the labels of one session, and those of a session may be right or wrong together.
- `first_day`: labels of less than a day were seen, and a bad hour may have as many errors.
- `days_differ`: errors differ from day to day beyond chance, and some bad days may be as bad.
- `reviewers`: the present reviewers would see as many errors in what the earlier ones labelled.
- `labellers`: errors may have been more from the first label on, as labellers may differ from the evaluation's.
"""


class SignalReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report on one signal of a version.

    `signal` is its name (`signal_table.py`), `of_class` its class (None: all). `estimate` is the share of bad ones seen
    lately, with its 95% interval; `high_without_one` the greatest upper end of that whichever caller is left out (None:
    not known, as of pairs that callers have judged); `baseline` what it is held against, as JSON of a Baseline or of
    the reference.
    `e_value` is held against `threshold`; `since` is when the evidence began to grow, in Unix seconds. It would alarm
    without the `doubt` (None: no doubt, or not enough evidence). `dispersion` is how many labels count as one.
    `has_rhythm`: errors follow the day. `stricter`: how many times the earlier errors its present reviewers would see.
    """

    signal: str
    of_class: str | None = None
    labelled: bool
    observed: float
    labels_per_day: float = 0.0
    wrong: float | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    high_without_one: float | None = None
    baseline: dict[str, Any] = {}
    e_value: float = 0.0
    threshold: float = 0.0
    alarming: bool = False
    doubt: Doubt | None = None
    dispersion: float = 1.0
    has_rhythm: bool = False
    stricter: float = 1.0
    recovered: bool = False
    since: float | None = None


class ArmEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence that another arm is better than a degraded version, from pairs since the verdict (`arm_bets.py`).

    `e_value` is that of all `pairs` that are judged, `e_value_without_one` the least whichever caller is left out.
    `unjudged` pairs have no opinion yet.
    """

    pairs: int
    unjudged: int
    e_value: float
    e_value_without_one: float

    @property
    def is_enough(self) -> bool:
        """Return whether traffic may move to the arm."""
        return self.e_value >= E_VALUE_MIN and self.e_value_without_one >= E_VALUE_WITHOUT_ONE_MIN


class ArmReport(msgspec.Struct, frozen=True, kw_only=True):
    """The estimated quality of one arm on this task, the share of right answers, with its 95% interval (PPI++).

    `version` is the name of the version that it is, None for general. `advantage_low` and `advantage_high` are bounds
    of how much better it is than the version judged, each of which holds with 97.5% however often one looks; None where
    not known. Where they rest on the judge's guesses alone, `advantage_words` is their number; else it is 0.
    `evidence` is that of pairs since the version was degraded (None: it is not, or there are none).
    """

    arm: Literal["version", "general", "previous_version"]
    version: str | None = None
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    labels: int = 0
    pairs: int = 0
    advantage_low: float | None = None
    advantage_high: float | None = None
    advantage_words: int = 0
    evidence: ArmEvidence | None = None

    @property
    def is_better(self) -> bool:
        """Return whether it is shown to be better than the version."""
        if self.advantage_high is not None and self.advantage_high < 0.0:
            return False
        if self.advantage_low is not None and self.advantage_low > 0.0:
            return True
        return self.evidence is not None and self.evidence.is_enough


class JudgeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The work of the model that judges pairs lately: of about how many pairs it was asked, the share that it did
    not judge, and how many in a row it has judged up to now."""

    asked: float
    silent: float
    answered_since: int


class SavingReport(msgspec.Struct, frozen=True, kw_only=True):
    """The present saving of a version against general, and the cost of its shadows and judges, in US dollars a day.

    `requests` is about how many of the last three days it rests on, `known` which share of the version's requests they
    are: of the others it is not known what they cost. `since` is the time of the first one (Unix seconds).
    """

    saved_usd_per_day: float
    shadow_usd_per_day: float
    requests: float
    known: float
    since: float | None = None

    @property
    def net_usd_per_day(self) -> float:
        """The saving less the cost of shadows."""
        return self.saved_usd_per_day - self.shadow_usd_per_day


class Judgement(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of a version from its signals, at one moment. The same whichever gateway computes it."""

    task: str
    version: str
    at: float
    requests: int = 0
    requests_per_day: float = 0.0
    requests_since: float | None = None
    """When the first of them came, as that of labels below, in Unix seconds; None without any."""
    led_per_day: float = 0.0
    """Requests served here that chance led to it, whatever answered them: of these reviews are drawn."""
    labels: int = 0
    labels_per_day: float = 0.0
    labels_since: float | None = None
    label_coverage: float | None = None
    feedback_delay_seconds: float | None = None
    complaints_expected: float | None = None
    complaints_seen: float | None = None
    seconds_to_detect: dict[str, float | None] = {}
    """By points (`5`, `10`): seconds until such a rise is found at today's label rate; None: never, there are none."""
    saving_usd: float = 0.0
    shadow_usd: float = 0.0
    saving: SavingReport | None = None
    """None where of no request it is known what it saved."""
    shadows: int = 0
    """Shadows asked so far of this version, whether their pairs were judged or not."""
    reports: list[SignalReport] = []
    arms: list[ArmReport] = []
    judge_agreement: float | None = None
    """The share in which the judge of pairs agrees with people, from 0 to 1; None without any that both judged."""
    judge_agreement_low: float | None = None
    """The lower end of its 95% interval."""
    judge: JudgeReport | None = None
    """None where no model was asked."""
    signals: int = 1
    """The labelled signals of all versions, which share the accepted false alarms."""

    def is_news(self, last: Judgement | None) -> bool:
        """Return whether gateways have to read it after the last one. Its moment alone counts once something came."""
        if last is None or self.requests_since is not None or self.labels_since is not None:
            return True
        return msgspec.structs.replace(last, at=self.at) != self


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's summary for all gateways: the judgements by version, and how far it has read.

    `at` is when it last judged, in Unix seconds; `behind_seconds` the age of the oldest entry that it has not read;
    `writing` counts the writings of judgements, `unreadable` what could not be read, and `unmatched` feedback that no
    record was there for any more: so it counts for no version. The versions `unjudged` can't be judged.
    """

    at: float
    behind_seconds: float = 0.0
    writing: int = 0
    unreadable: int = 0
    unmatched: int = 0
    unjudged: list[str] = []
    judgements: dict[str, Judgement] = {}


SUMMARY_KEY = "apprentice:monitor:summary"
JUDGEMENTS_KEY = "apprentice:monitor:judgements"
"""A hash: each version's last judgement. The summary beside it has none."""


def read_quality(raw: Mapping[str, Any]) -> TaskQuality:
    """The quality of a task as it is kept in Redis, with the names of earlier releases. Raises ValidationError."""
    versions = raw.get("versions")
    if isinstance(versions, Mapping):
        raw = {**raw, "versions": {name: _with_present_names(version) for name, version in versions.items()}}
    return msgspec.convert(raw, TaskQuality)


def _with_present_names(version: Any) -> Any:
    if isinstance(version, Mapping) and version.get("to") == "standby":
        return {**version, "to": "previous_version"}
    return version
