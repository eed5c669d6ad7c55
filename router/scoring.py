"""The score step: fitted models score a request before its route is decided. Pure; a few hundred microseconds."""

from __future__ import annotations

from router.checks import READERS, SCOPE_READERS
from router.fitted import NOTHING_FITTED
from router.overrides import match_texts
from router.policy import AUTO, Policy
from router.routing_data import NO_SCORES, Moment, RoutingRequest, Scores
from router.task_choice import find_task
from router.version_choice import pick_live_version
from serving.fleet_view import FleetView


def score(request: RoutingRequest, policy: Policy, view: FleetView, moment: Moment) -> Scores:
    """Score a request with the models that its task's checks need. `moment` is that of the request's decision."""
    rules = policy.rules_reading(request.model, moment.now_unix) if policy.text_needed else ()
    texts = match_texts(rules, request.text) if rules else frozenset()
    recognised, placed = find_task(request, policy, view, moment) if request.model == AUTO else (None, None)
    task_name = request.model if recognised is None else recognised
    task = policy.tasks.get(task_name)
    if task is None or task.checks.keys().isdisjoint(READERS):
        return Scores(task=recognised, texts=texts) if recognised or texts else NO_SCORES
    version = pick_live_version(policy.aliases.get(task_name), view, request.session, moment.draw)
    fitted = policy.fitted.get(version.name, NOTHING_FITTED) if version is not None else NOTHING_FITTED
    scope = gain = None
    covering, gaining = fitted.scope_for(task.selector), fitted.gain_for(task.selector)
    if covering is not None and not task.checks.keys().isdisjoint(SCOPE_READERS):
        scope = placed or covering.score(request.selected_by(task.selector))
    if gaining is not None and "predicted_gain" in task.checks:
        gain = gaining.score(request.selected_by(task.selector))
    return Scores(version.name if version else None, scope, gain, recognised, texts)
