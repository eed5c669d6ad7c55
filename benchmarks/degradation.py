"""Has it begun to degrade? False alarms and delays over labels, simulated: `python -m benchmarks.degradation [--json]`.

false alarms   how often a detector alarms within 10,000 labels while nothing changes, by baseline and by how labels
               come (`degradation_worlds.py`)
delays         how many labels of requests since the change come until a detector alarms: the median, by baseline, world
               and size of the change in points. Where half of the runs found nothing there is none
fleet          ten thousand healthy versions for months: false verdicts a month, beside what was set
lasting        a lasting degradation: recoveries that are none, and labels to the real one (`degradation_lasting.py`)
flaps          changes of the verdict on a classifier's answers, and in any file of labels (`degradation_flaps.py`)
clusters       labels that depend on each other (`degradation_clusters.py`): false alarms in worlds with a goal each
pairs          judged pairs that come in clusters (`degradation_pairs.py`): false alarms, and labels until a real one
own            streams compared with their own first 100 labels, as classes are, or 50 (`degradation_own.py`)
poison         one caller sends only bad labels: how often that makes a verdict, and what the guard costs the honest
               (`degradation_fleet.py` for both)

known          ours, a `LabelSignal` that knows the healthy rate (`degradation_signals.py`)
gate_1000      ours with the upper 95% bound of the rate from so many rows of a gate, drawn anew for each run; gate_300
guarded        the detector alone with `guards.py`: where one rater's burst comes, it is what counts
last_200       the usual rule: alarm when the last 200 labels are wrong 5 points more often than the baseline
adwin, page_hinkley, hddm_a, hddm_w   river's, with its own parameters, where `--peers` has installed them

An interval is exact at 99%: Clopper-Pearson for rates, order statistics for medians. A goal stands on the end of its
figure's interval, so that it is missed only where the figure is shown to be over it.
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta
from threadpoolctl import threadpool_limits

from benchmarks import (
    degradation_clusters,
    degradation_flaps,
    degradation_fleet,
    degradation_lasting,
    degradation_own,
    degradation_pairs,
    degradation_peers,
)
from benchmarks.canary import rate_of
from benchmarks.degradation_detectors import Design, first_alarms, first_alarms_guarded, first_of_last_200
from benchmarks.degradation_figures import delays, median_of
from benchmarks.degradation_peers import RIVER, River
from benchmarks.degradation_signals import find_alarms, hold, join
from benchmarks.degradation_worlds import COMPLAINTS_FIRST, WORLDS, Floats, Labels, World, drawing, labels_of
from benchmarks.harness import PEERS, Goal, conclude, options, say, table
from benchmarks.subjects import install_peer
from monitoring.evaluation.dataset import DatasetError
from monitoring.quality.detectors import rising_errors
from monitoring.quality.replay.rows import read_rows

BASELINES = (0.01, 0.05, 0.15, 0.30)
POINTS = (0.02, 0.05, 0.10, 0.20)
AFTER = {0.02: 5_000, 0.05: 4_000, 0.10: 2_000, 0.20: 1_000}
GATES = {"gate_1000": 1_000, "gate_300": 300}
GATE_CONFIDENCE = 0.95
GOAL_BASELINE = 0.05
DELAY_GOALS = {"known_5": 455.0, "known_10": 150.0, "known_20": 56.0, "gate_1000_10": 234.0}
"""1.3 times what a detector takes that knows labels to be independent: 350, 115, 43 and 180."""
DESIGNS: Mapping[str, Design | None] = {
    "as it is: 2, 5, 11, 24, 45 points": None,
    "2, 5, 10, 20, 35 points, equal weights": Design((0.02, 0.05, 0.10, 0.20, 0.35), (0.2, 0.2, 0.2, 0.2, 0.2)),
    "the same, its weights": Design((0.02, 0.05, 0.10, 0.20, 0.35), rising_errors.WEIGHTS),
    "2, 5, 10, 23, 40, weighted for 5 points": Design((0.02, 0.05, 0.10, 0.23, 0.40), (0.1, 0.3, 0.2, 0.35, 0.05)),
    "5, 10, 20 points, equal weights": Design((0.05, 0.10, 0.20), (1 / 3, 1 / 3, 1 / 3)),
    "20 points alone": Design((0.20,), (1.0,)),
}
GOAL_LABELS, GOAL_ALPHA = 10_000, 0.05
OWN_RUNS_TIMES = 10
CLUSTERS_TIMES = 2
PAIRS_TIMES = 4
LASTING_PART = 50
"""One run of a degradation that lasts for so many of false alarms: it goes label by label through the monitor's own
code."""
OURS = ("known", "gate_1000", "gate_300", "guarded")
FULL = "4 times the runs, other alternatives, and 12 months of the fleet; the CPU time is told at the end"


# ---- the detectors on the same labels -----------------------------------------------------------------


def alarms_of(
    came: Labels, rate: float, bar: float, draw: np.random.Generator, guarded: bool = False
) -> dict[str, Floats]:
    """By detector, the label at which each run alarms first."""
    runs = len(came.bad)
    helds = {"known": hold("known", np.full(runs, rate))}
    for name, rows in GATES.items():
        wrong = draw.binomial(rows, rate, runs)
        helds[name] = hold("gate", beta.ppf(GATE_CONFIDENCE, wrong + 1, rows - wrong))
    alarms = find_alarms(came.bad, came.times, join(list(helds.values())), bar).degraded
    found = dict(zip(helds, np.split(alarms, len(helds)), strict=True))
    if guarded:
        found["guarded"] = first_alarms_guarded(came.bad, came.givers, np.full(runs, rate), np.full(runs, bar))
    found["last_200"] = first_of_last_200(came.bad, rate)
    return found


def false_alarms(asked: argparse.Namespace, river: River) -> list[dict[str, Any]]:
    """How often each alarms while nothing changes, by baseline and world."""
    found = []
    for rate, world in cells(asked.baselines):
        say(f"False alarms, baseline {rate:.0%}, {world.name}")
        draw = drawing(asked.seed, "false alarms", rate, world.name)
        came = labels_of(world, draw, asked.runs, asked.labels, rate)
        alarms = alarms_of(came, rate, asked.labels / asked.alpha, draw, world.burst) | river.first_drifts(came.bad)
        rates = {name: rate_of(int(np.isfinite(at).sum()), len(at)) for name, at in alarms.items()}
        found.append({"baseline": rate, "world": world.name, "detectors": rates})
    return found


def found_after(asked: argparse.Namespace, river: River) -> list[dict[str, Any]]:
    """Median delays, by baseline, world and points."""
    found = []
    for rate, world in cells(asked.baselines):
        say(f"Delays, baseline {rate:.0%}, {world.name}")
        row: dict[str, Any] = {"baseline": rate, "world": world.name, "points": {}}
        for points in POINTS:
            draw = drawing(asked.seed, "delays", rate, world.name, points)
            count = world.before + AFTER[points]
            came = labels_of(world, draw, asked.runs // 3, count, rate, points)
            alarms = alarms_of(came, rate, asked.labels / asked.alpha, draw, world.burst)
            if world.name == "steady":
                alarms |= river.first_drifts(came.bad)
            row["points"][f"{100 * points:g}"] = {
                name: median_of(delays(at, came.changed[: len(at)])) for name, at in alarms.items()
            }
        found.append(row)
    return found


def cells(baselines: Sequence[float]) -> Iterator[tuple[float, World]]:
    """Every baseline in every world."""
    return ((rate, world) for rate in baselines for world in WORLDS)


def goal_delays(asked: argparse.Namespace) -> dict[str, dict[str, float | None]]:
    """The medians that have a goal, over many runs: a baseline of 5%, labels at once."""
    found = {}
    for points in POINTS[1:]:
        say(f"Delays that have a goal, +{100 * points:g} points")
        draw = drawing(asked.seed, "goals", points)
        count = WORLDS[0].before + AFTER[points]
        came = labels_of(WORLDS[0], draw, asked.goal_runs, count, GOAL_BASELINE, points)
        alarms = alarms_of(came, GOAL_BASELINE, GOAL_LABELS / GOAL_ALPHA, draw)
        for name in ("known", *GATES):
            found[f"{name}_{100 * points:g}"] = median_of(delays(alarms[name], came.changed))
    return found


def tried(asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Median delays of other alternatives and weights, on streams of their own: a known baseline of 5%, steady."""
    rows: list[dict[str, Any]] = [{"design": name, "points": {}} for name in DESIGNS]
    for points in POINTS:
        say(f"Other alternatives, +{100 * points:g} points")
        runs = asked.goal_runs if points > POINTS[0] else asked.goal_runs // 8
        count = WORLDS[0].before + AFTER[points]
        came = labels_of(WORLDS[0], drawing(asked.seed, "tried", points), runs, count, GOAL_BASELINE, points)
        for row, design in zip(rows, DESIGNS.values(), strict=True):
            bars = np.full(runs, GOAL_LABELS / GOAL_ALPHA)
            alarms = first_alarms(came.bad, np.full(runs, GOAL_BASELINE), bars, design)
            row["points"][f"{100 * points:g}"] = median_of(delays(alarms, came.changed))
    return rows


