"""Settings of tasks: their pools and fallbacks, their bounds, and their judging."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from gateway.configuration.monitor import TaskMonitorSettings
from gateway.configuration.sections import BodySection, Name, Seconds, Section, Share
from gateway.configuration.texts import TaskTextSettings
from gateway.formats.fields import NEVER_WITH_ADAPTERS
from router.checks import CHECKS, AnswerCheck
from router.findings import CHECK_NAMES, CheckName, CheckPolicy, FallbackName, Mode
from router.policy import AUTO, COMMIT_POLICIES, CacheIsolation, FallbackBreaks, TaskPolicy
from router.routing_data import WITHOUT_FALLBACKS, Reason


def _mode_of(raw: Any) -> Any:
    """The mode of a check. YAML reads a bare `off` as false; it reads a bare `on` as true, which is not a mode."""
    if raw is True:
        raise ValueError("on is not a mode: observe or enforce")
    return "off" if raw is False else raw


def _reason_of(raw: Any) -> Any:
    if raw not in get_args(Reason):
        reasons = ", ".join(reason for reason in get_args(Reason) if reason not in WITHOUT_FALLBACKS)
        raise ValueError(f"there is no such reason: name one of {reasons}")
    return raw


def _fallbacks_of(raw: Any) -> Any:
    """The fallbacks of a reason. The same error message is used for every invalid value."""
    names = get_args(FallbackName)
    if isinstance(raw, str) and raw in names:
        raise ValueError(f"it is a list: write [{raw}]")
    if not isinstance(raw, list | tuple) or not 1 <= len(raw) <= len(names):
        raise ValueError(f"it is a list of 1 to {len(names)} fallbacks, of {', '.join(names)}")
    for fallback_ in raw:
        if fallback_ not in names:
            raise ValueError(
                f"{str(fallback_)[:40]!r} is not a fallback: name general, previous_version or needs_human"
            )
    return raw


CheckMode = Annotated[Mode, BeforeValidator(_mode_of)]
Fallbacks = Annotated[tuple[FallbackName, ...], Field(min_length=1, max_length=3), BeforeValidator(_fallbacks_of)]
SELECTORS = r"^(last_user|user_turns|dialogue|field:[^\s]{1,200})$"


class CheckSection(Section):
    """One check: whether it is asked, and acted on."""

    mode: CheckMode = Field("off", description="`observe` decides and records, and changes nothing.")


class DegradedSettings(CheckSection):
    """The check for a version whose verdict is degraded."""

    explored_share: Share = Field(0.05, description="Share that a degraded version keeps, to show its recovery.")


class OutOfScopeSettings(CheckSection):
    """The check for an input that is unlike the version's training prompts."""

    deferred_share: Share = Field(
        0.05, description="Share of in-scope requests that may be deferred; sets the threshold."
    )


class HoldoutSettings(CheckSection):
    """A random share that goes to the fallback, so that both arms stay measurable."""

    share: Share = Field(0.02, description="Share of in-scope requests, drawn by session.")


class PredictedGainSettings(CheckSection):
    """The check for a request that general is expected to answer better, as a measurement has shown."""

    general_share_max: Share = Field(0.2, description="Largest share that it sends to the fallback.")


class ContractSettings(CheckSection):
    """The check for an answer that breaks the version's contract."""

    constrained: bool = Field(False, description="Whether engines must keep the contract's form.")
    fallback_breaks: FallbackBreaks = Field(
        "error", description="A fallback's answer that breaks it too is an error, or flagged."
    )


class LowConfidenceSettings(CheckSection):
    """The check for an answer that is not sure enough."""

    wrong_share_max: Share = Field(
        0.05, description="Share of all requests that may get a wrong answer; sets the threshold."
    )


class RefusalSettings(CheckSection):
    """The check for an answer that is a refusal or empty, or calls a tool that was not offered."""


