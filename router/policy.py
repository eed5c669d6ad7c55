"""The policy: all data that decides a task's routing, frozen, with a generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from router.findings import DEFAULT_FALLBACKS, CheckName, CheckPolicy, FallbackName
from router.overrides import HELD_WORK_MAX, Override, group_by_task

if TYPE_CHECKING:
    from router.fitted import Fitted
    from router.task_index import TaskIndex

CacheIsolation = Literal["caller", "none"]
"""The callers whose prompts share an engine's prefix cache: one caller alone, or all."""
FallbackBreaks = Literal["error", "flag"]
"""The treatment of a fallback's answer that breaks the contract: the caller gets an error, or the answer with a
label."""
UnknownFields = Literal["refuse", "drop"]
"""The treatment of a field that the gateway does not know, or that may not be sent: an error, or it is left out."""
TokensOver = Literal["refuse", "clamp"]
"""The treatment of a request for too many tokens: an error, or a reduction to the bound."""
COMMIT_POLICIES = r"^(first_token|complete|tokens:[1-9][0-9]{0,5})$"
"""The moment from which a streamed answer belongs to the caller: with its first token, with that many, or when it is
complete."""

AUTO = "auto"
"""The model that a caller names so that the task is found by the request's text."""
AUTO_SELECTOR = "user_turns"


@dataclass(frozen=True, slots=True)
class Alias:
    """A task's versions and their weights, which add up to 1. One admin call replaces the whole of it.

    `canary` is the version on trial. `shadow` are versions that get a copy of a share of the requests. `leading` is the
    active version: the one of the greatest weight, except the canary (empty if there are no versions).
    `previous_version` is the one that led before it.
    """

    task: str
    generation: int
    weights: Mapping[str, float]
    salt: str = ""
    canary: str | None = None
    shadow: Mapping[str, float] = field(default_factory=dict)
    previous_version: str | None = None
    leading: str = field(init=False)

    def __post_init__(self) -> None:
        others = [name for name in self.weights if name != self.canary] or list(self.weights)
        object.__setattr__(self, "leading", max(others, key=lambda name: self.weights[name], default=""))


@dataclass(frozen=True, slots=True)
class TaskPolicy:
    """The settings of a task that the router reads: its pool, its fallbacks and its bounds.

    `fallback_pool` is the pool that takes over where the adapter may not or cannot answer; None leaves only an error.
    `commit` is one of COMMIT_POLICIES. `hold_seconds_max` is how long a stream is held back for it (None: as long as an
    answer may take). `checks` are those that are not off. `fallbacks` lists the destinations for each reason, in order.
    `pools_allowed` are the pools that the task's text may reach (None: all). `selector` names the part of a
    conversation that the fitted models read. `constrained`: engines are asked for the contract's form.
    `fallback_breaks` says what to do with a fallback's answer that breaks an enforced contract. `adapters`: engines
    with loaded adapters may answer.
    """

    name: str
    fallback_pool: str | None
    commit: str = "first_token"
    parameters_allowed: frozenset[str] = frozenset()
    max_tokens_max: int = 4096
    n_max: int = 1
    hold_seconds_max: float | None = None
    cache_isolation: CacheIsolation = "caller"
    checks: Mapping[CheckName, CheckPolicy] = field(default_factory=dict)
    fallbacks: Mapping[str, tuple[FallbackName, ...]] = field(default_factory=dict)
    pools_allowed: frozenset[str] | None = None
    selector: str = "user_turns"
    constrained: bool = False
    fallback_breaks: FallbackBreaks = "error"
    unknown_fields: UnknownFields = "refuse"
    max_tokens_over: TokensOver = "refuse"
    adapters: bool = True

    def fallbacks_for(self, reason: str) -> tuple[FallbackName, ...]:
        """The fallbacks for this reason, in order."""
        if reason == "other_language" and reason not in self.fallbacks:
            reason = "out_of_scope"
        return self.fallbacks.get(reason, DEFAULT_FALLBACKS)

    def reaches(self, pool: str) -> bool:
        """True if the task's text may be sent to this pool."""
        return self.pools_allowed is None or pool in self.pools_allowed

    @property
    def tokens_before_commit(self) -> float:
        """Number of tokens of a stream that are held back before its commit; infinity for all of them."""
        if self.commit == "first_token":
            return 1
        return math.inf if self.commit == "complete" else int(self.commit.partition(":")[2])


