"""Every panel is asked of a real Prometheus that has a day of ours in it: no error, and nothing empty."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fakes.prometheus import asked, prometheus, write_history
from tests.monitoring.test_alerts import ALERTS
from tests.tools.dashboards.boards import BOARDS, Json, all_panels, filled
from tests.tools.dashboards.story import told

pytestmark = pytest.mark.timeout(600)

RANGE_SECONDS = 5400
STEP_SECONDS = 60


class Day:
    """A Prometheus with the story in it, which ended at `end` (Unix seconds)."""

    def __init__(self, client: httpx.Client, end: float) -> None:
        self.client = client
        self.end = end

    def answers(self, target: Json) -> list[Any]:
        """The series that a panel's query finds."""
        expr = filled(target["expr"], RANGE_SECONDS)
        if target["instant"]:
            return list(asked(self.client, "query", query=expr, time=self.end)["result"])
        span = {"start": self.end - RANGE_SECONDS, "end": self.end, "step": STEP_SECONDS}
        return list(asked(self.client, "query_range", query=expr, **span)["result"])


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    folder = tmp_path_factory.mktemp("prometheus")
    end = time.time()
    data = write_history(told(end - RANGE_SECONDS, RANGE_SECONDS), folder)
    configuration = folder / "prometheus.yaml"
    rules = [str(path) for path in ALERTS]
    configuration.write_text(yaml.safe_dump({"global": {"evaluation_interval": "1s"}, "rule_files": rules}))
    with prometheus(configuration, data) as client:
        _wait_for(client, "task:apprentice_net_saving_usd:increase7d")
        yield Day(client, end=time.time())


def _wait_for(client: httpx.Client, name: str) -> None:
    deadline = time.monotonic() + 120
    while not asked(client, "query", query=name)["result"]:
        assert time.monotonic() < deadline, f"{name} was not recorded"
        time.sleep(0.1)


def test_no_panel_fails_and_none_is_empty(day: Day) -> None:
    empty = []
    for name, panel in all_panels():
        found = [series for target in panel["targets"] for series in day.answers(target)]
        values = [float(value) for series in found for _, value in series.get("values") or [series["value"]]]
        if not any(math.isfinite(value) for value in values):
            empty.append(f"{name}: {panel['title']}")
    assert not empty


def test_each_column_of_a_table_has_a_value_for_each_row(day: Day) -> None:
    for table in (panel for _, panel in all_panels() if panel["type"] == "table"):
        rows = {len(day.answers(target)) for target in table["targets"]}
        assert len(rows) == 1, f"{table['title']}: {rows}"
        assert min(rows) >= 2


def test_what_can_be_picked_is_there(day: Day) -> None:
    for board in BOARDS.values():
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                inside, _, label = variable["query"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
                found = asked(day.client, f"label/{label}/values", **{"match[]": filled(inside, RANGE_SECONDS)})
                assert found, variable["query"]


def test_nothing_is_drawn_where_there_is_nothing(tmp_path: Path) -> None:
    configuration = tmp_path / "prometheus.yaml"
    configuration.write_text("{}")
    with prometheus(configuration, tmp_path / "data") as client:
        empty = Day(client, time.time())
        shown = {panel["title"] for _, panel in all_panels() if any(empty.answers(t) for t in panel["targets"])}
    assert shown == {f"How many {verdict}?" for verdict in ("healthy", "suspect", "degraded")} | {
        "How many to retrain?"
    }
