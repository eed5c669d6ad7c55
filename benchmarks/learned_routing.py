"""Would general do better here? RouteLLM's questions and metrics: `python -m benchmarks.learned_routing [--json]`.

The adapter's part is played by Mixtral-8x7B, general's by GPT-4; it is known which of RouteLLM's questions each got
right. A model is fitted on some of the questions and orders the others.

mmlu            five-fold, random: four fifths to learn from
mmlu_few        random splits: 1,500 questions to learn from, the rest to order
unseen          whole subjects, a quarter of all, are ordered by a model that was fitted on the questions of the others
gsm8k           ten-fold, random: nine tenths to learn from
by name         the same splits in the order of who is told each question's subject, and learns its mean gain
shuffled        labels dealt anew, so that there is nothing to learn: how often a model claims to help

CPT50 and CPT80: how many of 100 requests go to general until half, or four fifths, of the gap between the arms is
recovered. APGR: the mean share that is recovered, over all shares of general; as in RouteLLM's code, at ten equally
large steps. Every test split is ranked for itself. Intervals are at 99%, by a bootstrap over questions, or over
subjects where these are unseen. A goal stands on the upper end of its figure's interval, so that it is missed only
where the figure is shown to be under it.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from benchmarks.harness import Goal, Unmeasurable, conclude, options, say, table
from benchmarks.scores import DATA, Figure, content, there
from router.clipping import clip_text
from router.fitting.errors import FittingError
from router.fitting.gain import ROWS_MIN, GainRow, Rows, fit_gain, fit_unmeasured, predict_gains, read

STEPS = 10
NAMED_PRIOR = 10
LABELS = 1_500
MMLU_FOLDS = 5
GSM8K_FOLDS = 10
SUBJECT_FOLDS = 4
RESAMPLES = 2_000
TAIL = 0.005
APGR_GOALS = {"mmlu": 0.66, "unseen": 0.58, "gsm8k": 0.66}
GOALS = (
    *(Goal(f"{name}_apgr_high", at_least=goal) for name, goal in APGR_GOALS.items()),
    Goal("worst_split_apgr_high", at_least=0.5),
)
PUBLISHED = {"mmlu_few": (35.4, 70.3, 0.603), "gsm8k": (33.6, 63.3, 0.622)}
BASELINES = {"mmlu_few": (29.7, 63.5, 0.645), "unseen": (43.3, 70.9, 0.553), "gsm8k": (31.6, 58.1, 0.655)}
NAMES = {"mmlu_few": "MMLU, few labels", "mmlu": "MMLU", "unseen": "MMLU, unseen subjects", "gsm8k": "GSM8K"}
SHUFFLED_GOAL = 0.05
CURVE = (300, 750, 1_500, 3_000, 6_000)

Numbers = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


# ---- the questions ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its subject, and whether each arm got it right (0 or 1)."""

    text: str
    subject: str
    adapter_right: float
    general_right: float


def questions(folder: Path, name: str) -> list[Question]:
    """The questions of a set, without those that RouteLLM leaves out as contaminated; none if the set is not there.

    It is read from `NAME.csv`, packed or not, or from tables `NAME/NAME_SUBJECT.csv`, each with a prompt and the weak
    and the strong model's column, in this order. Raises Unmeasurable if a table has another form.
    """
    if (folder / "routellm").is_dir():
        folder /= "routellm"
    found: list[Question] = []
    if there(folder, f"{name}.csv"):
        found = _of_table(content(folder, f"{name}.csv"), name)
    else:
        for path in sorted((folder / name).glob(f"{name}_*.csv*")):
            file = path.name.removesuffix(".gz")
            subject = file.removeprefix(f"{name}_").removesuffix(".csv")
            found += _of_table(content(folder / name, file), subject)
    contaminated = _contaminated(folder, name)
    return [one for one in found if one.text not in contaminated]


