"""The label of a request: one value, decided from all judgements of it.

The monitor, the gate and data sets use it. The rules, in this order:

1. A resolution decides: somebody saw all answers. Of several the latest counts.
2. Trusted judgements (of reviewers and trusted callers) replace all others.
3. Of each rater the latest value counts.
4. It is unresolved until all reviewers that were asked have answered.
5. More than half of the raters decide; a tie is unresolved.
6. With `agreed_only` a label of one rater, or with a dissenter, is unresolved.

A demonstration counts if, on the deciding side, more than half of those who gave one gave the same. So a lone
dissenter's demonstration is never taken as the right answer.

Pure functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Literal

import msgspec

from monitoring.evaluation.answer_forms import write_demonstration
from monitoring.evaluation.answer_metrics import normalize
from monitoring.feedback import Feedback
from monitoring.ids import name_rater
from monitoring.metric_values import Metric, is_bad, measure_badness
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

LabelValue = Literal["right", "wrong", "unresolved"]


class RaterJudgement(msgspec.Struct, frozen=True, kw_only=True):
    """One judgement of an answer: its rater, and its badness from 0 (right) to 1 (wrong); None: only a demonstration.

    `reviewers` people were asked about the request. `resolves`: the giver has seen all other answers. `form` is the
    demonstration in the form for comparisons. `is_unread`: it may have one among words that could not be opened.
    """

    rater: str
    badness: float | None = None
    is_trusted: bool = False
    resolves: bool = False
    reviewers: int = 1
    demonstration: Any = None
    form: bytes | None = None
    is_unread: bool = False


class RequestLabel(msgspec.Struct, frozen=True, kw_only=True):
    """The label of a request, and a sentence with the reason.

    `badness` is None if it is unresolved. `demonstration` is the right answer, if one is agreed. `right` and `wrong`
    count raters; `reviewers` is how many were asked. `is_waiting`: not all reviewers have answered.
    """

    value: LabelValue
    words: str
    badness: float | None = None
    demonstration: Any = None
    right: int = 0
    wrong: int = 0
    reviewers: int = 1
    is_waiting: bool = False
    is_resolved: bool = False

    @property
    def is_disputed(self) -> bool:
        """Return whether somebody should look at all answers: all have come, and no label follows from them."""
        return self.value == "unresolved" and not self.is_waiting and self.right > 0 and self.wrong > 0


class LabelRules(msgspec.Struct, frozen=True, kw_only=True):
    """The rules of a task's labels. The first of `metrics` by which somebody has judged a request decides its label.

    Judgements of `trusted_callers` count like reviewers'. With `agreed_only` only agreed labels count.
    """

    metrics: Mapping[str, Metric]
    trusted_callers: Set[str] = frozenset()
    agreed_only: bool = False


def make_rules(plan: MonitorPlan, declared: Mapping[str, Metric]) -> LabelRules:
    """The rules of a task: by its own metrics if it has any, else by all declared ones."""
    ours = [name for name in (plan.feedback_metric, plan.complaint_metric) if name is not None]
    return LabelRules(
        metrics={name: declared[name] for name in ours or declared if name in declared},
        trusted_callers=frozenset(plan.trusted_callers),
        agreed_only=plan.agreed_only,
    )


def find_label(feedback: Iterable[Feedback], rules: LabelRules) -> RequestLabel | None:
    """The label of a request from its feedback, in any order; None if nobody has judged it."""
    ordered = sorted(feedback, key=lambda entry: entry.at)
    for name in rules.metrics:
        label = decide_label([read_judgement(entry, name, rules) for entry in ordered], rules.agreed_only)
        if label is not None:
            return label
    return None


def read_judgement(feedback: Feedback, metric: str, rules: LabelRules) -> RaterJudgement:
    """A feedback as a judgement by this metric; without a value if it is by another metric."""
    shown = feedback.demonstration
    return RaterJudgement(
        rater=name_rater(feedback.caller, feedback.rater),
        badness=measure_badness(rules.metrics[metric], feedback.value) if feedback.metric == metric else None,
        is_trusted=feedback.reviewed or feedback.caller in rules.trusted_callers,
        resolves=feedback.resolves,
        reviewers=feedback.reviewers,
        demonstration=shown,
        form=None if shown is None else normalize(write_demonstration(shown, has_tools=True)),
        is_unread=feedback.key is not None,
    )


def decide_label(judgements: Sequence[RaterJudgement], agreed_only: bool = False) -> RequestLabel | None:
    """The label that follows from judgements, earliest first; None if none has a value."""
    counted = _keep_trusted(judgements)
    values = {entry.rater: entry.badness for entry in counted if entry.badness is not None and not entry.resolves}
    resolution = next((entry for entry in reversed(counted) if entry.resolves and entry.badness is not None), None)
    wrong = sum(map(is_bad, values.values()))
    right = len(values) - wrong
    reviewers = max((entry.reviewers for entry in counted), default=1)
    label = RequestLabel(value="unresolved", words="", right=right, wrong=wrong, reviewers=reviewers)
    if resolution is not None:
        return _resolved(label, resolution)
    if not values:
        return None
    if len(values) < reviewers:
        words = f"{len(values)} of {reviewers} reviewers {'has' if len(values) == 1 else 'have'} answered"
        return msgspec.structs.replace(label, words=words, is_waiting=True)
    if right == wrong:
        return msgspec.structs.replace(label, words=f"{_count(wrong, len(values), 'wrong')}: unresolved")
    is_wrong = wrong > right
    words = _count(max(right, wrong), len(values), "wrong" if is_wrong else "right")
    if agreed_only and (len(values) == 1 or 0 < wrong < len(values)):
        return msgspec.structs.replace(label, words=f"{words}: unresolved, since only agreed labels count here")
    deciding = {rater: value for rater, value in values.items() if is_bad(value) == is_wrong}
    able = [
        entry
        for entry in counted
        if (entry.rater in deciding or entry.rater not in values) and entry.badness in (None, values.get(entry.rater))
    ]
    return msgspec.structs.replace(
        label,
        value="wrong" if is_wrong else "right",
        words=words,
        badness=sum(deciding.values()) / len(deciding),
        demonstration=_find_demonstration(able, 2 if agreed_only else 1),
    )


def _resolved(label: RequestLabel, resolution: RaterJudgement) -> RequestLabel:
    value: LabelValue = "wrong" if is_bad(resolution.badness) else "right"
    answers = label.right + label.wrong
    before = f"; {_count(label.wrong, answers, 'wrong', past=True)}" if answers else ""
    return msgspec.structs.replace(
        label,
        value=value,
        words=f"resolved as {value}{before}",
        badness=resolution.badness,
        demonstration=resolution.demonstration,
        is_resolved=True,
    )


def _keep_trusted(judgements: Sequence[RaterJudgement]) -> Sequence[RaterJudgement]:
    """The judgements of trusted raters if any of these gave a value, else all."""
    if any(entry.is_trusted and entry.badness is not None for entry in judgements):
        return [entry for entry in judgements if entry.is_trusted]
    return judgements


def _find_demonstration(judgements: Sequence[RaterJudgement], least: int) -> Any:
    """The demonstration that most raters with one gave, and at least `least` of them. None without one, or if unread
    judgements may have others."""
    by_rater = {judgement.rater: judgement for judgement in judgements if judgement.form is not None}
    forms = Counter(judgement.form for judgement in by_rater.values())
    if not forms or any(judgement.is_unread for judgement in judgements):
        return None
    form, count = forms.most_common(1)[0]
    if count < least or 2 * count <= len(by_rater):
        return None
    return next(judgement.demonstration for judgement in by_rater.values() if judgement.form == form)


def _count(some: int, all_of_them: int, value: str, past: bool = False) -> str:
    say = "said" if past else "says" if some == 1 else "say"
    return f"{some} of {all_of_them} {say} {value}"
