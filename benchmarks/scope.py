"""Is a text inside what a version learned: `python -m benchmarks.scope [--json] [--data DIR] [--seed N]`.

A model is fitted as at a version's registration; then texts inside and outside are scored, none of which it has seen.

clinc150        all intents, against the set's own out-of-scope queries
one domain      some of CLINC150's domains, one by one, against the test queries of all others and those out of scope:
                `known` with other traffic seen (training queries of the other domains), `stand-in` with the shipped
                sample alone, `unlabelled` so too, and no labels; of these two one domain, if not all (--full)
half unseen     half of the classes, drawn by the seed, are trained on; the test texts of the others are outside
open set        so too with a quarter, a half and three quarters: the share of all test texts that get their class, or
                "open", right, at 10% deferred (--full)
one of 1,000    the right task among 5 candidates of an index of 1,000 tasks: the sets' intents, and decoys

AUROC           how often a text inside scores above one outside; `nearest` so too by the nearest training prompt alone
caught          outside texts caught at the threshold that defers 5% of the inside ones
deferred        inside texts deferred at the model's own threshold for 5%, caught there: `found`
us, us 800      CPU time of a score, for the set's texts and for 800 characters: of each text the best of fifteen, as
                neighbours on the machine slow it down, and of these the median
cost            us 800 in units of a loop of 10,000 sums of squares that is timed in the same run

in a mailbox    inside texts that are deferred in other wordings (`benchmarks.scope_worlds`) more often than bare, and
                outside ones that are caught `between` two inside ones less often than bare. --mail replaces the frames.
                Without --seed other halves of the classes are drawn at each run.

Nothing of the tested set is in the sample that stands for other traffic. Intervals are at 99% (DeLong, over classes).
A goal stands on the better end of its interval: it is missed only where the figure is shown to miss it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, say, table
from benchmarks.scope_worlds import MAIL, WORLDS, Mail, between, make_world, read_mail
from benchmarks.scores import (
    DATA,
    LAYOUT,
    Z_99,
    DataSet,
    Figure,
    Labelled,
    auroc,
    auroc_with_interval,
    banking77,
    bitext,
    caught_at,
    clinc150,
    cuad,
    hwu64,
    there,
)
from router.embedding import Embedding, EmbeddingError, StaticEmbedding
from router.fitting.background import read_stand_in
from router.fitting.clusters import compute_centroids
from router.fitting.errors import FittingError
from router.fitting.scope import TrainingPrompt, fit_scope
from router.scope_model import ScopeModel
from router.task_index import TaskIndex

DEFERRED = 0.05
OPEN_SET_DEFERRED = 0.10
CLINC_GOAL, CLINC_DEEP_GOAL, DOMAIN_GOAL, HALF_GOAL, US_GOAL = 0.970, 0.985, 0.995, 0.925, 500.0
HALF_DEEP_GOAL, COST_GOAL, MORE_DEFERRED_GOAL, LESS_CAUGHT_GOAL = 0.945, 1.03, 0.10, 0.0
DOMAINS, OTHERS_MAX, TASKS, CANDIDATES, TIMED, RUNS = 2, 6_000, 1_000, 5, 40, 15
OUTSIDE_MAX = 2_000
WORLD_TEXTS, HALVES = 400, 3
ASIDE = 0.02
"""How far a decoy's centroids are moved along each of an embedding's dimensions: to a cosine of 0.95."""
NEAREST_PROMPTS = 1_500
OPEN = "open"
FILES: Mapping[str, tuple[str, Callable[[Path], DataSet]]] = {
    "clinc150": ("clinc150/data_full.json", clinc150),
    "banking77": ("banking77/train.csv", banking77),
    "hwu64": ("hwu64/train.tsv", hwu64),
    "bitext_cs": ("bitext_cs/train.csv", bitext),
    "cuad": ("cuad/master_clauses.csv", cuad),
}


@dataclass(frozen=True, slots=True)
class Case:
    """What is trained on, and what is asked. `source` is left out of what stands for other traffic."""

    name: str
    source: str
    train: Sequence[Labelled]
    inside: Sequence[Labelled]
    outside: Sequence[Labelled]
    known: Sequence[str] = ()
    labels: bool = True


# ---- the cases ---------------------------------------------------------------------------------------


def half_unseen(data: DataSet, share: float, draw: random.Random) -> Case:
    """A share of the classes is trained on, the others are outside."""
    labels = sorted({one.label for one in data.train})
    seen = set(draw.sample(labels, max(2, round(share * len(labels)))))
    return Case(
        f"{data.name}, {'half' if share == 0.5 else f'{1 - share:.0%}'} unseen",
        data.name,
        [one for one in data.train if one.label in seen],
        [one for one in data.test if one.label in seen],
        [one for one in data.test if one.label not in seen],
    )


def domain_cases(data: DataSet, domain: str, draw: random.Random) -> dict[str, Case]:
    """One domain against all else, by what is known of other traffic."""
    own = data.domains[domain]
    train = [one for one in data.train if one.label in own]
    inside = [one for one in data.test if one.label in own]
    outside = [one for one in data.test if one.label not in own]
    outside += [Labelled(text, f"out of scope {number}") for number, text in enumerate(data.outside)]
    outside = draw.sample(outside, min(OUTSIDE_MAX, len(outside)))
    others = [one.text for one in data.train if one.label not in own]
    known = draw.sample(others, min(OTHERS_MAX, len(others)))
    source = data.name
    return {
        "known": Case(f"{domain}, known", source, train, inside, outside, known),
        "stand_in": Case(f"{domain}, stand-in", source, train, inside, outside),
        "unlabelled": Case(f"{domain}, unlabelled", source, train, inside, outside, labels=False),
    }


def whole_case(data: DataSet) -> Case:
    """All classes against the set's out-of-scope queries."""
    outside = [Labelled(text, f"out of scope {number}") for number, text in enumerate(data.outside)]
    return Case(data.name, data.name, data.train, data.test, outside)


