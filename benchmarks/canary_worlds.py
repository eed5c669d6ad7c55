"""Simulated canaries for `benchmarks/canary.py`: worlds, shadow pairs, and one canary through the whole judgement."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.harness import say
from monitoring.quality.verdicts import canary_verdict
from monitoring.quality.verdicts.canary_verdict import CanaryPlan, Outcome, ShadowPair

FEEDBACK_SHARE = 0.2
SHADOW_SHARE = 0.1
LATENCY_SIGMA = 0.5
PROMOTION_REQUESTS_MAX = 5_000
HARM_REQUESTS_MAX = 800
CALLERS = (1, 2, 4, 10)


@dataclass(frozen=True, slots=True)
class World:
    """How often things go wrong with the active version. At the bound its canary is as bad as a good one may be.

    There the plan looks at feedback too, so that all five signals may err; elsewhere it would delay every promotion.
    `callers` are of equal size. The canary fails `harm` more often for the first `harmed` of them.
    """

    name: str
    rate: float
    at_the_bound: bool = False
    callers: int = 1
    harmed: int = 0
    harm: float = 0.0


WORLDS = (World("equal_1", 0.01), World("equal_5", 0.05), World("equal_20", 0.20), World("at_the_bound_5", 0.05, True))


@dataclass(frozen=True, slots=True)
class Pairs:
    """Shadow pairs: how often only the canary is wrong, and only the active version; else there is no difference."""

    worse: float
    better: float

    @classmethod
    def correlated(cls, baseline: float, unshared: float, harm: float) -> Pairs:
        """The canary gets `unshared` of the active version's errors right, and errs `harm` more often in all."""
        return cls(worse=baseline * unshared + harm, better=baseline * unshared)

    def differences(self, draw: random.Random, pairs_max: int) -> Iterator[tuple[int, int]]:
        """Runs of pairs as (difference, how many in a row), up to so many pairs."""
        unequal = self.worse + self.better
        left = pairs_max
        while left > 0:
            same = int(math.log(1.0 - draw.random()) / math.log1p(-unequal)) if unequal else left
            if same:
                yield 0, min(same, left)
            left -= same
            if left > 0:
                yield (1 if draw.random() * unequal < self.worse else -1), 1
                left -= 1


def judged(world: World, plan: CanaryPlan, requests_max: int, draw: random.Random) -> tuple[str, int]:
    """One good canary through the whole judgement: its verdict, and the canary requests it took."""
    worse = plan.margin if world.at_the_bound else 0.0
    slower = plan.latency_ratio_max if world.at_the_bound else 1.0
    shadow = Pairs.correlated(world.rate, 0.3, plan.shadow_harm_margin if world.at_the_bound else 0.0)
    feedback_share = FEEDBACK_SHARE if plan.feedback_metric else 0.0
    state = canary_verdict.start(plan)
    while state.canary_requests < requests_max:
        canary = draw.random() < 0.5
        rate = world.rate + (worse if canary else 0.0)
        caller = int(draw.random() * world.callers) if world.callers > 1 else 0
        if canary and caller < world.harmed:
            rate = min(1.0, rate + world.harm)
        outcome = Outcome(
            arm="canary" if canary else "active",
            error=draw.random() < rate,
            contract_broken=draw.random() < rate,
            latency_seconds=draw.lognormvariate(0.0, LATENCY_SIGMA) * (slower if canary else 1.0),
            badness=float(draw.random() < rate) if draw.random() < feedback_share else None,
            caller=f"caller {caller}",
        )
        state = canary_verdict.observe(state, plan, outcome)
        if draw.random() < SHADOW_SHARE:
            place = draw.random()
            pair = ShadowPair(
                canary_wrong=place < shadow.worse, active_wrong=shadow.worse <= place < shadow.worse + shadow.better
            )
            state = canary_verdict.observe_pair(state, plan, pair)
        if canary and state.canary_requests % 50 == 0:
            action = canary_verdict.judge_canary(state, plan, 1.0).action
            if action != "continue":
                return action, state.canary_requests
    return canary_verdict.judge_canary(state, plan, 1.0).action, state.canary_requests


def by_callers(plan: CanaryPlan, canaries: int, seed: int) -> list[dict[str, Any]]:
    """Requests until an equal canary is promoted and until a bad one is rolled back, by how many callers there are; and
    how often one caller alone gets a good one rolled back."""
    found = []
    for callers in CALLERS:
        say(f"{canaries} canaries of {callers} callers")
        row: dict[str, Any] = {"callers": callers}
        equal = World("equal_1", 0.01, callers=callers)
        harmed = World("harm_10", 0.01, callers=callers, harmed=callers, harm=0.1)
        forced = World("one_fails", 0.01, callers=callers, harmed=1, harm=1.0)
        for name, wanted, most, world in (
            ("promoted", "promote", PROMOTION_REQUESTS_MAX, equal),
            ("harmed", "roll_back", HARM_REQUESTS_MAX, harmed),
            ("forced", "roll_back", HARM_REQUESTS_MAX, forced),
        ):
            if name == "forced" and callers == 1:
                continue  # it is all that there is
            draws = (random.Random(f"{seed} {world.name} {callers} {n}") for n in range(canaries))
            ended = [judged(world, plan, most, draw) for draw in draws]
            took = sorted(requests for action, requests in ended if action == wanted)
            row[name] = len(took) / canaries
            row[f"{name}_median"] = statistics.median_low(took) if took else None
        found.append(row)
    return found
