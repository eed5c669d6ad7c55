"""One part of `benchmarks.degradation`: how often verdicts change on streams of a classifier's right and wrong answers.

Each stream goes through `monitoring/quality/replay`, as with `apprentice replay`.

sea    synthetic: x1, x2 and x3 are even from 0 to 10, the class is whether x1 + x2 is over 8, and a tenth is noise. A
       logistic regression has learned that. From label 2,000 on the border is 9.5, for as long as is asked; then it is
       8 again. Counted is what changes until then: one real change
file   `--stream`: labels as `apprentice replay` reads them, of which `change_point` may tell the real changes
elec2  `--elec2`: whether the price of electricity rises, each half-hour, in a CSV with a head, the class last. It is
       `elec.csv` in the sdist of scikit-multiflow 0.4.1, on PyPI. Classifiers learn the first 4,312 rows and are
       evaluated on 1,000; labels are those of the 40,000 after these, 48 a day. As it was recorded, backwards, and with
       its weeks in a drawn order. Nobody knows its real changes

Baselines are `evaluation`, the upper bound of 1,000 rows; `known`, their share as a rate that is set; and `own`, the
first labels.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

from benchmarks.degradation_figures import median_of
from benchmarks.degradation_worlds import Bools, Floats, drawing
from benchmarks.harness import Goal, Unmeasurable, say, table
from monitoring.quality.detectors.baselines import Baseline, declare_rate, measure
from monitoring.quality.replay.report import ReplayTerms, replay_labels
from monitoring.quality.replay.rows import BEGINS_AT, PER_DAY, LabelRow, LabelRows
from monitoring.time_units import DAY_SECONDS

EVALUATED = 1_000
SEA_LEARNED, SEA_BEFORE, SEA_AFTER = 2_000, 2_000, 2_000
SEA_BORDER, SEA_MOVED, SEA_NOISE = 8.0, 9.5, 0.1
ELEC2_LEARNED, ELEC2_LABELS, ELEC2_PER_DAY = 4_312, 40_000, 48
ELEC2_CHANGES_MAX, CHANGES_FOR_EACH_MAX = 20.0, 2.0
KINDS = ("evaluation", "known", "own")


class Flaps(NamedTuple):
    """The changes of the verdict on a stream, the real ones (None: nobody knows), those while its first degradation
    lasted, and the labels to the first recovery (None: there is none)."""

    changes: int
    real: int | None
    while_slipped: int
    to_recovery: float | None


def count_flaps(rows: LabelRows, baseline: Baseline | None) -> Flaps:
    """Put the stream through the monitor's code."""
    report = replay_labels(rows, ReplayTerms(baseline=baseline))
    points, changed = report["changes"], [change["label"] for change in report["verdict_changes"]]
    back = next((point for point in points if point["direction"] == "better"), None)
    end = back["after_labels"] if back else len(rows)
    is_degraded = back is not None and back["verdict_before"] == "degraded"
    return Flaps(
        len(changed),
        len(points) or None,
        sum(label <= end for label in changed),
        (back["delay_labels"] or np.inf) if back is not None and is_degraded else None,
    )


def make_rows(wrong: Bools, degraded: Bools | None = None, per_day: float = PER_DAY) -> LabelRows:
    """A stream of labels at an even pace. `degraded`: where it is known to be worse."""
    rows = LabelRows()
    for number, bad in enumerate(wrong):
        at = BEGINS_AT + DAY_SECONDS * number / per_day
        rows.add(LabelRow(number, at, at, bool(bad)), None if degraded is None else bool(degraded[number]))
    return rows


def make_baseline(kind: str, evaluated: Bools) -> Baseline | None:
    """The baseline from these rows of an evaluation; None for the stream's own first labels."""
    if kind == "own":
        return None
    if kind == "known":
        return declare_rate(float(evaluated.mean()), 1.0, "benchmark", "known")
    return measure("gate", int(evaluated.sum()), len(evaluated), 1.0, "benchmark", "evaluation")


