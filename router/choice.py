"""The decision: where a request goes, and why. The first rule or check that applies decides. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from router.check_loop import judge_request
from router.checks import CheckedRequest
from router.fallbacks import Routing, choose_fallback, choose_replica, refuse_for_lack
from router.findings import Finding
from router.overrides import NO_RULE, Override, Ruled, Subject, apply_rules
from router.policy import AUTO, Alias, Policy, TaskPolicy
from router.replica_choice import Lack, pick
from router.routing_data import OUT_OF_SERVICE, Choice, Moment, Reason, Refusal, RoutingRequest, Scores
from router.version_choice import pick_live_version
from serving.fleet_view import FleetView, PoolView, VersionView

NO_INDEX = "no task has a scope model"
"""The note of a request for `auto` when no task can be found for any request."""


def choose(
    request: RoutingRequest, scores: Scores, policy: Policy, view: FleetView, moment: Moment
) -> Choice | Refusal:
    """Decide one request. Total: every input yields a Choice or a Refusal, and equal inputs yield the same result."""
    task_name, at, _ = request.model.partition("@")
    refusal = refuse_model(request.model, request.models_allowed)
    if refusal is not None:
        return refusal
    if request.model == AUTO:
        recognised = get_found_task(request, scores)
        if recognised is None:
            return _choose_without_task(request, policy, view, moment)
        task_name = recognised
    task = policy.tasks.get(task_name)
    if task is None:
        return _choose_pool(request, policy, view, moment)
    alias = policy.aliases.get(task_name)
    live = pick_live_version(alias, view, request.session, moment.draw)
    rules = policy.rules_for(task_name) if policy.overrides else ()
    ruled = apply_rules(rules, make_subject(request, task_name), scores.texts, moment.now_unix) if rules else NO_RULE
    if ruled.deciding is not None:
        decision = _choose_overruled(ruled.deciding, task, live, policy, view, moment, request.session)
    elif at:
        decision = _choose_pinned(request, task, policy, view, moment)
    else:
        decision = _choose_live(task, alias, live, scores, policy, view, moment, request.session)
    return decision if ruled is NO_RULE else _as_ruled(decision, ruled)


def get_found_task(request: RoutingRequest, scores: Scores) -> str | None:
    """The task that was found for a request for `auto`, if the caller's key may use it."""
    name = scores.task
    return None if name is None or request.models_allowed.isdisjoint(("*", name)) else name


def refuse_model(model: str, models_allowed: frozenset[str]) -> Refusal | None:
    """The refusal if a key with these models may not use the model; None if it may."""
    if models_allowed.isdisjoint(("*", model.partition("@")[0], model)):
        return Refusal("model_not_allowed", f"This key may not use the model {model!r}. Ask an admin for it.")
    return None