def _of_table(text: str, subject: str) -> list[Question]:
    csv.field_size_limit(1 << 24)
    reader = csv.DictReader(io.StringIO(text))
    models = [name for name in reader.fieldnames or () if name not in {"prompt", "subject"}]
    try:
        weak, strong = models[:2]
        return [
            Question(row["prompt"], row.get("subject", subject), _right(row[weak]), _right(row[strong]))
            for row in reader
        ]
    except (ValueError, KeyError) as error:
        raise Unmeasurable(
            "A table needs the columns prompt, weak model, strong model: name another --data."
        ) from error


def _right(cell: str) -> float:
    return float({"true": 1.0, "false": 0.0}.get(cell.strip().casefold(), cell))


def _contaminated(folder: Path, name: str) -> frozenset[str]:
    file = f"{name}_contaminated_prompts.jsonl"
    if not there(folder, file):
        return frozenset()
    return frozenset(json.loads(line)["eval_prompt"] for line in content(folder, file).splitlines() if line.strip())


# ---- RouteLLM's metrics ----------------------------------------------------------------------------


def places(scores: Numbers) -> Numbers:
    """At which share of shares of general each request is sent there, at ten steps: its weight in APGR, from 0 to 1.

    APGR is the sum of weight times gain by the sum of gains: the area under RouteLLM's curve, straight between steps.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0.0, 1.0, STEPS + 1)))
    if len(edges) < 2:
        return np.full(len(scores), 0.5)
    step = np.clip(np.searchsorted(edges, scores, "right") - 1, 0, len(edges) - 2)
    sizes = np.bincount(step, minlength=len(edges) - 1) / len(scores)
    below = np.cumsum(sizes) - sizes
    found: Numbers = (below + sizes / 2)[step]
    return found


def percent_to_general(weights: Numbers, gains: Numbers, recovered: float) -> float:
    """How many of 100 requests go to general until this share of the gap is recovered."""
    levels, level = np.unique(np.floor(weights * STEPS).astype(np.intp), return_inverse=True)
    shares = np.cumsum(np.bincount(level, minlength=len(levels))[::-1]) / len(gains)
    gaps = np.cumsum(np.bincount(level, gains, minlength=len(levels))[::-1]) / gains.sum()
    return float(np.interp(recovered, np.r_[0.0, gaps], np.r_[0.0, shares])) * 100


@dataclass(frozen=True, slots=True)
class Ordered:
    """Test splits that were ordered: for each request its question, its subject, its gain and its weight in APGR."""

    question: Places
    group: Places
    gain: Numbers
    weight: Numbers

    @classmethod
    def joined(cls, splits: Sequence[Ordered]) -> Ordered:
        """All splits as one."""
        names = ("question", "group", "gain", "weight")
        return cls(*(np.concatenate([getattr(one, name) for one in splits]) for name in names))

    def apgr(self, seed: int) -> Figure:
        """APGR with its 99% interval, by a bootstrap over groups. Raises Unmeasurable where general is not better."""
        of = np.unique(self.group, return_inverse=True)[1]
        won, all_gain = np.bincount(of, self.gain * self.weight), np.bincount(of, self.gain)
        if all_gain.sum() <= 0:
            raise Unmeasurable(
                "The strong model is not better than the weak one, so there is no gap: check the columns."
            )
        drawn = np.random.default_rng(seed).multinomial(len(won), np.full(len(won), 1 / len(won)), RESAMPLES)
        ratios = (drawn @ won) / np.maximum(drawn @ all_gain, 1e-9)
        low, high = np.quantile(ratios, (TAIL, 1 - TAIL))
        return Figure(float(won.sum() / all_gain.sum()), float(low), float(high))

    def row(self, seed: int) -> dict[str, float]:
        """CPT50, CPT80 and APGR with its interval."""
        figure = self.apgr(seed)
        return {
            "cpt50": percent_to_general(self.weight, self.gain, 0.5),
            "cpt80": percent_to_general(self.weight, self.gain, 0.8),
            "apgr": figure.value,
            "apgr_low": figure.low,
            "apgr_high": figure.high,
        }


# ---- the splits --------------------------------------------------------------------------------------


def random_splits(count: int, labels: int, rounds: int, seed: int) -> Iterator[tuple[Places, Places]]:
    """So many labels to learn from, at most four fifths of all, and the rest to order."""
    for number in range(rounds):
        order = np.random.default_rng((seed, number)).permutation(count)
        some = min(labels, count * 4 // 5)
        yield order[:some], order[some:]


def folds(count: int, parts: int, rounds: int, seed: int) -> Iterator[tuple[Places, Places]]:
    """In so many parts, each ordered once a round by a model of the others."""
    for number in range(rounds):
        order = np.random.default_rng((seed, number)).permutation(count)
        for part in range(parts):
            yield np.delete(order, np.s_[part::parts]), order[part::parts]


def subject_splits(subjects: Sequence[str], rounds: int, seed: int) -> Iterator[tuple[Places, Places]]:
    """Every subject is unseen once a round, with a quarter of the others."""
    names = np.array(sorted(set(subjects)))
    for number in range(rounds):
        draw = np.random.default_rng((seed, number))
        for unseen in np.array_split(draw.permutation(names), SUBJECT_FOLDS):
            outside = np.isin(subjects, unseen)
            yield draw.permutation(np.flatnonzero(~outside)), np.flatnonzero(outside)


def rows_of(asked: Sequence[Question]) -> list[GainRow]:
    """The questions as what a model is fitted on: of a long one its two ends, which is what it is served."""
    return [GainRow(clip_text(one.text), one.adapter_right, one.general_right) for one in asked]


def ordered(rows: Rows, splits: Iterable[tuple[Places, Places]], group: Places | None, seed: int) -> list[Ordered]:
    """Each split's test questions, ordered by the model of its others. Without groups each question is its own."""
    found = []
    for number, (learned, tested) in enumerate(splits):
        model = fit_unmeasured(rows.of(learned), seed + number)
        scores = predict_gains(model, rows.of(tested))
        found.append(Ordered(tested, tested if group is None else group[tested], rows.gain[tested], places(scores)))
    return found


