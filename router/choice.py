"""The decision: where a request goes, and why. Pure; the ladder is DESIGN.md's, the first rung that applies wins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from router.overrides import Override, Subject, first_match
from router.policy import Alias, Policy, TaskPolicy
from router.replicas import Lack, pick
from serving.view import FleetView, PoolView, ReplicaView, VersionView

Reason = Literal[
    "override",
    "pinned",
    "degraded",
    "out_of_scope",
    "holdout",
    "adapter",
    "canary",
    "contract",
    "low_confidence",
    "refusal",
    "predicted_gain",
    "no_replica",
    "overload",
    "timeout",
    "engine_error",
    "context_length",
]
REASONS: tuple[str, ...] = get_args(Reason)
OUT_OF_SERVICE = frozenset({"quarantined", "draining", "retired"})
ADAPTER_STANDS_IN: frozenset[Reason] = frozenset({"out_of_scope", "holdout", "predicted_gain"})
"""Reasons for the exit for which the adapter answers all the same where the exit is closed."""

RefusalCode = Literal[
    "model_not_found",
    "model_not_allowed",
    "version_not_loaded",
    "refused_by_override",
    "no_replica",
    "overload",
    "exit_capped",
]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as the router sees it. `session` is None where the caller named none; `models_allowed` holds the
    names the caller's key may ask for, or `*`; `text` is empty unless a rule looks at it."""

    model: str
    caller: str
    models_allowed: frozenset[str]
    session: str | None = None
    metadata: Mapping[str, str] | None = None
    text: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the request goes. `version` is None where a pool's base answers; `blueprint_of` is then the version
    whose blueprint it needs (None: the caller asked for the base itself). `probability` is that of this arm.
    `key` is what requests share that are best answered by one replica: the session, else the version."""

    task: TaskPolicy | None
    version: VersionView | None
    pool: PoolView
    replica: ReplicaView
    reason: Reason
    blueprint_of: VersionView | None = None
    probability: float = 1.0
    override_id: str | None = None
    key: str | None = None

    @property
    def engine_model(self) -> str:
        """The name by which the engine knows what is to answer."""
        return self.version.name if self.version else self.pool.base_model


@dataclass(frozen=True, slots=True)
class Refusal:
    """The request goes nowhere: a code for programs, and a sentence that says what to do. `reason` is why it would
    have gone to an exit that is closed."""

    code: RefusalCode
    message: str
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """The time and the chance of one decision, passed in so that deciding stays pure: `now` in monotonic seconds,
    `now_unix` in Unix seconds, `draw` uniform in [0, 1). `exits_closed` holds the tasks that have sent as much to their
    exit as they may."""

    now: float
    now_unix: float
    draw: float
    exits_closed: frozenset[str] = frozenset()


def choose(asked: Asked, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    """Decide one request. Total: every input yields a Choice or a Refusal, and the same input the same one."""
    task_name, at, _ = asked.model.partition("@")
    if not _allowed(asked, task_name):
        return Refusal("model_not_allowed", f"This key may not use the model {asked.model!r}. Ask an admin for it.")
    task = policy.tasks.get(task_name)
    if task is None:
        return _choose_pool(asked, policy, view, moment)
    alias = policy.aliases.get(task_name)
    live = _live_version(alias, view, asked.session, moment.draw)
    rule = first_match(policy.overrides, _subject(task_name, asked), moment.now_unix)
    if rule is not None:
        return _choose_overruled(rule, task, live, view, moment, asked.session)
    if at:
        return _choose_pinned(asked, task, view, moment)
    return _choose_live(task, alias, live, view, moment, asked.session)


def general_instead(
    choice: Choice, view: FleetView, moment: Moment, reason: Reason, avoid: frozenset[str] = frozenset()
) -> Choice | Refusal:
    """The task's exit after its adapter could not answer; refused where the exit has nobody to answer either."""
    if choice.task is None:
        return Refusal("no_replica", f"No replica of the pool {choice.pool.name!r} can answer. Try again later.")
    version = choice.version or choice.blueprint_of
    return _exit(choice.task, version, view, moment, reason, choice.key, choice.override_id, avoid)


def sticky_point(session: str, salt: str) -> float:
    """A session's fixed place in [0, 1): the same for every gateway, another after each rollout's salt."""
    digest = hashlib.blake2b(session.encode(), key=salt.encode()[:64], digest_size=7).digest()
    return int.from_bytes(digest, "big") / (1 << 56)


def _allowed(asked: Asked, name: str) -> bool:
    return not asked.models_allowed.isdisjoint(("*", name, asked.model))


