"""The next step after a failed attempt or a rejected answer: only this file decides on retry, escalation, giving up.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

from router.fallbacks import choose_adapter_after_all, choose_fallback_instead
from router.findings import CheckName
from router.policy import AttemptLimits, Policy
from router.replica_choice import pick
from router.routing_data import Choice, Moment, Reason, Refusal
from serving.fleet_view import FaultKind, FleetView

GivingUp = Literal["refused", "exhausted", "fallback_capped", "needs_human", "rejected", "overload", "no_replica"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed attempt before commit, `at` (monotonic seconds).

    `retry_after_seconds` comes from the engine, if it gave it. `fragile`: the request has a caller's pattern or
    grammar, which may crash an engine. `has_form`: engines compile a form from the caller, if they can. `status` is the
    HTTP status of the failure, None if there was none.
    """

    kind: FaultKind
    replica: str
    pool: str
    retry_after_seconds: float | None = None
    at: float = 0.0
    fragile: bool = False
    status: int | None = None
    has_form: bool = False

    @property
    def may_be_its_form(self) -> bool:
        """True if the request's form may be one that the engine can't compile."""
        return self.has_form and self.kind == "failed"

    @property
    def may_have_ended_it(self) -> bool:
        """True if the request may have ended the engine or made it hang. A status below 500 shows that it runs."""
        return self.fragile and self.kind in MAY_HAVE_ENDED and (self.status is None or self.status >= 500)


@dataclass(frozen=True, slots=True)
class NextAttempt:
    """Try this choice after this wait."""

    choice: Choice
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Tell the caller why nothing answers. `refused` passes on the engine's own refusal. `exhausted`: no replica could
    answer. `fallback_capped`: only a fallback could, and its cap is reached. `needs_human`: a person has to answer.
    `rejected`: the answer broke its contract, and there is no better one. `overload`, `no_replica`: no replacement of
    the adapter can answer. `reason` is why the request needed a replacement; the field `fallback_capped` says that a
    fallback was closed."""

    because: GivingUp
    retry_after_seconds: float | None = None
    reason: Reason | None = None
    fallback_capped: bool = False


@dataclass(frozen=True, slots=True)
class SendAnyway:
    """Send the answer though a check rejected it, with a label."""


REASON_OF: Mapping[FaultKind, Reason] = {
    "unreachable": "engine_error",
    "dropped": "engine_error",
    "key_refused": "engine_error",
    "failed": "engine_error",
    "missing": "engine_error",
    "unserved": "engine_error",
    "truncated": "engine_error",
    "oversize": "engine_error",
    "silent": "timeout",
    "late": "timeout",
    "overloaded": "overload",
    "too_long": "context_length",
}
NOT_ASKED_AGAIN: frozenset[FaultKind] = frozenset({"silent", "overloaded", "unreachable", "dropped", "key_refused"})
"""Faults after which a replica is not asked again in another role, such as with its base instead of its adapter."""
SAME_REPLICA_HELPS: frozenset[FaultKind] = frozenset({"failed", "overloaded", "truncated"})

MAY_HAVE_ENDED: frozenset[FaultKind] = frozenset({"dropped", "silent", "failed", "truncated"})
"""Faults that the request may have caused by ending the engine or making it hang."""


def choose_next_attempt(
    choice: Choice,
    failures: tuple[Failure, ...],
    policy: Policy,
    view: FleetView,
    moment: Moment,
    seconds_left: float,
    going_on: bool = False,
) -> NextAttempt | GiveUp:
    """Decide what follows the last of `failures`.

    The order: another replica of the same version; the same replica again if that can help and its requested wait fits;
    the task's fallback, labelled with its reason; after a holdout's fallback, once, the version that it was led to;
    giving up. A request never changes its version, and a silent replica is not asked twice. What the engine refused as
    the caller's mistake is never sent again. A prompt too long for this pool goes to a fallback that is known to take
    longer ones. After an answer longer than we take, only the fallback is asked: the next answer would be as long. A
    request that may have ended one engine is sent to no other. If two replicas may have failed to compile a form, no
    more engines of their kind get it. With `going_on` a part of the answer exists, and only pools whose engines can
    continue it are used.
    """
    last = failures[-1]
    if last.kind in ("refused", "too_long"):
        return _after_a_refusal(choice, last, policy, view, moment, seconds_left)
    if seconds_left <= 0 or last.may_have_ended_it:
        return GiveUp("exhausted")
    here = [failure for failure in failures if failure.pool == choice.pool.name]
    unable = find_unable(failures, view)
    may_help = last.kind != "oversize" and (choice.pool.continues or not going_on) and choice.pool.engine not in unable
    if may_help and len(here) <= policy.limits.retries_max:
        again = _again(choice, here, view, moment, policy.limits)
        if again is not None and again.wait_seconds < seconds_left:
            return again
    spent = frozenset(failure.replica for failure in failures if _is_spent(failure, choice))
    instead = _instead(choice, last, policy, view, moment, spent)
    if isinstance(instead, Choice) and (_continues(instead) or not going_on) and instead.pool.engine not in unable:
        return NextAttempt(instead)
    if isinstance(instead, Refusal) and instead.code in ("fallback_capped", "needs_human"):
        return GiveUp(instead.code, None, instead.reason, instead.fallback_capped)
    return GiveUp("exhausted", last.retry_after_seconds)


def find_unable(failures: Iterable[Failure], view: FleetView) -> frozenset[str]:
    """The kinds of engines that may be unable to compile the request's form, since two replicas have failed at it."""
    doubted = {failure.replica: failure.pool for failure in failures if failure.may_be_its_form}
    kinds = frozenset(view.pools[pool].engine for pool in doubted.values() if pool in view.pools)
    return kinds if len(doubted) > 1 else frozenset()


