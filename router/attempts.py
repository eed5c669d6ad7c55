"""What next after a failed attempt: this file alone decides on retry, fallback and giving up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from router.choice import Choice, Moment, Reason, Refusal, general_instead
from router.policy import AttemptLimits, Policy
from router.replicas import pick
from serving.view import FaultKind, FleetView

GivingUp = Literal["refused", "exhausted"]


@dataclass(frozen=True, slots=True)
class Failure:
    """An attempt that came to nothing before commit, `at` (monotonic seconds).

    `retry_after_seconds` is the engine's own word, if it gave it.
    """

    kind: FaultKind
    replica: str
    pool: str
    retry_after_seconds: float | None = None
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """Try this choice, after waiting so long."""

    choice: Choice
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the caller: `refused` passes the engine's own refusal on, `exhausted` says that nobody could answer."""

    because: GivingUp
    retry_after_seconds: float | None = None


REASON_OF: Mapping[FaultKind, Reason] = {
    "unreachable": "engine_error",
    "failed": "engine_error",
    "missing": "engine_error",
    "truncated": "engine_error",
    "silent": "timeout",
    "overloaded": "overload",
}
NOT_ASKED_AGAIN: frozenset[FaultKind] = frozenset({"silent", "overloaded", "unreachable"})
"""Faults after which a replica is not asked in another role either, such as its base in the place of its adapter."""
SAME_REPLICA_HELPS: frozenset[FaultKind] = frozenset({"failed", "overloaded", "truncated"})


def next_attempt(
    choice: Choice,
    failures: tuple[Failure, ...],
    policy: Policy,
    view: FleetView,
    moment: Moment,
    seconds_left: float,
) -> NextAttempt | GiveUp:
    """Decide what follows the last of `failures`.

    The order: another replica of the same version; the same one again where that can help, once the wait it asked
    for fits; the task's exit, labelled with its reason; giving up. A request never changes its version, a silent
    replica is not asked twice, and what the engine refused as the caller's own mistake is never sent again.
    """
    last = failures[-1]
    if last.kind == "refused":
        return GiveUp("refused")
    if seconds_left <= 0:
        return GiveUp("exhausted")
    here = [failure for failure in failures if failure.pool == choice.pool.name]
    if len(here) <= policy.limits.retries_max:
        again = _again(choice, here, view, moment, policy.limits)
        if again is not None and again.wait_seconds < seconds_left:
            return again
    spent = frozenset(failure.replica for failure in failures if failure.kind in NOT_ASKED_AGAIN)
    instead = _instead(choice, last, view, moment, spent)
    if isinstance(instead, Choice):
        return NextAttempt(instead)
    return GiveUp("exhausted", last.retry_after_seconds)


def _again(
    choice: Choice, here: list[Failure], view: FleetView, moment: Moment, limits: AttemptLimits
) -> NextAttempt | None:
    version = choice.version.name if choice.version else None
    pool = view.pools.get(choice.pool.name)
    if pool is None:
        return None
    tried = frozenset(failure.replica for failure in here)
    other = pick(pool, version, view.in_flight, moment.now, moment.draw, tried, choice.key)
    if not isinstance(other, str):
        return NextAttempt(replace(choice, replica=other))
    last = here[-1]
    if last.kind not in SAME_REPLICA_HELPS:
        return None
    hopeless = frozenset(failure.replica for failure in here if failure.kind not in SAME_REPLICA_HELPS)
    same = pick(pool, version, view.in_flight, moment.now, moment.draw, hopeless, choice.key)
    if isinstance(same, str):
        return None
    wait = limits.backoff_seconds * 2 ** (len(here) - 1) * (0.5 + moment.draw)
    asked = [failure for failure in here if failure.replica == same.name and failure.retry_after_seconds is not None]
    if asked:
        left = max(failure.at + (failure.retry_after_seconds or 0.0) - moment.now for failure in asked)
        if left > limits.retry_after_seconds_max:
            return None
        wait = max(wait, left)
    return NextAttempt(replace(choice, replica=same), wait)


def _instead(
    choice: Choice, last: Failure, view: FleetView, moment: Moment, spent: frozenset[str]
) -> Choice | Refusal | None:
    """The exit, unless the request is there already or was pinned to its version by the caller."""
    if choice.reason == "pinned" or choice.version is None:
        return None
    return general_instead(choice, view, moment, REASON_OF[last.kind], spent)
