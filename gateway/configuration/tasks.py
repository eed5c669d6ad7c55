"""Settings of tasks: where they may go, within which bounds, and how they are judged."""

from __future__ import annotations

from pydantic import Field

from gateway.configuration.sections import Name, Seconds, Section
from router.policy import COMMIT_POLICIES, CacheIsolation, TaskPolicy


class TaskSettings(Section):
    """One task: a named, specific job that adapters are trained for."""

    description: str = Field("", max_length=500, description="What the task is, for people.")
    exit_pool: Name | None = Field("general", description="Pool that answers where the adapter can't; null: an error.")
    commit: str = Field(
        "first_token",
        pattern=COMMIT_POLICIES,
        description="From when on a stream is the caller's: first_token, tokens:N or complete.",
    )
    hold_seconds_max: Seconds | None = Field(
        None, description="Longest that a stream is held back for that; unset: limits.answer_timeout_seconds."
    )
    parameters_allowed: frozenset[str] = Field(
        frozenset(), description="Fields that need permission and have it, such as ignore_eos or media."
    )
    max_tokens_max: int = Field(4096, ge=1, le=1_000_000, description="Most completion tokens one may ask for.")
    n_max: int = Field(1, ge=1, le=128, description="Most alternatives one may ask for.")
    standbys_kept: int = Field(
        2, ge=1, le=1000, description="Versions on standby that stay loaded; older ones are unloaded."
    )
    cache_isolation: CacheIsolation | None = Field(
        None, description="Whose prompts share an engine's cache; unset: as the gateway's cache_isolation."
    )
    general_share_max: float | None = Field(
        None, ge=0, le=1, description="Largest share of the task's requests that its exit pool answers. Unset: all."
    )
    general_usd_per_day: float | None = Field(
        None, gt=0, le=1_000_000, description="US dollars that its exit pool may cost in a day of UTC. Unset: no cap."
    )

    def policy(self, name: str, cache_isolation: CacheIsolation = "caller") -> TaskPolicy:
        """As the router decides with it."""
        return TaskPolicy(
            name,
            self.exit_pool,
            self.commit,
            self.parameters_allowed,
            self.max_tokens_max,
            self.n_max,
            self.hold_seconds_max,
            self.cache_isolation or cache_isolation,
        )