# ---- a case measured ----------------------------------------------------------------------------------


def fitted(case: Case, embedding: StaticEmbedding, deep: Embedding | None, seed: int) -> ScopeModel:
    """The case's model. Raises Unmeasurable if there is too little of it."""
    prompts = [
        TrainingPrompt(str(number), one.text, one.label if case.labels else None)
        for number, one in enumerate(case.train)
    ]
    try:
        shipped = read_stand_in([case.source])
        return fit_scope(prompts, case.known, embedding, seed, lambda step, share: None, deep, shipped)
    except FittingError as error:
        raise Unmeasurable(f"{case.name}: {error}") from error


def row_of(
    case: Case, embedding: StaticEmbedding, deep: Embedding | None, seed: int, mail: Mail | None = None
) -> tuple[dict[str, Any], ScopeModel]:
    """All figures of a case; with a mail's parts those of other wordings too."""
    if not case.inside or not case.outside:
        raise Unmeasurable(f"{case.name}: there is nothing to test with; name another folder with --data.")
    say(f"{case.name}{', MiniLM' if deep else ''}: {len(case.train)} training prompts")
    began = time.process_time()
    model = fitted(case, embedding, deep, seed)
    fitting = time.process_time() - began
    inside, outside = (np.array([model.score(one.text).score for one in part]) for part in (case.inside, case.outside))
    figure = auroc_with_interval(
        inside, outside, [one.label for one in case.inside], [one.label for one in case.outside]
    )
    bar = model.threshold(DEFERRED)
    texts = [one.text for one in case.inside]
    return {
        "case": case.name,
        "minilm": deep is not None,
        "train": len(case.train),
        "inside": len(inside),
        "outside": len(outside),
        "auroc": figure._asdict(),
        "nearest_auroc": nearest_alone(case, embedding),
        "caught": caught_at(inside, outside, DEFERRED),
        "deferred": float((inside < bar).mean()),
        "found": float((outside < bar).mean()),
        "us": us_of(model, texts),
        "us_800": us_of(model, long_texts(texts)),
        "bytes": len(model.to_bytes()),
        "held_back": model.held_back_rows,
        "fit_cpu_seconds": fitting,
        "worlds": {} if mail is None else worlds_of(case, model, mail, seed),
    }, model


