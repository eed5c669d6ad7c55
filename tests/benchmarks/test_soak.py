"""The soak's counts: what grows from one quiet moment to the next, and what is held when nothing is under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.harness import judge
from benchmarks.soak import COUNTED, Held, figures_of, goals_of, slope

QUIET = Held(
    at_seconds=10.0,
    requests=1000,
    rss_mb=100.0,
    descriptors=24,
    engine_connections=12,
    tasks=22,
    series=220,
    in_flight=0,
    records_pending=0,
    engine_requests=0,
)
COUNTS = dict.fromkeys(COUNTED, 5)


def moments(**grows: float) -> list[Held]:
    """Nine quiet moments, a thousand requests apart, between which something grows by so much."""
    changed = [{name: getattr(QUIET, name) + at * by for name, by in grows.items()} for at in range(9)]
    return [
        replace(QUIET, at_seconds=10.0 * at, requests=1000 * at, **more)  # type: ignore[arg-type]
        for at, more in enumerate(changed)
    ]


def test_a_gateway_that_holds_what_it_held_does_not_leak() -> None:
    figures = figures_of(moments(), COUNTS, {})
    assert judge(goals_of(10), figures).holds
    assert figures["requests_per_second"] == 100


@pytest.mark.parametrize(
    "grows", [{"rss_mb": 0.6}, {"descriptors": 3}, {"tasks": 1}, {"series": 20}, {"engine_connections": 20}], ids=str
)
def test_what_grows_with_the_requests_is_a_leak(grows: dict[str, float]) -> None:
    assert not judge(goals_of(10), figures_of(moments(**grows), COUNTS, {})).holds


@pytest.mark.parametrize("name", ["in_flight", "engine_requests", "records_pending"])
def test_what_is_held_at_one_quiet_moment_alone_is_one_too_much(name: str) -> None:
    quiet = moments()
    quiet[3] = replace(quiet[3], **{name: 1})  # type: ignore[arg-type]
    assert not judge(goals_of(10), figures_of(quiet, COUNTS, {})).holds


def test_memory_may_grow_more_while_it_warms_up_and_in_the_first_half_at_all() -> None:
    assert judge(goals_of(1.5), figures_of(moments(rss_mb=1.9), COUNTS, {})).holds
    late = [replace(one, rss_mb=min(one.rss_mb, 104.0)) for one in moments(rss_mb=1.0)]
    assert judge(goals_of(10), figures_of(late, COUNTS, {})).holds


def test_a_fault_of_the_gateway_is_found() -> None:
    told = {"apprentice_refusals_total": {'{code="overload"}': 3.0, '{code="internal_error"}': 1.0}}
    assert figures_of(moments(), COUNTS, told)["internal_errors"] == 1


def test_a_slope_needs_two_points() -> None:
    assert slope([]) == slope([(1, 5)]) == slope([(1, 5), (1, 6)]) == 0
    assert slope([(0, 1), (1000, 2), (2000, 3)]) == pytest.approx(0.001)