def _choose_pool(asked: Asked, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    pool = view.pools.get(asked.model) if asked.model in policy.callable_pools else None
    if pool is None:
        return Refusal(
            "model_not_found", f"The model {asked.model!r} does not exist. GET /v1/models lists those you can use."
        )
    key = asked.session or None
    replica = pick(pool, None, view.in_flight, moment.now, moment.draw, key=key)
    if isinstance(replica, str):
        return _lacking(replica, pool.name)
    return Choice(None, None, pool, replica, "pinned", key=key)


def _subject(task: str, asked: Asked) -> Subject:
    return Subject(task, asked.caller, asked.metadata or {}, asked.text)


def _choose_overruled(
    rule: Override, task: TaskPolicy, live: VersionView | None, view: FleetView, moment: Moment, session: str | None
) -> Choice | Refusal:
    if rule.action == "refuse":
        return Refusal("refused_by_override", rule.message or "An admin's rule refuses this request.")
    if rule.action == "general":
        return _exit(task, live, view, moment, "override", session, rule.id)
    return _serve(task, view.versions.get(rule.version or ""), view, moment, "override", 1.0, session, rule.id)


def _choose_live(
    task: TaskPolicy,
    alias: Alias | None,
    live: VersionView | None,
    view: FleetView,
    moment: Moment,
    session: str | None,
) -> Choice | Refusal:
    if alias is None or live is None:
        return _exit(task, None, view, moment, "no_replica", session)
    reason: Reason = "adapter" if live.name == alias.leading else "canary"
    return _serve(task, live, view, moment, reason, alias.weights[live.name], session)


def _choose_pinned(asked: Asked, task: TaskPolicy, view: FleetView, moment: Moment) -> Choice | Refusal:
    version = view.versions.get(asked.model)
    if version is None:
        return Refusal("model_not_found", f"The version {asked.model!r} does not exist.")
    if version.state in OUT_OF_SERVICE:
        return Refusal("version_not_loaded", f"{version.name} is {version.state}: it answers nobody.")
    return _serve(task, version, view, moment, "pinned", 1.0, asked.session)


def _live_version(alias: Alias | None, view: FleetView, session: str | None, draw: float) -> VersionView | None:
    if alias is None:
        return None
    point = draw if session is None else sticky_point(session, alias.salt)
    total = 0.0
    name = ""
    for name, weight in alias.weights.items():  # noqa: B007 - the last one takes what rounding leaves
        total += weight
        if point < total:
            break
    return view.versions.get(name)


def _serve(
    task: TaskPolicy,
    version: VersionView | None,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    probability: float,
    session: str | None,
    override_id: str | None = None,
) -> Choice | Refusal:
    pool = view.pools.get(version.pool) if version else None
    if version is None or pool is None or version.state in OUT_OF_SERVICE:
        return _exit(task, version, view, moment, "no_replica", session, override_id)
    key = session or version.name
    instead: Choice | Refusal | None = None
    for spare_open in (True, False) if reason != "pinned" else (False,):
        replica = pick(
            pool,
            version.name,
            view.in_flight,
            moment.now,
            moment.draw,
            frozenset(),
            key,
            spare_open,
            reason == "canary",
        )
        if not isinstance(replica, str):
            return Choice(task, version, pool, replica, reason, None, probability, override_id, key)
        if reason == "pinned":
            return _lacking_pinned(replica, version, pool)
        instead = _exit(task, version, view, moment, replica, session, override_id, frozenset(), spare_open)
        if isinstance(instead, Choice):
            return instead
    assert instead is not None
    return instead


def _lacking_pinned(lack: Lack, version: VersionView, pool: PoolView) -> Refusal:
    if lack == "overload":
        return _lacking(lack, pool.name)
    return Refusal("version_not_loaded", f"{version.name} is not loaded on any replica that could take it now.")


def _exit(
    task: TaskPolicy,
    version: VersionView | None,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    session: str | None,
    override_id: str | None = None,
    avoid: frozenset[str] = frozenset(),
    spare_open: bool = False,
) -> Choice | Refusal:
    pool = view.pools.get(task.exit_pool or "")
    if pool is None:
        return Refusal("no_replica", f"The task {task.name!r} has no replica that can answer, and no exit.")
    key = session or (version.name if version else None)
    if task.name in moment.exits_closed:
        return _instead_of_exit(task, version, view, moment, reason, key)
    replica = pick(pool, None, view.in_flight, moment.now, moment.draw, avoid, key, spare_open)
    if isinstance(replica, str):
        return _lacking(replica, pool.name)
    return Choice(task, None, pool, replica, reason, version, 1.0, override_id, key)


def _instead_of_exit(
    task: TaskPolicy,
    version: VersionView | None,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    key: str | None,
) -> Choice | Refusal:
    """Past the exit's cap: the adapter where the reason allows it, else nobody."""
    pool = view.pools.get(version.pool) if version and reason in ADAPTER_STANDS_IN else None
    if version is not None and pool is not None and version.state not in OUT_OF_SERVICE:
        replica = pick(pool, version.name, view.in_flight, moment.now, moment.draw, key=key)
        if not isinstance(replica, str):
            return Choice(task, version, pool, replica, reason, key=key)
    text = f"The task {task.name!r} has sent as much to {task.exit_pool} as it may. Try again later."
    return Refusal("exit_capped", text, reason)


def _lacking(lack: Lack, pool: str) -> Refusal:
    if lack == "overload":
        return Refusal("overload", f"Every replica of the pool {pool!r} is full. Try again in a moment.")
    return Refusal("no_replica", f"No replica of the pool {pool!r} can answer now. Try again later.")
