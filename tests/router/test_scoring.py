"""The score step: which task a request for `auto` is of, and by what each task's models judge it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from router.findings import CheckPolicy
from router.fitted import Fitted
from router.policy import Alias, Policy, TaskPolicy
from router.scoring import score
from router.task_choice import find_task
from serving.fleet_view import FleetView
from tests.router.situations import Covered, asked, moment, policy, usual_fleet

NAMES = ("first", "second", "third")


@dataclass
class Reader:
    """A scope model that knows what it says of each text, and what it was asked."""

    says: Mapping[str, float]
    at: float = 0.0
    least: float = -2.0
    read: list[str] = field(default_factory=list)

    @property
    def held_back(self) -> list[float]:
        """Scores of training prompts."""
        return [self.least, 0.0, 1.0]

    def score(self, text: str) -> Covered:
        """Its score of a text."""
        self.read.append(text)
        return Covered(self.says.get(text, -9.0))

    def threshold(self, share: float) -> float:
        """None for a share that it has too few prompts for."""
        return -math.inf if share < 0.05 else self.at


@dataclass
class Index:
    """An index in which the tasks are as near as they are named."""

    tasks: tuple[str, ...]

    def candidates(self, _: str, allowed: Collection[str], count: int) -> tuple[str, ...]:
        """Those that are allowed."""
        return tuple(name for name in self.tasks if name in allowed)[:count]


def many(models: Mapping[str, Reader], tasks: Mapping[str, TaskPolicy] | None = None) -> tuple[Policy, FleetView]:
    """Tasks with a version and a scope model each, and a fleet that has them."""
    own = {name: TaskPolicy(name, "general", checks={"out_of_scope": CheckPolicy("enforce", 0.05)}) for name in models}
    view, known = usual_fleet(), usual_fleet().versions["returns@v1"]
    versions = {f"{name}@v1": replace(known, name=f"{name}@v1", task=name) for name in models}
    rules = policy(
        tasks=own | dict(tasks or {}),
        aliases={name: Alias(name, 1, {f"{name}@v1": 1.0}) for name in models},
        fitted={f"{name}@v1": Fitted(model) for name, model in models.items()},
        index=Index(tuple(models)),
    )
    return rules, replace(view, versions=versions)


def found(models: Mapping[str, Reader], rules: tuple[Policy, FleetView] | None = None, **changes: Any) -> str | None:
    """The task that a request for `auto` is of."""
    request = asked("auto", **{"models_allowed": frozenset({"*"}), "selected": "text", **changes})
    return find_task(request, *(rules or many(models)), moment())[0]


def test_auto_takes_the_task_whose_model_is_the_surest_of_those_that_take_it() -> None:
    models = {"first": Reader({"text": 0.2}), "second": Reader({"text": 0.5}), "third": Reader({"text": -0.1})}
    assert found(models) == "second"
    assert found({"first": Reader({"text": -0.1}), "second": Reader({"text": 0.1}, at=0.2)}) is None


def test_auto_asks_no_further_once_a_task_is_sure_enough() -> None:
    models = {"first": Reader({"text": 0.1}), "second": Reader({"text": 0.9}), "third": Reader({"text": 5.0})}
    assert found(models) == "second"
    assert [len(one.read) for one in models.values()] == [1, 1, 0]


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_a_task_with_too_few_prompts_for_its_share_does_not_take_everything(share: float) -> None:
    models = {"first": Reader({"mine": 0.3, "theirs": -1.0}), "second": Reader({"theirs": 0.1})}
    small = TaskPolicy("first", "general", checks={"out_of_scope": CheckPolicy("enforce", share)})
    rules = many(models, {"first": small})
    assert found(models, rules, selected="theirs") == "second"
    assert found(models, rules, selected="nobody's") is None
    assert found(models, rules, selected="mine") == "first"


def test_task_with_too_few_prompts_for_any_share_accepts_what_is_like_the_farthest() -> None:
    model = Reader({"near": -1.0, "far": -2.5}, at=-math.inf)
    assert found({"first": model}, selected="near") == "first"
    assert found({"first": model}, selected="far") is None


def test_each_candidate_reads_its_own_selectors_text_and_checks_reuse_that() -> None:
    models = {"first": Reader({"note": -1.0, "whole": 3.0}), "second": Reader({"note": 0.4})}
    noted = [
        TaskPolicy(name, None, checks={"out_of_scope": CheckPolicy("enforce", 0.05)}, selector="field:note")
        for name in NAMES
    ]
    rules, view = many(models, {task.name: task for task in noted[:2]})
    request = asked("auto", models_allowed=frozenset({"*"}), selected="whole")
    request = replace(request, selections={"user_turns": "whole", "field:note": "note"})
    scores = score(request, rules, view, moment())
    assert scores.task == "second"
    assert scores.scope == Covered(0.4)
    assert [one.read for one in models.values()] == [["note"], ["note"]]


def test_a_model_that_was_fitted_with_another_selector_is_not_asked() -> None:
    model, gain = Reader({"text": 9.0}), Reader({"text": 9.0})
    rules, view = many({"first": model})
    fit = Fitted(model, None, gain, scope_selector="dialogue", gain_selector="last_user")  # type: ignore[arg-type]
    checks = {"out_of_scope": CheckPolicy("enforce", 0.05), "predicted_gain": CheckPolicy("enforce", 0.05)}
    rules = replace(rules, fitted={"first@v1": fit}, tasks={"first": TaskPolicy("first", None, checks=checks)})  # type: ignore[arg-type]
    assert found({}, (rules, view)) is None
    scores = score(asked("first", selected="text"), rules, view, moment())
    assert (scores.scope, scores.gain, model.read, gain.read) == (None, None, [], [])


def test_a_confidence_holds_beside_the_scope_that_it_was_calibrated_with_alone() -> None:
    scope, confidence = Reader({}), object()
    fit = Fitted(scope, confidence, scope_selector="last_user")  # type: ignore[arg-type]
    assert fit.confidence_for("last_user") is confidence
    assert fit.confidence_for("user_turns") is None
    assert replace(fit, calibrated_apart=True).confidence_for("last_user") is None
    assert replace(fit, scope=None, scope_selector=None).confidence_for("user_turns") is confidence