def by_names(rows: Rows, splits: Iterator[tuple[Places, Places]], group: Places) -> Ordered:
    """The same splits in the order of who knows each question's subject, and takes its mean gain from the labels."""
    found = []
    for learned, tested in splits:
        gain, of = rows.gain[learned], group[learned]
        counts = np.bincount(of, minlength=int(group.max()) + 1)
        means = (np.bincount(of, gain, minlength=len(counts)) + NAMED_PRIOR * gain.mean()) / (counts + NAMED_PRIOR)
        even = 1e-6 * np.random.default_rng(len(found)).random(len(tested))  # within a subject at random
        found.append(Ordered(tested, tested, rows.gain[tested], places(means[group[tested]] + even)))
    return Ordered.joined(found)


def shuffled(asked: Sequence[Question], rounds: int, seed: int) -> dict[str, Any]:
    """How often a model of labels that were dealt anew claims to help."""
    claims = 0
    for number in range(rounds):
        order = np.random.default_rng((seed, number)).permutation(len(asked))
        dealt = [
            Question(one.text, one.subject, asked[at].adapter_right, asked[at].general_right)
            for one, at in zip(asked, order, strict=True)
        ]
        try:
            claims += fit_gain(rows_of(dealt), seed + number).shown_to_help
        except FittingError as error:
            raise Unmeasurable(f"{error} Name another folder with --data.") from error
    chance, low = 1.0, 0
    while low <= rounds and chance > TAIL:  # how many claims would be too many for five in a hundred
        chance -= _binomial(low, rounds, SHUFFLED_GOAL)
        low += 1
    return {"rounds": rounds, "claims": claims, "claims_at_most": low - 1}


def _binomial(count: int, trials: int, rate: float) -> float:
    ways = 1.0
    for at in range(count):
        ways *= (trials - at) / (at + 1)
    return ways * rate**count * (1 - rate) ** (trials - count)


