"""How good is an arm on all of its task's requests? `python -m benchmarks.estimation [--json]`.

Two classifiers that learned little stand for the adapter and for general, one that learned much for the judge, on
the intents of BANKING77; the truth is the published label. Requests are drawn from texts that none of them has seen.
Each request is served by the adapter where its margin is high, else by general. Of a month's requests a uniform share
goes to a shadow sample: both arms answer, the judge says how likely each answer is right, and people label some.

feedback     of who was served by the arm: of wrong answers 30% bring feedback, of right ones 10%
labels       people's labels on the shadow sample, alone
judge        the judge's word on the whole shadow sample, without labels
PPI++        both (monitoring/quality/detectors/estimates.py)
propensity   as many labels on served requests, of which 5% went to the other arm by chance, weighed by 1/probability

weak judges  PPI++ with judges that are right in 60 and 75% of the answers to hard texts: those on which an arm errs

For each arm, and for their difference: the root mean square error, the bias, the coverage of the 95% interval and its
mean width, over many months and several splits of the texts. A goal is that of the worst of them. Intervals of these
figures are at 99%; a goal stands on the end of the interval that is nearer to it, so that it is missed only where the
figure is shown to be outside.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from benchmarks import scores
from benchmarks.canary import rate_of
from benchmarks.harness import Goal, Unmeasurable, conclude, options, say, table
from benchmarks.scores import DATA, LAYOUT, DataSet
from monitoring.quality.detectors import estimates
from monitoring.quality.detectors.estimates import Estimate, Sums

SETS: Mapping[str, Callable[[Path], DataSet]] = {
    "banking77": scores.banking77,
    "clinc150": scores.clinc150,
    "hwu64": scores.hwu64,
    "bitext_cs": scores.bitext,
}
PARTS = {"adapter": 0.23, "general": 0.115, "judge": 0.75, "calibration": 0.05}
ROWS_MIN = 2_000
SERVED_BY_ADAPTER = 0.7
FEEDBACK_IF_WRONG, FEEDBACK_IF_RIGHT = 0.3, 0.1
FEEDBACK_MAX = 2_000
EXPLORED = 0.05
ARMS = ("adapter", "general")
LABELS = (240, 60)
COVERAGE_GOAL = (0.93, 0.97)
RMSE_GOAL = 0.015
NARROW = (Goal("coverage_most_low", at_most=COVERAGE_GOAL[1]), Goal("rmse_low", at_most=RMSE_GOAL))
Z_99 = 2.5758
JUDGES_RIGHT = (0.6, 0.75)
WEAK_METHODS = ("labels", "ppi")
NAMES = {
    "feedback": "feedback on served requests",
    "labels": "labels of the shadow sample",
    "judge": "judge alone",
    "ppi": "PPI++, labels and judge",
    "propensity": "inverse propensity",
}

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


# ---- the arms and the judge ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Population:
    """For each text that nobody has learned: by arm, whether it is right and how likely the judge finds that.

    `served` says whether the adapter serves it, `agreement` how often judge and truth agree, by arm.
    """

    right: dict[str, Numbers]
    judged: dict[str, Numbers]
    served: npt.NDArray[np.bool_]
    agreement: dict[str, float]

    def truth(self, arm: str) -> float:
        """How often an arm is right over all."""
        return float(self.right[arm].mean())


def population_of(data: DataSet, seed: int) -> Population:
    """Fit the arms and the judge. Raises Unmeasurable if there are too few texts."""
    rows = [*data.train, *data.test]
    if len(rows) < ROWS_MIN:
        raise Unmeasurable(f"{data.name} has {len(rows)} texts: at least {ROWS_MIN} are needed.")
    draw = np.random.default_rng(seed)
    rows = [rows[at] for at in draw.permutation(len(rows))]
    texts = [row.text for row in rows]
    classes, truth = np.unique([row.label for row in rows], return_inverse=True)
    learned = {name: int(share * len(rows)) for name, share in PARTS.items()}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2)
    both = normalize(hstack([words, characters.fit_transform(texts)])).tocsr()
    single = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    first = learned["adapter"]
    asked = slice(learned["judge"], len(rows))
    margins = {
        "adapter": decided(words, truth, slice(0, first), asked, len(classes)),
        "general": decided(single, truth, slice(first, first + learned["general"]), asked, len(classes)),
    }
    judge = decided(both, truth, slice(0, learned["judge"]), asked, len(classes))
    told = truth[asked]
    right, judged, agreement = {}, {}, {}
    for arm, margin in margins.items():
        answer = margin.argmax(axis=1)
        correct = (answer == told).astype(np.float64)
        word = judgement(judge, answer, correct, learned["calibration"])
        right[arm], judged[arm] = correct[learned["calibration"] :], word[learned["calibration"] :]
        agreement[arm] = float(np.mean((judged[arm] > 0.5) == right[arm]))
    ordered = np.sort(margins["adapter"], axis=1)
    sure = (ordered[:, -1] - ordered[:, -2])[learned["calibration"] :]
    return Population(right, judged, sure >= np.quantile(sure, 1 - SERVED_BY_ADAPTER), agreement)


def weaken_judge(population: Population, right: float, draw: np.random.Generator) -> Population:
    """The same arms with a judge that is right in so many of the answers to texts on which an arm errs."""
    hard = np.minimum(*population.right.values()) == 0.0
    judged, agreement = {}, {}
    for arm, correct in population.right.items():
        word = np.where(draw.random(len(correct)) < right, correct, 1.0 - correct)
        judged[arm] = np.where(hard, word, population.judged[arm])
        agreement[arm] = float(np.mean((judged[arm] > 0.5) == correct))
    return Population(population.right, judged, population.served, agreement)


def decided(vectors: csr_matrix, truth: Places, learned: slice, asked: slice, classes: int) -> Numbers:
    """A classifier's margin for every class, of texts that are asked; lowest for a class that it has not seen."""
    model = LinearSVC().fit(vectors[learned], truth[learned])
    found = np.asarray(model.decision_function(vectors[asked]), np.float64)
    if found.ndim == 1:
        found = np.column_stack([-found, found])
    margins = np.full((len(found), classes), -10.0)
    margins[:, model.classes_] = found
    return margins