def worlds_of(case: Case, model: ScopeModel, mail: Mail, seed: int) -> dict[str, float]:
    """How many more inside texts are deferred in each world than bare, and how many fewer outside ones are caught."""
    draw = random.Random(f"{seed} worlds")
    inside = [one.text for one in case.inside]
    drawn = draw.sample(inside, min(WORLD_TEXTS, len(inside)))
    foreign = [one.text for one in draw.sample(list(case.outside), min(WORLD_TEXTS, len(case.outside)))]
    bar = model.threshold(DEFERRED)

    def share(texts: Sequence[str]) -> float:
        return float(np.mean([model.score(text).score < bar for text in texts]))

    bare = share(drawn)
    found = {name: share(make_world(world, drawn, inside, mail, draw)) - bare for name, world in WORLDS.items()}
    return found | {"between": share(foreign) - share(make_world(between, foreign, inside, mail, draw))}


def nearest_alone(case: Case, embedding: Embedding) -> float:
    """The AUROC of the cosine to the nearest of at most 1,500 training prompts."""
    draw = random.Random(0)
    kept = draw.sample([one.text for one in case.train], min(NEAREST_PROMPTS, len(case.train)))
    vectors = embedding.embed(kept).T
    inside, outside = (
        (embedding.embed([one.text for one in part]) @ vectors).max(1) for part in (case.inside, case.outside)
    )
    return auroc(inside.astype(np.float64), outside.astype(np.float64))


def long_texts(texts: Sequence[str]) -> list[str]:
    """The texts joined until each has 800 characters."""
    whole = " ".join(texts)
    return [whole[at : at + 800] for at in range(0, len(whole) - 800, 800)][:TIMED] or [(whole * 800)[:800]]


def us_of(model: ScopeModel, texts: Sequence[str]) -> float:
    """The CPU time of a score in microseconds: of each text the best of fifteen runs, of these the median."""
    asked = texts[:TIMED]
    taken = np.zeros((RUNS, len(asked)))
    for run in range(RUNS):
        for at, text in enumerate(asked):
            began = time.thread_time_ns()
            model.score(text)
            taken[run, at] = time.thread_time_ns() - began
    return float(np.median(taken.min(0))) / 1e3


def loop_us() -> float:
    """The CPU time of a loop that stands for the machine's speed, in microseconds: the best of thirty."""
    taken = []
    for _ in range(30):
        began, total = time.thread_time_ns(), 0
        for number in range(10_000):
            total += number * number
        taken.append(time.thread_time_ns() - began)
    return min(taken) / 1e3


def open_set(case: Case, model: ScopeModel) -> float:
    """The share of all test texts whose class, or that they have none, is told right."""
    names = sorted({one.label for one in case.train})
    bar = model.threshold(OPEN_SET_DEFERRED)
    right = 0
    for one in (*case.inside, *case.outside):
        taken = model.score(one.text).score >= bar
        said = names[int(model.margins(one.text)[: len(names)].argmax())] if taken else OPEN
        right += said == (one.label if one.label in names else OPEN)
    return right / (len(case.inside) + len(case.outside))


def candidates(sets: Sequence[DataSet], embedding: Embedding, seed: int) -> dict[str, Any]:
    """How often the right one of 1,000 tasks is among the candidates, and the CPU time it takes to pick them."""
    say(f"an index of {TASKS} tasks")
    of_task: dict[str, list[str]] = {}
    tested: list[tuple[str, str]] = []
    for data in sets:
        for one in data.train:
            of_task.setdefault(f"{data.name} {one.label}", []).append(one.text)
        tested += [(one.text, f"{data.name} {one.label}") for one in data.test]
    centroids = {task: compute_centroids(embedding.embed(texts[:300]), seed) for task, texts in of_task.items()}
    draw = np.random.default_rng(seed)
    real = list(centroids.values())
    while len(centroids) < TASKS:  # decoys: tasks that lie where real ones do, a little aside
        for own in real[: min(len(real), TASKS - len(centroids))]:
            moved = own + draw.normal(0, ASIDE, own.shape)
            lengths = np.linalg.norm(moved, axis=1, keepdims=True)
            centroids[f"decoy {len(centroids)}"] = (moved / lengths).astype(np.float32)
    index = TaskIndex.of(centroids, embedding)
    chosen = random.Random(seed).sample(tested, min(3_000, len(tested)))
    taken, hits = [], 0
    for text, task in chosen:
        began = time.thread_time_ns()
        found = index.candidates(text, centroids, CANDIDATES)
        taken.append(time.thread_time_ns() - began)
        hits += task in found
    return {
        "tasks": len(index.tasks),
        "real_tasks": len(real),
        "asked": len(chosen),
        "right_among_candidates": hits / len(chosen),
        "us": float(np.median(taken)) / 1e3,
    }


