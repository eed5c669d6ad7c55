"""The task's fallbacks, in order, for a request that its adapter may not or cannot answer."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import assert_never

from router.checks import list_names
from router.findings import FallbackName, Finding
from router.frozen_dataclass import declare_frozen
from router.policy import Policy, TaskPolicy
from router.replica_choice import Lack, pick
from router.routing_data import OUT_OF_SERVICE, Choice, Moment, Reason, Refusal, RefusalCode
from serving.fleet_view import FleetView, PoolView, VersionView

ADAPTER_STANDS_IN: frozenset[str] = list_names(lambda check: check.stands_in != "never") | {"other_language"}
"""Reasons for which the adapter answers after all if the fallback is closed or absent."""
AT_LEISURE: frozenset[str] = list_names(lambda check: check.stands_in == "if_full")
"""Reasons for which a request does not wait for a full fallback: the adapter answers."""


@declare_frozen(frozen=True, slots=True)
class Routing:
    """A request of a task being routed, with its data. `version` may not or can't answer it (None: there is no
    version). `led_to` is the version selected first; `probability` is that of the draws that selected it."""

    task: TaskPolicy
    version: VersionView | None
    reason: Reason
    key: str | None = None
    override_id: str | None = None
    probability: float = 1.0
    findings: tuple[Finding, ...] = ()
    led_to: VersionView | None = None


def choose_fallback(
    routing: Routing,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    avoid: frozenset[str] = frozenset(),
    spare_open: bool = False,
    context_above: float | None = None,
) -> Choice | Refusal:
    """The first fallback that can take a request which its version may not answer; a refusal if none can.

    Before a person is asked, the request waits for a full fallback. If no fallback is up, or none may take more, the
    adapter answers after all if the reason allows it. `context_above` excludes pools that are not known to take prompts
    of more tokens than this.
    """
    task, reason = routing.task, routing.reason
    stands_in = reason in ADAPTER_STANDS_IN
    capped = False
    lack: Lack | None = None
    for name in _fallbacks(routing, policy):
        if name == "needs_human":
            if lack == "overload":
                break
            return _to_a_person(routing, capped)
        if name == "general":
            version, pool = None, view.pools.get(task.fallback_pool or "")
        elif name == "previous_version":
            version = _previous_version(routing, policy, view)
            pool = view.pools.get(version.pool) if version is not None else None
        else:
            assert_never(name)
        if pool is None or not task.reaches(pool.name) or not _is_longer(pool, context_above):
            continue
        if version is None and task.name in moment.fallbacks_closed:
            capped = True
            continue
        spares = spare_open or stands_in
        choice_or_lack = choose_replica(
            routing, pool, version, view, moment, avoid=avoid, spare_open=spares, capped=capped
        )
        if isinstance(choice_or_lack, Choice):
            return choice_or_lack
        lack = choice_or_lack if lack is None or choice_or_lack == "overload" else lack
    if stands_in and (lack != "overload" or reason in AT_LEISURE):
        stays = _adapter(routing, view, moment, avoid, capped)
        if stays is not None:
            return stays
    if lack is None and not capped and reason == "overload":
        lack = "overload"  # its own replicas are full, and there is no fallback: it waits for them
    return _nowhere(routing, lack, capped)


def choose_fallback_instead(
    choice: Choice,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    avoid: frozenset[str] = frozenset(),
    context_above: float | None = None,
) -> Choice | Refusal:
    """The task's fallback after its adapter could not or may not answer; a refusal if no fallback can either."""
    if choice.task is None:
        return Refusal("no_replica", f"No replica of the pool {choice.pool.name!r} can answer. Try again later.")
    version = choice.version or choice.general_prompt_of
    routing = Routing(
        task=choice.task,
        version=version,
        reason=reason,
        key=choice.key,
        override_id=choice.override_id,
        probability=choice.probability,
        led_to=choice.led_to,
    )
    fallback = choose_fallback(routing, policy, view, moment, avoid, context_above=context_above)
    return replace(fallback, system=choice.system) if choice.system and isinstance(fallback, Choice) else fallback


def choose_adapter_after_all(
    choice: Choice, view: FleetView, moment: Moment, avoid: frozenset[str], context_above: float | None = None
) -> Choice | None:
    """The version that a holdout was led to, after its fallback failed: a holdout only measures. It keeps its label."""
    version = choice.led_to
    if choice.task is None or choice.reason != "holdout" or choice.version is not None or version is None:
        return None
    routing = Routing(
        task=choice.task,
        version=version,
        reason=choice.reason,
        key=choice.key,
        probability=choice.probability,
        led_to=version,
    )
    pool = view.pools.get(version.pool)
    if pool is None or not _is_longer(pool, context_above):
        return None
    adapter = _adapter(routing, view, moment, avoid, choice.fallback_capped)
    return replace(adapter, system=choice.system) if choice.system and adapter is not None else adapter


