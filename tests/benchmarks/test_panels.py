"""The reading of dashboards and rules, and the judgement on an answer: data, silent or broken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from benchmarks.harness import judge
from benchmarks.panel_queries import (
    Item,
    Query,
    Selector,
    count_states,
    judge_item,
    list_selectors,
    read_board,
    read_names,
    read_rules,
)
from benchmarks.panels import GOALS, main
from tests.programs import needs
from tests.tools.dashboards.boards import BOARDS

GROUPS = (
    {
        "name": "levels",
        "rules": [
            {"type": "recording", "name": "fleet:up:count", "query": "count(up == 1)"},
            {"type": "alerting", "name": "Down", "query": "up == 0"},
        ],
    },
)
METADATA = {
    "app_requests": [{"type": "counter"}],
    "app_seconds": [{"type": "histogram"}],
    "app_up": [{"type": "gauge"}],
}
NAMES = read_names(METADATA, GROUPS)


class Told:
    """A Prometheus that knows the answers to these queries, and else has nothing to say."""

    def __init__(self, found: Mapping[str, list[Any]]) -> None:
        self._found = found

    def find_series(self, query: Query) -> list[Any]:
        if "(" in query.expr and ")" not in query.expr:
            raise ValueError("unclosed left parenthesis")
        return self._found.get(query.expr, [])


def item(expr: str) -> Item:
    return Item("panel", "board: panel", (Query(expr, instant=True),))


def value(number: str) -> list[Any]:
    return [{"metric": {}, "value": [0, number]}]


@pytest.mark.parametrize(
    ("expr", "selectors"),
    [
        ('sum by (task) (rate(app_requests_total{outcome=~"a|b", task!=""}[5m]))',
         [Selector("app_requests_total", '{outcome=~"a|b", task!=""}')]),
        ("fleet:up:count > 14.4 * 0.001 and on (task) app_up", [Selector("fleet:up:count"), Selector("app_up")]),
        ("app_up unless max_over_time(app_up[6h] offset 1h)", [Selector("app_up"), Selector("app_up")]),
        ('label_replace(vllm:running, "task", "no task", "", "")', [Selector("vllm:running")]),
        ("a / on (task) group_left max by (task) (b) < +Inf", [Selector("a"), Selector("b")]),
        ('app_up{text="} rate(x)"}', [Selector("app_up", '{text="} rate(x)"}')]),
        ("time() - max(timestamp(app_up > bool 0)) or vector(0)", [Selector("app_up")]),
    ],
)  # fmt: skip
def test_the_metrics_that_a_query_reads_are_found(expr: str, selectors: list[Selector]) -> None:
    assert list_selectors(expr) == selectors


def test_names_are_those_that_targets_declare_and_rules_record() -> None:
    assert {"app_requests_total", "app_seconds_bucket", "app_seconds_count", "app_up", "fleet:up:count", "up"} <= NAMES
    assert "app_seconds" not in NAMES


def test_a_rule_is_read_by_its_kind() -> None:
    assert [(one.kind, one.place) for one in read_rules(GROUPS)] == [
        ("recording", "levels: fleet:up:count"),
        ("alert", "levels: Down"),
    ]


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_read_whole_and_no_variable_is_left(name: str) -> None:
    items = list(read_board(name, BOARDS[name], 60, 1))
    assert {one.kind for one in items} == {"panel", "event", "choice"}
    for query in (query for one in items for query in one.queries):
        assert "$" not in query.expr
        assert list_selectors(query.expr) or "vector" in query.expr


@pytest.mark.parametrize(
    ("expr", "found", "state", "why"),
    [
        ("app_up", {"app_up": value("0")}, "data", ""),
        ("app_up", {"app_up": value("NaN"), "count(app_up)": value("1")}, "silent", "its condition does not hold"),
        ("app_upp", {"app_upp": value("1")}, "broken", "no metric is called app_upp"),
        ("sum(app_up", {}, "broken", "unclosed left parenthesis"),
        ("app_up > 1", {}, "silent", "no series yet: app_up"),
        ('app_up{a="b"}', {"count(app_up)": value("3")}, "silent", 'none yet: app_up{a="b"}'),
        ("app_up > 1", {"count(app_up)": value("3")}, "silent", "its condition does not hold"),
    ],
)
def test_a_query_shows_data_or_says_why_it_does_not(
    expr: str, found: dict[str, list[Any]], state: str, why: str
) -> None:
    finding = judge_item(item(expr), Told(found), NAMES)
    assert (finding.state, finding.why) == (state, why)


def test_one_query_with_data_is_enough_and_one_that_is_broken_is_too_much() -> None:
    shown = Told({"app_up": value("1")})
    both = Item("panel", "board: two", (Query("app_up", instant=True), Query("app_requests_total", instant=True)))
    assert judge_item(both, shown, NAMES).state == "data"
    broken = Item("panel", "board: two", (Query("app_up", instant=True), Query("app_gone", instant=True)))
    assert judge_item(broken, shown, NAMES).state == "broken"


def test_the_goal_is_missed_where_anything_is_broken() -> None:
    fine = count_states([judge_item(item("app_up"), Told({}), NAMES)])
    assert judge(GOALS, fine).holds
    broken = count_states([judge_item(item("app_gone"), Told({}), NAMES)])
    assert judge(GOALS, broken).reasons == ("panels_broken is 1, over 0",)


@needs("prometheus")
def test_every_panel_and_rule_is_answered_by_a_live_prometheus(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code = main(["--json", "--seconds", "8"])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert exit_code == 0, report["empty"]
    assert report["figures"]["panels_data"] > report["figures"]["panels_silent"], report["empty"]
