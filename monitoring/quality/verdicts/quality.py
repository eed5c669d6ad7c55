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
"""The kind of an entry in the monitor's notes. It is one of its responses, a new verdict, a share given back, or an
alert that no better arm is known. Or it is an admin's step: a pin, its release, an announced change, an action
undone."""
ACTION_KINDS: frozenset[str] = frozenset((*RESPONSES, *get_args(NoteName)))
ACTIONS_MAX = 100
"""The number of newest actions that are kept with a task; the audit has all of them."""
E_VALUE_MIN, E_VALUE_WITHOUT_ONE_MIN = 1 / 0.03, 10.0
"""The evidence at which another arm counts as better: of all pairs, and whichever caller is left out."""


class Pin(msgspec.Struct, frozen=True, kw_only=True):
    """An admin's verdict on a version, which holds instead of the monitor's.

    `verdict` None: the monitor's verdict holds, and nothing is done about it. `until` is in Unix seconds (None: until
    it is released). `instead_of` is the monitor's own verdict at the first pin, and `alarmed` are the signals that had
    alarmed by then. `VersionQuality.phase` has both present verdicts.
    """

    verdict: Verdict | None
    by: str
    reason: str
    at: float
    until: float | None = None
    instead_of: Verdict | None = None
    alarmed: tuple[str, ...] = ()


class VersionQuality(msgspec.Struct, frozen=True, kw_only=True):
    """A version's verdict in force, with its time (Unix seconds), reason and evidence, and its share of requests.

    Share: `kept` is the part of its requests that it answers. `to` is the arm that gets the rest (None: nothing is
    shifted), `to_version` its version, if it has one. `stepped_at` is the time of the share's last move. `paused_share`
    is the share that a canary had when the monitor paused it (None: not paused, or an admin has set another one since).
    The canary gets it back once it is healthy.

    Degraded: `alarmed` are the labelled signals (`feedback`, or `feedback:CLASS`) that made it degraded, or have
    alarmed since. Suspect: `observed` is the number of labels of each labelled signal when it became suspect (None: not
    known). `quiet_since` is the end of its last alarm (None: one goes on). Alarms of `cleared` don't count: labels have
    refuted these signals.

    `done` are actions that are done once while a verdict holds. From `stale_from` (Unix seconds) on the organisation's
    rules differ from those of its training.
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
        """Return whether it is suspect or degraded, and no admin stops the monitor's responses."""
        return self.verdict != "healthy" and (self.pin is None or self.pin.verdict is not None)

    @property
    def held(self) -> bool:
        """Return whether it is degraded and nothing is shifted, as no other arm is known to be better."""
        return "hold_and_alert" in self.done and self.to is None


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """A suspicion that is looked into: its reason, its beginning, and the raised shadows' cost limit and cost.

    By its last note the shadows have cost `shadow_usd_spent`, and `shadows_asked` were requested. `usd_before` and
    `shadows_before` are each version's totals at that note (`usd_before` None: not known). `shadow_usd_before` is the
    total at its opening.
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
    """One action, with its evidence and the state before it, so that it can be undone.

    `kind` is an ActionKind, or an unknown one from a newer gateway, which is kept. `failed` is the reason why it was
    not carried out (None: it was, or is about to be). `again` counts its failures before the last attempt, at `at`.
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
    """An organisation's announcement of a change of the task: its time (Unix seconds), and the settings for it.

    `stale_before` has, for each version that it marks, the earlier time of becoming stale (None: it was not). A change
    that replaces another keeps the times from before the first.
    """

    effective_at: float
    by: str
    note: str
    at: float
    override: str | None = None
    retraining: str | None = None
    stale_before: dict[str, float | None] = {}