class CheckSettings(Section):
    """The checks between a task's requests and its adapter."""

    degraded: DegradedSettings = DegradedSettings()
    out_of_scope: OutOfScopeSettings = OutOfScopeSettings()
    holdout: HoldoutSettings = HoldoutSettings()
    predicted_gain: PredictedGainSettings = PredictedGainSettings()
    contract: ContractSettings = ContractSettings()
    low_confidence: LowConfidenceSettings = LowConfidenceSettings()
    refusal: RefusalSettings = RefusalSettings()

    def used(self) -> Mapping[CheckName, CheckPolicy]:
        """The checks that are not off, in their order, as the router uses them."""
        used: dict[CheckName, CheckPolicy] = {}
        for check in CHECKS:
            section: CheckSection = getattr(self, check.name)
            if section.mode != "off":
                share = 0.0 if check.share is None else getattr(section, check.share)
                used[check.name] = CheckPolicy(section.mode, share)
        return MappingProxyType(used)


class TaskSettings(BodySection):
    """One task: a named, specific job that adapters are trained for."""

    description: str = Field("", max_length=500, description="Description for people.")
    fallback_pool: Name | None = Field("general", description="Pool that answers where the adapter can't; null: none.")
    commit: str = Field(
        "first_token",
        pattern=COMMIT_POLICIES,
        examples=["tokens:32"],
        description="Commit of a stream: first_token, tokens:N or complete.",
    )
    hold_seconds_max: Seconds | None = Field(
        None, description="Longest hold of a stream; unset: limits.answer_timeout_seconds."
    )
    max_tokens_max: int = Field(4096, ge=1, le=1_000_000, description="Most completion tokens of a request.")
    previous_versions_kept: int = Field(2, ge=1, le=1000, description="Previous versions that stay loaded.")
    cache_isolation: CacheIsolation | None = Field(None, description="As the gateway's, for this task.")
    general_share_max: Share | None = Field(
        None, description="Largest share for the fallback pool, without shadows; unset: all."
    )
    general_usd_per_day: float | None = Field(
        None, gt=0, le=1_000_000, description="Most for the fallback pool in a UTC day, without shadows; unset: no cap."
    )

    checks: CheckSettings = CheckSettings()
    fallbacks: dict[Annotated[Reason, BeforeValidator(_reason_of)], Fallbacks] = Field(
        default_factory=dict, description="[Fallbacks](reasons.md#fallbacks) in order, by reason."
    )
    pools_allowed: frozenset[Name] | None = Field(None, description="Pools that may get the task's texts; unset: all.")
    selector: str = Field(
        "user_turns",
        pattern=SELECTORS,
        examples=["user_turns"],
        description="Text that fitted models read: last_user, user_turns, dialogue or field:PATH of JSON.",
    )
    monitor: TaskMonitorSettings = TaskMonitorSettings()
    texts: TaskTextSettings = TaskTextSettings()

    def faults(self, name: str, pools: frozenset[str], request_timeout_seconds: float) -> Iterator[str]:
        """The faults of these settings, as sentences that begin with their key."""
        if name == AUTO:
            yield f"tasks.{name}: {AUTO!r} is the model that finds the task: name it otherwise"
        for field in sorted(self.parameters_allowed & NEVER_WITH_ADAPTERS):
            yield f"tasks.{name}.parameters_allowed: {field} ends a vLLM engine that has adapters loaded: leave it out"
        if self.fallback_pool is not None and self.fallback_pool not in pools:
            yield f"tasks.{name}.fallback_pool: there is no pool {self.fallback_pool!r}"
        for pool in sorted((self.pools_allowed or frozenset()) - pools):
            yield f"tasks.{name}.pools_allowed: there is no pool {pool!r}"
        if (
            self.pools_allowed is not None
            and self.fallback_pool is not None
            and self.fallback_pool not in self.pools_allowed
        ):
            yield f"tasks.{name}.pools_allowed: it lacks the fallback pool {self.fallback_pool!r}"
        yield from self._faults_of_fallbacks(name)
        yield from self._faults_of_shares(name)
        yield from self._faults_of_commit(name)
        yield from self._faults_of_hold(name, request_timeout_seconds)

    def has_fallback(self, reason: Reason) -> bool:
        """True if a request that falls back for this reason is answered by anything, or needs a person."""
        return self.fallback_pool is not None or reason in self.fallbacks

    def _faults_of_fallbacks(self, name: str) -> Iterator[str]:
        for reason, fallbacks in self.fallbacks.items():
            key = f"tasks.{name}.fallbacks.{reason}"
            if reason in WITHOUT_FALLBACKS:
                yield f"{key}: nothing goes to a fallback for this reason; leave it out"
            if len(set(fallbacks)) < len(fallbacks):
                yield f"{key}: a fallback is there twice"
            if "needs_human" in fallbacks[:-1]:
                yield f"{key}: needs_human is the last fallback, since a person can always be asked"
            if "general" in fallbacks and self.fallback_pool is None:
                yield f"{key}: general is the fallback_pool, and there is none"
        for check in CHECK_NAMES:
            if getattr(self.checks, check).mode == "enforce" and not self.has_fallback(check):
                yield f"tasks.{name}.checks.{check}: it has no fallback: set fallback_pool, or fallbacks.{check}"

    def _faults_of_shares(self, name: str) -> Iterator[str]:
        """Faults of shares with which a check rejects every answer, never fires, or never ends."""
        some, outside, degraded = self.checks.low_confidence, self.checks.out_of_scope, self.checks.degraded
        if some.mode != "off" and some.wrong_share_max == 0:
            key = f"tasks.{name}.checks.low_confidence.wrong_share_max"
            yield f"{key}: it must be above 0: no threshold can promise that no answer is wrong, so none would be kept"
        if outside.mode == "enforce" and outside.deferred_share == 0:
            key = f"tasks.{name}.checks.out_of_scope.deferred_share"
            yield f"{key}: it must be above 0: with 0 the check never fires; or set its mode to observe or off"
        if degraded.mode == "enforce" and degraded.explored_share == 0:
            key = f"tasks.{name}.checks.degraded.explored_share"
            yield f"{key}: it must be above 0: a version that keeps nothing is never seen to recover"

    def _faults_of_commit(self, name: str) -> Iterator[str]:
        """Faults of enforced checks on answers: they have to run before the commit."""
        if self.commit == "complete":
            return
        for check in CHECKS:
            if not isinstance(check, AnswerCheck) or getattr(self.checks, check.name).mode != "enforce":
                continue
            some = "whole_answer" not in check.needs
            if some and self.commit != "first_token":
                continue
            what = "the answer's first tokens" if some else "the whole answer"
            instead = "complete or tokens:N" if some else "complete"
            yield (
                f"tasks.{name}.checks.{check.name}.mode: enforce needs {what}, and with commit: {self.commit} a stream "
                f"is the caller's before that: set tasks.{name}.commit to {instead}, or the mode to observe"
            )

    def _faults_of_hold(self, name: str, request_timeout_seconds: float) -> Iterator[str]:
        """Faults of a hold time that is never used, or that leaves no time for another answer."""
        if self.hold_seconds_max is None:
            return
        key = f"tasks.{name}.hold_seconds_max"
        if self.commit == "first_token":
            yield f"{key}: with commit: first_token no stream is held back: set commit, or leave this out"
        if self.hold_seconds_max >= request_timeout_seconds:
            yield (
                f"{key}: it must be less than limits.request_timeout_seconds ({request_timeout_seconds:g}), or there "
                "is no time left in which another could answer"
            )

    def policy(self, name: str, cache_isolation: CacheIsolation = "caller") -> TaskPolicy:
        """The task in the form that the router uses."""
        others = {
            "cache_isolation": self.cache_isolation or cache_isolation,
            "checks": self.checks.used(),
            "fallbacks": MappingProxyType({str(reason): fallbacks for reason, fallbacks in self.fallbacks.items()}),
            **self.checks.contract.pick(("constrained", "fallback_breaks")),
        }
        return TaskPolicy(name=name, **self.pick(TaskPolicy.__dataclass_fields__) | others)