def complaints_first(asked: argparse.Namespace) -> dict[str, Any]:
    """What is not claimed: false alarms of a cold start where bad labels come sooner than good ones."""
    draw = drawing(asked.seed, "complaints first")
    came = labels_of(COMPLAINTS_FIRST, draw, asked.runs, min(asked.labels, 2_000), GOAL_BASELINE)
    bars = np.full(asked.runs, asked.labels / asked.alpha)
    alarms = first_alarms(came.bad, np.full(asked.runs, GOAL_BASELINE), bars)
    return rate_of(int(np.isfinite(alarms).sum()), asked.runs)


# ---- the report -----------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Simulate everything."""
    if asked.peers and not degradation_peers.python(PEERS).exists():
        install_peer(degradation_peers.python(PEERS), "river", RIVER)
    with River(PEERS, asked.peers_runs) as river:
        if asked.peers_runs and not river.asked:
            say(f"river is not installed: its columns are left out. Run once with --peers (river {RIVER}).")
        false, after = false_alarms(asked, river), found_after(asked, river)
    goals, late = goal_delays(asked), complaints_first(asked)
    fleet = degradation_fleet.fleet(asked.versions, asked.months, asked.budget, asked.seed)
    own = degradation_own.own_first(
        asked.baselines, OWN_RUNS_TIMES * asked.runs, asked.runs, asked.labels, asked.alpha, asked.seed
    )
    poison = degradation_fleet.poison(asked.runs, asked.labels, asked.alpha, asked.seed)
    costs = degradation_fleet.guard(asked.runs // 3, asked.labels, asked.alpha, POINTS[1:], asked.seed)
    lasting_labels = 2 * asked.labels if asked.full else asked.labels // 4
    lasts = degradation_lasting.lasting(max(1, asked.runs // LASTING_PART), lasting_labels, asked.alpha, asked.seed)
    turns = degradation_lasting.turn_back_and_forth(max(2, asked.runs // LASTING_PART), asked.alpha, asked.seed)
    flaps = {
        "sea": degradation_flaps.flap_on_sea(max(2, asked.runs // LASTING_PART), asked.sea_labels, asked.seed),
        "streams": degradation_flaps.flap_on_streams(asked.streams),
        "elec2": degradation_flaps.flap_on_elec2(asked.elec2, asked.seed) if asked.elec2 else [],
    }
    clusters = degradation_clusters.find_false_alarms(
        asked.worlds, CLUSTERS_TIMES * asked.runs, asked.labels, asked.alpha, asked.seed
    )
    pairs = degradation_pairs.find_pair_alarms(PAIRS_TIMES * asked.runs, asked.alpha, asked.seed)
    designs = tried(asked) if asked.full else []
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    names = ("seed", "runs", "goal_runs", "labels", "alpha", "baselines", "peers_runs")
    return {
        **{name: getattr(asked, name) for name in names},
        "river": RIVER if river.asked else None,
        "figures": figures_of(false, goals, late, fleet, poison)
        | own_figures(own)
        | lasting_figures(lasts, turns)
        | degradation_flaps.list_figures(flaps)
        | degradation_clusters.list_figures(clusters)
        | degradation_pairs.list_figures(pairs),
        "false_alarms": false,
        "delays": after,
        "goal_delays": goals,
        "tried": designs,
        "complaints_first": late,
        "fleet": fleet,
        "own_first": own,
        "lasting": lasts,
        "back_and_forth": turns,
        "flaps": flaps,
        "clusters": clusters,
        "pairs": pairs,
        "poison": poison,
        "guard": costs,
        "cpu_seconds": round(sum(one.ru_utime + one.ru_stime for one in used), 1),
    }, []


def on_one_core(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The same, on one core: the arrays are too small for threads of their own."""
    with threadpool_limits(limits=1):
        return measure(asked)


def figures_of(
    false: Sequence[Mapping[str, Any]],
    goals: Mapping[str, Mapping[str, Any]],
    late: Mapping[str, Any],
    fleet: Mapping[str, Any],
    poison: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What the goals stand on, and what is told of it beside."""
    figures: dict[str, Any] = {}
    for name in ("known", *GATES):
        worst = max((counted(row, name) for row in false), key=lambda one: one["rate"])
        figures[f"false_alarm_rate_{name}"] = worst["rate"]
        figures[f"false_alarm_rate_{name}_low"] = worst["low"]
        figures[f"false_alarm_rate_{name}_mean"] = sum(counted(row, name)["rate"] for row in false) / len(false)
    for name, one in goals.items():
        figures |= {f"delay_{name}": one["median"], f"delay_{name}_low": one["low"], f"delay_{name}_high": one["high"]}
    worst_fleet = max(fleet["at_the_baseline"], fleet["gate_1000"], key=lambda one: one["a_month"])
    worst_poison = max((row["guarded"] for row in poison), key=lambda one: one["rate"])
    return figures | {
        "fleet_false_verdicts_a_month": worst_fleet["a_month"],
        "fleet_false_verdicts_a_month_low": worst_fleet["low"],
        "poisoned_verdict_rate": worst_poison["rate"],
        "poisoned_verdict_rate_low": worst_poison["low"],
        "complaints_first_false_alarm_rate": late["rate"],
    }


def own_figures(own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The worst of the streams that are compared with their own first labels, by how many those are."""
    figures: dict[str, Any] = {}
    for first in degradation_own.FIRSTS:
        worst = max((row["false_alarms"] for row in own if row["first"] == first), key=lambda one: one["rate"])
        figures[f"false_alarm_rate_own_{first}"] = worst["rate"]
        figures[f"false_alarm_rate_own_{first}_low"] = worst["low"]
    return figures


def lasting_figures(lasts: Sequence[Mapping[str, Any]], turns: Mapping[str, Any]) -> dict[str, Any]:
    """The most recoveries that were none, on average, of a degradation that lasts; and of degradations that come and
    go."""
    figures = {
        f"false_recoveries_{kind}": max(row[kind]["false_recoveries_a_run"] for row in lasts)
        for kind in degradation_lasting.KINDS
    }
    back = turns["labels_to_healthy"]["low"]
    return {**figures, "changes_for_each_real_one": turns["changes_for_each"], "labels_to_recovery_low": back}


def counted(row: Mapping[str, Any], name: str) -> Mapping[str, float]:
    """The false alarms that count: where one rater's burst comes, those of the guarded detector."""
    found: Mapping[str, Mapping[str, float]] = row["detectors"]
    return found.get("guarded", found[name])


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    false: Sequence[Mapping[str, Any]] = report["false_alarms"]
    after: Sequence[Mapping[str, Any]] = report["delays"]
    names = (*OURS, *(name for name in false[0]["detectors"] if name not in OURS))
    late = report["complaints_first"]
    figures = report["figures"]
    return "\n".join(
        [
            f"Alarms in {report['labels']} labels while nothing changes, {report['runs']} runs a row "
            f"(river: {report['peers_runs'] if report['river'] else 0})",
            table(["baseline, world", *names], [[cell(row), *rates(row, names)] for row in false]),
            "",
            f"Labels until a change is found: medians of {report['runs'] // 3} runs",
            table(
                ["baseline, world, points", *names],
                [
                    [f"{cell(row)}, +{points}", *(found.get(name, {}).get("median") for name in names)]
                    for row in after
                    for points, found in row["points"].items()
                ],
            ),
            "",
            f"Those with a goal: baseline 5%, steady, {report['goal_runs']} runs",
            table(
                ["baseline known, or from the gate's rows", "median", "99% from", "to", "goal"],
                [
                    [name, *(one[part] for part in ("median", "low", "high")), DELAY_GOALS.get(name)]
                    for name, one in report["goal_delays"].items()
                ],
            ),
            "",
            *show_tried(report["tried"]),
            degradation_fleet.show_fleet(report["fleet"]),
            "",
            degradation_clusters.show_clusters(report["clusters"], report["labels"], CLUSTERS_TIMES * report["runs"]),
            "",
            degradation_pairs.show_pairs(report["pairs"], PAIRS_TIMES * report["runs"]),
            "",
            degradation_own.show_own(report["own_first"], report["labels"]),
            "",
            degradation_lasting.show_lasting(report["lasting"]),
            "",
            f"Back and forth: {figures['changes_for_each_real_one']:.2f} changes of the verdict for each real one, a "
            f"recovery after {report['back_and_forth']['labels_to_healthy']['median']} labels",
            "",
            degradation_flaps.show_flaps(report["flaps"]),
            "",
            degradation_fleet.show_poison(report["poison"], report["guard"]),
            "",
            f"Not claimed: {late['rate']:.0%} false alarms where bad labels come sooner than good ones (cold start).",
            f"All baselines and worlds: {figures['false_alarm_rate_known_mean']:.1%} false alarms, gate of 1,000 "
            f"rows {figures['false_alarm_rate_gate_1000_mean']:.1%}. "
            f"alpha {report['alpha']:g}, seed {report['seed']}, {report['cpu_seconds']:g} s of CPU time.",
        ]
    )


def show_tried(designs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of other alternatives, where they were measured."""
    if not designs:
        return []
    head = ["baseline 5%, known, steady: labels to find", *(f"+{points}" for points in designs[0]["points"])]
    return [table(head, [[row["design"], *(one["median"] for one in row["points"].values())] for row in designs]), ""]


def cell(row: Mapping[str, Any]) -> str:
    """A row's name."""
    return f"{row['baseline']:.0%}, {row['world']}"


def rates(row: Mapping[str, Any], names: Sequence[str]) -> list[float | None]:
    """The rates of a row, None for a detector that was not asked."""
    return [row["detectors"][name]["rate"] if name in row["detectors"] else None for name in names]


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends the program with what to do where they can't be."""
    parser = options(
        "degradation",
        "The labelled detectors: false alarms, delays, a fleet of healthy versions, poisoned feedback. "
        "All is simulated: --seed sets every draw.",
        full=FULL,
        peers=f"install river {RIVER}, into a virtual environment of its own under var/peers; it is used where it is",
    )
    parser.add_argument("--runs", type=int, help="simulated streams a row of false alarms, at least 30 (default 150)")
    parser.add_argument("--labels", type=int, default=GOAL_LABELS, help="labels of a stream (default 10000)")
    parser.add_argument("--alpha", type=float, default=GOAL_ALPHA, help="false alarms in so many labels (default 0.05)")
    parser.add_argument("--baselines", type=float, nargs="+", help="healthy error rates (default 0.05)")
    parser.add_argument("--worlds", type=Path, help="clustered worlds as JSON, instead of the benchmark's own")
    parser.add_argument("--stream", type=Path, nargs="+", default=[], help="files of labels, as for apprentice replay")
    parser.add_argument("--elec2", type=Path, metavar="CSV", help="elec2, for streams of four classifiers: 2 minutes")
    parser.add_argument("--goal-runs", type=int, help="streams of each delay that has a goal (default 1500)")
    parser.add_argument("--peers-runs", type=int, help="streams a row that river's are given (default 6)")
    parser.add_argument("--versions", type=int, default=10_000, help="versions of the fleet (default 10000)")
    parser.add_argument("--months", type=int, help="months of the fleet (default 2)")
    parser.add_argument("--budget", type=float, default=5.0, help="false verdicts that a fleet may have a month (5)")
    asked = parser.parse_args(arguments)
    asked.baselines = asked.baselines or (BASELINES if asked.full else (GOAL_BASELINE,))
    asked.worlds = degradation_clusters.read_worlds(asked.worlds)
    try:
        asked.streams = {str(path): read_rows(path) for path in asked.stream}
    except (DatasetError, OSError) as error:
        parser.error(f"--stream: {error}")
    asked.sea_labels = asked.labels if asked.full else asked.labels // 2
    defaults = {"runs": (150, 600), "goal_runs": (1500, 6000), "peers_runs": (6, 24), "months": (2, 12)}
    for name, (usual, full) in defaults.items():
        given = getattr(asked, name)
        setattr(asked, name, given if given is not None else full if asked.full else usual)
    if asked.runs < 30 or asked.goal_runs < 30:
        parser.error("--runs, --goal-runs: at least 30, or no interval says anything")
    if not all(0.002 <= one <= 0.75 for one in asked.baselines):
        parser.error("--baselines: rates from 0.002 to 0.75, so that there is room for 20 points more")
    if asked.labels < 300 or not 0 < asked.alpha < 1 or asked.budget <= 0:
        parser.error("--labels, --alpha, --budget: at least 300 labels, an alpha between 0 and 1, a budget above 0")
    if asked.versions < 1 or asked.months < 1 or asked.peers_runs < 0:
        parser.error("--versions, --months: at least 1; --peers-runs: at least 0")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    asked = read(arguments)
    goals = [
        *(Goal(f"false_alarm_rate_{name}_low", at_most=asked.alpha) for name in ("known", "gate_1000")),
        *(Goal(f"delay_{name}_low", at_most=at_most) for name, at_most in DELAY_GOALS.items()),
        *(Goal(f"false_alarm_rate_own_{first}_low", at_most=asked.alpha) for first in degradation_own.FIRSTS),
        *(
            Goal(f"clusters_{world.name}_{kind}_low", at_most=world.goal)
            for world in asked.worlds
            for kind in degradation_clusters.KINDS
        ),
        *(
            Goal(f"pairs_{world}_{kind}_low", at_most=asked.alpha)
            for world in degradation_pairs.WORLDS
            for kind in degradation_pairs.KINDS
        ),
        Goal("changes_for_each_real_one", at_most=2.0),
        Goal("labels_to_recovery_low", at_most=120.0),
        *degradation_flaps.list_goals(asked.streams.values(), asked.elec2 is not None),
        Goal("fleet_false_verdicts_a_month_low", at_most=asked.budget),
        Goal("poisoned_verdict_rate_low", at_most=asked.alpha),
    ]
    return conclude("degradation", lambda: on_one_core(asked), goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