# ---- the report -----------------------------------------------------------------------------------------


def mean_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of AUROCs, and of their intervals' ends: they are not independent."""
    return {part: float(np.mean([row["auroc"][part] for row in rows])) for part in Figure._fields}


def cases_of(sets: Mapping[str, DataSet], full: bool, seed: int) -> dict[str, list[Case]]:
    """What is measured, by the figure that it counts for."""
    found: dict[str, list[Case]] = {}
    for name in ("clinc150",):
        if name in sets:
            data = sets[name]
            found[name] = [whole_case(data)]
            draw = random.Random(f"{seed} domains")
            drawn = sorted(data.domains) if full else draw.sample(sorted(data.domains), min(DOMAINS, len(data.domains)))
            for domain in drawn:
                for kind, case in domain_cases(data, domain, draw).items():
                    if full or kind == "known" or domain == drawn[0]:
                        found.setdefault(f"domain_{kind}", []).append(case)
    for name in ("banking77", "hwu64", "cuad", "bitext_cs"):
        if name in sets and (full or name != "bitext_cs"):
            splits = 5 if full and name in {"banking77", "hwu64"} else HALVES if name == "banking77" else 1
            found[f"{name}_half"] = [
                half_unseen(sets[name], 0.5, random.Random(f"{seed} {name} {split}")) for split in range(splits)
            ]
    return found


def minilm() -> Embedding | None:
    """MiniLM, where it is installed."""
    try:
        from router.minilm import MiniLM, write  # noqa: PLC0415 - an extra that may be missing

        path = FOLDER / "minilm" / "int8.onnx"
        write(path, "int8")
        return MiniLM.load(path)
    except (ImportError, EmbeddingError) as error:
        say(f"MiniLM is left out: {error}")
        return None


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Fit and score everything."""
    began = time.monotonic()
    with threadpool_limits(1):
        embedding = StaticEmbedding.load()
        sets = {name: read(asked.data) for name, (file, read) in FILES.items() if there(asked.data, file)}
        if not sets:
            raise Unmeasurable(f"{asked.data} holds none of the data sets: {LAYOUT}.")
        cases = cases_of(sets, asked.full, asked.seed)
        rows: list[dict[str, Any]] = []
        figures: dict[str, float] = {}
        for deep in (None, minilm()) if asked.minilm else (None,):
            for figure, group in cases.items():
                if deep is not None and figure not in {"clinc150", "domain_known", "banking77_half", "hwu64_half"}:
                    continue
                mail = read_mail(asked.mail) if figure in {"banking77_half", "hwu64_half"} else None
                found = [row_of(case, embedding, deep, asked.seed, mail)[0] for case in group]
                rows += found
                name = f"{figure}_minilm" if deep else figure
                mean = mean_of(found)
                figures |= {name: mean["value"], f"{name}_low": mean["low"], f"{name}_high": mean["high"]}
                figures |= {f"{name}_caught": float(np.mean([row["caught"] for row in found]))}
                figures |= {f"{name}_us_800": max(row["us_800"] for row in found)}
                figures |= world_figures(name, found)
        index = candidates([data for data in sets.values() if data.name != "cuad"], embedding, asked.seed)
        opened = []
        if asked.full and "banking77" in sets:
            opened = open_sets(sets["banking77"], embedding, minilm() if asked.minilm else None, asked.seed)
    figures["us_800"] = max(
        value for name, value in figures.items() if name.endswith("us_800") and "minilm" not in name
    )
    figures["cost"] = figures["us_800"] / loop_us()
    figures |= {"candidates_us": index["us"], "candidates_right": index["right_among_candidates"]}
    return {
        "seed": asked.seed,
        "figures": figures,
        "rows": rows,
        "open_set": opened,
        "candidates": index,
        "took_seconds": round(time.monotonic() - began, 1),
    }, []


def world_figures(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each world over the rows, and the lower end of its 99% interval."""
    found: dict[str, float] = {}
    for world in rows[0]["worlds"]:
        values = np.array([row["worlds"][world] for row in rows])
        value, count = float(values.mean()), WORLD_TEXTS * len(rows)
        half = Z_99 * float(np.sqrt(2 * 0.25 / count if world == "between" else 2 * 0.12 / count))
        found |= {f"{name}_{world}": value, f"{name}_{world}_low": value - half}
    return found


