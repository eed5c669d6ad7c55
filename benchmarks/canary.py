"""The verdict on a canary, simulated: `python -m benchmarks.canary [--json]`.

false rollbacks   good canaries through the whole judgement (errors, contracts, latency, feedback, shadow pairs), the
                  last world exactly at every bound; and the test alone over many more pairs, exactly at its bound
false promotions  the other test alone at its bound: canaries exactly at the margin that are shown to be no worse
promotions        equal canaries through the whole judgement until they are promoted: how many, after how many requests
callers           by how many callers of equal size there are: the same; how many requests until a canary is rolled back
                  that fails 10 points more often for all, and how often one is that fails for one caller alone, always
shadow pairs      how many until the harm (5 points) is found and until an equal canary is shown to be no worse, by the
                  active version's error rate (baseline) and by how many of its errors the canary does not share. The
                  goal stands where that is a tenth, at baselines of 5% and of 10%
errors            the same of arms that answer different requests, which is why it takes more of them
usual test        a one-sided paired z-test at alpha, looked at every 100 pairs, on the same simulated pairs

An interval is exact (Clopper-Pearson for rates, order statistics for medians) at 99%. A goal stands on the lower end
of its figure's interval, so that it is missed only where the figure is shown to be over it.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from benchmarks.canary_worlds import PROMOTION_REQUESTS_MAX, WORLDS, Pairs, World, by_callers, judged
from benchmarks.harness import Goal, conclude, options, say, table
from monitoring.quality.detectors import sequential
from monitoring.quality.verdicts import canary_verdict
from monitoring.quality.verdicts.canary_verdict import CanaryPlan

HARM = 0.05
HARM_PAIRS_GOAL = 200
USUAL_LOOK_PAIRS = 100
USUAL_LOOKS = 50
CONFIDENCE = 0.99
EQUAL_PAIRS_MAX = 20_000
HARM_PAIRS_MAX = 10_000
BASELINES = (0.05, 0.10, 0.20)
ERROR_RATES = (0.0, 0.01, 0.02, 0.05, 0.10)
UNSHARED = (0.1, 0.3)
GOAL_BASELINES = (0.05, 0.10)
GOAL_UNSHARED = 0.1
PROMOTED_GOAL = 0.95
CALLER_COLUMNS = ("promoted", "promoted_median", "harmed", "harmed_median", "forced")


# ---- a test alone ---------------------------------------------------------------------------------


def pairs_until(test: sequential.Bets, alpha: float, pairs: Pairs, draw: random.Random, pairs_max: int) -> float:
    """Pairs until the test rejects; infinite if it does not within so many."""
    bar = -math.log(alpha)
    for difference, times in pairs.differences(draw, pairs_max):
        after = sequential.observe(test, difference, times)
        if after.log_e_max >= bar:
            return first_in_row(test, difference, times, bar)
        test = after
    return math.inf


def first_in_row(test: sequential.Bets, difference: int, times: int, bar: float) -> int:
    """At which pair of a row of the same the test rejects: by bisection, since it rises along the row."""
    low, high = 1, times
    while low < high:
        middle = (low + high) // 2
        if sequential.observe(test, difference, middle).log_e_max >= bar:
            high = middle
        else:
            low = middle + 1
    return test.observed + low


def usual_until(alpha: float, pairs: Pairs, draw: random.Random) -> float:
    """Pairs until a one-sided paired z-test for harm above 0, looked at every 100 pairs, rejects; infinite if never."""
    bar = statistics.NormalDist().inv_cdf(1 - alpha)
    seen, total, squares = 0, 0, 0
    for difference, times in pairs.differences(draw, USUAL_LOOK_PAIRS * USUAL_LOOKS):
        left = times
        while left:
            step = min(left, USUAL_LOOK_PAIRS - seen % USUAL_LOOK_PAIRS)
            seen, left = seen + step, left - step
            total, squares = total + difference * step, squares + abs(difference) * step
            if seen % USUAL_LOOK_PAIRS == 0:
                mean = total / seen
                variance = squares / seen - mean * mean
                if variance > 0 and mean > bar * math.sqrt(variance / seen):
                    return seen
    return math.inf


def least_pairs(alpha: float, pairs: Pairs) -> float:
    """What a test that knew both rates would need, roughly, to show harm above 0: log(1/alpha) by the information."""
    unequal = pairs.worse + pairs.better
    information = sum(rate * math.log(rate / (unequal / 2)) for rate in (pairs.worse, pairs.better) if rate)
    return math.log(1 / alpha) / information


# ---- figures with their intervals -------------------------------------------------------------------


def cumulative(count: int, trials: int, rate: float) -> float:
    """The probability of at most so many of the trials."""
    if not 0.0 < rate < 1.0:
        return 1.0 if rate <= 0.0 or count >= trials else 0.0
    terms = [
        math.lgamma(trials + 1)
        - math.lgamma(k + 1)
        - math.lgamma(trials - k + 1)
        + k * math.log(rate)
        + (trials - k) * math.log1p(-rate)
        for k in range(count + 1)
    ]
    return min(1.0, math.fsum(math.exp(term) for term in terms))


def rate_of(count: int, trials: int) -> dict[str, float]:
    """A rate with its exact interval."""
    tail = (1 - CONFIDENCE) / 2
    low = 0.0 if count == 0 else root(lambda rate: 1 - cumulative(count - 1, trials, rate) - tail)
    high = 1.0 if count == trials else root(lambda rate: tail - cumulative(count, trials, rate))
    return {"rate": count / trials, "low": low, "high": high}


def root(rising: Any) -> float:
    """Where a rising function of a rate passes 0."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2