def judgement(judge: Numbers, answer: Places, correct: Numbers, calibration: int) -> Numbers:
    """How likely the judge finds each answer right: its margin for that class, calibrated on the first rows."""
    rows = np.arange(len(answer))
    ordered = np.sort(judge, axis=1)
    same = judge.argmax(axis=1) == answer
    lead = judge[rows, answer] - np.where(same, ordered[:, -2], ordered[:, -1])
    features = np.column_stack([same, judge[rows, answer], lead])
    model = LogisticRegression().fit(features[:calibration], correct[:calibration])
    found: Numbers = model.predict_proba(features)[:, 1]
    return found


# ---- one month -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Month:
    """The texts of a month's shadow sample: those that people label, and the others; and labels on served requests."""

    labelled: Places
    others: Places
    served: Places

    @classmethod
    def drawn(cls, population: Population, labels: int, shadowed: int, draw: np.random.Generator) -> Month:
        """Uniformly, with replacement."""
        count = len(population.served)
        return cls(
            draw.integers(0, count, labels), draw.integers(0, count, shadowed - labels), draw.integers(0, count, labels)
        )


def sums_of(label: Numbers, word: Numbers, month: Month) -> Sums:
    """The sums of a month, as `estimates.labelled` and `estimates.judged` make them row by row."""
    y, f, other = label[month.labelled], word[month.labelled], word[month.others]
    return Sums(
        labelled=len(y),
        y=float(y.sum()),
        f=float(f.sum()),
        yf=float(y @ f),
        yy=float(y @ y),
        ff=float(f @ f),
        unlabelled=len(other),
        other_f=float(other.sum()),
        other_ff=float(other @ other),
    )