def refuse_for_lack(lack: Lack, pool: str) -> Refusal:
    """The refusal if no replica of a pool could be picked."""
    match lack:
        case "overload":
            return Refusal("overload", f"Every replica of the pool {pool!r} is full. Try again in a moment.")
        case "no_replica":
            return Refusal("no_replica", f"No replica of the pool {pool!r} can answer now. Try again later.")
        case _:
            assert_never(lack)


def _fallbacks(routing: Routing, policy: Policy) -> tuple[FallbackName, ...]:
    """The task's fallbacks for this reason. The arm that the monitor found to be better comes first, if it is still the
    same version."""
    fallbacks = routing.task.fallbacks_for(routing.reason)
    shift = policy.shifts.get(routing.version.name) if routing.reason == "degraded" and routing.version else None
    if shift is None or shift.to is None:
        return fallbacks
    if shift.to == "previous_version" and shift.to_version is not None:
        alias = policy.aliases.get(routing.task.name)
        if alias is None or alias.previous_version != shift.to_version:
            return fallbacks
    return (shift.to, *(name for name in fallbacks if name != shift.to))


def _previous_version(routing: Routing, policy: Policy, view: FleetView) -> VersionView | None:
    """The version that led before, unless it is the one that may not answer, or is out of service."""
    alias = policy.aliases.get(routing.task.name)
    previous_version = view.versions.get(alias.previous_version or "") if alias is not None else None
    if previous_version is None or previous_version.state in OUT_OF_SERVICE:
        return None
    return None if routing.version is not None and previous_version.name == routing.version.name else previous_version


def _is_longer(pool: PoolView, context_above: float | None) -> bool:
    return context_above is None or (pool.context_tokens_max or -math.inf) > context_above


def choose_replica(
    routing: Routing,
    pool: PoolView,
    version: VersionView | None,
    view: FleetView,
    moment: Moment,
    *,
    avoid: frozenset[str] = frozenset(),
    spare_open: bool = False,
    capped: bool = False,
) -> Choice | Lack:
    """A replica for this version, or for the pool's base with the general prompt of the version that it replaces.

    It skips replicas in `avoid`, and with `spare_open` those whose breaker is open. `capped` says that an earlier
    fallback was closed.
    """
    instead_of = routing.version
    key = routing.key or (instead_of.name if instead_of else None)
    name = version.name if version else None
    on_trial = routing.reason == "canary"
    replica = pick(pool, name, view.in_flight, moment.now, moment.draw, avoid, key, spare_open, on_trial)
    if isinstance(replica, str):
        return replica
    return Choice(
        task=routing.task,
        version=version,
        pool=pool,
        replica=replica,
        reason=routing.reason,
        general_prompt_of=instead_of if version is None else None,
        probability=routing.probability,
        override_id=routing.override_id,
        key=key,
        findings=routing.findings,
        fallback_capped=capped,
        led_to=routing.led_to,
    )


def _adapter(routing: Routing, view: FleetView, moment: Moment, avoid: frozenset[str], capped: bool) -> Choice | None:
    """The adapter after all, labelled with the reason why it should not have answered."""
    version = routing.version
    pool = view.pools.get(version.pool) if version is not None else None
    if version is None or pool is None or version.state in OUT_OF_SERVICE or not routing.task.reaches(pool.name):
        return None
    choice = choose_replica(routing, pool, version, view, moment, avoid=avoid, capped=capped)
    return choice if isinstance(choice, Choice) else None


def _to_a_person(routing: Routing, capped: bool) -> Refusal:
    task, reason = routing.task.name, routing.reason
    text = f"A person has to answer this request of the task {task!r}: its adapter may not ({reason})."
    return _refused("needs_human", text, routing, capped)


def _nowhere(routing: Routing, lack: Lack | None, capped: bool) -> Refusal:
    """The refusal if no fallback can take the request. A full fallback comes first, since requests wait for it."""
    task = routing.task
    if capped and lack != "overload":
        text = f"The task {task.name!r} has sent as much to {task.fallback_pool} as it may. Try again later."
        return _refused("fallback_capped", text, routing, True)
    if lack == "overload":
        text = f"Every replica that could answer the task {task.name!r} is full. Try again in a moment."
    elif lack == "no_replica":
        text = f"No replica that could answer the task {task.name!r} is there now. Try again later."
    else:
        text = f"The task {task.name!r} has no replica that can answer, and no fallback."
    return _refused(lack or "no_replica", text, routing, capped)


def _refused(code: RefusalCode, text: str, routing: Routing, capped: bool) -> Refusal:
    return Refusal(
        code,
        text,
        reason=routing.reason,
        findings=routing.findings,
        fallback_capped=capped,
        override_id=routing.override_id,
        led_to=routing.led_to,
    )