# ---- the report --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """Splits of one set, as a row of the table; `group` as for `ordered`."""

    rows: Rows
    splits: list[tuple[Places, Places]]
    group: Places | None = None


@dataclass(frozen=True, slots=True)
class Mmlu:
    """MMLU's questions as features, and each one's subject."""

    rows: Rows
    names: list[str]
    group: Places


def mmlu_of(asked: Sequence[Question]) -> Mmlu:
    """Read them."""
    names = [one.subject for one in asked]
    return Mmlu(read(rows_of(asked)), names, np.unique(names, return_inverse=True)[1].astype(np.intp))


def cases_of(mmlu: Mmlu | None, gsm8k: Sequence[Question], asked: argparse.Namespace, rounds: int) -> dict[str, Case]:
    """What is fitted and ordered, by its name."""
    cases: dict[str, Case] = {}
    if mmlu is not None:
        count = len(mmlu.names)
        cases["mmlu_few"] = Case(mmlu.rows, list(random_splits(count, asked.labels, 2 * rounds, asked.seed)))
        cases["mmlu"] = Case(mmlu.rows, list(folds(count, MMLU_FOLDS, rounds, asked.seed)))
        if len(set(mmlu.names)) >= SUBJECT_FOLDS:
            unseen = list(subject_splits(mmlu.names, 2 * rounds, asked.seed))
            cases["unseen"] = Case(mmlu.rows, unseen, mmlu.group)
    if gsm8k:
        tenths = list(folds(len(gsm8k), GSM8K_FOLDS, 2 * rounds, asked.seed))
        cases["gsm8k"] = Case(read(rows_of(gsm8k)), tenths)
    return cases


def goals_of(figures: Mapping[str, Any]) -> tuple[list[Goal], dict[str, str]]:
    """The goals of what was measured, and why there are no others."""
    goals = [goal for goal in GOALS if goal.figure in figures]
    return goals, {goal.figure: "its questions are not in --data" for goal in GOALS if goal not in goals}


def measure(
    asked: argparse.Namespace, sets: Mapping[str, Sequence[Question]]
) -> tuple[dict[str, Any], list[str], list[Goal]]:
    """Fit and order everything."""
    began = time.monotonic()
    if not sets:
        raise Unmeasurable(f"No questions are in {asked.data}: name a folder with mmlu.csv or gsm8k.csv with --data.")
    say(f"Reading {sum(map(len, sets.values()))} questions")
    mmlu = mmlu_of(sets["mmlu"]) if "mmlu" in sets else None
    rows, worst = {}, []
    for name, case in cases_of(mmlu, sets.get("gsm8k", ()), asked, 2 if asked.full else 1).items():
        say(f"{NAMES[name]}: fitting and ordering")
        splits = ordered(case.rows, case.splits, case.group, asked.seed)
        rows[name] = {**Ordered.joined(splits).row(asked.seed), "splits": len(splits)}
        worst += [one.apgr(asked.seed) for one in of_rounds(name, splits)]
    say("Labels that tell nothing")
    dealt = shuffled(next(reversed(sets.values()))[:LABELS], 20 if asked.full else 5, asked.seed)
    figures: dict[str, Any] = {
        **{f"{name}_{part}": row[part] for name, row in rows.items() for part in row if part != "splits"},
        "worst_split_apgr_high": min(one.high for one in worst),
        "shuffled_claims": dealt["claims"],
    }
    goals, dropped = goals_of(figures)
    report = {
        "seed": asked.seed,
        "labels": asked.labels,
        "questions": {name: len(of) for name, of in sets.items()},
        "figures": figures,
        "goals_dropped": dropped,
        "rows": rows,
        "shuffled": dealt,
    }
    if mmlu is not None:
        count, seed = len(mmlu.names), asked.seed
        few, most = random_splits(count, asked.labels, 4, seed), folds(count, MMLU_FOLDS, 2, seed)
        report["by_names"] = {
            "mmlu_few": by_names(mmlu.rows, few, mmlu.group).row(seed),
            "mmlu": by_names(mmlu.rows, most, mmlu.group).row(seed),
        }
        if asked.full:
            report["curve"] = curve(mmlu.rows, seed)
    report["took_seconds"] = round(time.monotonic() - began, 1)
    obstacles = []
    if dealt["claims"] > dealt["claims_at_most"]:
        obstacles.append(f"{dealt['claims']} of {dealt['rounds']} models of shuffled labels claim to help")
    return report, obstacles, goals


