"""The policy: all that decides a task's routing, frozen, with a generation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from router.overrides import Override

CacheIsolation = Literal["caller", "none"]
"""Whose prompts share an engine's prefix cache: one caller's own, or everybody's."""
COMMIT_POLICIES = r"^(first_token|complete|tokens:[1-9][0-9]{0,5})$"
"""From when on a streamed answer belongs to the caller: with its first token, with so many, or when it is complete."""


@dataclass(frozen=True, slots=True)
class Alias:
    """A task's versions and their weights, which add up to 1. One admin call replaces the whole of it.

    `canary` is the one of them that is on trial; `shadow` are versions that get a copy of a share of the requests;
    `leading` is the active one, with the greatest weight, a canary aside (empty where there are no versions).
    """

    task: str
    generation: int
    weights: Mapping[str, float]
    salt: str = ""
    canary: str | None = None
    shadow: Mapping[str, float] = field(default_factory=dict)
    leading: str = field(init=False)

    def __post_init__(self) -> None:
        others = [name for name in self.weights if name != self.canary] or list(self.weights)
        object.__setattr__(self, "leading", max(others, key=lambda name: self.weights[name], default=""))


@dataclass(frozen=True, slots=True)
class TaskPolicy:
    """What an operator deployed for a task: where it runs, where it may go instead, and within which bounds.

    `exit_pool` is the pool that takes over where the adapter may not or cannot answer; None leaves only an error.
    `commit` is one of COMMIT_POLICIES; `hold_seconds_max` how long a stream is held back for it (None: as long as an
    answer may take).
    """

    name: str
    exit_pool: str | None
    commit: str = "first_token"
    parameters_allowed: frozenset[str] = frozenset()
    max_tokens_max: int = 4096
    n_max: int = 1
    hold_seconds_max: float | None = None
    cache_isolation: CacheIsolation = "caller"

    @property
    def tokens_before_commit(self) -> float:
        """How many tokens of a stream are held back before it is committed; infinity for all of them."""
        if self.commit == "first_token":
            return 1
        return math.inf if self.commit == "complete" else int(self.commit.partition(":")[2])


@dataclass(frozen=True, slots=True)
class AttemptLimits:
    """How often and how long one request may be tried. All of it fits inside `request_timeout_seconds`.

    `answer_timeout_seconds` bounds one attempt whose answer is not streamed: its engine is silent until the end.
    """

    retries_max: int = 2
    connect_timeout_seconds: float = 2.0
    first_token_timeout_seconds: float = 10.0
    inter_token_timeout_seconds: float = 10.0
    answer_timeout_seconds: float = 60.0
    request_timeout_seconds: float = 120.0
    backoff_seconds: float = 0.2
    retry_after_seconds_max: float = 5.0


@dataclass(frozen=True, slots=True)
class Policy:
    """The whole policy as one gateway sees it: the file's tasks, and what admins have set within them.

    `text_needed` says whether any override looks at the text of requests.
    """

    generation: int
    tasks: Mapping[str, TaskPolicy]
    aliases: Mapping[str, Alias]
    callable_pools: frozenset[str]
    overrides: tuple[Override, ...] = ()
    limits: AttemptLimits = field(default_factory=AttemptLimits)
    text_needed: bool = False