def open_sets(data: DataSet, embedding: StaticEmbedding, deep: Embedding | None, seed: int) -> list[dict[str, float]]:
    """Open-set accuracy by the share of classes that is known, with MiniLM where it is given."""
    found = []
    for share in (0.25, 0.5, 0.75):
        case = half_unseen(data, share, random.Random(f"{seed} open {share}"))
        say(f"open set, {share:.0%} known")
        found.append({"known": share, "accuracy": open_set(case, fitted(case, embedding, deep, seed))})
    return found


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    head = ["case", "AUROC", "99% from", "to", "nearest", "caught", "deferred", "found", "us", "us 800", "kB", "fit s"]
    lines = [
        [
            row["case"] + (", MiniLM" if row["minilm"] else ""),
            *(row["auroc"][part] for part in Figure._fields),
            *(row[name] for name in ("nearest_auroc", "caught", "deferred", "found", "us", "us_800")),
            row["bytes"] / 1000,
            row["fit_cpu_seconds"],
        ]
        for row in report["rows"]
    ]
    index = report["candidates"]
    mailbox = [[row["case"], *row["worlds"].values()] for row in report["rows"] if row["worlds"]]
    parts = [
        table(head, lines),
        "",
        table(["more deferred (between: less caught)", *WORLDS, "between"], mailbox),
        "",
        table(
            ["one of many tasks", "tasks", "of them real", "asked", "right among 5", "us"],
            [["candidates", *(index[name] for name in list(index))]],
        ),
    ]
    if report["open_set"]:
        opened = [[f"{row['known']:.0%} known", row["accuracy"]] for row in report["open_set"]]
        parts += ["", table(["BANKING77, open set", "accuracy"], opened)]
    return "\n".join(parts)


def goals_of(sets: Path, with_minilm: bool) -> list[Goal]:
    """The goals that can be measured with this data."""
    goals = [Goal("us_800", at_most=US_GOAL), Goal("candidates_us", at_most=US_GOAL), Goal("cost", at_most=COST_GOAL)]
    suffix = "_minilm" if with_minilm else ""
    if there(sets, FILES["clinc150"][0]):
        goals += [Goal("clinc150_high", at_least=CLINC_GOAL), Goal("domain_known_high", at_least=DOMAIN_GOAL)]
        if with_minilm:
            goals.append(Goal("clinc150_minilm_high", at_least=CLINC_DEEP_GOAL))
    if there(sets, FILES["banking77"][0]):
        goals.append(Goal(f"banking77_half{suffix}_high", at_least=HALF_DEEP_GOAL if with_minilm else HALF_GOAL))
        goals += [Goal(f"banking77_half_{world}_low", at_most=MORE_DEFERRED_GOAL) for world in WORLDS]
        goals.append(Goal("banking77_half_between_low", at_most=LESS_CAUGHT_GOAL))
    return goals


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if nothing could be measured."""
    parser = options(
        "scope",
        "How well scope tells texts inside from those outside.",
        "all domains, five splits and the open set; with --minilm these with MiniLM too; minutes",
    )
    parser.add_argument("--data", type=Path, default=DATA, help=f"{LAYOUT} (default benchmarks/data)")
    parser.add_argument("--minilm", action="store_true", help="the rows with MiniLM too, where it is installed")
    parser.add_argument("--mail", type=Path, default=MAIL, help="frames of requests (default benchmarks/data/mail.txt)")
    parser.set_defaults(seed=random.SystemRandom().randrange(1, 1_000_000))
    asked = parser.parse_args(arguments)
    wanted = asked.minilm and minilm() is not None
    return conclude("scope", lambda: measure(asked), goals_of(asked.data, wanted), None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
