"""The input and the output of the router: a request, its scores, the moment; a choice or a refusal. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from router.findings import Finding, RequestReason
from router.frozen_dataclass import declare_frozen
from router.gain_budget import GainBudgets
from router.policy import TaskPolicy
from serving.fleet_view import PoolView, ReplicaView, VersionView

if TYPE_CHECKING:
    from router.scope_model import ScopeScore

Reason = Literal[
    "override",
    "pinned",
    RequestReason,
    "adapter",
    "canary",
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


@declare_frozen(frozen=True, slots=True)
class RoutingRequest:
    """A request as the router sees it.

    `session` is None if the caller named none. `models_allowed` holds the names that the caller's key may use, or `*`.
    `text` is empty unless a rule reads it. `selected` is the part of the conversation that the task's selector takes;
    it is empty unless a model reads it. If the task is not known yet, `selected` is the text that finds it, and
    `selections` has the text of each task's selector.
    """

    model: str
    caller: str
    models_allowed: frozenset[str]
    session: str | None = None
    metadata: Mapping[str, str] | None = None
    text: str = ""
    selected: str = ""
    selections: Mapping[str, str] | None = None

    def selected_by(self, selector: str) -> str:
        """The text of the conversation that this selector takes; it is the selector of the named or found task."""
        return self.selected if self.selections is None else self.selections[selector]


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of a request by fitted models.

    `version` is the version whose models they are; `task` is the task that was found for `auto`. `gain` is how much
    likelier general is right than the adapter, from -1 to 1. `texts` are the ids of the admin's rules whose conditions
    on the text hold.
    """

    version: str | None = None
    scope: ScopeScore | None = None
    gain: float | None = None
    task: str | None = None
    texts: frozenset[str] = frozenset()


NO_SCORES = Scores()


@declare_frozen(frozen=True, slots=True)
class Choice:
    """The destination of a request. `version` is None if a pool's base answers; `general_prompt_of` is then the version
    whose general prompt it needs (None: the caller asked for the base itself). `led_to` is the version that the alias,
    a pin or an admin's rule selected, or None; another version may answer. `probability` is that of all draws on the
    way: the version's share of the alias, times the draws of the checks. Requests with the same `key` (the session,
    else the version) are best answered by one replica. `findings` are the results of the checks before it.
    `fallback_capped`: a fallback before this one was closed. `system` is a message that an admin's rule adds to the
    system's."""

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
        """The engine's name for the model that is to answer."""
        return self.version.name if self.version else self.pool.base_model

    @property
    def at_fallback(self) -> bool:
        """True if it is a task's fallback: a pool's base, or another version than the one that it was led to."""
        if self.task is None or self.version is None:
            return self.task is not None
        return self.led_to is not None and self.version.name != self.led_to.name


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request goes nowhere: a code for programs, and a sentence that says what to do. `reason` is why it would have
    gone to a fallback that is closed, or to a person. `fallback_capped`: a fallback was closed. `override_id` names the
    rule, `led_to` the version that was selected."""

    code: RefusalCode
    message: str
    reason: Reason | None = None
    findings: tuple[Finding, ...] = ()
    fallback_capped: bool = False
    override_id: str | None = None
    led_to: VersionView | None = None


@declare_frozen(frozen=True, slots=True)
class Moment:
    """The time and the chance of one decision, passed in so that deciding stays pure: `now` in monotonic seconds,
    `now_unix` in Unix seconds, `draw` uniform in [0, 1). `fallbacks_closed` holds the tasks whose fallback has reached
    its cap. `gain_budgets` has, by version, the budgets of the check `predicted_gain`."""

    now: float
    now_unix: float
    draw: float
    fallbacks_closed: frozenset[str] = frozenset()
    gain_budgets: GainBudgets = field(default_factory=dict)