def median_of(values: Sequence[float]) -> dict[str, float | None]:
    """A median with its exact interval; None where it lies beyond what was simulated."""
    ordered = sorted(values)
    count = len(ordered)
    tail = (1 - CONFIDENCE) / 2
    below = 0
    while below < count // 2 and cumulative(below, count, 0.5) <= tail:
        below += 1
    found = (statistics.median_low(ordered), ordered[max(0, below - 1)], ordered[min(count - 1, count - below)])
    median, low, high = (None if math.isinf(one) else one for one in found)
    return {"median": median, "low": low, "high": high}


# ---- the measurements ----------------------------------------------------------------------------


def false_rollbacks(plan: CanaryPlan, canaries: int, requests_max: int, seed: int) -> dict[str, Any]:
    """Good canaries through the whole judgement, world by world."""
    found = {}
    for world in WORLDS:
        say(f"{canaries} good canaries, {world.name}")
        of_world = msgspec.structs.replace(plan, feedback_metric="correct" if world.at_the_bound else None)
        ended = [
            judged(world, of_world, requests_max, random.Random(f"{seed} {world.name} {n}")) for n in range(canaries)
        ]
        rolled_back = sum(action == "roll_back" for action, _ in ended)
        promoted = [requests for action, requests in ended if action == "promote"]
        found[world.name] = {
            **rate_of(rolled_back, canaries),
            "promoted": len(promoted) / canaries,
            "requests_to_promotion": statistics.median(promoted) if promoted else None,
        }
    return found


