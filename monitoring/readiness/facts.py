"""The facts of labelled rows that readiness rests on: curve, cases, agreement, and stability over time. Pure, seeded.

It imports scikit-learn, so only separate processes import this file, and no gateway does.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import msgspec
import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from monitoring.datasets.rows import describe_spellings, fold_text
from monitoring.evaluation.answer_metrics import normalize, read_object
from monitoring.evaluation.dataset import write_as_text
from monitoring.evaluation.row_classes import CLASSES_MAX, NO_CALL
from monitoring.labels.agreement import measure_agreement
from monitoring.labels.messages import Rating
from monitoring.labels.ratings import collect_ratings
from monitoring.readiness.evidence import CurvePoint, Facts, Interval, LabelledText, LearningCurve
from monitoring.readiness.extrapolation import extrapolate
from monitoring.readiness.learning_curve import CurveError, measure_curve, predict

LATE_SHARE = 0.3
DATED_MIN = 200
THIN_ROWS = 10
"""A class with fewer rows is thin."""
CLASSES_TOLD = 8
REPEATED_MAX = 2000
TIMES = (1, 2, 4, 8, 16)
DIGITS = 4
REPEATED_MIN = 2.0
"""The least mean number of rows of a class: answers that all differ are not classes."""


def collect_facts(rows: Sequence[LabelledText], class_field: str = "", seed: int = 0) -> Facts:
    """The facts of these rows. `class_field` is the field of the answers that is the class; empty: it is found."""
    facts = Facts(
        rows=len(rows),
        groups=len({row.group for row in rows}),
        different_answers=len({row.expected for row in rows}),
        agreement=_agreement(rows, seed),
    )
    classes = find_classes(rows, class_field)
    if classes is None:
        reason = "the answers are free texts, and no classes that a cheap model could learn"
        return msgspec.structs.replace(facts, no_curve=reason, no_drop=reason)
    source, labels = classes
    facts = msgspec.structs.replace(facts, class_source=source, **_cases(labels))
    texts = [row.text for row in rows]
    try:
        facts = msgspec.structs.replace(facts, curve=_curve(texts, labels, [row.group for row in rows], seed))
    except CurveError as error:
        facts = msgspec.structs.replace(facts, no_curve=str(error))
    drop, reason = _drop(texts, labels, [row.group for row in rows], [row.at for row in rows], seed)
    return msgspec.structs.replace(facts, drop=drop, no_drop=reason)


def _curve(texts: Sequence[str], labels: Sequence[str], groups: Sequence[int], seed: int) -> LearningCurve:
    curve = measure_curve(texts, labels, groups, seed)
    sizes = [times * len(texts) for times in TIMES if times * len(texts) <= 16 * curve.sizes[-1]]
    return LearningCurve(
        tuple(
            CurvePoint(size, round(1 - float(share), DIGITS))
            for size, share in zip(curve.sizes, curve.shares, strict=True)
        ),
        tuple(
            CurvePoint(point.rows, round(point.right, DIGITS), round(point.low, DIGITS), round(point.high, DIGITS))
            for point in extrapolate(curve, sizes, seed)
        ),
    )


def _cases(labels: Sequence[str]) -> dict[str, object]:
    counts = Counter(labels)
    shares = np.array(list(counts.values())) / len(labels)
    thin = {name: count for name, count in sorted(counts.items(), key=lambda item: item[1]) if count < THIN_ROWS}
    return {
        "classes": len(counts),
        "effective_classes": round(float(np.exp(-(shares * np.log(shares)).sum())), 1),
        "thin": dict(list(thin.items())[:CLASSES_TOLD]),
        "thin_classes": len(thin),
        "thin_share": round(sum(thin.values()) / len(labels), DIGITS),
        "spellings": describe_spellings(counts),
        "unseen": round(sum(count == 1 for count in counts.values()) / len(labels), DIGITS),
    }


def _agreement(rows: Sequence[LabelledText], seed: int) -> Interval | None:
    """The agreement of the answers to equal requests, as if each came from another rater."""
    answers: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        answers[fold_text(row.text)].append(normalize(row.expected).decode(errors="replace"))
    repeated = [(text, repeats) for text, repeats in answers.items() if len(repeats) > 1][:REPEATED_MAX]
    ratings = (Rating(text, str(at), value) for text, repeats in repeated for at, value in enumerate(repeats))
    result = measure_agreement(collect_ratings(ratings), seed)
    if result.alpha is None or result.low is None or result.high is None:
        return None
    return Interval(round(result.alpha, DIGITS), round(result.low, DIGITS), round(result.high, DIGITS), result.items)


def _drop(
    texts: Sequence[str], labels: Sequence[str], groups: Sequence[int], times: Sequence[float | None], seed: int
) -> tuple[Interval | None, str]:
    """The loss on late rows of a model of earlier rows; else the reason why it is unknown. Only one row of each group
    is used: a model that knows a row's group does not show what changed."""
    dated = list({groups[at]: at for at, time in enumerate(times) if time is not None}.values())
    if len(dated) < DATED_MIN or len({times[at] for at in dated}) < 10:
        return None, f"{len(dated)} different rows have a time (`at`), and it takes {DATED_MIN} of different times"
    order = np.array(sorted(dated, key=lambda at: times[at] or 0.0))
    first_late = int((1 - LATE_SHARE) * len(order))
    early, late = order[:first_late], order[first_late:]
    labelled = np.array(labels, dtype=object)
    try:
        features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform([str(text) for text in texts])
    except ValueError:
        return None, "the texts have no words"
    before = predict(features, labelled, early, late) == labelled[late]
    mixed = np.zeros(len(late), dtype=bool)
    generator = np.random.default_rng(seed)
    for tested in np.array_split(generator.permutation(len(late)), 5):
        rest = np.setdiff1d(order, late[tested])
        train = generator.permutation(rest)[: len(early)]
        mixed[tested] = predict(features, labelled, train, late[tested]) == labelled[late[tested]]
    return _paired(int((mixed & ~before).sum()), int((before & ~mixed).sum()), len(late)), ""