# ---- SEA ------------------------------------------------------------------------------------------------


def flap_on_sea(runs: int, labels: int, seed: int) -> list[dict[str, Any]]:
    """A row for each baseline: one degradation that lasts for `labels`."""
    flaps_by_kind: dict[str, list[Flaps]] = {kind: [] for kind in KINDS if kind != "known"}
    for run in range(runs):
        say(f"SEA, a degradation that lasts for {labels} labels: run {run + 1} of {runs}")
        rows, evaluated = draw_sea(labels, drawing(seed, "sea", run))
        for kind, flaps in flaps_by_kind.items():
            flaps.append(count_flaps(rows, make_baseline(kind, evaluated)))
    return [
        {
            "baseline": kind,
            "labels": labels,
            "runs": runs,
            "changes_for_each": float(np.mean([stream.while_slipped for stream in flaps])),
            "changes_most": max(stream.while_slipped for stream in flaps),
            "labels_to_recovery": median_of(np.array([stream.to_recovery for stream in flaps if stream.to_recovery])),
        }
        for kind, flaps in flaps_by_kind.items()
    ]


def draw_sea(labels: int, draw: np.random.Generator) -> tuple[LabelRows, Bools]:
    """The stream, and the wrong answers of the evaluation before it."""
    degraded = np.repeat([False, True, False], (SEA_BEFORE, labels, SEA_AFTER))
    borders = np.where(degraded, SEA_MOVED, SEA_BORDER)
    borders = np.concatenate([np.full(SEA_LEARNED + EVALUATED, SEA_BORDER), borders])
    values = 10.0 * draw.random((len(borders), 3))
    classes = (values[:, 0] + values[:, 1] > borders) ^ (draw.random(len(borders)) < SEA_NOISE)
    model = LogisticRegression().fit(values[:SEA_LEARNED], classes[:SEA_LEARNED])
    wrong = model.predict(values[SEA_LEARNED:]) != classes[SEA_LEARNED:]
    return make_rows(wrong[EVALUATED:], degraded), wrong[:EVALUATED]


# ---- files ----------------------------------------------------------------------------------------------


def flap_on_streams(streams: Mapping[str, LabelRows]) -> list[dict[str, Any]]:
    """A row for each file, compared with its own first labels."""
    return [_describe(name, "own", rows, count_flaps(rows, None)) for name, rows in streams.items()]


def flap_on_elec2(path: Path, seed: int) -> list[dict[str, Any]]:
    """A row for each order, classifier and baseline. Raises Unmeasurable for another file."""
    described = []
    for name, wrong in draw_elec2(*read_elec2(path), seed):
        say(f"elec2, {name}")
        rows, evaluated = make_rows(wrong[EVALUATED:], per_day=ELEC2_PER_DAY), wrong[:EVALUATED]
        described += [_describe(name, kind, rows, count_flaps(rows, make_baseline(kind, evaluated))) for kind in KINDS]
    return described


