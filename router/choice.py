"""The decision: where a request goes, and why. Pure; the ladder is DESIGN.md's, the first rung that applies wins."""

from __future__ import annotations

from dataclasses import replace

from router.decision import OUT_OF_SERVICE, Asked, Choice, Moment, Reason, Refusal
from router.exits import exit_of, lacking
from router.ladder import climb
from router.overrides import NO_RULE, Override, Ruled, Subject, rule
from router.placing import live_version
from router.policy import AUTO, Alias, Policy, TaskPolicy
from router.replicas import Lack, pick
from router.rungs import Finding
from router.scoring import Scores
from serving.view import FleetView, PoolView, VersionView


def choose(asked: Asked, scores: Scores, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    """Decide one request. Total: every input yields a Choice or a Refusal, and the same input the same one."""
    task_name, at, _ = asked.model.partition("@")
    if not _allowed(asked, task_name):
        return Refusal("model_not_allowed", f"This key may not use the model {asked.model!r}. Ask an admin for it.")
    if asked.model == AUTO:
        if scores.task is None:
            return _choose_without_task(asked, policy, view, moment)
        task_name = scores.task
    task = policy.tasks.get(task_name)
    if task is None:
        return _choose_pool(asked, policy, view, moment)
    alias = policy.aliases.get(task_name)
    live = live_version(alias, view, asked.session, moment.draw)
    ruled = rule(policy.overrides, subject_of(asked, task_name), scores.texts, moment.now_unix)
    if ruled.deciding is not None:
        decision = _choose_overruled(ruled.deciding, task, live, policy, view, moment, asked.session)
    elif at:
        decision = _choose_pinned(asked, task, policy, view, moment)
    else:
        decision = _choose_live(task, alias, live, scores, policy, view, moment, asked.session)
    return decision if ruled is NO_RULE else _as_ruled(decision, ruled)


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
        return lacking(replica, pool.name)
    return Choice(None, None, pool, replica, "pinned", key=key)


def _choose_without_task(asked: Asked, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    """The pool for what is in no task's scope, where the caller may use it."""
    name = policy.auto_pool or ""
    if not asked.models_allowed.isdisjoint(("*", name)) and name in view.pools:
        found = _choose_pool(replace(asked, model=name), policy, view, moment)
        return replace(found, reason="out_of_scope") if isinstance(found, Choice) else found
    text = "The request is in the scope of no task that this key may use. GET /v1/models lists those."
    return Refusal("no_task_fits", text, "out_of_scope")


def subject_of(asked: Asked, task: str | None) -> Subject:
    """What rules are held against."""
    return Subject(task, asked.caller, asked.metadata or {})


def _as_ruled(decision: Choice | Refusal, ruled: Ruled) -> Choice | Refusal:
    """The decision with what rules add to it, and what those in the mode `observe` would have done."""
    noted = tuple(Finding("override", "observe", True, note=f"{one.id}: {one.action}") for one in ruled.observed)
    findings = (*noted, *decision.findings)
    if isinstance(decision, Refusal) or not ruled.adding:
        return replace(decision, findings=findings)
    text = "\n\n".join(one.system or "" for one in ruled.adding)
    return replace(decision, findings=findings, system=text, override_id=decision.override_id or ruled.adding[0].id)


def _choose_overruled(
    one: Override,
    task: TaskPolicy,
    live: VersionView | None,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    session: str | None,
) -> Choice | Refusal:
    if one.action == "refuse":
        return Refusal("refused_by_override", one.message or "An admin's rule refuses this request.")
    if one.action == "general":
        return exit_of(task, live, policy, view, moment, "override", session, one.id)
    version = view.versions.get(one.version or "")
    return _serve(task, version, policy, view, moment, "override", 1.0, session, one.id)


def _choose_live(
    task: TaskPolicy,
    alias: Alias | None,
    live: VersionView | None,
    scores: Scores,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    session: str | None,
) -> Choice | Refusal:
    if alias is None or live is None:
        return exit_of(task, None, policy, view, moment, "no_replica", session)
    findings, sent_away, probability = climb(task, alias, live, scores, policy, moment, session)
    if sent_away is not None:
        decision = exit_of(task, live, policy, view, moment, sent_away, session)
        if isinstance(decision, Refusal):
            return replace(decision, findings=findings)
        return replace(decision, findings=findings, probability=probability)
    reason: Reason = "adapter" if live.name == alias.leading else "canary"
    decision = _serve(task, live, policy, view, moment, reason, alias.weights[live.name] * probability, session)
    return replace(decision, findings=findings) if findings else decision


def _choose_pinned(asked: Asked, task: TaskPolicy, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    version = view.versions.get(asked.model)
    if version is None:
        return Refusal("model_not_found", f"The version {asked.model!r} does not exist.")
    if version.state in OUT_OF_SERVICE:
        return Refusal("version_not_loaded", f"{version.name} is {version.state}: it answers nobody.")
    return _serve(task, version, policy, view, moment, "pinned", 1.0, asked.session)


def _serve(
    task: TaskPolicy,
    version: VersionView | None,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    reason: Reason,
    probability: float,
    session: str | None,
    override_id: str | None = None,
) -> Choice | Refusal:
    pool = view.pools.get(version.pool) if version else None
    if version is None or pool is None or version.state in OUT_OF_SERVICE or not task.reaches(pool.name):
        if reason == "pinned":
            return Refusal("version_not_loaded", f"The task {task.name!r} may not reach the version's pool.")
        return exit_of(task, version, policy, view, moment, "no_replica", session, override_id)
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
        instead = exit_of(task, version, policy, view, moment, replica, session, override_id, frozenset(), spare_open)
        if isinstance(instead, Choice):
            return instead
    assert instead is not None
    return instead


def _lacking_pinned(lack: Lack, version: VersionView, pool: PoolView) -> Refusal:
    if lack == "overload":
        return lacking(lack, pool.name)
    return Refusal("version_not_loaded", f"{version.name} is not loaded on any replica that could take it now.")