def of_rounds(name: str, splits: Sequence[Ordered]) -> list[Ordered]:
    """What `never under 0.50` is judged on: each split; of GSM8K, whose tenths have 65 questions, all of a round."""
    if name != "gsm8k":
        return list(splits)
    return [Ordered.joined(splits[at : at + GSM8K_FOLDS]) for at in range(0, len(splits), GSM8K_FOLDS)]


def curve(mmlu: Rows, seed: int) -> list[dict[str, float]]:
    """APGR on random splits, by how many labels there are."""
    found = []
    for labels in CURVE:
        say(f"MMLU with {labels} labels")
        splits = ordered(mmlu, random_splits(len(mmlu.gain), labels, 2, seed), None, seed)
        found.append({"labels": labels, **Ordered.joined(splits).row(seed)})
    return found


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    parts = ("cpt50", "cpt80", "apgr", "apgr_low", "apgr_high")
    lines: list[list[Any]] = [["random order", 50.0, 80.0, 0.5, None, None, None]]
    for name, row in report["rows"].items():
        if name in PUBLISHED:
            lines.append([f"{NAMES[name]}: best published", *PUBLISHED[name], None, None, None])
        if name in BASELINES:
            lines.append([f"{NAMES[name]}: the baseline", *BASELINES[name], None, None, None])
        if of := report.get("by_names", {}).get(name):
            lines.append([f"{NAMES[name]}: by its subject's name", *(of[part] for part in parts), None])
        lines.append([f"{NAMES[name]}: this", *(row[part] for part in parts), APGR_GOALS.get(name)])
    shown = [table(["RouteLLM's questions", "CPT50", "CPT80", "APGR", "99% from", "to", "goal"], lines), ""]
    if "curve" in report:
        rows = [[row["labels"], *(row[part] for part in parts)] for row in report["curve"]]
        shown += [table(["MMLU by labels", "CPT50", "CPT80", "APGR", "99% from", "to"], rows), ""]
    dealt = report["shuffled"]
    shown += [
        f"Of {dealt['rounds']} models of shuffled labels {dealt['claims']} claim to help.",
        f"{report['questions']} questions, {report['labels']} labels, seed {report['seed']}, "
        f"{report['took_seconds']:g} s.",
    ]
    return "\n".join(shown)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "learned_routing",
        "Learned routing on RouteLLM's questions: CPT50, CPT80 and APGR on random splits and on unseen subjects. "
        "--seed sets every split.",
        full="twice the splits, 20 shuffles and the learning curve: about three times as long",
    )
    parser.add_argument(
        "--data", type=Path, default=DATA, help="a folder with (routellm/)mmlu.csv or mmlu/mmlu_*.csv, and gsm8k.csv"
    )
    parser.add_argument("--labels", type=int, default=LABELS, help=f"what few labels are (default {LABELS})")
    asked = parser.parse_args(arguments)
    if asked.labels < ROWS_MIN:
        parser.error(f"--labels: at least {ROWS_MIN}, or there is no model")
    if asked.seed < 0:
        parser.error("--seed: at least 0")

    def measured() -> tuple[dict[str, Any], list[str], list[Goal]]:
        sets = {name: of for name in ("mmlu", "gsm8k") if (of := questions(asked.data, name))}
        with threadpool_limits(1):
            return measure(asked, sets)

    return conclude("learned_routing", measured, GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