def promotions(plan: CanaryPlan, canaries: int, seed: int) -> dict[str, Any]:
    """Equal canaries through the whole judgement, until they are promoted or have had 5,000 requests."""
    found = {}
    for world in (World("equal_0", 0.0), *WORLDS[:2]):
        say(f"{canaries} equal canaries until they are promoted, {world.name}")
        draws = (random.Random(f"{seed} promotion {world.name} {n}") for n in range(canaries))
        ended = [judged(world, plan, PROMOTION_REQUESTS_MAX, draw) for draw in draws]
        took = sorted(requests for action, requests in ended if action == "promote")
        found[world.name] = {
            **rate_of(len(took), canaries),
            "median": statistics.median_low(took) if took else None,
            "nine_in_ten": took[len(took) * 9 // 10] if took else None,
        }
    return found


def tests_at_their_bound(plan: CanaryPlan, canaries: int, pairs_max: int, seed: int) -> dict[str, Any]:
    """How often a test alone rejects although the mean lies exactly at its bound; alpha is not divided here."""
    say(f"{canaries} canaries exactly at the bound, {pairs_max} pairs")
    cases = {
        "harm_above_0": ("above", 0.0, Pairs(0.03, 0.03)),
        "harm_above_the_margin": ("above", plan.margin, Pairs(0.03 + plan.margin, 0.03)),
        "no_worse_at_the_margin": ("below", plan.margin, Pairs(0.03 + plan.margin, 0.03)),
    }
    found = {}
    for name, (side, margin, pairs) in cases.items():
        test = sequential.start("above" if side == "above" else "below", margin)
        draws = (random.Random(f"{seed} {name} {n}") for n in range(canaries))
        hits = sum(pairs_until(test, plan.alpha, pairs, draw, pairs_max) < math.inf for draw in draws)
        found[name] = rate_of(hits, canaries)
    return found


def shadow_pairs(
    plan: CanaryPlan, canaries: int, baselines: Sequence[float], harm: float, seed: int
) -> list[dict[str, Any]]:
    """By baseline and agreement; a quarter of the canaries in every row but those on which the goal stands."""
    say("Shadow pairs until harm is found, and until an equal canary is accepted")
    return [
        shadow_row(plan, baseline, unshared, canaries if unshared == GOAL_UNSHARED else canaries // 4, harm, seed)
        for baseline in baselines
        for unshared in (*UNSHARED, 1 - baseline - harm)
    ]


def shadow_row(
    plan: CanaryPlan, baseline: float, unshared: float, canaries: int, points: float, seed: int
) -> dict[str, Any]:
    """Pairs to find harm and to accept an equal canary, ours and the usual test's."""
    alpha = canary_verdict.split_alpha(plan)["shadow"] * plan.alpha
    harmful, equal = Pairs.correlated(baseline, unshared, points), Pairs.correlated(baseline, unshared, 0.0)
    harm, accept = sequential.start("above", plan.shadow_harm_margin), sequential.start("below", plan.margin)

    def draws(of: str) -> Iterator[random.Random]:
        return (random.Random(f"{seed} {baseline} {unshared:.2f} {of} {n}") for n in range(canaries))

    usual_false = sum(usual_until(plan.alpha, equal, draw) < math.inf for draw in draws("usual, equal"))
    return {
        "baseline": baseline,
        "unshared": unshared,
        "canaries": canaries,
        "harm": median_of([pairs_until(harm, alpha, harmful, draw, HARM_PAIRS_MAX) for draw in draws("harm")]),
        "harm_least": least_pairs(alpha, harmful),
        "equal": median_of([pairs_until(accept, plan.alpha, equal, draw, EQUAL_PAIRS_MAX) for draw in draws("equal")]),
        "usual_harm": median_of([usual_until(plan.alpha, harmful, draw) for draw in draws("usual, harm")]),
        "usual_false": rate_of(usual_false, canaries),
    }


def errors_apart(plan: CanaryPlan, canaries: int, seed: int) -> list[dict[str, Any]]:
    """Pairs of requests of either arm, on other inputs: to accept an equal error rate, and to find a worse one."""
    say("Errors of arms that answer different requests")
    alpha = canary_verdict.split_alpha(plan)["error"] * plan.alpha
    harm, accept = sequential.start("above", plan.margin), sequential.start("below", plan.margin)
    found = []
    for rate in ERROR_RATES:
        row: dict[str, Any] = {"rate": rate, "canaries": canaries}
        for name, test, at, more, pairs_max in (
            ("equal", accept, plan.alpha, 0.0, EQUAL_PAIRS_MAX),
            ("10_points", harm, alpha, 0.10, HARM_PAIRS_MAX),
            ("50_points", harm, alpha, 0.50, HARM_PAIRS_MAX),
        ):
            pairs = Pairs(worse=(rate + more) * (1 - rate), better=rate * (1 - rate - more))
            draws = (random.Random(f"{seed} {rate} {name} {n}") for n in range(canaries))
            row[name] = median_of([pairs_until(test, at, pairs, draw, pairs_max) for draw in draws])
        found.append(row)
    return found


# ---- the report -----------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Simulate everything."""
    began = time.monotonic()
    plan = CanaryPlan(alpha=asked.alpha, margin=asked.margin)
    rollbacks = false_rollbacks(plan, asked.canaries, asked.requests, asked.seed)
    bounds = tests_at_their_bound(plan, asked.canaries, asked.pairs, asked.seed)
    promoted = promotions(plan, asked.canaries // 10, asked.seed)
    callers = by_callers(plan, asked.canaries // 50, asked.seed)
    shadow = shadow_pairs(plan, asked.canaries, asked.baselines, asked.harm, asked.seed)
    apart = errors_apart(plan, asked.canaries // 4, asked.seed)
    worst = max(rollbacks.values(), key=lambda one: one["rate"])
    bound = max(bounds.values(), key=lambda one: one["rate"])
    on_goal = {f"{100 * row['baseline']:g}": row for row in shadow if row["unshared"] == GOAL_UNSHARED}
    usual = max(shadow, key=lambda row: row["usual_false"]["rate"])["usual_false"]
    return {
        "seed": asked.seed,
        "canaries": asked.canaries,
        "requests_max": asked.requests,
        "pairs_max": asked.pairs,
        "alpha": asked.alpha,
        "margin": asked.margin,
        "harm": asked.harm,
        "baselines": asked.baselines,
        "figures": {
            "false_rollback_rate": worst["rate"],
            "false_rollback_rate_low": worst["low"],
            "false_rollback_rate_high": worst["high"],
            "at_the_bound_rate": bound["rate"],
            "at_the_bound_rate_low": bound["low"],
            **{f"harm_pairs_{name}": row["harm"]["median"] for name, row in on_goal.items()},
            **{f"harm_pairs_{name}_low": row["harm"]["low"] for name, row in on_goal.items()},
            **{f"harm_pairs_{name}_high": row["harm"]["high"] for name, row in on_goal.items()},
            **{f"equal_pairs_{name}": row["equal"]["median"] for name, row in on_goal.items()},
            "promoted_rate": promoted["equal_1"]["rate"],
            "promoted_rate_high": promoted["equal_1"]["high"],
            "usual_false_rollback_rate": usual["rate"],
            "forced_rollback_rate": max(row.get("forced", 0.0) for row in callers),
        },
        "worlds": rollbacks,
        "promotions": promoted,
        "callers": callers,
        "tests_at_their_bound": bounds,
        "shadow": shadow,
        "errors_apart": apart,
        "took_seconds": round(time.monotonic() - began, 1),
    }, []


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    worlds: Mapping[str, Mapping[str, Any]] = report["worlds"]
    bounds: Mapping[str, Mapping[str, Any]] = report["tests_at_their_bound"]
    head = [
        f"good canaries, {report['requests_max']} requests",
        *("rolled back", "99% from", "to", "promoted", "canary requests"),
    ]
    names = ("rate", "low", "high", "promoted", "requests_to_promotion")
    shadow_head = [
        "active wrong, errors not shared",
        "harm",
        "99% from",
        "to",
        "least",
        "equal",
        "usual: harm",
        "false",
    ]
    rows = [
        [
            f"{row['baseline']:.0%}, {row['unshared']:.0%}",
            *(row["harm"][part] for part in ("median", "low", "high")),
            round(row["harm_least"]),
            row["equal"]["median"],
            row["usual_harm"]["median"],
            row["usual_false"]["rate"],
        ]
        for row in report["shadow"]
    ]
    return "\n".join(
        [
            table(head, [[name, *(one[part] for part in names)] for name, one in worlds.items()]),
            "",
            table(
                [f"test alone at its bound, {report['pairs_max']} pairs", "rejects", "99% from", "to"],
                [[name, *(one[part] for part in names[:3])] for name, one in bounds.items()],
            ),
            "",
            table(
                [f"equal canaries, {PROMOTION_REQUESTS_MAX} requests", "promoted", "median after", "nine in ten after"],
                [[name, one["rate"], one["median"], one["nine_in_ten"]] for name, one in report["promotions"].items()],
            ),
            "",
            table(
                ["callers of equal size", "promoted", "after", "10 points: found", "after", "one's fail: found"],
                [[row["callers"], *(row.get(name, "-") for name in CALLER_COLUMNS)] for row in report["callers"]],
            ),
            "",
            f"Shadow pairs (medians) until {100 * report['harm']:g} points of harm are found, and until an "
            "equal canary is no worse",
            table(shadow_head, rows),
            "",
            "Pairs of requests of either arm (medians): equal errors are no worse, and more errors are found",
            table(
                ["active version's errors", "equal", "10 points more", "50 points more"],
                [
                    [f"{row['rate']:.0%}", *(row[name]["median"] for name in ("equal", "10_points", "50_points"))]
                    for row in report["errors_apart"]
                ],
            ),
            "",
            f"alpha {report['alpha']:g}, margin {report['margin']:g}, {report['canaries']} canaries a row, "
            f"seed {report['seed']}, {report['took_seconds']:g} s.",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "canary",
        "The verdict on a canary: false rollbacks, pairs to find harm, pairs to accept an equal one. "
        "All is simulated: --seed sets every draw.",
        full="2,000 canaries a row, up to 1,000 requests or 20,000 pairs each: 135 seconds of CPU time",
    )
    parser.add_argument("--canaries", type=int, help="simulated canaries a row, at least 100 (default 1000)")
    parser.add_argument(
        "--requests", type=int, help="canary requests after which a simulated canary ends (default 400)"
    )
    parser.add_argument("--pairs", type=int, help="pairs of every test at its bound (default 5000)")
    parser.add_argument(
        "--baselines", type=float, nargs="+", default=BASELINES, help="the active version's error rates"
    )
    parser.add_argument("--harm", type=float, default=HARM, help="how much more often the canary errs (default 0.05)")
    parser.add_argument("--alpha", type=float, default=0.05, help="the plan's alpha (default 0.05)")
    parser.add_argument("--margin", type=float, default=0.02, help="the plan's margin (default 0.02)")
    asked = parser.parse_args(arguments)
    asked.canaries = asked.canaries or (2_000 if asked.full else 1_000)
    asked.requests = asked.requests or (1_000 if asked.full else 400)
    asked.pairs = asked.pairs or (20_000 if asked.full else 5_000)
    if asked.canaries < 100:
        parser.error("--canaries: at least 100, or no interval says anything")
    if not all(0 < baseline < 1 - asked.harm for baseline in asked.baselines) or asked.harm <= 0:
        parser.error("--baselines, --harm: rates above 0 that make at most 1 together")
    try:
        CanaryPlan(alpha=asked.alpha, margin=asked.margin)
    except ValueError as error:
        parser.error(str(error))
    goals = [
        Goal("false_rollback_rate_low", at_most=asked.alpha),
        Goal("at_the_bound_rate_low", at_most=asked.alpha),
        Goal("promoted_rate_high", at_least=PROMOTED_GOAL),
        Goal("forced_rollback_rate", at_most=0.0),
    ]
    if asked.harm == HARM:
        there = [baseline for baseline in GOAL_BASELINES if baseline in asked.baselines]
        goals += [Goal(f"harm_pairs_{100 * baseline:g}_low", at_most=HARM_PAIRS_GOAL) for baseline in there]
    return conclude("canary", lambda: measure(asked), goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
