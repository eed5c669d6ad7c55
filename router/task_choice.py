"""The task of a request for the model `auto`: the one whose live version is the surest that the text is in its scope.

`task_index.py`, a first stage that all tasks share, picks a few candidates. Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from router.fitted import NOTHING_FITTED
from router.policy import Policy
from router.routing_data import Moment, RoutingRequest
from router.version_choice import pick_live_version
from serving.fleet_view import FleetView

if TYPE_CHECKING:
    from router.scope_model import ScopeModel, ScopeScore

CANDIDATES_MAX = 5
"""Number of tasks whose own models score a request for the model `auto`."""
SURE_SCORE = 0.8
"""A task with this score is taken, and no further candidate is scored. 1 is the median of its training prompts."""
DEFERRED_SHARE = 0.05
"""Share of in-scope requests that a task may defer, if its settings do not say."""


def find_task(
    request: RoutingRequest, policy: Policy, view: FleetView, moment: Moment
) -> tuple[str, ScopeScore] | tuple[None, None]:
    """The task of a request for `auto`, among those that its key may use, with its scope score there; None if it fits
    no task.

    The index of all tasks picks a few candidates. Each candidate's own model scores the text that its task's selector
    takes. The highest score that reaches its task's threshold wins. Candidates are scored nearest first, until one
    reaches SURE_SCORE.
    """
    index = policy.index
    if index is None:
        return None, None
    allowed = policy.tasks if "*" in request.models_allowed else policy.tasks.keys() & request.models_allowed
    best: tuple[str, ScopeScore] | None = None
    for name in index.candidates(request.selected, allowed, CANDIDATES_MAX):
        task = policy.tasks[name]
        version = pick_live_version(policy.aliases.get(name), view, request.session, moment.draw)
        fitted = policy.fitted.get(version.name, NOTHING_FITTED) if version is not None else NOTHING_FITTED
        model = fitted.scope_for(task.selector)
        if model is None:
            continue
        text = request.selected_by(task.selector)
        check = task.checks.get("out_of_scope")
        task_score = model.score(text)
        if task_score.score < _bar(model, check.share if check else DEFERRED_SHARE):
            continue
        if best is None or task_score.score > best[1].score:
            best = name, task_score
        if task_score.score >= SURE_SCORE:
            break
    return best or (None, None)


def _bar(model: ScopeModel, share: float) -> float:
    """The lowest score with which a request may belong to a task. A task with too few prompts for its share gets the
    threshold of DEFERRED_SHARE, or else its lowest held-back score. Without one it would take everything."""
    bars = model.threshold(share), model.threshold(max(share, DEFERRED_SHARE)), float(model.held_back[0])
    return next(bar for bar in bars if bar > -math.inf)
