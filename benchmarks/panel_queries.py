"""The queries of dashboards and rules, and a judgement on each by what a Prometheus answers: data, silent or broken.

A query is broken that Prometheus refuses, or that names a metric which nothing exports and no rule records. It is
silent where nothing has happened yet that it would show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tests.tools.dashboards.boards import filled, panels

Json = Mapping[str, Any]
Kind = Literal["panel", "event", "choice", "alert", "recording"]
State = Literal["data", "silent", "broken"]
KINDS: tuple[Kind, ...] = ("panel", "event", "choice", "alert", "recording")
STATES: tuple[State, ...] = ("data", "silent", "broken")
OWN = frozenset({"up", "ALERTS"})
"""Series that Prometheus makes itself."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "counter": ("", "_total"),  # OpenMetrics declares a counter without its suffix
    "histogram": ("_bucket", "_count", "_sum"),
    "summary": ("", "_count", "_sum"),
}
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
LABEL_LISTS = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
DURATIONS = re.compile(r"\[[^\]]*\]|\boffset\s+[\w.]+")
SELECTOR = re.compile(r"(?<![\w:.])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?!\s*\()(?![\w:])")
KEYWORDS = frozenset(
    (
        *("and", "or", "unless", "bool", "offset", "by", "without", "on", "ignoring", "group_left", "group_right"),
        *("inf", "nan", "atan2"),
    )
)


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL as it is sent: for a moment, or for a range of time."""

    expr: str
    instant: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A panel, an event, a variable's choice or a rule, with its queries."""

    kind: Kind
    place: str
    queries: tuple[Query, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgement on an item, and its reason where it shows nothing."""

    item: Item
    state: State
    why: str = ""


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric that a query reads, with the text of its matchers."""

    name: str
    matchers: str = ""


class Source(Protocol):
    """A Prometheus."""

    def find_series(self, query: Query) -> list[Json]:
        """The series of an answer. Raises ValueError with Prometheus' own words where it refuses the query."""


# ---- reading dashboards, rules and names ----------------------------------------------------------


def read_board(name: str, board: Json, range_seconds: int, scrape_seconds: int) -> Iterator[Item]:
    """The items of a dashboard, their variables filled in as Grafana does."""

    def fill(expr: str) -> str:
        return filled(expr, range_seconds, scrape_seconds)

    for panel in panels(dict(board)):
        queries = tuple(Query(fill(target["expr"]), bool(target.get("instant"))) for target in panel["targets"])
        yield Item("panel", f"{name}: {panel['title']}", queries)
    for event in board["annotations"]["list"]:
        yield Item("event", f"{name}: {event['name']}", (Query(fill(event["target"]["expr"]), instant=False),))
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            series, _, label = variable["query"].removeprefix("label_values(").removesuffix(")").rpartition(", ")
            expr = f"count by ({label}) ({fill(series)})"
            yield Item("choice", f"{name}: {variable['name']}", (Query(expr, instant=True),))


def read_rules(groups: Iterable[Json]) -> Iterator[Item]:
    """The items of Prometheus' rules, as its API lists them."""
    for group in groups:
        for rule in group["rules"]:
            kind: Kind = "alert" if rule["type"] == "alerting" else "recording"
            yield Item(kind, f"{group['name']}: {rule['name']}", (Query(rule["query"], instant=True),))


def read_names(metadata: Mapping[str, Sequence[Json]], groups: Iterable[Json]) -> frozenset[str]:
    """All names that there can be: what targets declare, histograms by their parts, and what rules record."""
    declared = {
        name + part for name, told in metadata.items() for one in told for part in PARTS.get(one["type"], ("",))
    }
    recorded = {rule["name"] for group in groups for rule in group["rules"] if rule["type"] == "recording"}
    return frozenset(declared | recorded | OWN)


def list_selectors(expr: str) -> list[Selector]:
    """The metrics that a query reads, in their order."""
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        strings.append(found[0])
        return f'"{len(strings) - 1}"'

    bare = LABEL_LISTS.sub(" ", DURATIONS.sub(" ", STRING.sub(keep, expr)))
    return [
        Selector(found[1], re.sub(r'"(\d+)"', lambda number: strings[int(number[1])], found[2] or ""))
        for found in SELECTOR.finditer(bare)
        if found[1].lower() not in KEYWORDS
    ]


# ---- judging --------------------------------------------------------------------------------------


def judge_item(item: Item, source: Source, names: frozenset[str]) -> Finding:
    """Ask Prometheus all queries of an item."""
    unknown = sorted({one.name for query in item.queries for one in list_selectors(query.expr)} - names)
    if unknown:
        return Finding(item, "broken", f"no metric is called {', '.join(unknown)}")
    try:
        series = [one for query in item.queries for one in source.find_series(query)]
    except ValueError as refused:
        return Finding(item, "broken", str(refused))
    if any(map(_has_number, series)):
        return Finding(item, "data")
    return Finding(item, "silent", _explain(item, source))


def _has_number(series: Json) -> bool:
    values = series.get("values") or [series["value"]]
    return any(math.isfinite(float(value)) for _, value in values)


def _explain(item: Item, source: Source) -> str:
    """The reason for an empty answer: a metric without series, matchers that none of them has, or a condition."""
    selectors = {one: None for query in item.queries for one in list_selectors(query.expr)}
    missing = [one.name for one in selectors if not _exists(source, one.name)]
    if missing:
        return f"no series yet: {', '.join(dict.fromkeys(missing))}"
    unmatched = [one.name + one.matchers for one in selectors if not _exists(source, one.name + one.matchers)]
    if unmatched:
        return f"none yet: {', '.join(unmatched)}"
    return "its condition does not hold"


def _exists(source: Source, selector: str) -> bool:
    return bool(source.find_series(Query(f"count({selector})", instant=True)))


def count_states(findings: Iterable[Finding]) -> dict[str, int]:
    """How many of each kind are in each state, such as `panels_silent`."""
    counts = {f"{kind}s_{state}": 0 for kind in KINDS for state in STATES}
    for one in findings:
        counts[f"{one.item.kind}s_{one.state}"] += 1
    return counts
