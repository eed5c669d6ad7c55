"""What the router decides on and what it says: a request, the moment, a choice or a refusal. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from router.policy import TaskPolicy
from router.rungs import Finding
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
OUT_OF_SERVICE = frozenset({"quarantined", "draining", "retired"})
ADAPTER_STANDS_IN: frozenset[Reason] = frozenset({"out_of_scope", "holdout", "predicted_gain"})
"""Reasons for the exit for which the adapter answers all the same where the exit is closed, or is not there."""

RefusalCode = Literal[
    "model_not_found",
    "model_not_allowed",
    "version_not_loaded",
    "refused_by_override",
    "no_replica",
    "overload",
    "exit_capped",
    "needs_human",
    "no_task_fits",
]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the router sees it. `session` is None where the caller named none; `models_allowed` holds the
    names the caller's key may ask for, or `*`; `text` is empty unless a rule looks at it, and `selected`, what
    the task's selector takes of the conversation, unless a model does."""

    model: str
    caller: str
    models_allowed: frozenset[str]
    session: str | None = None
    metadata: Mapping[str, str] | None = None
    text: str = ""
    selected: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the request goes. `version` is None where a pool's base answers; `blueprint_of` is then the version
    whose blueprint it needs (None: the caller asked for the base itself). `probability` is that of the draws which led
    here: the version's share of the alias, times what the rungs drew.
    `key` is what requests share that are best answered by one replica: the session, else the version. `findings` are
    what the rungs said before it; `exit_capped` says that an exit before this one was closed; `system` is a message
    that an admin's rule adds to the system's."""

    task: TaskPolicy | None
    version: VersionView | None
    pool: PoolView
    replica: ReplicaView
    reason: Reason
    blueprint_of: VersionView | None = None
    probability: float = 1.0
    override_id: str | None = None
    key: str | None = None
    findings: tuple[Finding, ...] = ()
    exit_capped: bool = False
    system: str | None = None

    @property
    def engine_model(self) -> str:
        """The name by which the engine knows what is to answer."""
        return self.version.name if self.version else self.pool.base_model


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request goes nowhere: a code for programs, and a sentence that says what to do. `reason` is why it would
    have gone to an exit that is closed, or to a person."""

    code: RefusalCode
    message: str
    reason: Reason | None = None
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True, slots=True)
class Moment:
    """The time and the chance of one decision, passed in so that deciding stays pure: `now` in monotonic seconds,
    `now_unix` in Unix seconds, `draw` uniform in [0, 1). `exits_closed` holds the tasks that have sent as much to their
    exit as they may."""

    now: float
    now_unix: float
    draw: float
    exits_closed: frozenset[str] = frozenset()
