"""What deciding costs: `python -m benchmarks.choice [--json]`.

plain        choose() for a task without checks, for a request without a session
session      the same for a request that names a session
checks        with all four checks before an answer enforced, none of which fires, with a session
rules        without checks, with 100 rules of which none matches
everything   all of that: checks, rules, a session
covered      the score step and choose(), with a fitted scope model, for texts of 800 characters

Microseconds of CPU time of the thread on one core; the best of several rounds for choose(), the median over texts for
`covered`. The prompts that the model is fitted to are made up of the words of BANKING77, or of what --data names.
"""

from __future__ import annotations

import csv
import gzip
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.harness import ROOT, Goal, Unmeasurable, conclude, options, say, table
from router.choice import choose
from router.embedding import EmbeddingError, StaticEmbedding
from router.findings import CheckName, CheckPolicy
from router.fitted import Fitted
from router.fitting.scope import TrainingPrompt, fit_scope
from router.overrides import Override
from router.policy import Alias, Policy, TaskPolicy
from router.routing_data import NO_SCORES, Moment, RoutingRequest, Scores
from router.scoring import score
from serving.fleet_view import FleetView, GeneralPromptView, PoolView, ReplicaView, VersionView

DATA = ROOT / "benchmarks" / "data" / "banking77"
CHARACTERS = 800
PROMPTS = 1000
RULES = 100
CHOOSE_US_GOAL = 20.0
COVERED_US_GOAL = 500.0
VERSION = "returns@v1"
CHECKS: Mapping[CheckName, CheckPolicy] = {
    "degraded": CheckPolicy("enforce", 0.05),
    "out_of_scope": CheckPolicy("enforce", 0.05),
    "holdout": CheckPolicy("enforce", 1e-9),
    "predicted_gain": CheckPolicy("enforce", 0.2),
}


@dataclass(frozen=True)
class Gain:
    """What the router asks of a model of the gain."""

    shown_to_help: bool = True

    def score(self, _: str) -> float:
        """The same for each text."""
        return 0.1

    def threshold(self, _: float) -> float:
        """One that no score of this benchmark is over."""
        return 0.5


def fleet() -> FleetView:
    """Two pools of two replicas each, with a version on the first."""
    general_prompt = GeneralPromptView("Decide the return.", None, MappingProxyType({}))
    empty: Mapping[str, Any] = MappingProxyType({})
    version = VersionView(VERSION, "returns", "small", "active", "sha256:a", "sha256:m", empty, general_prompt)
    pools = {
        pool: PoolView(
            pool,
            f"{pool}-base",
            tuple(ReplicaView(f"{pool}-{number}", pool, True, frozenset({VERSION}), 0.0, 64) for number in range(2)),
        )
        for pool in ("small", "general")
    }
    return FleetView(MappingProxyType(pools), MappingProxyType({VERSION: version}), MappingProxyType({}))


def policy(checks: Mapping[CheckName, CheckPolicy], rules: int, fitted: Fitted) -> Policy:
    """One task with these checks, and so many rules that look at metadata and at who asks."""
    some = tuple(
        Override(str(number), "general", task="returns", caller=f"other-{number}", metadata={"shop": "de"})
        for number in range(rules)
    )
    return Policy(
        1,
        MappingProxyType({"returns": TaskPolicy("returns", "general", checks=MappingProxyType(dict(checks)))}),
        MappingProxyType({"returns": Alias("returns", 1, {VERSION: 1.0}, "salt")}),
        frozenset({"general"}),
        some,
        fitted=MappingProxyType({VERSION: fitted}),
    )


def best_us(decide: Callable[[], object], times: int, rounds: int = 5) -> float:
    """Microseconds that it takes; the best of several rounds."""
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        for _ in range(times):
            decide()
        found.append((time.thread_time() - began) / times * 1e6)
    return min(found)


def texts_of(folder: Path, seed: int) -> list[str]:
    """Prompts of one topic each."""
    try:
        path = next(folder.glob("train.csv*"))
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8", newline="") as file:
            texts = [row[0] for row in csv.reader(file)][1:]
    except (StopIteration, OSError) as error:
        raise Unmeasurable(f"{folder} holds no train.csv(.gz): name a folder with one in --data.") from error
    random.Random(seed).shuffle(texts)
    return texts


def measured(asked: Any) -> dict[str, float]:
    """All figures."""
    texts = texts_of(asked.data, asked.seed)
    say(f"fitting a scope model to {PROMPTS} prompts")
    try:
        embedding = StaticEmbedding.load()
    except EmbeddingError as error:
        raise Unmeasurable(str(error)) from error
    prompts = [TrainingPrompt(f"t-{number}", text, None) for number, text in enumerate(texts[:PROMPTS])]
    scope = fit_scope(prompts, (), embedding, asked.seed, lambda *_: None)
    fitted = Fitted(scope, None, Gain())  # type: ignore[arg-type]
    view, plain = fleet(), policy({}, 0, fitted)
    check, ruled, both = policy(CHECKS, 0, fitted), policy({}, RULES, fitted), policy(CHECKS, RULES, fitted)
    moment = Moment(1000.0, 1_800_000_000.0, 0.5)
    request = RoutingRequest("returns", "caller1", frozenset({"returns"}), None, {})
    named = replace(request, session="a session", selected=texts[0])
    scores = score(named, check, view, moment)
    assert scores.scope is not None
    scores = replace(scores, scope=replace(scores.scope, score=9.0))  # it goes all the way up the ladder
    cells: dict[str, tuple[RoutingRequest, Scores, Policy]] = {
        "plain": (request, NO_SCORES, plain),
        "session": (named, NO_SCORES, plain),
        "checks": (named, scores, check),
        "rules": (request, NO_SCORES, ruled),
        "everything": (named, scores, both),
    }
    times = 50_000 if asked.full else 5_000
    figures = {
        f"{name}_us": best_us(lambda cell=cell: choose(cell[0], cell[1], cell[2], view, moment), times)  # type: ignore[misc]
        for name, cell in cells.items()
    }
    figures |= covered(texts, named, check, view, moment, 2_000 if asked.full else 400)
    return figures


def covered(
    texts: Sequence[str], asked: RoutingRequest, rules: Policy, view: FleetView, moment: Moment, count: int
) -> dict[str, float]:
    """The score step and the choice, for texts that are none of the prompts."""
    only = Fitted(rules.fitted[VERSION].scope)
    rules = replace(rules, fitted=MappingProxyType({VERSION: only}))
    found = []
    for number in range(count):
        at = PROMPTS + 7 * number
        joined = " ".join(texts[(at + step) % len(texts)] for step in range(40))[:CHARACTERS]
        request = replace(asked, selected=joined)
        began = time.thread_time()
        choose(request, score(request, rules, view, moment), rules, view, moment)
        found.append((time.thread_time() - began) * 1e6)
    parts = statistics.quantiles(found, n=100)
    return {"covered_us_p50": parts[49], "covered_us_p99": parts[98]}


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    return table(["microseconds", "measured"], [[name, one] for name, one in report["figures"].items()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("choice", "What deciding costs.", full="ten times as many decisions: half a minute")
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with train.csv(.gz), texts first in a row")
    asked = parser.parse_args(arguments)

    def measure() -> tuple[dict[str, Any], list[str]]:
        return {"rules": RULES, "characters": CHARACTERS, "figures": measured(asked)}, []

    goals = [Goal("everything_us", at_most=CHOOSE_US_GOAL), Goal("covered_us_p50", at_most=COVERED_US_GOAL)]
    return conclude("choice", measure, goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
