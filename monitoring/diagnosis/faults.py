"""The likely fault behind a wrong answer: scope, data, training or base, each with its evidence, or unknown. Pure.

Answers are compared in their normal form. An answer without a judgement is not called wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

from monitoring.evaluation.answer_metrics import normalize

FaultName = Literal["scope", "data", "training", "base", "unknown"]
CauseState = Literal["likely", "possible", "unlikely", "unknown"]
ArmKind = Literal["own", "earlier", "base", "general"]
NEAR = 0.4
"""A training row is near from this similarity on (cosine of word weights)."""
FAR = 0.2
"""A request is unlike all training rows if the nearest is less similar, unless the rows differ as much themselves."""
AGREED = 0.8


class TrainingNeighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A training row near the request. `similarity` is from 0 to 1."""

    id: str
    text: str
    answer: str
    similarity: float
    origin: str = ""
    source: str = ""


class ArmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An arm's answer, requested now at temperature 0. Without a text, `fault` says why."""

    arm: str
    kind: ArmKind
    text: str | None = None
    fault: str | None = None


class ServedScope(msgspec.Struct, frozen=True, kw_only=True):
    """The scope score of the request: from when it was served, or from the version's scope model now."""

    score: float
    threshold: float | None
    fired: bool


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The known facts on a request. None is unknown.

    `label` is right, wrong or unresolved, `expected` the answer that people gave; `neighbours` are the nearest training
    rows, nearest first.
    """

    answer: str | None = None
    label: str | None = None
    expected: str | None = None
    neighbours: tuple[TrainingNeighbour, ...] | None = None
    no_neighbours: str = "the version's provenance names no data set"
    far: float = FAR
    answers: tuple[ArmAnswer, ...] = ()
    scope: ServedScope | None = None


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """One possible fault, and its evidence."""

    name: FaultName
    state: CauseState
    evidence: str


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The likely fault with its reason, and the evidence for each. `conflicting` are ids of near training rows without
    the most common answer of near rows."""

    likely: FaultName
    because: str
    causes: tuple[Cause, ...]
    conflicting: tuple[str, ...] = ()


def diagnose(case: Case) -> Diagnosis:
    """The likely fault of this case."""
    near = [each for each in case.neighbours or () if each.similarity >= NEAR]
    taught, share = _majority(near)
    conflicting = tuple(each.id for each in near if _form(each.answer) != taught)
    causes = (
        _judge_scope(case),
        _judge_data(case, near, taught, share),
        _judge_training(case, near, taught, share),
        _judge_base(case),
    )
    if case.label == "right":
        return Diagnosis(likely="unknown", because="It was judged right.", causes=causes, conflicting=conflicting)
    likely = next((cause for cause in causes if cause.state == "likely"), None)
    if likely is None:
        because = "Nothing that is known points to one fault."
        return Diagnosis(likely="unknown", because=because, causes=causes, conflicting=conflicting)
    because = likely.evidence
    if case.label != "wrong" and case.expected is None:
        because += " Nobody has judged the answer: this is where a fault would come from."
    return Diagnosis(likely=likely.name, because=because, causes=causes, conflicting=conflicting)


def _judge_scope(case: Case) -> Cause:
    nearest = None if case.neighbours is None else max((each.similarity for each in case.neighbours), default=0.0)
    finding = case.scope
    words = ""
    if finding is not None:
        threshold = "" if finding.threshold is None else f" (threshold {finding.threshold:.3g})"
        words = f"Its scope score is {finding.score:.3g}{threshold}."
    alike = "" if nearest is None else f" The nearest training row has a similarity of {nearest:.2f}."
    if finding is not None and finding.fired:
        return Cause(name="scope", state="likely", evidence=f"The version did not learn such requests. {words}{alike}")
    if nearest is not None and nearest < case.far:
        text = f"No training row is like the request. {words}{alike}"
        return Cause(name="scope", state="likely" if finding is None else "possible", evidence=text)
    if finding is None and nearest is None:
        return Cause(name="scope", state="unknown", evidence="No scope score, and no training rows.")
    sure = finding is not None or (nearest is not None and nearest >= NEAR)
    return Cause(name="scope", state="unlikely" if sure else "possible", evidence=f"{words}{alike}".strip())