def read_elec2(path: Path) -> tuple[Floats, np.ndarray]:
    """The values and classes of the file. Raises Unmeasurable."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))[1:]
        values = np.array([line[:-1] for line in lines], dtype=np.float64)
        classes = np.array([line[-1] for line in lines])
    except (OSError, ValueError, IndexError) as error:
        raise Unmeasurable(f"{path}: no CSV with a head, numbers, and the class last ({error})") from error
    if len(classes) <= ELEC2_LEARNED + EVALUATED or len(set(classes[:ELEC2_LEARNED])) != 2:
        raise Unmeasurable(f"{path}: over {ELEC2_LEARNED + EVALUATED} rows of two classes are needed")
    return values, classes


def draw_elec2(values: Floats, classes: np.ndarray, seed: int) -> Iterator[tuple[str, Bools]]:
    """By order and classifier, which answers after the rows that it has learned are wrong."""
    count = min(len(classes), ELEC2_LEARNED + EVALUATED + ELEC2_LABELS)
    weeks = np.array_split(np.arange(count), count // (7 * ELEC2_PER_DAY))
    drawn = drawing(seed, "elec2").permutation(len(weeks))
    orders = {
        "recorded": np.arange(count),
        "backwards": np.arange(count)[::-1],
        "weeks drawn": np.concatenate([weeks[week] for week in drawn]),
    }
    for order, rows in orders.items():
        x, y = values[rows], classes[rows]
        for name, model in (
            ("logistic regression", LogisticRegression(max_iter=1_000)),
            ("naive Bayes", GaussianNB()),
            ("tree", DecisionTreeClassifier(max_depth=6, random_state=seed)),
        ):
            model.fit(x[:ELEC2_LEARNED], y[:ELEC2_LEARNED])
            yield f"{order}, {name}", model.predict(x[ELEC2_LEARNED:]) != y[ELEC2_LEARNED:]
        yield f"{order}, naive Bayes, learns daily", _learn_daily(x, y)


def _learn_daily(x: Floats, y: np.ndarray) -> Bools:
    """Which answers of a classifier are wrong that learns each day's rows at its end."""
    model = GaussianNB().fit(x[:ELEC2_LEARNED], y[:ELEC2_LEARNED])
    wrong = []
    for day in range(ELEC2_LEARNED, len(y), ELEC2_PER_DAY):
        part = slice(day, day + ELEC2_PER_DAY)
        wrong.append(model.predict(x[part]) != y[part])
        model.partial_fit(x[part], y[part])
    return np.concatenate(wrong)


def _describe(name: str, kind: str, rows: LabelRows, flaps: Flaps) -> dict[str, Any]:
    return {
        "stream": name,
        "baseline": kind,
        "labels": len(rows),
        "wrong": sum(rows.wrong) / len(rows),
        "changes": flaps.changes,
        "real_changes": flaps.real,
        "changes_for_each": flaps.changes / flaps.real if flaps.real else None,
    }


# ---- the report -----------------------------------------------------------------------------------------


def list_figures(flaps: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, float]:
    """The most changes of the verdict: for each real one on SEA and in files that tell those, and in all on elec2."""
    figures = {"flaps_sea_for_each": max(row["changes_for_each"] for row in flaps["sea"])}
    for_each = [row["changes_for_each"] for row in flaps["streams"] if row["real_changes"]]
    figures |= {"flaps_streams_for_each": max(for_each)} if for_each else {}
    return figures | ({"flaps_elec2": max(row["changes"] for row in flaps["elec2"])} if flaps["elec2"] else {})


def list_goals(streams: Iterable[LabelRows], has_elec2: bool) -> list[Goal]:
    """At most two changes for each real one, and 20 on elec2."""
    goals = [Goal("flaps_sea_for_each", at_most=CHANGES_FOR_EACH_MAX)]
    if any(rows.points() for rows in streams):
        goals.append(Goal("flaps_streams_for_each", at_most=CHANGES_FOR_EACH_MAX))
    return [*goals, Goal("flaps_elec2", at_most=ELEC2_CHANGES_MAX)] if has_elec2 else goals


def show_flaps(flaps: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The tables."""
    sea, others = flaps["sea"], [*flaps["streams"], *flaps["elec2"]]
    tables = [
        table(
            [
                f"SEA, a degradation that lasts {sea[0]['labels']} labels, {sea[0]['runs']} runs",
                "changes",
                "most",
                "back",
            ],
            [
                [row["baseline"], row["changes_for_each"], row["changes_most"], row["labels_to_recovery"]["median"]]
                for row in sea
            ],
        )
    ]
    if others:
        names = ("labels", "wrong", "changes", "real_changes")
        head = ["changes of the verdict", *(name.replace("_", " ") for name in names)]
        tables += ["", table(head, [[f"{row['stream']}, {row['baseline']}", *map(row.get, names)] for row in others])]
    return "\n".join(tables)
