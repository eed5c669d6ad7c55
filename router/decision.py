"""What the router decides on and what it says: a request, the moment, a choice or a refusal. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from router.checks import Finding
from router.policy import TaskPolicy
from serving.view import PoolView, ReplicaView, VersionView

Reason = Literal[
    "override",
    "pinned",
    "degraded",
    "out_of_scope",
    "holdout",
    "adapter",
    "canary",
    "contract",
    "low_confidence",
    "refusal",
    "predicted_gain",
    "no_replica",
    "overload",
    "timeout",
    "engine_error",
    "context_length",
]
REASONS: tuple[str, ...] = get_args(Reason)
WITHOUT_FALLBACKS: frozenset[Reason] = frozenset({"adapter", "canary", "pinned"})
"""Reasons for which nothing goes to a fallback."""
OUT_OF_SERVICE = frozenset({"quarantined", "draining", "retired"})
ADAPTER_STANDS_IN: frozenset[Reason] = frozenset({"out_of_scope", "holdout", "predicted_gain"})
"""Reasons for the fallback for which the adapter answers all the same where the fallback is closed, or is not there."""

RefusalCode = Literal[
    "model_not_found",
    "model_not_allowed",
    "version_not_loaded",
    "refused_by_override",
    "no_replica",
    "overload",
    "fallback_capped",
    "needs_human",
    "no_task_fits",
]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the router sees it. `session` is None where the caller named none; `models_allowed` holds the
    names the caller's key may ask for, or `*`; `text` is empty unless a rule looks at it, and `selected`, what
    the task's selector takes of the conversation, unless a model does. Where the task is yet to be found, `selected`
    is what the first look for it reads, and `selections` has what each task's selector takes."""

    model: str
    caller: str
    models_allowed: frozenset[str]
    session: str | None = None
    metadata: Mapping[str, str] | None = None
    text: str = ""
    selected: str = ""
    selections: Mapping[str, str] | None = None

    def selected_by(self, selector: str) -> str:
        """What the selector of the task that is asked for, or was found, takes of the conversation."""
        return self.selected if self.selections is None else self.selections[selector]


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the request goes. `version` is None where a pool's base answers; `general_prompt_of` is then the version
    whose general prompt it needs (None: the caller asked for the base itself). `led_to` is the version that it was led
    to, which may be another than the one that answers, or None: by the alias, a pin or an admin's rule. `probability`
    is that of the draws which led here: the version's share of the alias, times what the checks drew. `key` is what
    requests share that are best answered by one replica: the session, else the version. `findings` are what the checks
    said before it; `fallback_capped` says that a fallback before this one was closed; `system` is a message that an
    admin's rule adds to the system's."""

    task: TaskPolicy | None
    version: VersionView | None
    pool: PoolView
    replica: ReplicaView
    reason: Reason
    general_prompt_of: VersionView | None = None
    probability: float = 1.0
    override_id: str | None = None
    key: str | None = None
    findings: tuple[Finding, ...] = ()
    fallback_capped: bool = False
    system: str | None = None
    led_to: VersionView | None = None

    @property
    def engine_model(self) -> str:
        """The name by which the engine knows what is to answer."""
        return self.version.name if self.version else self.pool.base_model

    @property
    def at_fallback(self) -> bool:
        """Whether it is a task's fallback: a pool's base, or another version than the one that it was led to."""
        if self.task is None or self.version is None:
            return self.task is not None
        return self.led_to is not None and self.version.name != self.led_to.name


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request goes nowhere: a code for programs, and a sentence that says what to do. `reason` is why it would
    have gone to a fallback that is closed, or to a person; `fallback_capped` says that a fallback was closed,
    `override_id` whose rule it is, `led_to` which version it was led to."""

    code: RefusalCode
    message: str
    reason: Reason | None = None
    findings: tuple[Finding, ...] = ()
    fallback_capped: bool = False
    override_id: str | None = None
    led_to: VersionView | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """The time and the chance of one decision, passed in so that deciding stays pure: `now` in monotonic seconds,
    `now_unix` in Unix seconds, `draw` uniform in [0, 1). `fallbacks_closed` holds the tasks that have sent as much to
    their fallback as they may."""

    now: float
    now_unix: float
    draw: float
    fallbacks_closed: frozenset[str] = frozenset()