def choose_after_rejection(
    choice: Choice, check: CheckName, policy: Policy, view: FleetView, moment: Moment, seconds_left: float
) -> NextAttempt | SendAnyway | GiveUp:
    """Decide what follows an answer that an enforced check rejected before commit, `check` being the reason.

    The adapter would give the same answer, so it is not asked again. The task's fallbacks for this reason follow, in
    order. A pinned request is answered only by its version. A fallback's own answer can be rejected only for its
    contract. Then the task's setting decides, and the request keeps the reason for which it went there.
    """
    task, reason = choice.task, cast(Reason, check)
    if task is None or choice.reason == "pinned":
        return SendAnyway()
    if choice.version is None:
        return SendAnyway() if task.fallback_breaks == "flag" else GiveUp("rejected")
    if seconds_left <= 0:
        return GiveUp("exhausted", None, reason)
    instead = choose_fallback_instead(choice, policy, view, moment, reason)
    if isinstance(instead, Choice):
        return NextAttempt(instead)
    if instead.code in ("fallback_capped", "needs_human", "overload"):
        return GiveUp(cast(GivingUp, instead.code), None, reason, instead.fallback_capped)
    return GiveUp("rejected" if check == "contract" and task.fallback_pool is None else "no_replica", None, reason)


def _after_a_refusal(
    choice: Choice, last: Failure, policy: Policy, view: FleetView, moment: Moment, seconds_left: float
) -> NextAttempt | GiveUp:
    """The first fallback that is known to take longer prompts, if the prompt was too long; otherwise the refusal is
    passed on to the caller."""
    if last.kind == "too_long":
        here = choice.pool.context_tokens_max
        longer = _instead(choice, last, policy, view, moment, frozenset(), math.inf if here is None else here)
        if isinstance(longer, Choice) and seconds_left > 0:
            return NextAttempt(longer)
        if isinstance(longer, Refusal) and longer.code == "needs_human":
            return GiveUp("needs_human", None, longer.reason, longer.fallback_capped)
    return GiveUp("refused")


def _is_spent(failure: Failure, choice: Choice) -> bool:
    """True if its replica is not asked in another role. A holdout that came back skips what failed it elsewhere."""
    came_back = choice.reason == "holdout" and failure.pool != choice.pool.name and choice.version is not None
    return came_back or failure.kind in NOT_ASKED_AGAIN


def _continues(choice: Choice) -> bool:
    """True if the choice can continue a partial answer. It can't if its general prompt asks for a response format,
    which begins the answer again."""
    general_prompt = choice.general_prompt_of.general_prompt if choice.general_prompt_of else None
    return choice.pool.continues and not (general_prompt and general_prompt.response_format)


def _again(
    choice: Choice, here: list[Failure], view: FleetView, moment: Moment, limits: AttemptLimits
) -> NextAttempt | None:
    version = choice.version.name if choice.version else None
    pool = view.pools.get(choice.pool.name)
    if pool is None:
        return None
    tried = frozenset(failure.replica for failure in here)
    has_fallback = choice.version is not None and choice.task is not None and choice.task.fallback_pool is not None
    spare_open = has_fallback and choice.reason != "pinned"
    on_trial = choice.reason == "canary"
    other = pick(pool, version, view.in_flight, moment.now, moment.draw, tried, choice.key, spare_open, on_trial)
    if not isinstance(other, str):
        return NextAttempt(replace(choice, replica=other))
    last = here[-1]
    if last.kind not in SAME_REPLICA_HELPS:
        return None
    hopeless = frozenset(
        failure.replica
        for at, failure in enumerate(here)
        if failure.kind not in SAME_REPLICA_HELPS
        or (failure.may_be_its_form and any(each.replica == failure.replica for each in here[:at]))
    )
    same = pick(pool, version, view.in_flight, moment.now, moment.draw, hopeless, choice.key)
    if isinstance(same, str):
        return None
    wait = limits.backoff_seconds * 2 ** (len(here) - 1) * (0.5 + moment.draw)
    waits = [failure for failure in here if failure.replica == same.name and failure.retry_after_seconds is not None]
    if waits:
        remaining = max(failure.at + (failure.retry_after_seconds or 0.0) - moment.now for failure in waits)
        if remaining > limits.retry_after_seconds_max:
            return None
        wait = max(wait, remaining)
    return NextAttempt(replace(choice, replica=same), wait)


def _instead(
    choice: Choice,
    last: Failure,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    spent: frozenset[str],
    context_above: float | None = None,
) -> Choice | Refusal | None:
    """The fallback, unless the request is there already or the caller pinned its version. A holdout at its fallback
    goes back to the version that it was led to."""
    if choice.version is None:
        return choose_adapter_after_all(choice, view, moment, spent, context_above)
    if choice.reason == "pinned":
        return None
    return choose_fallback_instead(choice, policy, view, moment, REASON_OF[last.kind], spent, context_above)
