"""Settings of tasks: where they may go, within which bounds, and how they are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from gateway.configuration.sections import Name, Seconds, Section
from router.decision import Reason
from router.policy import AUTO, COMMIT_POLICIES, CacheIsolation, TaskPolicy
from router.rungs import RUNGS, Exit, Mode, Rung, RungName

Share = Annotated[float, Field(ge=0, le=1)]
SELECTORS = r"^(last_user|user_turns|dialogue|field:[^\s]{1,200})$"


class DegradedSettings(Section):
    """What is done where a version's verdict is degraded."""

    mode: Mode = Field("off", description="off, observe (decided and recorded, not acted on) or enforce.")
    explored_share: Share = Field(
        0.05, description="Share of requests that a degraded version keeps, so that its recovery can be seen."
    )


class OutOfScopeSettings(Section):
    """What is done where an input is unlike what the version was trained on."""

    mode: Mode = Field("off", description="off, observe (decided and recorded, not acted on) or enforce.")
    deferred_share: Share = Field(
        0.05, description="Share of in-scope requests that one is ready to send away too; it sets the threshold."
    )


class HoldoutSettings(Section):
    """A random share that goes to the exit, so that both arms stay measurable."""

    mode: Mode = Field("off", description="off, observe (decided and recorded, not acted on) or enforce.")
    share: Share = Field(0.02, description="Share of the requests in scope, drawn by session.")


class PredictedGainSettings(Section):
    """What is done where general is expected to do better; only where that was shown by measurement."""

    mode: Mode = Field("off", description="off, observe (decided and recorded, not acted on) or enforce.")
    general_share_max: Share = Field(
        0.2, description="Share of the requests that it may send to the exit: the cost budget."
    )


class ContractSettings(Section):
    """What is done where an answer breaks the version's contract."""

    mode: Mode = Field("off", description="off, observe (decided and recorded, not acted on) or enforce.")
    constrained: bool = Field(False, description="Whether the engine is told to answer in no other form.")
    exit_breaks: Literal["error", "flag"] = Field(
        "error", description="What becomes of an exit's answer that breaks it too: an error, or a header on it."
    )


class LowConfidenceSettings(Section):
    """What is done where an answer is not sure enough."""

    mode: Mode = Field("off", description="off, observe (decided and recorded, not acted on) or enforce.")
    wrong_share_max: Share = Field(
        0.05, description="Share of all requests that may get a wrong answer from the adapter; it sets the threshold."
    )


class RefusalSettings(Section):
    """What is done where an answer is a refusal or empty, or calls a tool that was not offered."""

    mode: Mode = Field("off", description="off, observe (decided and recorded, not acted on) or enforce.")


class RungSettings(Section):
    """The rungs between a task's requests and its adapter."""

    degraded: DegradedSettings = DegradedSettings()
    out_of_scope: OutOfScopeSettings = OutOfScopeSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    predicted_gain: PredictedGainSettings = PredictedGainSettings()
    contract: ContractSettings = ContractSettings()
    low_confidence: LowConfidenceSettings = LowConfidenceSettings()
    refusal: RefusalSettings = RefusalSettings()

    def used(self) -> Mapping[RungName, Rung]:
        """Those that are not off, in their order, as the router goes by them."""
        shares: Mapping[str, float] = {
            "degraded": self.degraded.explored_share,
            "out_of_scope": self.out_of_scope.deferred_share,
            "holdout": self.holdout.share,
            "predicted_gain": self.predicted_gain.general_share_max,
            "low_confidence": self.low_confidence.wrong_share_max,
        }
        modes: dict[RungName, Mode] = {name: getattr(self, name).mode for name in RUNGS}
        return MappingProxyType(
            {name: Rung(mode, shares.get(name, 0.0)) for name, mode in modes.items() if mode != "off"}
        )


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

    rungs: RungSettings = RungSettings()
    exits: dict[Reason, Annotated[tuple[Exit, ...], Field(min_length=1, max_length=3)]] = Field(
        default_factory=dict,
        description="For a reason, where its requests go, in order: general, standby, needs_human. Else: general.",
    )
    pools_allowed: frozenset[Name] | None = Field(
        None, description="Pools that the task's texts may be sent to. Unset: all."
    )
    selector: str = Field(
        "user_turns",
        pattern=SELECTORS,
        description="What of a conversation the fitted models read: last_user, user_turns, dialogue or field:NAME.",
    )

    def faults(self, name: str, pools: frozenset[str]) -> Iterator[str]:
        """Sentences on what can't be used, each beginning with its key; none if all is well."""
        if name == AUTO:
            yield f"tasks.{name}: {AUTO!r} is the model that finds the task: name it otherwise"
        if self.exit_pool is not None and self.exit_pool not in pools:
            yield f"tasks.{name}.exit_pool: there is no pool {self.exit_pool!r}"
        for pool in sorted((self.pools_allowed or frozenset()) - pools):
            yield f"tasks.{name}.pools_allowed: there is no pool {pool!r}"
        if self.pools_allowed is not None and self.exit_pool is not None and self.exit_pool not in self.pools_allowed:
            yield f"tasks.{name}.pools_allowed: it lacks the exit pool {self.exit_pool!r}"

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
            self.rungs.used(),
            MappingProxyType({str(reason): exits for reason, exits in self.exits.items()}),
            self.pools_allowed,
            self.selector,
        )