def _paired(first_only: int, second_only: int, count: int) -> Interval:
    """The difference of two shares of the same rows, with its 95% interval (Agresti and Min)."""
    first, second, rows = first_only + 0.5, second_only + 0.5, count + 2
    middle = (first - second) / rows
    half = 1.96 * math.sqrt(first + second - (first - second) ** 2 / rows) / rows
    mean = (first_only - second_only) / count
    return Interval(round(mean, DIGITS), round(middle - half, DIGITS), round(middle + half, DIGITS), count)


def find_classes(rows: Sequence[LabelledText], class_field: str = "") -> tuple[str, list[str]] | None:
    """The name of the classes that a cheap model can learn, and the class of each row.

    The class is a named field of a JSON answer; else the data's label; else the called tools; else the answer, if few
    are different; else all fields of a JSON answer that have few values. None if answers are free texts.
    """
    if class_field:
        return class_field, [write_as_text((read_object(row.expected) or {}).get(class_field)) for row in rows]
    if all(row.label is not None for row in rows):
        labels = [row.label or "" for row in rows]
        if _are_classes(labels):
            return "label", labels
    if any(row.called for row in rows):
        called = [row.called or NO_CALL for row in rows]
        if _are_classes(called):
            return "tool", called
    answers = [normalize(row.expected).decode(errors="replace") for row in rows]
    if _are_classes(answers):
        return "answer", answers
    objects = [read_object(row.expected) for row in rows]
    if not all(objects):
        return None
    names = [
        name
        for name in objects[0] or {}
        if all(name in (each or {}) for each in objects)
        and _are_classes([write_as_text((each or {})[name]) for each in objects])
    ]
    together = [" / ".join(write_as_text((each or {})[name]) for name in names) for each in objects]
    return (" / ".join(names), together) if names and _are_classes(together) else None


def _are_classes(values: Sequence[str]) -> bool:
    different = len(set(values))
    return different <= CLASSES_MAX and different * REPEATED_MIN <= len(values)
