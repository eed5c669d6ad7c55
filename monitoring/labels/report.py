"""The report on raters: their agreement by task, class and rater, both votes, and classes on which people disagree.

`python -m monitoring.labels.report` reads a job as a line of JSON, and prints the report as JSON.
"""

from __future__ import annotations

from collections.abc import Iterator

from threadpoolctl import threadpool_limits

from monitoring.helper_process import run_job
from monitoring.labels.agreement import measure_agreement, measure_raters
from monitoring.labels.dawid_skene import Votes, find_credits, find_values, take_votes
from monitoring.labels.messages import (
    Agreement,
    ClassReport,
    RaterReport,
    RatingsFault,
    RatingsJob,
    RatingsReport,
    VoteName,
    VoteReport,
)
from monitoring.labels.ratings import Numbers, Ratings, RatingsError, collect_ratings, read_rater_file

AGREEMENT_MIN = 0.667
"""Below this alpha, no conclusion may rest on single labels (Krippendorff)."""
ITEMS_MIN = 20
"""With fewer items that two people rated, agreement has no effect."""
CLASSES_TOLD_MAX = 100
RATERS_TOLD_MAX = 200
DIFFERENT_TOLD_MAX = 100


def report_ratings(ratings: Ratings, agreement_min: float = AGREEMENT_MIN) -> RatingsReport:
    """The report on these ratings. The same ratings give the same report."""
    agreement = measure_agreement(ratings)
    classes = _report_classes(ratings, agreement_min)
    return RatingsReport(
        items=len(ratings.items),
        ratings=len(ratings.item),
        agreement=agreement,
        agreement_min=agreement_min,
        agreed_only=is_too_low(agreement, agreement_min),
        classes=classes,
        raters=_report_raters(ratings),
        votes=_report_votes(ratings, take_votes(ratings)) if ratings.items else None,
        words=list(_tell(agreement, classes, agreement_min)),
    )


def is_too_low(agreement: Agreement, agreement_min: float) -> bool:
    """Return whether agreement is below the threshold, on enough items to say so."""
    return agreement.alpha is not None and agreement.items >= ITEMS_MIN and agreement.alpha < agreement_min


def _report_classes(ratings: Ratings, agreement_min: float) -> list[ClassReport]:
    names: dict[str, list[str]] = {}
    for item, name in ratings.classes.items():
        names.setdefault(name, []).append(item)
    reports = []
    for name in sorted(names, key=lambda name: (-len(names[name]), name))[:CLASSES_TOLD_MAX]:
        agreement = measure_agreement(ratings.select_items(names[name]))
        is_ambiguous = is_too_low(agreement, agreement_min)
        reports.append(ClassReport(class_name=name, agreement=agreement, is_ambiguous=is_ambiguous))
    return reports


def _report_raters(ratings: Ratings) -> list[RaterReport]:
    """The raters with the most labels, lowest agreement first."""
    labels, gold, right = (dict.fromkeys(ratings.raters, 0) for _ in range(3))
    for item, rater, value in zip(ratings.item, ratings.rater, ratings.value, strict=True):
        name, gold_value = ratings.raters[rater], ratings.gold.get(ratings.items[item])
        labels[name] += 1
        gold[name] += gold_value is not None
        right[name] += gold_value == ratings.values[value]
    told = sorted(ratings.raters, key=lambda name: (-labels[name], name))[:RATERS_TOLD_MAX]
    reports = [
        RaterReport(rater=name, agreement=agreement, labels=labels[name], gold=gold[name], gold_right=right[name])
        for name, agreement in measure_raters(ratings, told).items()
    ]
    return sorted(reports, key=lambda report: 2.0 if report.agreement.alpha is None else report.agreement.alpha)


def _report_votes(ratings: Ratings, votes: Votes) -> VoteReport:
    beliefs: dict[VoteName, Numbers] = {"majority": votes.majority, "dawid_skene": votes.dawid_skene}
    both = {name: find_values(belief, ratings) for name, belief in beliefs.items()}
    pairs = zip(ratings.items, both["majority"], both["dawid_skene"], strict=True)
    different = [item for item, majority, weighed in pairs if majority != weighed]
    return VoteReport(
        recommended=votes.recommended,
        because=votes.because,
        values={name: {value: chosen.count(value) for value in ratings.values} for name, chosen in both.items()},
        ties=both["majority"].count(None),
        accuracy={name: _find_accuracy(belief, ratings) for name, belief in beliefs.items()},
        different=len(different),
        different_items=different[:DIFFERENT_TOLD_MAX],
    )


def _find_accuracy(probabilities: Numbers, ratings: Ratings) -> float | None:
    right = find_credits(probabilities, ratings)
    return float(right.mean()) if len(right) else None


def _tell(agreement: Agreement, classes: list[ClassReport], agreement_min: float) -> Iterator[str]:
    if agreement.alpha is None:
        yield (
            "Agreement is unknown: no item has two ratings."
            if not agreement.items
            else "Agreement is unknown: all ratings have one value."
        )
    elif is_too_low(agreement, agreement_min):
        yield f"Agreement is {agreement.alpha:.2f}, under {agreement_min:g}: only labels of two who agree count."
    elif agreement.alpha < agreement_min:
        yield f"Agreement is {agreement.alpha:.2f}, on too few items ({agreement.items} of {ITEMS_MIN}) to act on."
    ambiguous = [report.class_name for report in classes if report.is_ambiguous]
    if ambiguous:
        yield f"People disagree on {', '.join(ambiguous)}: say more clearly what is right there."


def report(job: RatingsJob) -> object:
    """The report on the ratings of a job, or the fault of its file."""
    try:
        ratings = collect_ratings(job.ratings, job.gold) if job.text is None else read_rater_file(job.text)
        with threadpool_limits(1):
            return report_ratings(ratings, job.agreement_min)
    except RatingsError as error:
        return RatingsFault(fault=str(error))


if __name__ == "__main__":
    run_job(RatingsJob, report)