class TaskQuality(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's findings on a task, and its settings for it.

    `shadow_share` and `review_share` are the probabilities that a request is drawn for them. `deferral_factor` is the
    multiple of deferred_share that is sent away. `actions` are the newest ones, oldest first. `undone` are responses
    that an admin has undone: they wait until the leading version and the canary are healthy (those about one version:
    `VersionQuality.undone`). `raised` has those of `shadow`, `reviews` and `widen` that a verdict has raised.
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
        """The versions among these that the monitor looks into and responds to."""
        return [name for name in watched if name in self.versions and self.versions[name].looked_into]


Doubt = Literal["one_giver", "one_session", "first_day", "days_differ", "reviewers", "labellers"]
"""The reason why evidence for an alarm makes a version suspect at most.

- `one_giver`: it rests on the caller or rater who gave most of the labels.
- `one_session`: it rests on the labels of one session, and those of a session may be right or wrong together.
- `first_day`: labels of less than a day were seen, and a bad hour may have as many errors.
- `days_differ`: errors differ from day to day beyond chance, and some bad days may be as bad.
- `reviewers`: the present reviewers would see as many errors in what the earlier ones labelled.
- `labellers`: errors may have been more from the first label on, as labellers may differ from the evaluation's.
"""


class SignalReport(msgspec.Struct, frozen=True, kw_only=True):
    """The report on one signal of a version.

    `signal` is its name (`signal_table.py`), `of_class` its class (None: all). `estimate` is the recent share of bad
    labels, with its 95% interval. `high_without_one` is the interval's greatest upper end, whichever caller is left out
    (None: not known, as for pairs that callers judged). `baseline` is the Baseline or the reference as JSON.
    `threshold` is the `e_value` of an alarm; `since` is when the evidence began to grow, in Unix seconds. It would
    alarm without the `doubt` (None: no doubt, or not enough evidence). `dispersion` is the number of labels that count
    as one. `has_rhythm`: errors follow the time of day. `stricter` is the multiple of earlier errors that its present
    reviewers would see.
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

    `e_value` is that of all judged `pairs`, `e_value_without_one` the least, whichever caller is left out. `unjudged`
    pairs have no opinion yet.
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

    `version` is its version's name, None for general. `advantage_low` and `advantage_high` bound its advantage over the
    judged version. Each holds with 97.5%, however often one looks; None if not known. If they rest on the judge's
    guesses alone, `advantage_words` is their number, else 0. `evidence` is from pairs since the version was degraded
    (None: it is not, or there are none).
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
    """The recent work of the model that judges pairs: about how many pairs it was asked about, its share without a
    judgement, and the judged pairs in a row up to now."""

    asked: float
    silent: float
    answered_since: int


class SavingReport(msgspec.Struct, frozen=True, kw_only=True):
    """The present saving of a version against general, and the cost of its shadows and judges, in US dollars a day.

    `requests` is about the number that it rests on, from the last three days. `known` is their share of the version's
    requests: the cost of the others is not known. `since` is the time of the first one (Unix seconds).
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
    """The knowledge about a version from its signals, at one moment. Every gateway computes the same."""

    task: str
    version: str
    at: float
    requests: int = 0
    requests_per_day: float = 0.0
    requests_since: float | None = None
    """The first request's time in Unix seconds, as `labels_since` is the first label's; None without any."""
    led_per_day: float = 0.0
    """Requests served here that chance led to it, whatever answered them. Reviews are drawn from these."""
    labels: int = 0
    labels_per_day: float = 0.0
    labels_since: float | None = None
    label_coverage: float | None = None
    feedback_delay_seconds: float | None = None
    complaints_expected: float | None = None
    complaints_seen: float | None = None
    seconds_to_detect: dict[str, float | None] = {}
    """By points (`5`, `10`): the seconds until such a rise is found at today's label rate; None: never, or no
    labels."""
    saving_usd: float = 0.0
    shadow_usd: float = 0.0
    saving: SavingReport | None = None
    """None if no request's saving is known."""
    shadows: int = 0
    """Shadows requested for this version so far, with judged pairs or not."""
    reports: list[SignalReport] = []
    arms: list[ArmReport] = []
    judge_agreement: float | None = None
    """The judge's rate of agreement with people on pairs, from 0 to 1; None if no pair was judged by both."""
    judge_agreement_low: float | None = None
    """The lower end of its 95% interval."""
    judge: JudgeReport | None = None
    """None if no model was asked."""
    signals: int = 1
    """The labelled signals of all versions, which share the accepted false alarms."""

    def is_news(self, last: Judgement | None) -> bool:
        """Return whether gateways must read it after the last one. With any request or label, a new time is news
        too."""
        if last is None or self.requests_since is not None or self.labels_since is not None:
            return True
        return msgspec.structs.replace(last, at=self.at) != self


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The monitor's summary for all gateways: the judgements by version, and how far it has read.

    `at` is its last judgement in Unix seconds, `behind_seconds` the age of the oldest unread entry. `writing` counts
    writes of judgements, `unreadable` what could not be read. `unmatched` counts feedback without a record, which
    counts for no version. The versions `unjudged` can't be judged.
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
    """The quality of a task as stored in Redis, with names of earlier releases. Raises ValidationError."""
    versions = raw.get("versions")
    if isinstance(versions, Mapping):
        raw = {**raw, "versions": {name: _with_present_names(version) for name, version in versions.items()}}
    return msgspec.convert(raw, TaskQuality)


def _with_present_names(version: Any) -> Any:
    if isinstance(version, Mapping) and version.get("to") == "standby":
        return {**version, "to": "previous_version"}
    return version
