"""The dashboards in the repository are those that the code makes, and keep the rules that make them worth reading."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from gateway.console.request_pages import FILTERS
from monitoring.metric_table import METRICS
from tests.fakes.metrics import exposition
from tests.monitoring.test_alerts import ALERTS, ROOT, readable, rules_in
from tests.tools.dashboards.boards import BOARDS, Json, all_panels, events, panels
from tests.tools.dashboards.engine_story import Engine
from tools.dashboards.queries import TASK, TUNING_DAYS, compute_saving
from tools.dashboards.write import FOLDER, encode_dashboards

PANELS = [pytest.param(panel, id=f"{name}: {panel['title']}") for name, panel in all_panels()]
ENGINE = dict(
    re.findall(r"^# TYPE (vllm:\w+) (\w+)$", exposition(Engine("small", "small-0", random.Random(1), 0)), re.MULTILINE)
)
"""vLLM's metrics and their kinds. tests/engine compares those that dashboards read with a real engine's."""
KINDS = {spec.name: spec.kind for spec in METRICS} | ENGINE
COUNTERS = {name for name, kind in KINDS.items() if kind == "counter"} | {
    f"{name}_{part}" for name, kind in KINDS.items() if kind == "histogram" for part in ("bucket", "sum", "count")
}
STATES = {spec.name: 3 if "2" in spec.unit else 2 for spec in METRICS if re.fullmatch(r"0(, 1)? or [12]", spec.unit)}
"""Metrics that are a state, and how many states it has."""
EXPORTED = readable() | COUNTERS | {name for name, kind in ENGINE.items() if kind == "gauge"} | {"up"}
NAMES = re.compile(r"\b(?:[a-z]*:?apprentice_[a-z0-9_:]+|vllm:\w+|up(?={))")
NET_SAVING = "task:apprentice_net_saving_usd:increase7d"
SAVED = "apprentice_saving_usd_total"
LABELS = {label for spec in METRICS for label in spec.labels} | {"instance", "le", "part"}
LABELS |= {"finished_reason", "model_name", "running_lora_adapters", "max_lora"}


def test_what_is_checked_in_is_what_the_code_makes() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(encode_dashboards())
    for name, text in encode_dashboards().items():
        assert (FOLDER / name).read_text(encoding="utf-8") == text, "run: python -m tools.dashboards.write"


@pytest.mark.parametrize("panel", PANELS)
def test_each_panel_asks_a_question_and_says_what_it_shows_in_which_unit(panel: Json) -> None:
    assert panel["title"].endswith("?")
    assert panel["title"][0].isupper()
    assert panel["description"].endswith(".")
    assert panel["description"] != panel["title"]
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", PANELS)
def test_each_panel_asks_the_picked_prometheus_for_what_is_really_exported(panel: Json) -> None:
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert [target["refId"] for target in panel["targets"]] == list("ABCDEFGHIJ"[: len(panel["targets"])])
    for target in panel["targets"]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert set(NAMES.findall(target["expr"])) <= EXPORTED, target["expr"]
        for by in re.findall(r"by \(([^)]*)\)", target["expr"]):
            assert {label.strip() for label in by.split(",")} <= LABELS, by


@pytest.mark.parametrize("panel", PANELS)
def test_counters_stand_in_rates_over_the_interval_that_fits_the_scrapes(panel: Json) -> None:
    for target in panel["targets"]:
        expr = target["expr"]
        for counter in COUNTERS & set(NAMES.findall(expr)):
            bare = rf"{counter}(?:{{[^}}]*}})?"
            inside = re.findall(rf"(?:rate|increase|min_over_time)\({bare}\[([^\]]+)\]\)", expr)
            births = re.findall(rf"{bare} unless {bare} offset|unless {bare} offset", expr)
            counted = len(inside) + sum(birth.count(counter) for birth in births)
            assert counted == len(re.findall(rf"{counter}\b", expr)), expr
            assert set(inside) <= {"$__rate_interval", "$__range", "1h"}, expr


@pytest.mark.parametrize("panel", PANELS)
def test_series_have_names_where_there_may_be_several(panel: Json) -> None:
    several = [target for target in panel["targets"] if re.match(r"(\d+ \* )?\w+ by \(", target["expr"])]
    for target in several if panel["type"] == "timeseries" else []:
        assert target.get("legendFormat"), target["expr"]
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= LABELS


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_numbers_of_their_own_and_a_place_that_no_other_has(name: str) -> None:
    board = BOARDS[name]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0
        assert at["x"] + at["w"] <= 24
        fields = set(itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])))
        assert not fields & taken, panel["title"]
        taken |= fields


@pytest.mark.parametrize("panel", PANELS)
def test_a_state_is_drawn_in_words(panel: Json) -> None:
    drawn = [target["expr"] for target in panel["targets"] if not target["expr"].startswith("count(")]
    states = max((STATES.get(name, 0) for expr in drawn for name in NAMES.findall(expr)), default=0)
    defaults, overrides = panel["fieldConfig"]["defaults"], panel["fieldConfig"]["overrides"]
    mappings = [*defaults.get("mappings", [])]
    mappings += [each for one in overrides for p in one["properties"] if p["id"] == "mappings" for each in p["value"]]
    if states:
        assert max(len(mapping["options"]) for mapping in mappings) == states


@pytest.mark.parametrize("name", BOARDS)
def test_each_dashboard_picks_its_prometheus_and_its_tasks_or_engines(name: str) -> None:
    board = BOARDS[name]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["model" if name == "engines" else "task"]["allValue"] == ".*"
    used = set(re.findall(r"\$(\w+)", " ".join(t["expr"] for panel in panels(board) for t in panel["targets"])))
    assert used - {"__rate_interval", "__interval", "__range", "__range_s"} <= set(variables) - {"datasource"}


@pytest.mark.parametrize("name", BOARDS)
def test_each_dashboard_marks_promotions_rollbacks_and_verdicts(name: str) -> None:
    marked = [event for board, event in events() if board == name]
    assert [event["name"] for event in marked] == ["Promotions", "Rollbacks", "Verdicts"]
    for event in marked:
        assert event["enable"]
        assert event["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert set(NAMES.findall(event["target"]["expr"])) <= EXPORTED
        assert set(re.findall(r"{{(\w+)}}", event["textFormat"])) <= {"task", "version", "verdict"}


def test_failed_requests_lead_to_those_of_the_console() -> None:
    (panel,) = [panel for _, panel in all_panels() if "refused or failed last" in panel["title"]]
    (typed,) = [one for one in BOARDS["service"]["templating"]["list"] if one["name"] == "console"]
    assert typed["type"] == "textbox"
    assert typed["query"] == typed["current"]["value"]
    ((link,), (of_row,)) = (panel["links"], panel["fieldConfig"]["defaults"]["links"])
    assert link["url"] == "${console:raw}/console/requests"
    address, _, query = of_row["url"].partition("?")
    assert address == link["url"]
    fields = dict(part.split("=") for part in query.split("&"))
    assert set(fields) <= set(FILTERS)
    assert fields == {name: f"${{__data.fields.{name}:percentencode}}" for name in ("task", "reason", "outcome")}


def test_uids_and_titles_are_not_the_same_twice() -> None:
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    assert len({panel["title"] for _, panel in all_panels()}) >= len(PANELS) - 1, (
        "of one question there may be two views"
    )


def test_every_metric_of_the_monitor_is_shown_or_alerted_on() -> None:
    expressions = [target["expr"] for _, panel in all_panels() for target in panel["targets"]]
    expressions += [rule["expr"] for rule in rules_in(*ALERTS)]
    shown = set(itertools.chain.from_iterable(NAMES.findall(expr) for expr in expressions))
    first, last = (
        next(place for place, spec in enumerate(METRICS) if spec.name == f"apprentice_{name}")
        for name in ("verdict", "webhooks_total")
    )
    assert {spec.name for spec in METRICS[first : last + 1]} <= shown


def test_the_net_saving_is_one_sum_in_the_rule_on_the_dashboards_and_in_the_document() -> None:
    (rule,) = (one["expr"] for one in rules_in(*ALERTS) if one.get("record") == NET_SAVING)
    over_all = compute_saving("task", "7d", "7").replace(f"{{{TASK}}}", "").replace(f"{TASK}, ", "")
    assert re.sub(r"\s", "", rule) == re.sub(r"\s", "", over_all)
    shown = [target["expr"] for _, panel in all_panels() for target in panel["targets"] if SAVED in target["expr"]]
    assert shown == [compute_saving("", "$__range", "$__range_s / 86400"), compute_saving("part", "1h", "1 / 24")]
    document = (ROOT / "docs" / "guides" / "alerts-and-dashboards.md").read_text(encoding="utf-8")
    assert f"tuning · days / {TUNING_DAYS}**" in document
    (parts,) = re.findall(r"^The parts are [^.]*\.", document, re.MULTILINE)
    assert NAMES.findall(parts) == NAMES.findall(over_all)
