"""What grows with the house: `python -m benchmarks.scale [--json]`.

replicas   choose() of a task without checks, with 1, 8, 64 and 500 replicas in its pool; and with a session
tasks      the same with 1,000 tasks beside it
rules      the same with 100 rules of other tasks, and of its own, none of which matches
processes  with `--processes N` only that: CPU time a request of a gateway of N processes, of one, and of N gateways
streams    with `--streams N` only that: the pace, CPU time and memory of N streams at the same time
idle       with `--idle` only that: memory, CPU time and Redis commands of a gateway without requests

Microseconds of CPU time of the thread, on the fleet's own picture; the best of several rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from benchmarks.choice import VERSION, best_us, policy, show
from benchmarks.choice import fleet as small_fleet
from benchmarks.harness import Goal, conclude, options
from benchmarks.scale_idle import IDLE_GOALS, measure_idle
from benchmarks.scale_processes import GOAL, ROUNDS, ROUNDS_FULL, measure_processes
from benchmarks.scale_streams import STREAM_GOALS, measure_streams
from router.choice import choose
from router.fitted import NOTHING_FITTED
from router.policy import Policy, TaskPolicy
from router.routing_data import NO_SCORES, Moment, RoutingRequest
from serving.fleet import Fleet, PoolConfig
from serving.fleet_view import FleetView
from serving.replica import ReplicaConfig

REPLICAS = (1, 8, 64, 500)
TASKS = 1000
RULES = 100
MOMENT = Moment(1000.0, 1_800_000_000.0, 0.5)
GOALS = (Goal("replicas_500_us", at_most=10.0), Goal("replicas_500_session_us", at_most=10.0))


def fleet_of(replicas: int) -> FleetView:
    """A pool of so many replicas, all of which have the version, as a running gateway sees it."""
    configs = [ReplicaConfig(f"small-{n}", f"http://10.0.0.{n}:8000", "small") for n in range(replicas)]
    fleet = Fleet([PoolConfig("small", "small-base", tuple(configs))])
    fleet.know(small_fleet().versions)
    for replica in fleet.replicas.values():
        replica.up, replica.loaded = True, frozenset({VERSION})
    return fleet.view()


def with_tasks(rules: Policy, tasks: int) -> Policy:
    """The policy with so many tasks more."""
    more = {f"task-{number}": TaskPolicy(f"task-{number}", "general") for number in range(tasks)}
    return replace(rules, tasks=MappingProxyType({**rules.tasks, **more}))


def of_others(rules: Policy) -> Policy:
    """The policy with its rules for other tasks than the one that is asked."""
    return replace(rules, overrides=tuple(replace(rule, task=f"task-{rule.id}") for rule in rules.overrides))


def measured(times: int) -> dict[str, float]:
    """All figures."""
    plain, ruled = policy({}, 0, NOTHING_FITTED), policy({}, RULES, NOTHING_FITTED)
    request = RoutingRequest("returns", "caller1", frozenset({"returns"}), None, {})
    named = replace(request, session="a session")
    cells: dict[str, tuple[RoutingRequest, Policy, int]] = {}
    for count in REPLICAS:
        cells |= {f"replicas_{count}": (request, plain, count), f"replicas_{count}_session": (named, plain, count)}
    cells[f"tasks_{TASKS}"] = (request, with_tasks(plain, TASKS), 1)
    cells[f"rules_{RULES}_of_others"] = (request, of_others(ruled), 1)
    cells[f"rules_{RULES}"] = (request, ruled, 1)
    views = {count: fleet_of(count) for count in REPLICAS}
    return {
        f"{name}_us": best_us(
            lambda asked=asked, rules=rules, view=views[count]: choose(asked, NO_SCORES, rules, view, MOMENT),  # type: ignore[misc]
            times,
        )
        for name, (asked, rules, count) in cells.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("scale", "What grows with replicas, tasks and rules.", full="ten times as many decisions")
    parser.add_argument("--processes", type=int, help="only: a gateway of so many processes beside one process")
    parser.add_argument("--streams", type=int, help="only: so many streams at a pace, through --processes (default 1)")
    parser.add_argument("--pace-ms", type=float, default=20.0, help="time between two events of a stream (default 20)")
    parser.add_argument("--idle", action="store_true", help="only: a gateway without requests")
    parser.add_argument("--seconds", type=float, default=10.0, help="time that streams and idleness take (default 10)")
    asked = parser.parse_args(arguments)
    if asked.idle:
        held = partial(measure_idle, asked.seconds)
        return conclude("scale", lambda: (held(), []), IDLE_GOALS, None if asked.json else show)
    if asked.streams:
        held = partial(measure_streams, asked.streams, asked.pace_ms, asked.seconds, asked.processes or 1)
        return conclude("scale", lambda: (held(), []), STREAM_GOALS, None if asked.json else show)
    if asked.processes:
        several = partial(measure_processes, asked.processes, ROUNDS_FULL if asked.full else ROUNDS)
        return conclude("scale", lambda: (several(), []), (GOAL,), None if asked.json else show)

    def measure() -> tuple[dict[str, Any], list[str]]:
        return {"figures": measured(20_000 if asked.full else 2_000)}, []

    return conclude("scale", measure, GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
