"""The score step of the walk: run the fitted models on a request without blocking the event loop.

A score by word vectors takes a few hundred microseconds and is computed in the event loop. A score by a neural net
takes milliseconds and runs in a thread. A text that rules take long to read runs in the threads that callers share.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from gateway.formats.request_body import RequestBody
from gateway.services import Services
from router.fitted import NOTHING_FITTED
from router.policy import AUTO, Policy
from router.routing_data import Choice, Moment, RoutingRequest, Scores
from router.scoring import score

log = logging.getLogger(__name__)


async def score_request(services: Services, request: RoutingRequest, policy: Policy, moment: Moment) -> Scores:
    """The request's scores. If a model fails, that is logged and counted, and no fitted model scores the request.

    Raises Problem (429) where its caller has too much waiting to be read.
    """
    view = services.fleet.view()
    if request.text and policy.takes_long(request.model, request.text, moment.now_unix):
        return await _read_in_turn(services, request, policy, moment)
    try:
        if request.selected and services.settings.fitting.minilm_file is not None and _is_slow(request, policy):
            return await asyncio.to_thread(score, request, policy, view, moment)
        return score(request, policy, view, moment)
    except Exception:  # a fault of ours in a model is not a reason to refuse a request
        bare = _without_models(services, request, policy)
        return await asyncio.to_thread(score, request, bare, view, moment)


async def _read_in_turn(services: Services, request: RoutingRequest, policy: Policy, moment: Moment) -> Scores:
    view, caller, length = services.fleet.view(), request.caller, len(request.text)
    if not services.threads.has_room(caller, length):
        raise services.admission.shed("caller_busy")
    try:
        return await services.threads.run(caller, length, score, request, policy, view, moment)
    except Exception:  # as above
        bare = _without_models(services, request, policy)
        return await services.threads.run(caller, length, score, request, bare, view, moment)


def _without_models(services: Services, request: RoutingRequest, policy: Policy) -> Policy:
    log.exception("a fitted model of %r failed: the request is decided without", request.model[:80])
    services.meters.fitted_unused.add(1, "failed")
    return replace(policy, fitted={}, index=None)


async def score_for_version(
    services: Services, body: RequestBody, choice: Choice, policy: Policy, scores: Scores
) -> Scores:
    """The scores for the version of this choice. If `scores` are another version's, the scope is scored again.

    Only a confidence model that weighs the scope needs that. A rule, a pin or a fallback leads to another version.
    """
    task, version = choice.task, choice.version
    if task is None or version is None or version.name == scores.version or "low_confidence" not in task.checks:
        return scores
    fitted = policy.fitted.get(version.name, NOTHING_FITTED)
    confidence, scope = fitted.confidence_for(task.selector), fitted.scope_for(task.selector)
    if confidence is None or scope is None or not confidence.weighs_scope:
        return scores
    selected = body.selected(task.selector)
    try:
        if scope.deep is not None:
            scope_score = await asyncio.to_thread(scope.score, selected)
        else:
            scope_score = scope.score(selected)
    except Exception:  # as above
        log.exception("the scope model of %s failed: its confidence goes without", version.name)
        services.meters.fitted_unused.add(1, "failed")
        return scores
    return replace(scores, version=version.name, scope=scope_score, gain=None)


def _is_slow(request: RoutingRequest, policy: Policy) -> bool:
    """True if a model that may be asked needs a neural net."""
    if request.model == AUTO:
        return True
    alias = policy.aliases.get(request.model)
    models = [policy.fitted[name].scope for name in alias.weights if name in policy.fitted] if alias else []
    return any(model is not None and model.deep is not None for model in models)