def without_judge(sums: Sums) -> Sums:
    """The labels alone."""
    return Sums(labelled=sums.labelled, y=sums.y, yy=sums.yy)


def plain(values: Numbers, low: float = 0.0, high: float = 1.0) -> Estimate:
    """A mean with its normal interval."""
    mean = float(values.mean())
    half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(
        mean=mean, low=max(low, mean - half), high=min(high, mean + half), labels=len(values), pairs=0, lam=0
    )


def by_feedback(population: Population, arm: str, requests: int, draw: np.random.Generator) -> Estimate:
    """The share of praise in the feedback on what the arm served."""
    serves = population.served if arm == "adapter" else ~population.served
    own = np.flatnonzero(serves)
    right = population.right[arm][draw.choice(own, min(FEEDBACK_MAX * 5, int(requests * len(own) / len(serves))))]
    given = draw.random(len(right)) < np.where(right > 0, FEEDBACK_IF_RIGHT, FEEDBACK_IF_WRONG)
    return plain(right[given][:FEEDBACK_MAX])


def by_propensity(population: Population, arm: str, month: Month, draw: np.random.Generator) -> Estimate:
    """Labels on served requests by inverse propensity: an arm's share is 1 - EXPLORED / 2 where it is routed to."""
    routed = population.served[month.served] == (arm == "adapter")
    probability = np.where(routed, 1 - EXPLORED / 2, EXPLORED / 2)
    answered = draw.random(len(routed)) < probability
    return plain(np.where(answered, population.right[arm][month.served] / probability, 0.0), high=math.inf)


def month_of(
    population: Population, labels: int, shadowed: int, requests: int, draw: np.random.Generator
) -> dict[tuple[str, str], Estimate]:
    """Every estimate of one month, by method and arm; the arms' difference by the methods that can tell it."""
    month = Month.drawn(population, labels, shadowed, draw)
    found: dict[tuple[str, str], Estimate | None] = {}
    for arm in ARMS:
        right, word = population.right[arm], population.judged[arm]
        sums = sums_of(right, word, month)
        found["feedback", arm] = by_feedback(population, arm, requests, draw)
        found["labels", arm] = estimates.estimate(without_judge(sums))
        found["judge", arm] = plain(word[np.r_[month.labelled, month.others]])
        found["ppi", arm] = estimates.estimate(sums)
        found["propensity", arm] = by_propensity(population, arm, month, draw)
    ours, theirs = ARMS
    sums = sums_of(
        population.right[ours] - population.right[theirs], population.judged[ours] - population.judged[theirs], month
    )
    found["ppi", "difference"] = estimates.estimate_difference(sums)
    found["labels", "difference"] = estimates.estimate_difference(without_judge(sums))
    return {name: one for name, one in found.items() if one is not None}


# ---- the report ------------------------------------------------------------------------------------------


def figures_of(found: Sequence[Sequence[Estimate]], truths: Sequence[float]) -> dict[str, float]:
    """How far the estimates are from the truth, and how often their intervals hold it, over months and splits.

    `found` are the months of each split, `truths` what is true in each. With 99% intervals: the error's is as wide as
    months alone, or splits alone, make it, whichever is wider.
    """
    errors = [np.array([one.mean - truth for one in months]) for months, truth in zip(found, truths, strict=True)]
    square = np.concatenate(errors) ** 2
    of_splits = [float((one**2).mean()) for one in errors]
    between = float(np.std(of_splits, ddof=1)) / math.sqrt(len(errors)) if len(errors) > 1 else 0.0
    half = Z_99 * max(between, float(square.std(ddof=1)) / math.sqrt(len(square)))
    every = [(one, truth) for months, truth in zip(found, truths, strict=True) for one in months]
    coverage = rate_of(sum(one.low <= truth <= one.high for one, truth in every), len(every))
    return {
        "rmse": math.sqrt(float(square.mean())),
        "rmse_low": math.sqrt(max(0.0, float(square.mean()) - half)),
        "rmse_high": math.sqrt(float(square.mean()) + half),
        "bias": float(np.concatenate(errors).mean()),
        "coverage": coverage["rate"],
        "coverage_low": coverage["low"],
        "coverage_high": coverage["high"],
        "width": float(np.mean([one.high - one.low for one, _ in every])),
        "lam": float(np.mean([one.lam for one, _ in every])),
    }


