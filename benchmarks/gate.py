"""May this version be released: `python -m benchmarks.gate [--json]`.

A linear classifier on the intents of BANKING77 stands for a task's versions. One leads, and one is the best that has
led; others are trained again on other draws of the same rows, with faults planted. Each is right or wrong on texts
that none has seen. Again and again rows are drawn from these, as many of each class, and the gate decides
(monitoring/evaluation/gate.py) by what all three answer to them.

grown        trained on all rows: a good version, where it is no worse than either reference on all texts
equal        trained on another draw of as many rows; what passes of these says what equal versions cost in rows
few          trained on a tenth of the rows
flipped      trained with wrong labels, by their share
margin       grown, with as many right answers made wrong as make it just worse than the leading one by the margin
forgotten    trained with all rows of one class under other labels
class -30    grown, with as many right answers of one class made wrong as lose it 30 points

Beside it rows in groups are drawn, without texts: a version that is worse by the margin, more so in some groups than in
others, in few groups of equal or of log-normal size. And first versions are compared with the most frequent answer,
which is right on half of the rows: one is as good by chance, one is never right.

A version counts as bad where it is worse on all texts than a reference by the margin or more. Intervals are exact at
99%. A goal stands on the end of its interval that is better for us, so that it is missed only where the figure is
shown to miss it. Draws of one split share their versions, which the intervals do not know.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from benchmarks import scores
from benchmarks.canary import rate_of
from benchmarks.harness import Goal, Unmeasurable, conclude, options, say, table
from benchmarks.scores import DATA, LAYOUT, DataSet
from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.gate import FLOOR, Comparison, GateBounds, GateReference, decide_gate
from monitoring.evaluation.report import compare_arms, compare_with_floor
from monitoring.evaluation.results import RowResult
from monitoring.evaluation.row_classes import Classes
from monitoring.evaluation.statistics import Paired, lower_bounds

SETS: Mapping[str, Callable[[Path], DataSet]] = {
    "banking77": scores.banking77,
    "clinc150": scores.clinc150,
    "hwu64": scores.hwu64,
    "bitext_cs": scores.bitext,
}
CLASS_ROWS_MIN = 40
GOOD_ROWS = 1000
"""With fewer rows the goal of good versions is none."""
LEARNED_SHARE, FEW_SHARE = 0.85, 0.1
FLIPPED = (0.1, 0.3, 0.5)
CLASS_LOSS = 0.3
DIGITS = 9
GROUPS = ((5, 0.0), (10, 0.0), (10, 1.0), (20, 1.0), (50, 1.5))
"""Numbers of groups, and the spread of their sizes (of the logarithm)."""
ALIKE = 0.1
"""The correlation of rows of one group."""
WON = 0.03
FLOOR_SHARE = 0.5
"""The share of rows that expect the most frequent answer; the other classes have the rest equally."""
FEW_ROWS = 40
DIVISOR_MIN = 1e-9
CANDIDATE, LEADING, BEST = (EvaluationArm(name) for name in ("candidate", "leading", "best"))
KNOWN = {"rows": 1, "failed": 0, "contract_kept": {"of": 0}, "latency_seconds": {"p50": None}, "cost_usd": None}
"""Figures of an arm of which the gate judges nothing here."""
GOALS = (
    Goal("bad_passed_low", at_most=0.05),
    Goal("margin_passed_low", at_most=0.05),
    Goal("class_caught_high", at_least=0.95),
    Goal("class_30_caught_high", at_least=0.95),
    Goal("good_passed_high", at_least=0.90),
    Goal("floor_passed_low", at_most=0.05),
    Goal("few_floor_passed_low", at_most=0.05),
    Goal("few_never_right_failed_high", at_least=0.95),
    *(Goal(f"groups_{count}_{unequal:g}_passed_low", at_most=0.05) for count, unequal in GROUPS),
)
Truth = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Population:
    """Texts by their class, and which of them each version gets right."""

    classes: Numbers
    right: Mapping[str, Truth]

    def accuracy(self, right: Truth) -> float:
        """The mean over the classes of the share of right answers: what a draw of as many of each class expects."""
        counts = np.bincount(self.classes)
        return float((np.bincount(self.classes, right) / counts).mean())

    def worse(self, right: Truth, reference: str) -> float:
        """By how much a version is worse than a reference on all texts."""
        return round(self.accuracy(self.right[reference]) - self.accuracy(right), DIGITS)

    def lost(self, right: Truth, of: int) -> float:
        """By how much a version is worse than the leading one on a class."""
        own = self.classes == of
        return round(float(self.right["leading"][own].mean() - right[own].mean()), DIGITS)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that is to be released: `kind` as the table names it, and the class that it has lost, if any."""

    kind: str
    right: Truth
    lost: int | None = None


# ---- versions -------------------------------------------------------------------------------------


