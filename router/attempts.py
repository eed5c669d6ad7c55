"""What next after a failed attempt: this file alone decides on retry, fallback and giving up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from router.decision import Choice, Moment, Reason, Refusal
from router.exits import general_instead
from router.policy import AttemptLimits, Policy
from router.replicas import pick
from serving.view import FaultKind, FleetView

GivingUp = Literal["refused", "exhausted", "exit_capped", "needs_human"]


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
    """Tell the caller: `refused` passes the engine's own refusal on, `exhausted` says that nobody could answer,
    `exit_capped` that the exit could have, and may not now, `needs_human` that a person has to; `reason` is why it
    would have gone there."""

    because: GivingUp
    retry_after_seconds: float | None = None
    reason: Reason | None = None


REASON_OF: Mapping[FaultKind, Reason] = {
    "unreachable": "engine_error",
    "failed": "engine_error",
    "missing": "engine_error",
    "truncated": "engine_error",
    "silent": "timeout",
    "late": "timeout",
    "overloaded": "overload",
    "too_long": "context_length",
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
    going_on: bool = False,
) -> NextAttempt | GiveUp:
    """Decide what follows the last of `failures`.

    The order: another replica of the same version; the same one again where that can help, once the wait it asked
    for fits; the task's exit, labelled with its reason; giving up. A request never changes its version, a silent
    replica is not asked twice, and what the engine refused as the caller's own mistake is never sent again; a prompt
    that is too long for this pool goes to an exit that is known to take longer ones. An answer that is longer than we
    take would be so again. With `going_on`, for an answer
    of which a part is there, only pools whose engines continue one come into question.
    """
    last = failures[-1]
    if last.kind in ("refused", "too_long"):
        larger = (
            _instead(choice, last, policy, view, moment, frozenset()) if _exit_takes_more(choice, last, view) else None
        )
        return NextAttempt(larger) if isinstance(larger, Choice) and seconds_left > 0 else GiveUp("refused")
    if seconds_left <= 0 or last.kind == "oversize":
        return GiveUp("exhausted")
    here = [failure for failure in failures if failure.pool == choice.pool.name]
    if len(here) <= policy.limits.retries_max and (choice.pool.continues or not going_on):
        again = _again(choice, here, view, moment, policy.limits)
        if again is not None and again.wait_seconds < seconds_left:
            return again
    spent = frozenset(failure.replica for failure in failures if failure.kind in NOT_ASKED_AGAIN)
    instead = _instead(choice, last, policy, view, moment, spent)
    if isinstance(instead, Choice) and (_continues(instead) or not going_on):
        return NextAttempt(instead)
    if isinstance(instead, Refusal) and instead.code in ("exit_capped", "needs_human"):
        return GiveUp(instead.code, None, instead.reason)
    return GiveUp("exhausted", last.retry_after_seconds)


def _exit_takes_more(choice: Choice, last: Failure, view: FleetView) -> bool:
    """Whether a prompt was too long for this pool, and the task's exit is known to take longer ones."""
    there = view.pools.get(choice.task.exit_pool or "") if choice.task and last.kind == "too_long" else None
    most, here = there.context_tokens_max if there else None, choice.pool.context_tokens_max
    return most is not None and here is not None and most > here


def _continues(choice: Choice) -> bool:
    """Whether a choice can go on with text; a form that is asked for by the blueprint begins anew, so that can't."""
    blueprint = choice.blueprint_of.blueprint if choice.blueprint_of else None
    return choice.pool.continues and not (blueprint and blueprint.response_format)


def _again(
    choice: Choice, here: list[Failure], view: FleetView, moment: Moment, limits: AttemptLimits
) -> NextAttempt | None:
    version = choice.version.name if choice.version else None
    pool = view.pools.get(choice.pool.name)
    if pool is None:
        return None
    tried = frozenset(failure.replica for failure in here)
    has_exit = choice.version is not None and choice.task is not None and choice.task.exit_pool is not None
    spare_open = has_exit and choice.reason != "pinned"
    on_trial = choice.reason == "canary"
    other = pick(pool, version, view.in_flight, moment.now, moment.draw, tried, choice.key, spare_open, on_trial)
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
    choice: Choice, last: Failure, policy: Policy, view: FleetView, moment: Moment, spent: frozenset[str]
) -> Choice | Refusal | None:
    """The exit, unless the request is there already or was pinned to its version by the caller."""
    if choice.reason == "pinned" or choice.version is None:
        return None
    return general_instead(choice, policy, view, moment, REASON_OF[last.kind], spent)