def _judge_data(case: Case, near: Sequence[TrainingNeighbour], taught: bytes | None, share: float) -> Cause:
    if case.neighbours is None:
        return Cause(name="data", state="unknown", evidence=f"Unknown: {case.no_neighbours}.")
    if not near:
        return Cause(name="data", state="possible", evidence="No training row is near: such cases were not taught.")
    words = f"{round(share * len(near))} of {len(near)} near training rows have the same answer."
    if share < AGREED:
        return Cause(name="data", state="likely", evidence=f"Near training rows conflict: {words}")
    if case.expected is not None and taught != _form(case.expected):
        return Cause(name="data", state="likely", evidence=f"{words} It is not the one that people gave.")
    if case.expected is None and case.label == "wrong" and taught == _form(case.answer):
        return Cause(name="data", state="likely", evidence=f"{words} It is the one that was judged wrong.")
    return Cause(name="data", state="unlikely", evidence=words)


def _judge_training(case: Case, near: Sequence[TrainingNeighbour], taught: bytes | None, share: float) -> Cause:
    right = _right_form(case, near, taught, share)
    if right is None:
        return Cause(
            name="training", state="unknown", evidence="Unknown: neither people nor near rows say what is right."
        )
    if case.answer is not None and _form(case.answer) == right:
        return Cause(name="training", state="unlikely", evidence="The answer is what it was taught.")
    able = [each.arm for each in case.answers if each.kind in ("earlier", "base") and _form(each.text) == right]
    own = next((each for each in case.answers if each.kind == "own" and each.text is not None), None)
    if own is not None and _form(own.text) == right:
        text = f"Asked again at temperature 0, {own.arm} answers rightly: its answers are not steady."
        return Cause(name="training", state="likely", evidence=text)
    if able:
        verbs = "answers rightly, and has" if len(able) == 1 else "answer rightly, and have"
        text = f"{' and '.join(able)} {verbs} the same base: the training lost it."
        return Cause(name="training", state="likely", evidence=text)
    base = next((each for each in case.answers if each.kind == "base" and each.text is not None), None)
    if taught == right and share >= AGREED and near:
        state: CauseState = "likely" if base is None or not _general_alone(case, right) else "possible"
        return Cause(
            name="training", state=state, evidence="Near training rows teach the right answer, and it gives another."
        )
    return Cause(name="training", state="unknown", evidence="No other version or base answers rightly.")


def _judge_base(case: Case) -> Cause:
    base = next((each for each in case.answers if each.kind == "base" and each.text is not None), None)
    right = _form(case.expected)
    if base is None or right is None:
        lack = "the base was not asked" if base is None else "people gave no right answer"
        return Cause(name="base", state="unknown", evidence=f"Unknown: {lack}.")
    if _form(base.text) == right:
        return Cause(name="base", state="unlikely", evidence=f"{base.arm} answers rightly without the adapter.")
    if _general_alone(case, right):
        text = f"{base.arm} and every version on it answer wrongly, and general rightly: the base may be too small."
        return Cause(name="base", state="likely", evidence=text)
    return Cause(name="base", state="possible", evidence=f"{base.arm} answers wrongly, too.")


def _general_alone(case: Case, right: bytes) -> bool:
    """True if general answers rightly, and no arm on the version's base does."""
    answered = [each for each in case.answers if each.text is not None]
    able = {each.kind for each in answered if _form(each.text) == right}
    return able == {"general"} and any(each.kind == "base" for each in answered)


def _right_form(case: Case, near: Sequence[TrainingNeighbour], taught: bytes | None, share: float) -> bytes | None:
    """The right answer: people's, else the one that near rows agree on, unless it was judged wrong."""
    if case.expected is not None:
        return _form(case.expected)
    if near and share >= AGREED and not (case.label == "wrong" and taught == _form(case.answer)):
        return taught
    return None


def _majority(near: Sequence[TrainingNeighbour]) -> tuple[bytes | None, float]:
    """The most common answer of near rows, and its share."""
    counts = Counter(_form(each.answer) for each in near)
    if not counts:
        return None, 0.0
    form, count = counts.most_common(1)[0]
    return form, count / len(near)


def _form(text: str | None) -> bytes | None:
    return None if text is None else normalize(text)