def split_texts(data: DataSet, classes: int, draw: np.random.Generator) -> tuple[list[str], Numbers, Numbers]:
    """Texts and classes of some classes that have enough, and which half of them is learned from."""
    rows = [*data.train, *data.test]
    counts = Counter(row.label for row in rows)
    able = sorted(label for label, count in counts.items() if count >= 2 * CLASS_ROWS_MIN)
    if len(able) < classes:
        raise Unmeasurable(f"{data.name} has {len(able)} classes of {2 * CLASS_ROWS_MIN} rows: name fewer --classes.")
    number = {label: at for at, label in enumerate(sorted(draw.choice(able, classes, replace=False)))}
    kept = [row for row in rows if row.label in number]
    labels = np.array([number[row.label] for row in kept])
    order = draw.permutation(len(kept))
    return [row.text for row in kept], labels, np.sort(order[: len(order) // 2])


def make_population(data: DataSet, classes: int, draw: np.random.Generator) -> tuple[Population, list[Candidate]]:
    """The two references, and the candidates, on texts that none of them learned."""
    texts, labels, learned = split_texts(data, classes, draw)
    asked = np.setdiff1d(np.arange(len(texts)), learned)
    vectors: Any = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=1)
    matrix = vectors.fit(texts[at] for at in learned).transform(texts)

    def answers(rows: Numbers, told: Numbers) -> Truth:
        model = LinearSVC(C=1.0, random_state=0).fit(matrix[rows], told)
        found: Truth = model.predict(matrix[asked]) == labels[asked]
        return found

    def some(share: float) -> Numbers:
        found: Numbers = draw.choice(learned, int(share * len(learned)), replace=False)
        return found

    def flipped(rows: Numbers, share: float) -> Numbers:
        told = labels[rows].copy()
        wrong = draw.random(len(rows)) < share
        told[wrong] = (told[wrong] + draw.integers(1, classes, wrong.sum())) % classes
        return told

    right = {name: answers(rows, labels[rows]) for name in ("leading", "best") for rows in [some(LEARNED_SHARE)]}
    population = Population(labels[asked], right)
    grown = answers(learned, labels[learned])
    equal, few = some(LEARNED_SHARE), some(FEW_SHARE)
    candidates = [Candidate("grown", grown), Candidate("equal", answers(equal, labels[equal]))]
    candidates.append(Candidate("few", answers(few, labels[few])))
    candidates += [Candidate(f"flipped {share:.0%}", answers(learned, flipped(learned, share))) for share in FLIPPED]
    for lost in draw.choice(classes, min(3, classes), replace=False):
        told = np.where(labels[learned] == lost, flipped(learned, 1.0), labels[learned])
        candidates.append(Candidate("forgotten", answers(learned, told), int(lost)))
        candidates.append(Candidate("class -30", _lose_class(population, grown, int(lost), draw), int(lost)))
    return population, candidates


def lose_margin(population: Population, grown: Truth, margin: float, draw: np.random.Generator) -> Candidate:
    """A version that is worse than the leading one by the margin, or by a text more."""
    right = grown.copy()
    for at in draw.permutation(np.flatnonzero(grown)):
        if population.worse(right, "leading") >= margin:
            break
        right[at] = False
    return Candidate("margin", right)


def _lose_class(population: Population, grown: Truth, lost: int, draw: np.random.Generator) -> Truth:
    right = grown.copy()
    for at in draw.permutation(np.flatnonzero(grown & (population.classes == lost))):
        if population.lost(right, lost) >= CLASS_LOSS:
            break
        right[at] = False
    return right


# ---- decisions ------------------------------------------------------------------------------------


def draw_rows(population: Population, rows: int, draw: np.random.Generator) -> Numbers:
    """So many texts, about as many of each class; one may come twice, for the population stands for all requests."""
    names = np.unique(population.classes)
    counts = np.full(len(names), rows // len(names)) + (np.arange(len(names)) < rows % len(names))
    return np.concatenate(
        [draw.choice(np.flatnonzero(population.classes == name), n) for name, n in zip(names, counts, strict=True)]
    )


def decide(population: Population, candidate: Candidate, rows: Numbers, bounds: GateBounds, seed: int) -> str:
    """The gate's verdict on a candidate, by these rows."""
    names = tuple(str(name) for name in np.unique(population.classes))

    def results(right: Truth) -> list[RowResult]:
        return [
            RowResult(
                number=number, group=number, id="", right=bool(right[at]), outcome="answered",
                expected=str(population.classes[at]),
            )
            for number, at in enumerate(rows)
        ]  # fmt: skip

    arms = {"adapter": results(candidate.right), **{name: results(right) for name, right in population.right.items()}}
    comparisons = {
        name: Comparison(
            evaluation="e", ended_at=0.0, data_digest="d", version=CANDIDATE, reference=reference,
            pair=compare_arms("adapter", name, arms, Classes("label", "", names), seed),
            figures=KNOWN, reference_figures=KNOWN,
        )
        for name, reference in (("leading", LEADING), ("best", BEST))
    }  # fmt: skip
    references = [GateReference("leading", LEADING), GateReference("best", BEST)]
    return decide_gate(CANDIDATE, references, comparisons, bounds).verdict


def is_bad(population: Population, candidate: Candidate, margin: float) -> bool:
    """Whether it is worse than a reference by the margin."""
    return max(population.worse(candidate.right, name) for name in population.right) >= margin


def is_good(population: Population, candidate: Candidate) -> bool:
    """Whether it is no worse than either reference."""
    return max(population.worse(candidate.right, name) for name in population.right) <= 0


def groups_of(population: Population, candidate: Candidate, margin: float) -> Iterator[str]:
    """The figures that a candidate counts for."""
    if candidate.kind in ("margin", "equal"):
        yield candidate.kind
    elif candidate.kind == "class -30":
        yield "class_30"
    elif candidate.lost is not None:
        if population.lost(candidate.right, candidate.lost) >= CLASS_LOSS:
            yield "class"
    elif is_bad(population, candidate, margin):
        yield "bad"
    if candidate.kind == "grown" and is_good(population, candidate):
        yield "good"


def pass_groups(groups: int, unequal: float, asked: argparse.Namespace, draws: int) -> dict[str, float]:
    """How often a version that is worse by the margin is shown to be worse by less, on rows of so many groups."""
    draw, passed = np.random.default_rng([asked.seed, groups]), 0
    odds = 1.0 / ALIKE - 1.0
    for number in range(draws):
        sizes = np.exp(unequal * draw.standard_normal(groups))
        sizes = np.maximum(1, np.round(asked.rows * sizes / sizes.sum())).astype(int)
        worse, better = (draw.beta(odds * of, odds * (1 - of), groups) for of in (WON + asked.margin, WON))
        lost = draw.binomial(sizes, worse)
        won = draw.binomial(sizes - lost, np.minimum(1.0, better / np.maximum(DIVISOR_MIN, 1.0 - worse)))
        kinds = Counter(zip(sizes.tolist(), (won - lost).tolist(), strict=True))
        bound = lower_bounds(Paired(int(sizes.sum()), 0, int(won.sum()), int(lost.sum()), kinds), number).lower
        passed += bound is not None and bound > -asked.margin
    return rate_of(passed, draws)


def judge_first(rows: int, right: float, asked: argparse.Namespace, draws: int) -> Counter[str]:
    """The gate's verdicts on first versions that are right on each row with this chance, whatever is expected there."""
    draw, verdicts = np.random.default_rng([asked.seed, rows]), Counter[str]()
    shares = [FLOOR_SHARE, *[(1 - FLOOR_SHARE) / (asked.classes - 1)] * (asked.classes - 1)]
    bounds = GateBounds(margin=asked.margin, class_loss_max=CLASS_LOSS)
    for number in range(draws):
        expected, is_right = draw.choice(asked.classes, rows, p=shares), draw.random(rows) < right
        own = [
            RowResult(number=at, group=at, id="", right=bool(is_right[at]), outcome="answered", wanted_form=str(form))
            for at, form in enumerate(expected)
        ]
        floor = compare_with_floor((), {"adapter": own}, Classes(), number)
        comparison = Comparison(
            evaluation="e", ended_at=0.0, data_digest="d", version=CANDIDATE, reference=FLOOR,
            pair=floor["pair"], figures=KNOWN, reference_figures=KNOWN,
        )  # fmt: skip
        report = decide_gate(CANDIDATE, [GateReference("floor", FLOOR)], {"floor": comparison}, bounds)
        verdicts[report.verdict] += 1
    return verdicts


def measure_first(asked: argparse.Namespace) -> dict[str, float]:
    """How often first versions pass that are as good as the most frequent answer, and one fails that is never right."""
    draws, figures = 12 * asked.draws, dict[str, float]()
    cases = (
        ("floor_passed", asked.rows, FLOOR_SHARE, "passed"),
        ("few_floor_passed", FEW_ROWS, FLOOR_SHARE, "passed"),
        ("few_never_right_failed", FEW_ROWS, 0.0, "failed"),
    )
    for name, rows, right, verdict in cases:
        rate = rate_of(judge_first(rows, right, asked, draws)[verdict], draws)
        figures |= {name: rate["rate"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
    return figures


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str], list[Goal]]:
    """Train, draw and decide."""
    began = time.process_time()
    bounds = GateBounds(margin=asked.margin, class_loss_max=CLASS_LOSS)
    data = SETS[asked.set](asked.data)
    by_kind: dict[str, Counter[str]] = {}
    by_group: dict[str, Counter[str]] = {}
    worse: dict[str, list[float]] = {}
    for split in range(asked.splits):
        say(f"Training versions on {asked.set}, split {split + 1} of {asked.splits}")
        draw = np.random.default_rng([asked.seed, split])
        population, candidates = make_population(data, asked.classes, draw)
        candidates.append(lose_margin(population, candidates[0].right, asked.margin, draw))
        for candidate in candidates:
            worse.setdefault(candidate.kind, []).append(population.worse(candidate.right, "leading"))
            few = candidate.kind in ("few", *(f"flipped {share:.0%}" for share in FLIPPED))
            verdicts = Counter(
                decide(population, candidate, draw_rows(population, asked.rows, draw), bounds, number)
                for number in range(asked.draws // 4 if few or candidate.lost is not None else asked.draws)
            )
            for group in groups_of(population, candidate, asked.margin):
                by_group[group] = by_group.get(group, Counter()) + verdicts
            by_kind[candidate.kind] = by_kind.get(candidate.kind, Counter()) + verdicts
    figures = {}
    for group, verdicts in by_group.items():
        caught = group.startswith("class")
        counted = verdicts.total() - verdicts["passed"] if caught else verdicts["passed"]
        rate = rate_of(counted, verdicts.total())
        name = f"{group}_caught" if caught else f"{group}_passed"
        figures |= {name: rate["rate"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
    for count, unequal in GROUPS:
        rate, name = pass_groups(count, unequal, asked, 5 * asked.draws), f"groups_{count}_{unequal:g}_passed"
        figures |= {name: rate["rate"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
    figures |= measure_first(asked)
    rows = {
        kind: {"worse": float(np.mean(worse[kind])), "draws": verdicts.total(), **_shares(verdicts)}
        for kind, verdicts in by_kind.items()
    }
    report = {
        "seed": asked.seed,
        "set": asked.set,
        "classes": asked.classes,
        "rows_drawn": asked.rows,
        "margin": asked.margin,
        "splits": asked.splits,
        "figures": figures,
        "rows": rows,
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    enough = asked.rows >= GOOD_ROWS
    judged = [goal for goal in GOALS if goal.figure in figures and (enough or goal.figure != "good_passed_high")]
    report["goals_dropped"] = [goal.figure for goal in GOALS if goal not in judged]
    return report, [], judged


def _shares(verdicts: Counter[str]) -> dict[str, float]:
    return {verdict: count / verdicts.total() for verdict, count in verdicts.items()}


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    verdicts = ("passed", "failed", "cannot_tell")
    kinds = [
        [kind, row["draws"], 100 * row["worse"], *(row.get(name, 0.0) for name in verdicts)]
        for kind, row in report["rows"].items()
    ]
    figures = report["figures"]
    names = [name for name in figures if f"{name}_low" in figures]
    rates = [[name, figures[name], figures[f"{name}_low"], figures[f"{name}_high"]] for name in names]
    return "\n".join(
        [
            table(["version", "draws", "points worse", "passed", "failed", "cannot tell"], kinds),
            "",
            table(["figure", "rate", "99% from", "to"], rates),
            "",
            f"{report['set']}: {report['rows_drawn']} rows of {report['classes']} classes, a margin of "
            f"{report['margin']:g}, {report['splits']} splits, seed {report['seed']}, "
            f"{report['cpu_seconds']:g} s of CPU time.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "gate",
        "The gate on versions with planted faults: what passes, what is caught. --seed sets splits and every draw.",
        full="10 splits, 400 draws of each version: 7 minutes of CPU time",
    )
    parser.add_argument("--data", type=Path, default=DATA, help=f"{LAYOUT} (default: those that are shipped)")
    parser.add_argument("--set", choices=sorted(SETS), default="banking77", help="which data set (default banking77)")
    parser.add_argument("--classes", type=int, default=20, help="classes, drawn for each split (default 20)")
    parser.add_argument("--rows", type=int, default=1000, help="rows of an evaluation (default 1000)")
    parser.add_argument("--margin", type=float, default=0.02, help="what is no worse yet (default 0.02)")
    parser.add_argument("--splits", type=int, help="splits of the texts, each with versions of its own (default 3)")
    parser.add_argument("--draws", type=int, help="evaluations of a version, at least 40 (default 80)")
    asked = parser.parse_args(arguments)
    asked.splits = asked.splits or (10 if asked.full else 3)
    asked.draws = asked.draws or (400 if asked.full else 80)
    if asked.draws < 40 or asked.splits < 1 or asked.classes < 2 or asked.rows < 2 * asked.classes:
        parser.error("--draws, --splits, --classes, --rows: at least 40, 1, 2, and two rows a class")
    if not 0 < asked.margin < 1:
        parser.error("--margin: a share above 0 and below 1")
    with threadpool_limits(1):
        return conclude("gate", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