def _choose_pool(request: RoutingRequest, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    pool = view.pools.get(request.model) if request.model in policy.callable_pools else None
    if pool is None:
        return Refusal(
            "model_not_found", f"The model {request.model!r} does not exist. GET /v1/models lists those you can use."
        )
    key = request.session or None
    replica = pick(pool, None, view.in_flight, moment.now, moment.draw, key=key)
    if isinstance(replica, str):
        return refuse_for_lack(replica, pool.name)
    return Choice(task=None, version=None, pool=pool, replica=replica, reason="pinned", key=key)


def _choose_without_task(request: RoutingRequest, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    """The pool for requests in no task's scope, if the caller may use it; otherwise a refusal."""
    found_of = () if policy.index is not None else (Finding("out_of_scope", "enforce", fired=False, note=NO_INDEX),)
    name = policy.auto_pool or ""
    if not request.models_allowed.isdisjoint(("*", name)) and name in view.pools and name in policy.callable_pools:
        choice = _choose_pool(replace(request, model=name), policy, view, moment)
        return replace(choice, reason="out_of_scope", findings=found_of) if isinstance(choice, Choice) else choice
    text = "The request is in the scope of no task that this key may use. GET /v1/models lists those."
    if policy.index is None:
        text = "No task has a scope model, so that none can be found for the request. Ask for a task by its name."
    return Refusal("no_task_fits", text, "out_of_scope", found_of)


def make_subject(request: RoutingRequest, task: str | None) -> Subject:
    """The part of a request that rules compare, beside its text."""
    return Subject(task, request.caller, request.metadata or {})


def _as_ruled(decision: Choice | Refusal, ruled: Ruled) -> Choice | Refusal:
    """The decision with the messages that rules add, and with a finding for each rule that adds or only observes."""
    noted = [Finding("override", "observe", True, note=_noted(rule)) for rule in ruled.observed]
    if not isinstance(decision, Refusal):
        noted += [Finding("override", "enforce", True, note=_noted(rule)) for rule in ruled.adding]
    findings = (*noted, *decision.findings)
    if isinstance(decision, Refusal) or not ruled.adding:
        return replace(decision, findings=findings)
    return replace(decision, findings=findings, system="\n\n".join(rule.system or "" for rule in ruled.adding))


def _noted(rule: Override) -> str:
    return f"{rule.id}: {rule.action}"


def _choose_overruled(
    rule: Override,
    task: TaskPolicy,
    live: VersionView | None,
    policy: Policy,
    view: FleetView,
    moment: Moment,
    session: str | None,
) -> Choice | Refusal:
    match rule.action:
        case "refuse":
            text = rule.message or "An admin's rule refuses this request."
            return Refusal("refused_by_override", text, override_id=rule.id)
        case "general":
            routing = Routing(task, live, "override", key=session, override_id=rule.id, led_to=live)
            return choose_fallback(routing, policy, view, moment)
        case "version" | "system":  # a rule that adds a message never decides
            version = view.versions.get(rule.version or "")
            routing = Routing(task, version, "override", key=session, override_id=rule.id, led_to=version)
            return _serve(routing, policy, view, moment)
    assert_never(rule.action)


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
        return choose_fallback(Routing(task, None, "no_replica", key=session), policy, view, moment)
    judgement = judge_request(CheckedRequest(task, alias, live, scores, policy, moment, session))
    reason: Reason = judgement.sent_away or ("adapter" if live.name == alias.leading else "canary")
    routing = Routing(
        task=task,
        version=live,
        reason=reason,
        key=session,
        probability=alias.weights[live.name] * judgement.probability,
        findings=judgement.findings,
        led_to=live,
    )
    if judgement.sent_away is not None:
        return choose_fallback(routing, policy, view, moment)
    return _serve(routing, policy, view, moment)


def _choose_pinned(
    request: RoutingRequest, task: TaskPolicy, policy: Policy, view: FleetView, moment: Moment
) -> Choice | Refusal:
    version = view.versions.get(request.model)
    if version is None:
        return Refusal("model_not_found", f"The version {request.model!r} does not exist.")
    if version.state in OUT_OF_SERVICE:
        return Refusal("version_not_loaded", f"{version.name} is {version.state}: it answers nobody.")
    if not task.reaches(version.pool):
        text = f"The task {task.name!r} may not send its texts to the pool {version.pool!r}, where {version.name} is."
        return Refusal("version_not_loaded", text)
    return _serve(Routing(task, version, "pinned", key=request.session, led_to=version), policy, view, moment)


def _serve(routing: Routing, policy: Policy, view: FleetView, moment: Moment) -> Choice | Refusal:
    """The version on a replica of its pool. If none can take it: the task's fallback, unless the request is pinned."""
    task, version, reason = routing.task, routing.version, routing.reason
    pool = view.pools.get(version.pool) if version else None
    if version is None or pool is None or version.state in OUT_OF_SERVICE or not task.reaches(pool.name):
        if reason == "pinned":
            return Refusal("version_not_loaded", "The version's pool is not there. Ask an admin for it.")
        return choose_fallback(replace(routing, reason="no_replica"), policy, view, moment)
    instead: Choice | Refusal | None = None
    for spare_open in (True, False) if reason != "pinned" else (False,):
        placed = choose_replica(routing, pool, version, view, moment, spare_open=spare_open)
        if isinstance(placed, Choice):
            return placed
        if reason == "pinned":
            return _lacking_pinned(placed, version, pool)
        instead = choose_fallback(replace(routing, reason=placed), policy, view, moment, frozenset(), spare_open)
        if isinstance(instead, Choice):
            return instead
    assert instead is not None
    return instead


def _lacking_pinned(lack: Lack, version: VersionView, pool: PoolView) -> Refusal:
    if lack == "overload":
        return refuse_for_lack(lack, pool.name)
    return Refusal("version_not_loaded", f"{version.name} is not loaded on any replica that could take it now.")
