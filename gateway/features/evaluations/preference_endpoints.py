"""Endpoints for people who compare two arms' answers, without knowing which arm gave which."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import Field

from gateway.audit import enter_event
from gateway.callers import Caller
from gateway.endpoint_parts import Body, Reviewer, see_that_it_reviews
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.evaluations.state import Evaluations
from gateway.features.evaluations.store import Evaluation
from gateway.features.evaluations.texts import read_texts
from gateway.openapi_parts import with_errors
from monitoring.evaluation.preferences import SKIPPED, Preference
from monitoring.evaluation.results import RowResult
from monitoring.ids import digest

router = APIRouter(tags=["reviewers"])
LOOKED_AT_ONCE = 100
ArmName = Annotated[str | None, Query(max_length=80, description="An arm; unset: the first, and the second.")]


class PreferenceIn(Body):
    """A judgement: the better of the two answers to a row; `skip` if you can't tell."""

    number: Annotated[int, Field(ge=0, le=2**31)]
    better: Literal["a", "b", "same", "skip"]


@router.get("/v1/evaluations")
async def list_compared(request: Request, reviewer: Reviewer) -> dict[str, Any]:
    """The newest evaluations whose answers this key may compare: their texts are kept."""
    evaluations = feature_of(request, Evaluations)
    listed = await evaluations.store.list_with_texts(lambda each: len(each.arms) > 1 and reviewer.reviews(each.task))
    return {"evaluations": [{"id": each.id, "task": each.task, "created_at": each.created_at} for each in listed]}


@router.get("/v1/evaluations/{evaluation}/pair", responses=with_errors("not_found", "no_review"))
async def next_pair(
    request: Request, evaluation: str, reviewer: Reviewer, first: ArmName = None, second: ArmName = None
) -> dict[str, Any]:
    """A request with two different answers, `a` and `b`, that this key has not compared yet. The arms' order is
    drawn for each row and key. The audit names the reader.
    """
    evaluations = feature_of(request, Evaluations)
    compared = await find_evaluation(evaluations, evaluation)
    arms = _find_arms(reviewer, compared, first, second)
    numbers = {preference.number for preference in await _list_own(evaluations, compared, arms, reviewer.public)}
    rows = compared.rows if await evaluations.store.has_texts(compared) else 0
    drawn = draw_numbers(rows, _draw(evaluations, compared, "order"))
    unseen = (number for number in drawn if number not in numbers)
    while some := list(itertools.islice(unseen, LOOKED_AT_ONCE)):
        results = [await evaluations.store.results_of(compared, arm, some) for arm in arms]
        for number, left, right in zip(some, *results, strict=True):
            if _differ(left, right) and (texts := await read_texts(evaluations, compared, number)) is not None:
                answers = texts.pop("answers")
                if {*arms} <= answers.keys():
                    await enter_event(
                        evaluations.services, reviewer, "evaluation.give", compared.version, {"id": compared.id}
                    )
                    await evaluations.store.note_given(compared, number, arms, reviewer.public)
                    a, b = _order(evaluations, compared, arms, number, reviewer.public)
                    texts.pop("expected")
                    return {"evaluation": compared.id, "number": number, **texts, "a": answers[a], "b": answers[b]}
    raise Problem("no_review", f"No pair of answers is left for you. {_why_none(evaluations, compared)}".strip())


