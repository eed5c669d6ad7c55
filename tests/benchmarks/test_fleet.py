"""The fleet benchmark: growth by least squares, its picture, its engines, and a tiny fleet of real processes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.fleet import GROWING, expected_of, interval_of, settle, show, slopes_of
from benchmarks.fleet_engines import Engines
from benchmarks.fleet_plot import FACTORS, draw
from benchmarks.fleet_world import Fleet, Size, name_of, replicas_of
from tests.fakes.engine import FakeEngine

SIZES = (Size(1, 10, 10), Size(5, 10, 10), Size(1, 100, 10), Size(1, 10, 1000))


def point(size: Size, more: Mapping[str, float] | None = None) -> dict[str, Any]:
    """A fleet whose every figure is 100, and 1 more with each gateway, 2 with each replica, 3 with each task."""
    value = 100.0 + size.gateways + 2 * size.replicas + 3 * size.tasks
    return {**asdict(size), "figures": dict.fromkeys(GROWING, value) | dict(more or {})}


def test_each_factor_has_a_slope_by_the_fleets_that_differ_in_it_alone() -> None:
    slopes = slopes_of([point(size) for size in SIZES])
    for factor, each in zip(FACTORS, (1, 2, 3), strict=True):
        assert slopes[factor] == pytest.approx(dict.fromkeys(GROWING, each))


def test_what_grows_with_a_product_is_over_what_the_slopes_expect() -> None:
    points = [point(size) for size in SIZES]
    large = point(Size(50, 500, 1000))
    expected = expected_of("memory_mb", large, points[0], slopes_of(points))
    assert expected == pytest.approx(large["figures"]["memory_mb"])


def test_the_picture_has_a_panel_for_each_factor_and_the_tables_have_each_figure() -> None:
    points = [point(size) for size in SIZES]
    texts = [element.text for element in ElementTree.fromstring(draw(points)).iter() if element.text]
    assert set(FACTORS) < set(texts)
    shown = show({"points": points, "slopes": slopes_of(points), "by_slopes": dict.fromkeys(GROWING, 1.0)})
    assert all(shown.count(name) >= 2 for name in GROWING)


def test_versions_are_spread_evenly_and_find_a_place() -> None:
    size = Size(1, 10, 100)
    on = [replica for task in range(size.tasks) for replica in replicas_of(task, size.replicas)]
    assert {on.count(replica) for replica in range(size.replicas)} == {20}
    assert size.places > 20
    assert replicas_of(3, 1) == [0]


def test_engines_are_asked_less_often_by_more_gateways() -> None:
    assert interval_of(Size(1, 10, 10), 500.0) == 10.0
    assert interval_of(Size(50, 500, 10), 500.0) == 50.0


async def test_engines_are_counted_killed_and_brought_back_by_their_number() -> None:
    async with FakeEngine() as first, FakeEngine() as second:
        engines = Engines([first, second])
        told = await engines.answer("GET", "engines", [], b"")
        assert told is not None
        assert told["ports"] == [first.port, second.port]
        await engines.answer("POST", "kill", ["1"], b"")
        assert (first.listening, second.listening) == (True, False)
        await engines.answer("POST", "restart", ["1"], b"")
        assert second.listening
        counts = await engines.answer("GET", "counts", [], b"")
        assert counts == {"calls": 0, "completions": 0, "connections": 0}
        assert await engines.answer("GET", "elsewhere", [], b"") is None


@pytest.mark.timeout(600)  # it starts three processes, each of which takes long on a busy machine
def test_a_tiny_fleet_answers_each_task_by_its_own_version(tmp_path: Path) -> None:
    with ExitStack() as stack:
        fleet = Fleet(stack, tmp_path, Size(1, 3, 2), 1.0)
        assert settle(fleet) == 0
        for task in range(2):
            status, headers, _ = fleet.ask_task(0, name_of(task))
            assert (status, headers["x-apprentice-version"]) == (200, f"{name_of(task)}@v1")
        assert fleet.engine_counts()["completions"] >= 2
        assert min(fleet.cpu()) > 0
        pids = [*fleet.pids, fleet.valkey_pid]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
