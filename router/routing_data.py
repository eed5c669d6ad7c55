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

    `session` is None where the caller named none. `models_allowed` holds the names that the caller's key may use, or
    `*`. `text` is empty unless a rule reads it. `selected` is the text that the task's selector takes of the
    conversation; it is empty unless a model reads it. Where the task is not known yet, `selected` is the text by which
    it is found, and `selections` has the text of each task's selector.
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
        """The text that this selector, of the task that was named or found, takes of the conversation."""
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
    """The destination of a request. `version` is None where a pool's base answers; `general_prompt_of` is then the
    version whose general prompt it needs (None: the caller asked for the base itself). `led_to` is the version that it
    was led to, which may be another than the one that answers, or None: by the alias, a pin or an admin's rule.
    `probability` is that of the draws which led here: the version's share of the alias, times what the checks drew.
    `key` is what requests share that are best answered by one replica: the session, else the version. `findings` are
    what the checks said before it; `fallback_capped` says that a fallback before this one was closed; `system` is a
    message that an admin's rule adds to the system's."""

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
        """True if it is a task's fallback: a pool's base, or another version than the one that it was led to."""
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


@declare_frozen(frozen=True, slots=True)
class Moment:
    """The time and the chance of one decision, passed in so that deciding stays pure: `now` in monotonic seconds,
    `now_unix` in Unix seconds, `draw` uniform in [0, 1). `fallbacks_closed` holds the tasks that have sent as much to
    their fallback as they may, `gain_budgets` by version the budgets of the check `predicted_gain`."""

    now: float
    now_unix: float
    draw: float
    fallbacks_closed: frozenset[str] = frozenset()
    gain_budgets: GainBudgets = field(default_factory=dict)
