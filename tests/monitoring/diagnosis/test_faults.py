"""The likely fault of made cases: each kind of evidence points to its own."""

from __future__ import annotations

import random
from typing import Any

import pytest

from monitoring.datasets.rows import DataRow
from monitoring.diagnosis.faults import FAR, ArmAnswer, Case, ServedScope, TrainingNeighbour, diagnose
from monitoring.diagnosis.neighbours import find_neighbours


def taught(*answers: str, similarity: float = 0.7) -> tuple[TrainingNeighbour, ...]:
    return tuple(
        TrainingNeighbour(id=f"row{number}", text="A toaster", answer=answer, similarity=similarity)
        for number, answer in enumerate(answers)
    )


def answers(**texts: str) -> tuple[ArmAnswer, ...]:
    return tuple(ArmAnswer(arm=kind, kind=kind, text=text) for kind, text in texts.items())  # type: ignore[arg-type]


WRONG: dict[str, Any] = {"answer": "deny", "label": "wrong", "expected": "approve"}
ALIKE = taught(*["approve"] * 5)


@pytest.mark.parametrize(
    ("likely", "case"),
    [
        ("scope", Case(**WRONG, scope=ServedScope(score=0.01, threshold=0.1, fired=True))),
        ("scope", Case(**WRONG, neighbours=taught("approve", similarity=0.1))),
        ("data", Case(**WRONG, neighbours=taught("approve", "deny", "approve", "deny"))),
        ("data", Case(**WRONG, neighbours=taught(*["deny"] * 5))),
        ("data", Case(answer="deny", label="wrong", neighbours=taught(*["deny"] * 5))),
        ("training", Case(**WRONG, neighbours=ALIKE)),
        ("training", Case(**WRONG, answers=answers(own="deny", earlier="approve"))),
        ("training", Case(**WRONG, answers=answers(own="deny", base="approve"))),
        ("training", Case(**WRONG, answers=answers(own="approve", base="deny"))),
        ("training", Case(answer="deny", label="wrong", neighbours=ALIKE)),
        ("base", Case(**WRONG, neighbours=ALIKE, answers=answers(own="deny", base="deny", general="approve"))),
        ("unknown", Case(**WRONG)),
        ("unknown", Case(**WRONG, answers=answers(own="deny", base="deny", general="deny"))),
        ("unknown", Case(answer="approve", label="right", neighbours=taught("approve", "deny", "deny"))),
        ("unknown", Case()),
    ],
)
def test_evidence_points_to_its_own_fault(likely: str, case: Case) -> None:
    found = diagnose(case)
    assert found.likely == likely
    assert [cause.name for cause in found.causes] == ["scope", "data", "training", "base"]
    assert all(cause.evidence for cause in found.causes)


def test_rows_that_most_near_ones_contradict_are_named() -> None:
    found = diagnose(Case(**WRONG, neighbours=taught("approve", "approve", '{"a": 1}', "approve")))
    assert found.conflicting == ("row2",)


def test_nearest_rows_come_first_and_unlike_ones_are_no_neighbours() -> None:
    rows = [
        DataRow(
            id=name,
            messages=[
                {"role": "system", "content": "Decide the return of a blue toaster."},
                {"role": "user", "content": text},
                {"role": "assistant", "content": "approve"},
            ],
        )
        for name, text in (("far", "Wine by mail"), ("near", "A toaster, blue, sealed"), ("some", "A kettle, sealed"))
    ]
    found = find_neighbours(rows, "A blue toaster, sealed").nearest
    assert [each.id for each in found] == ["near", "some"]
    assert found[0].similarity > 2 * found[1].similarity
    assert find_neighbours(rows, "?!").nearest == ()


def test_a_request_as_unlike_rows_as_these_are_unlike_each_other_is_within_scope() -> None:
    draw = random.Random(1)
    words = [f"word{number}" for number in range(600)]
    texts = [" ".join(draw.sample(words, 20)) for _ in range(200)]
    answer = {"role": "assistant", "content": "approve"}
    rows = [DataRow(id=text, messages=[{"role": "user", "content": text}, answer]) for text in texts]
    inside = find_neighbours(rows, " ".join(draw.sample(words, 20)))
    assert 0 < inside.far <= inside.nearest[0].similarity < FAR
    assert diagnose(Case(**WRONG, neighbours=inside.nearest)).likely == "scope"
    assert diagnose(Case(**WRONG, neighbours=inside.nearest, far=inside.far)).likely == "unknown"


def test_what_the_scope_model_lets_pass_is_no_likely_fault_of_scope() -> None:
    passed = ServedScope(score=0.8, threshold=-0.1, fired=False)
    found = diagnose(Case(**WRONG, neighbours=taught("approve", similarity=0.05), scope=passed))
    assert (found.likely, found.causes[0].state) == ("unknown", "possible")


def test_versions_that_answer_rightly_are_named_together() -> None:
    able = [ArmAnswer(arm=arm, kind="earlier", text="approve") for arm in ("returns@v2", "returns@v1")]
    found = diagnose(Case(**WRONG, answers=tuple(able)))
    text = "returns@v2 and returns@v1 answer rightly, and have the same base: the training lost it."
    assert text in [cause.evidence for cause in found.causes]