@dataclass(frozen=True, slots=True)
class Shift:
    """The share of requests that a version keeps while it is degraded, or while its requests return in steps. The
    fallback `to` gets the rest, before the task's other fallbacks (None: the task's fallbacks in their order).
    `previous_version` gets it only while that is the version `to_version` (None: whichever it is)."""

    kept: float
    to: FallbackName | None = None
    to_version: str | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """The present watching of a task: the probability that both arms answer a request, the probability that a person
    reviews it, and the factor on its deferred_share."""

    shadow_share: float = 0.0
    review_share: float = 0.0
    deferral_factor: float = 1.0


UNWATCHED = Watched()


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """The bounds on the attempts of one request. All attempts together fit inside `request_timeout_seconds`.

    `answer_timeout_seconds` bounds one attempt whose answer is not streamed: its engine is silent until the end.
    `event_bytes_max` bounds an event of a streamed answer.
    """

    retries_max: int = 2
    first_token_timeout_seconds: float = 10.0
    inter_token_timeout_seconds: float = 10.0
    answer_timeout_seconds: float = 60.0
    request_timeout_seconds: float = 120.0
    backoff_seconds: float = 0.2
    retry_after_seconds_max: float = 5.0
    event_bytes_max: int = 32 << 20


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole policy as one gateway sees it: the file's tasks, and what admins have set within them.

    `text_needed`: at least one override reads the text of requests. `fitted` has the fitted models of each version.
    `shifts` has the versions that do not answer all of their requests, with the share that each keeps. `watched` has
    the watching of each watched task. `index` finds the task for the model `auto`; `auto_pool` is the pool that answers
    if no task fits.
    """

    generation: int
    tasks: Mapping[str, TaskPolicy]
    aliases: Mapping[str, Alias]
    callable_pools: frozenset[str]
    overrides: tuple[Override, ...] = ()
    limits: AttemptLimits = field(default_factory=AttemptLimits)
    text_needed: bool = False
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    shifts: Mapping[str, Shift] = field(default_factory=dict)
    watched: Mapping[str, Watched] = field(default_factory=dict)
    index: TaskIndex | None = None
    auto_pool: str | None = None
    _rules: Mapping[str | None, tuple[Override, ...]] = field(init=False, repr=False, compare=False)
    _weights: Mapping[str | None, int] = field(init=False, repr=False, compare=False)
    """The worst cost of one character of a text, by the task that rules name."""

    def __post_init__(self) -> None:
        rules = group_by_task(self.overrides)
        object.__setattr__(self, "_rules", rules)
        weights = {task: sum(rule.weight for rule in own) for task, own in rules.items()}
        object.__setattr__(self, "_weights", weights)

    def rules_for(self, task: str) -> tuple[Override, ...]:
        """The rules that apply to requests of this task, in order; it may contain other tasks' rules."""
        own, any_task = self._rules.get(task), self._rules.get(None)
        if own and any_task:
            return self.overrides
        return own or any_task or ()

    def rules_named(self, model: str) -> tuple[Override, ...]:
        """The rules for a model that a caller names; all rules if its task is not known yet."""
        return self.overrides if model == AUTO else self.rules_for(model.partition("@")[0])

    def rules_reading(self, model: str, now_unix: float) -> tuple[Override, ...]:
        """The rules in force that read the text: those of the named task, or all."""
        task = None if model == AUTO else model.partition("@")[0]
        return tuple(
            [
                rule
                for rule in self.rules_named(model)
                if rule.weight
                and (task is None or rule.task is None or rule.task == task)
                and rule.is_in_force(now_unix)
            ]
        )

    def takes_long(self, model: str, text: str, now_unix: float) -> bool:
        """True if the rules take so long to read a text that a thread must do it."""
        if model == AUTO:
            most = sum(self._weights.values())
        else:
            most = self._weights.get(model.partition("@")[0], 0) + self._weights.get(None, 0)
        if len(text) * most <= HELD_WORK_MAX:
            return False
        return len(text) * sum(rule.weight for rule in self.rules_reading(model, now_unix)) > HELD_WORK_MAX