@router.post("/v1/evaluations/{evaluation}/pair", responses=with_errors("not_found", "state_conflict"))
async def prefer(
    request: Request,
    evaluation: str,
    reviewer: Reviewer,
    body: PreferenceIn,
    first: ArmName = None,
    second: ArmName = None,
) -> dict[str, Any]:
    """Say which answer is better, that both are as good, or that you skip what this key was given. A later judgement
    of the row replaces the first. `GET /admin/v1/evaluations/{evaluation}` counts them.
    """
    evaluations = feature_of(request, Evaluations)
    compared = await find_evaluation(evaluations, evaluation)
    arms = _find_arms(reviewer, compared, first, second)
    if not 0 <= body.number < compared.rows:
        raise Problem("invalid_value", f"The evaluation has {compared.rows} rows, counted from 0.", "number")
    if not await evaluations.store.was_given(compared, body.number, arms, reviewer.public):
        raise Problem(
            "state_conflict", "This key was not given that pair of answers: GET this address for one.", "number"
        )
    a, b = _order(evaluations, compared, arms, body.number, reviewer.public)
    better = {"a": a, "b": b, "same": "", "skip": SKIPPED}[body.better]
    await evaluations.store.keep_preference(compared, Preference(body.number, reviewer.public, *arms, better))
    return {"evaluation": compared.id, "number": body.number, "kept": True}


async def find_evaluation(evaluations: Evaluations, name: str) -> Evaluation:
    """The evaluation with this id. Raises Problem (404)."""
    evaluation = await evaluations.store.get(name) if name.isalnum() and len(name) <= 64 else None
    if evaluation is None:
        raise Problem("not_found", f"There is no evaluation {name[:80]!r}.")
    return evaluation


def _find_arms(reviewer: Caller, evaluation: Evaluation, first: str | None, second: str | None) -> tuple[str, str]:
    """The two arms to compare, in the evaluation's order. Raises Problem: 400, and 403 if the key may not judge them or
    not name them."""
    see_that_it_reviews(reviewer, evaluation.task)
    if reviewer.judges_only and (first or second):
        raise Problem("role_required", "A reviewer does not see the arms: leave `first` and `second` out.")
    rest = [arm for arm in evaluation.arms if arm not in (first, second)]
    arms = (first or (rest.pop(0) if rest else ""), second or (rest.pop(0) if rest else ""))
    if arms[0] == arms[1] or not {*arms} <= evaluation.arms.keys():
        text = f"The evaluation has the arms {', '.join(evaluation.arms)}: name two of them."
        raise Problem("invalid_value", text, "second" if first in evaluation.arms else "first")
    one, other = (arm for arm in evaluation.arms if arm in arms)
    return one, other


async def _list_own(
    evaluations: Evaluations, evaluation: Evaluation, arms: tuple[str, str], reviewer: str
) -> list[Preference]:
    preferences = await evaluations.store.preferences(evaluation)
    return [each for each in preferences if each.reviewer == reviewer and (each.first, each.second) == arms]


def _differ(left: bytes | None, right: bytes | None) -> bool:
    """True if both arms answered, and their answers differ."""
    if left is None or right is None:
        return False
    first, second = (msgspec.json.decode(raw, type=RowResult) for raw in (left, right))
    return "failed" not in (first.outcome, second.outcome) and first.form != second.form


def _order(
    evaluations: Evaluations, evaluation: Evaluation, arms: tuple[str, str], number: int, reviewer: str
) -> tuple[str, str]:
    """The arms of the answers `a` and `b`, in an order that is drawn for each row and reviewer."""
    is_turned = int(_draw(evaluations, evaluation, *arms, str(number), reviewer)[:2], 16) % 2
    return (arms[1], arms[0]) if is_turned else arms


def draw_numbers(count: int, seed: str) -> Iterator[int]:
    """The numbers below `count` in a random order. Each is drawn only when it is needed."""
    chance, moved = random.Random(seed), dict[int, int]()  # noqa: S311 - it is not a secret
    for last in reversed(range(count)):
        at = chance.randint(0, last)
        yield moved.get(at, at)
        moved[at] = moved.pop(last, last)


def _draw(evaluations: Evaluations, evaluation: Evaluation, *parts: str) -> str:
    return digest(evaluations.services.digest_secret, " ".join((evaluation.id, *parts)).encode())


def _why_none(evaluations: Evaluations, evaluation: Evaluation) -> str:
    task = evaluations.services.settings.tasks.get(evaluation.task)
    if task is None or task.texts.keep == "none":
        return f"The task {evaluation.task} keeps no texts: set tasks.{evaluation.task}.texts, then evaluate again."
    return ""
