"""The score step: what the fitted models say of a request, before it is decided. Pure; a few hundred microseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from router.decision import Asked, Moment
from router.fitted import NOTHING_FITTED
from router.overrides import texts_matched
from router.placing import live_version
from router.policy import AUTO, Policy
from router.rungs import RungName
from serving.view import FleetView

if TYPE_CHECKING:
    from router.coverage import CoverageScore

CANDIDATES_MAX = 5
"""Tasks whose models are asked in full for the model `auto`."""
DEFERRED_SHARE = 0.05
"""Share of in-scope requests that a task is ready to defer, where it does not say."""
COVERAGE_READERS: tuple[RungName, ...] = ("out_of_scope", "low_confidence")
"""Rungs that need the coverage score: for itself, and as one of the features of confidence."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What is known of a request by models. `version` is whose models they are; `task` is what `auto` found.

    `gain` is how much likelier general is right than the adapter, from -1 to 1. `texts` are the ids of the admin's
    rules whose conditions on the text hold.
    """

    version: str | None = None
    coverage: CoverageScore | None = None
    gain: float | None = None
    task: str | None = None
    texts: frozenset[str] = frozenset()


NO_SCORES = Scores()


def score(asked: Asked, policy: Policy, view: FleetView, moment: Moment) -> Scores:
    """Ask the models that the task's rungs need. `moment` is the one that the request is decided with."""
    texts = texts_matched(policy.overrides, asked.text) if policy.text_needed else frozenset()
    found = task_for(asked, policy, view, moment) if asked.model == AUTO else None
    task_name = asked.model if found is None else found
    task = policy.tasks.get(task_name)
    if task is None or not task.reads_text:
        return Scores(task=found, texts=texts) if found or texts else NO_SCORES
    version = live_version(policy.aliases.get(task_name), view, asked.session, moment.draw)
    fitted = policy.fitted.get(version.name, NOTHING_FITTED) if version is not None else NOTHING_FITTED
    coverage = gain = None
    if fitted.coverage is not None and any(name in task.rungs for name in COVERAGE_READERS):
        coverage = fitted.coverage.score(asked.selected)
    if fitted.gain is not None and "predicted_gain" in task.rungs:
        gain = fitted.gain.score(asked.selected)
    return Scores(version.name if version else None, coverage, gain, found, texts)


def task_for(asked: Asked, policy: Policy, view: FleetView, moment: Moment) -> str | None:
    """The task that a request for `auto` is of, among those that its key may use; None where it fits none.

    A first stage that all tasks share picks a few; their own models decide: the task whose leading version is the
    surest that the request is in its scope.
    """
    if policy.index is None:
        return None
    allowed = frozenset(policy.tasks)
    if "*" not in asked.models_allowed:
        allowed &= asked.models_allowed
    best: tuple[float, str] | None = None
    for name in policy.index.candidates(asked.selected, allowed, CANDIDATES_MAX):
        version = live_version(policy.aliases.get(name), view, asked.session, moment.draw)
        model = policy.fitted.get(version.name, NOTHING_FITTED).coverage if version is not None else None
        if model is None:
            continue
        rung = policy.tasks[name].rungs.get("out_of_scope")
        margin = model.score(asked.selected).score - model.threshold(rung.share if rung else DEFERRED_SHARE)
        if margin >= 0 and (best is None or margin > best[0]):
            best = margin, name
    return best[1] if best else None
