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
"""A hash: `records` and `feedback` are the last entries that are reckoned with, `step` counts the writings."""
WATCH_KEY = "apprentice:monitor:watch:"
"""With the version's name behind it: the state of its signals, as JSON, or as JSON that zlib has packed."""
NOTE_KEY = "apprentice:monitor:note:"
"""With a request's id behind it: what counted of it already, as JSON, for as long as it may be judged."""
BASELINES_KEY = "apprentice:baselines"
"""The object store of baselines that admins and evaluations have set: by version, a baseline a signal."""
ENTRIES_MAX = 2000
SECONDS_MAX = 0.5
REJUDGED_SECONDS = 30.0
"""A version of which nothing was read is judged again after so long, as time is evidence too."""


class Begin(msgspec.Struct, frozen=True, kw_only=True):
    """The first line: where Redis is, and for how many seconds a request may be judged."""

    redis_url: str
    retention_seconds: int = 7 * 86_400


class WatchedTask(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a task: its plan, its previous version, and the canary that is judged by a plan of its own (None:
    none)."""

    plan: MonitorPlan
    previous_version: str | None = None
    canary: Canary | None = None


class WatchedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a version: its task and state, its phase, and since when its verdict holds (Unix seconds).

    `stepped_at` is when its share last moved. `previous` is the version that led its task before it, with whose
    feedback its own is compared (None: none). Of one whose state is `retired` all is forgotten.
    """

    task: str
    state: str
    phase: Phase = Phase()
    since: float = 0.0
    stepped_at: float = 0.0
    previous: str | None = None


class MonitorStep(msgspec.Struct, frozen=True, kw_only=True):
    """The input of a step: the tasks, all versions (retired ones too), and the declared feedback metrics by name.

    Records of tasks that are not named here are passed over for good. `entries_max` and `seconds_max` bound how much is
    read and reckoned with before it answers. `known_at` is when all of this was so (Unix seconds, by Redis's clock):
    entries that came later wait for the next Step (None: none of them does).
    """

    tasks: dict[str, WatchedTask]
    versions: dict[str, WatchedVersion]
    metrics: dict[str, Metric]
    entries_max: int = ENTRIES_MAX
    seconds_max: float = SECONDS_MAX
    known_at: float | None = None


class JudgedStep(msgspec.Struct, kw_only=True):
    """The result of a step. With an `error` there is none: the step is to be given again.

    `judgements` has the versions of which something was read, of which the Step tells something new, or whose last
    judgement is REJUDGED_SECONDS old; of the others the last one is kept. `canaries` has each task's canary that is
    judged by a plan and can be judged. `at` is Redis's clock. `read` counts entries,
    `more` says that there are more, or that not all time has passed for all versions, `behind_seconds` is the age of
    the oldest that is not read. `unreadable` counts entries and states that could not be read, `unmatched` feedback
    whose record is gone. `unjudged` names the versions that can't be judged: their last judgement is kept.
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