def row_of(
    populations: Sequence[Population], labels: int, asked: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """All methods with so many labels, by method and arm."""
    say(f"{asked.months} months with {labels} labels")
    shadowed = max(labels, int(asked.requests * asked.shadow))
    draw = np.random.default_rng((asked.seed, labels))
    months = [
        [
            month_of(population, labels, shadowed, asked.requests, draw)
            for _ in range(max(2, asked.months // len(populations)))
        ]
        for population in populations
    ]
    truths = {arm: [one.truth(arm) for one in populations] for arm in ARMS}
    truths["difference"] = [one.truth(ARMS[0]) - one.truth(ARMS[1]) for one in populations]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for method, arm in months[0][0]:
        of = [[month[method, arm] for month in of_split] for of_split in months]
        found.setdefault(method, {})[arm] = figures_of(of, truths[arm])
    return found


def weak_row_of(
    populations: Sequence[Population], right: float, asked: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """Labels alone, and PPI++ with a judge that is right in so many hard cases, in a quarter as many months."""
    draw = np.random.default_rng((asked.seed, round(1_000 * right)))
    weak = [weaken_judge(one, right, draw) for one in populations]
    fewer = argparse.Namespace(**{**vars(asked), "months": asked.months // 4})
    row = row_of(weak, asked.labels, fewer)
    agreement = {arm: {"agreement": float(np.mean([one.agreement[arm] for one in weak]))} for arm in ARMS}
    return {**{method: row[method] for method in WEAK_METHODS}, "judge": agreement}


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Fit, draw the months, and compare."""
    began = time.process_time()
    data = SETS[asked.set](asked.data)
    populations = []
    for split in range(asked.splits):
        say(f"Fitting two arms and a judge on {asked.set}, split {split + 1} of {asked.splits}")
        populations.append(population_of(data, 1_000 * asked.seed + split))
    counts = (asked.labels, *(one for one in LABELS if one != asked.labels))
    rows = {str(labels): row_of(populations, labels, asked) for labels in counts}
    weak = {f"{right:g}": weak_row_of(populations, right, asked) for right in asked.judge_right}
    ppi = rows[str(asked.labels)]["ppi"]
    of_arms = [ppi[arm] for arm in ARMS]
    figures = {
        "rmse": max(one["rmse"] for one in of_arms),
        "rmse_low": max(one["rmse_low"] for one in of_arms),
        "rmse_high": max(one["rmse_high"] for one in of_arms),
        "coverage_least": min(one["coverage"] for one in ppi.values()),
        "coverage_least_high": min(one["coverage_high"] for one in ppi.values()),
        "coverage_most": max(one["coverage"] for one in ppi.values()),
        "coverage_most_low": max(one["coverage_low"] for one in ppi.values()),
    }
    report = {
        "seed": asked.seed,
        "set": asked.set,
        "splits": asked.splits,
        "months": asked.months,
        "requests": asked.requests,
        "shadow": asked.shadow,
        "texts": len(populations[0].served),
        "truth": {arm: float(np.mean([one.truth(arm) for one in populations])) for arm in ARMS},
        "agreement": {arm: float(np.mean([one.agreement[arm] for one in populations])) for arm in ARMS},
        "figures": figures,
        "goals_dropped": {}
        if on_goal(asked)
        else {goal.figure: "it is that of banking77 with 240 labels" for goal in NARROW},
        "rows": rows,
        "weak_judges": weak,
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    return report, []


def on_goal(asked: argparse.Namespace) -> bool:
    """Whether what is asked for is what the goals of error and width speak of."""
    return bool(asked.set == "banking77" and asked.labels == LABELS[0])


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    parts = ("rmse", "bias", "coverage", "coverage_low", "coverage_high", "width")
    lines = []
    for labels, methods in report["rows"].items():
        rows = [
            [f"{NAMES[method]}, {arm}", *(figures[part] for part in parts)]
            for method, arms in methods.items()
            for arm, figures in arms.items()
        ]
        lines += [table([f"{labels} labels", "RMSE", "bias", "coverage", "99% from", "to", "width"], rows), ""]
    for right, methods in report["weak_judges"].items():
        rows = [
            [f"{NAMES[method]}, {arm}", *(methods[method][arm][part] for part in parts)]
            for method in WEAK_METHODS
            for arm in methods[method]
        ]
        title = f"judge right in {float(right):.0%} of hard answers"
        lines += [table([title, "RMSE", "bias", "coverage", "99% from", "to", "width"], rows), ""]
    told = ", ".join(
        f"{arm} {report['truth'][arm]:.1%} right (the judge agrees in {report['agreement'][arm]:.1%})" for arm in ARMS
    )
    return "\n".join(
        [
            *lines,
            f"{report['set']}: {told}; {report['texts']} texts in each of "
            f"{report['splits']} splits, {report['months']} months of {report['requests']} requests, "
            f"{report['shadow']:.1%} in the shadow sample, seed {report['seed']}, "
            f"{report['cpu_seconds']:g} s of CPU time.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "estimation",
        "The quality of two arms, estimated in five ways: error and coverage. --seed sets the split and every draw.",
        full="10,000 months over 10 splits: 100 s of CPU time",
    )
    parser.add_argument("--data", type=Path, default=DATA, help=f"{LAYOUT} (default: those that are shipped)")
    parser.add_argument("--set", choices=sorted(SETS), default="banking77", help="which data set (default banking77)")
    parser.add_argument("--labels", type=int, default=LABELS[0], help="labels a month (default 240)")
    parser.add_argument("--months", type=int, help="simulated months, at least 100 (default 2000)")
    parser.add_argument("--splits", type=int, help="splits of the texts, by which months are shared out (default 4)")
    parser.add_argument("--requests", type=int, default=100_000, help="requests a month (default 100000)")
    parser.add_argument("--shadow", type=float, default=0.05, help="share in the shadow sample (default 0.05)")
    parser.add_argument(
        "--judge-right", type=float, nargs="*", default=JUDGES_RIGHT, metavar="SHARE",
        help="right answers of weaker judges on hard texts (default 0.6 0.75)",
    )  # fmt: skip
    asked = parser.parse_args(arguments)
    if not all(0 <= right <= 1 for right in asked.judge_right):
        parser.error("--judge-right: shares from 0 to 1")
    if asked.months is None:
        asked.months = 10_000 if asked.full else 2_000
    if asked.splits is None:
        asked.splits = 10 if asked.full else 4
    if asked.months < 100 or asked.labels < 2 or asked.splits < 1:
        parser.error("--months, --labels, --splits: at least 100 months, 2 labels and a split")
    if not (0 < asked.shadow <= 1 and asked.labels <= asked.requests * asked.shadow <= 1_000_000):
        parser.error("--requests, --shadow: a share that gives more rows than labels, and at most a million")
    goals = [Goal("coverage_least_high", at_least=COVERAGE_GOAL[0]), *(NARROW if on_goal(asked) else ())]
    with threadpool_limits(1):
        return conclude("estimation", lambda: measure(asked), goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
