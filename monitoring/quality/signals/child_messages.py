"""The messages between the monitor's job and its child: a line of JSON each.

The job first sends the address of Redis (`Begin`), and then a line with a `MonitorStep` for each step. The child
answers each step with a `JudgedStep`, and reads everything else from Redis.
"""

from __future__ import annotations

import msgspec

from monitoring.metric_values import Metric
from monitoring.quality.phases import Phase
from monitoring.quality.signals.canaries import Canary
from monitoring.quality.verdicts.canary_verdict import CanaryVerdict
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Judgement

CURSORS_KEY = "apprentice:monitor:cursors"
"""A hash: `records` and `feedback` are the last entries taken into account, `step` counts writes."""
WATCH_KEY = "apprentice:monitor:watch:"
"""Prefix of a version's name: the state of its signals, as JSON or as zlib-compressed JSON."""
NOTE_KEY = "apprentice:monitor:note:"
"""Prefix of a request's id: its note, as JSON, for as long as the request may be judged."""
BASELINES_KEY = "apprentice:baselines"
"""The object store of baselines that admins and evaluations have set: by version, a baseline for each signal."""
ENTRIES_MAX = 2000
SECONDS_MAX = 0.5
REJUDGED_SECONDS = 30.0
"""Without new entries a version is judged again after this time, since time is evidence too."""


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: the address of Redis, and the seconds for which a request may be judged."""

    redis_url: str
    retention_seconds: int = 7 * 86_400


class WatchedTask(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a task: its plan, its previous version, and the canary that is judged by a plan of its own (None:
    none)."""

    plan: MonitorPlan
    previous_version: str | None = None
    canary: Canary | None = None


class WatchedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a version: its task and state, its phase, and the time of its verdict (Unix seconds).

    `stepped_at` is the time of its share's last step. `previous` is the version that led its task before it, with whose
    feedback its own is compared (None: none). A version with the state `retired` loses all of its data.
    """

    task: str
    state: str
    phase: Phase = Phase()
    since: float = 0.0
    stepped_at: float = 0.0
    previous: str | None = None


class MonitorStep(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a step: the tasks, all versions (retired ones too), and the declared feedback metrics by name.

    Records of tasks that are not named here are passed over for good. `entries_max` and `seconds_max` limit the reading
    before the answer. `known_at` is the time of this information (Unix seconds, by Redis's clock). Later entries wait
    for the next step (None: none of them waits).
    """

    tasks: dict[str, WatchedTask]
    versions: dict[str, WatchedVersion]
    metrics: dict[str, Metric]
    entries_max: int = ENTRIES_MAX
    seconds_max: float = SECONDS_MAX
    known_at: float | None = None


class JudgedStep(msgspec.Struct, kw_only=True):
    """The result of a step. An `error` means that there is none, and that the step must be sent again.

    `judgements` has the versions with new entries, those with news in the step, and those whose last judgement is
    REJUDGED_SECONDS old. The others keep their last one. `canaries` has each task's canary that has a plan and can be
    judged. `at` is Redis's clock. `read` counts entries. `more`: there are more, or not all time has passed for all
    versions. `behind_seconds` is the age of the oldest unread entry. `unreadable` counts entries and states that could
    not be read, `unmatched` feedback without a record. `unjudged` names the versions that can't be judged; they keep
    their last judgement.
    """

    judgements: dict[str, Judgement] = {}
    canaries: dict[str, CanaryVerdict] = {}
    at: float = 0.0
    read: int = 0
    more: bool = False
    behind_seconds: float = 0.0
    unreadable: int = 0
    unmatched: int = 0
    unjudged: list[str] = []
    error: str = ""
