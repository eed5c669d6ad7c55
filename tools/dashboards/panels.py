"""Panels with a question, a unit and a description, and a board that places them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common as builders
from grafana_foundation_sdk.builders import dashboard, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models.dashboard import (
    Dashboard,
    DashboardCursorSync,
    DashboardLinkType,
    DataTransformerConfig,
    DynamicConfigValue,
    FieldColorModeId,
    GridPos,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

COLUMNS = 24
EVENT_STEP = "60s"
DATASOURCE = common.DataSourceRef(type_val="prometheus", uid="${datasource}")
ColourSteps = Sequence[tuple[float | None, str]]
"""Colours and the lowest value of each; None for the lowest step."""
ValueNames = Mapping[int, tuple[str, str]]
"""The name and the colour of each value."""
VERDICTS: Mapping[int, tuple[str, str]] = {0: ("healthy", "green"), 1: ("suspect", "orange"), 2: ("degraded", "red")}
BREAKERS: Mapping[int, tuple[str, str]] = {0: ("closed", "green"), 1: ("half-open", "orange"), 2: ("open", "red")}
UP: Mapping[int, tuple[str, str]] = {0: ("no", "red"), 1: ("yes", "green")}

Built = timeseries.Panel | stat.Panel | statetimeline.Panel | table.Panel


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and the name of its series: text with `{{label}}` in it."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """An address that a table links to, and the suffix that a row adds from its own fields."""

    title: str
    url: str
    of_row: str


@dataclass(frozen=True, slots=True)
class Event:
    """Moments that all graphs mark: PromQL with a value above 0 at each, their colour, and their text."""

    name: str
    colour: str
    expr: str
    text: str


def make_graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    bars: bool = False,
    stepped: bool = False,
    logarithmic: bool = False,
    least: float | None = 0,
    most: float | None = None,
    lines: ColourSteps = (),
    bands: Mapping[str, str] | None = None,
) -> timeseries.Panel:
    """A graph of values over time. `lines` are drawn thresholds.

    `bands` has the colour of a series by its name. The interval between its `… low` and `… high` series is filled.
    """
    panel = timeseries.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    panel = (
        panel.line_width(1)
        .show_points(common.VisibilityMode.AUTO)
        .fill_opacity(70 if bars else 25 if stacked else 0 if logarithmic else 6)
    )
    panel = panel.legend(_legend()).tooltip(_tooltip()).color_scheme(_colours())
    if bars:
        panel = panel.draw_style(common.GraphDrawStyle.BARS)
    if stepped:
        panel = panel.line_interpolation(common.LineInterpolation.STEP_AFTER).line_width(2)
    if stacked:
        panel = panel.stacking(builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if logarithmic:
        scale = builders.ScaleDistributionConfig().type(common.ScaleDistribution.LOG).log(10)
        panel = panel.scale_distribution(scale)
    elif least is not None:
        panel = panel.min(least)
    if most is not None:
        panel = panel.max(most)
    if lines:
        style = builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds(lines)).thresholds_style(style)
    for name, colour in (bands or {}).items():
        panel = _with_band(panel, name, colour)
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place).range())
    return panel


def make_figure(
    title: str, description: str, unit: str, *queries: Query, steps: ColourSteps = (), names: ValueNames | None = None
) -> stat.Panel:
    """A panel of one or a few numbers: the latest in the shown range, in the colour of its step."""
    panel = stat.Panel().title(title).description(description).unit(unit).datasource(DATASOURCE)
    reduced = builders.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    panel = panel.reduce_options(reduced).graph_mode(common.BigValueGraphMode.NONE)
    mode = common.BigValueColorMode.VALUE if steps or names else common.BigValueColorMode.NONE
    panel = panel.color_mode(mode).thresholds(_thresholds(steps or ((None, "text"),)))
    if names:
        panel = panel.mappings([_mapping(names)])
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place).instant())
    return panel


def make_timeline(title: str, description: str, names: ValueNames, *queries: Query) -> statetimeline.Panel:
    """A row for each series, in the names and colours of its values over time."""
    panel = statetimeline.Panel().title(title).description(description).unit("none").datasource(DATASOURCE)
    panel = panel.mappings([_mapping(names)]).merge_values(True).show_value(common.VisibilityMode.AUTO).row_height(0.8)
    panel = panel.legend(_legend().show_legend(False)).tooltip(_tooltip()).fill_opacity(70).line_width(0)
    for place, query in enumerate(queries):
        panel = panel.with_target(_target(query, place).range())
    return panel


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table: its name, its unit, and PromQL with one value for each row."""

    name: str
    unit: str
    expr: str
    names: ValueNames | None = None


def make_table(
    title: str,
    description: str,
    keys: Sequence[str],
    *columns: Column,
    greatest_first: str | None = None,
    link: Link | None = None,
) -> table.Panel:
    """A table of current values, with a row for each combination of the labels `keys`. One column may sort it."""
    panel = table.Panel().title(title).description(description).unit("none").datasource(DATASOURCE).min_width(70)
    names = {f"Value #{_letter(place)}": column.name for place, column in enumerate(columns)}
    order = {name: place for place, name in enumerate((*keys, *names))}
    organised = {"excludeByName": {"Time": True}, "indexByName": order, "renameByName": names}
    panel = panel.with_transformation(DataTransformerConfig(id_val="merge", options={}))
    panel = panel.with_transformation(DataTransformerConfig(id_val="organize", options=organised))
    if link:
        leads = dashboard.DashboardLink(link.title).type(DashboardLinkType.LINK).target_blank(True)
        of_row = dashboard.DashboardLink(link.title).type(DashboardLinkType.LINK).target_blank(True)
        panel = panel.links([leads.url(link.url)]).data_links([of_row.url(link.url + link.of_row)])
    if greatest_first:
        panel = panel.sort_by([builders.TableSortByFieldState().display_name(greatest_first).desc(True)])
    for place, column in enumerate(columns):
        target = _target(Query(column.expr), place).instant().format(PromQueryFormat.TABLE)
        panel = panel.with_target(target).override_by_name(column.name, _properties(column))
    return panel


class Board:
    """A dashboard under construction: rows of panels, placed from left to right, numbered in their order.

    Users pick `variables` from the results of a query, and type `texts`.
    """

    def __init__(
        self,
        uid: str,
        title: str,
        description: str,
        variables: Mapping[str, str],
        events: Sequence[Event],
        texts: Mapping[str, str],
    ) -> None:
        self._dashboard = dashboard.Dashboard(title).uid(uid).description(description).tags(["apprentice"]).readonly()
        self._dashboard.time("now-6h", "now").refresh("30s").timezone("browser").tooltip(DashboardCursorSync.CROSSHAIR)
        self._dashboard.with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        for name, query in variables.items():
            self._dashboard.with_variable(_variable(name, query))
        for name, text in texts.items():
            typed = dashboard.TextBoxVariable(name).label(name.capitalize()).default_value(text)
            self._dashboard.with_variable(typed.current(VariableOption(text=text, value=text)))
        for event in events:
            self._dashboard.annotation(_annotation(event))
        self._dashboard.link(_links())
        self._id = self._x = self._y = self._height = 0

    def row(self, title: str) -> Board:
        """Begin a row below the last one."""
        self._wrap()
        self._id += 1
        place = GridPos(h=1, w=COLUMNS, x=0, y=self._y)
        self._dashboard.with_row(dashboard.Row(title).id(self._id).grid_pos(place).collapsed(False))
        self._y += 1
        return self

    def add(self, panel: Built, width: int, height: int = 8) -> Board:
        """Place a panel to the right of the last one, or below it if there is no room. The width is in 24ths."""
        if self._x + width > COLUMNS:
            self._wrap()
        self._id += 1
        panel.id(self._id)
        panel.grid_pos(GridPos(h=height, w=width, x=self._x, y=self._y))
        self._dashboard.with_panel(panel)
        self._x, self._height = self._x + width, max(self._height, height)
        return self

    def build(self) -> Dashboard:
        """The dashboard for Grafana."""
        built = self._dashboard.build()
        for variable in (built.templating.list_val if built.templating else None) or ():
            variable.auto = variable.auto_min = variable.auto_count = None  # the schema has no such fields
        for annotation in (built.annotations.list_val if built.annotations else None) or ():
            annotation.placement = None  # type: ignore[assignment]  # its switch stays above the panels
        return built

    def _wrap(self) -> None:
        self._x, self._y, self._height = 0, self._y + self._height, 0


def make_dashboard(
    name: str,
    question: str,
    variables: Mapping[str, str],
    sections: Mapping[str, Callable[[Board], None]],
    *,
    events: Sequence[Event],
    texts: Mapping[str, str] | None = None,
) -> Dashboard:
    """The dashboard for Grafana. Each of `sections` is a row: its title, and the function that adds its panels."""
    board = Board(f"apprentice-{name}", f"Apprentice: {name}", question, variables, events, texts or {})
    for title, fill in sections.items():
        fill(board.row(title))
    return board.build()


def _target(query: Query, place: int) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(_letter(place)).datasource(DATASOURCE)
    return target.legend_format(query.legend) if query.legend else target


def _letter(place: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[place]


def _variable(name: str, query: str) -> dashboard.QueryVariable:
    variable = dashboard.QueryVariable(name).label(name.capitalize()).query(query).datasource(DATASOURCE)
    variable = variable.multi(True).include_all(True).all_value(".*").sort(VariableSort.ALPHABETICAL_ASC)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)


def _annotation(event: Event) -> dashboard.AnnotationQuery:
    asked = prometheus.Dataquery().expr(event.expr).ref_id("A").range().interval(EVENT_STEP)
    built = dashboard.AnnotationQuery().name(event.name).datasource(DATASOURCE).enable(True).icon_color(event.colour)
    return built.target(asked).title_format(event.name).text_format(event.text).tag_keys("task,version")


def _links() -> dashboard.DashboardLink:
    link = dashboard.DashboardLink("Apprentice").type(DashboardLinkType.DASHBOARDS).tags(["apprentice"])
    return link.as_dropdown(False).keep_time(True).include_vars(True)


def _legend() -> builders.VizLegendOptions:
    legend = builders.VizLegendOptions().show_legend(True).display_mode(common.LegendDisplayMode.LIST)
    return legend.placement(common.LegendPlacement.BOTTOM).calcs([])


def _tooltip() -> builders.VizTooltipOptions:
    return builders.VizTooltipOptions().mode(common.TooltipDisplayMode.MULTI).sort(common.SortOrder.DESCENDING)


def _colours() -> dashboard.FieldColor:
    return dashboard.FieldColor().mode(FieldColorModeId.PALETTE_CLASSIC)


def _thresholds(steps: ColourSteps) -> dashboard.ThresholdsConfig:
    made = [Threshold(value=value, color=colour) for value, colour in steps]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(made)


def _mapping(names: ValueNames) -> ValueMap:
    numbered = enumerate(names.items())
    return ValueMap(
        options={
            str(value): ValueMappingResult(text=text, color=colour, index=i) for i, (value, (text, colour)) in numbered
        }
    )


def _properties(column: Column) -> list[DynamicConfigValue]:
    found = [DynamicConfigValue(id_val="unit", value=column.unit)]
    if column.names:
        found.append(DynamicConfigValue(id_val="mappings", value=[_mapping(column.names)]))
        found.append(DynamicConfigValue(id_val="custom.cellOptions", value={"type": "color-text"}))
    return found


def _with_band(panel: timeseries.Panel, name: str, colour: str) -> timeseries.Panel:
    coloured = DynamicConfigValue(id_val="color", value={"mode": "fixed", "fixedColor": colour})
    hidden = {"legend": True, "tooltip": False, "viz": False}
    edge = [coloured, _custom("lineWidth", 0), _custom("hideFrom", hidden), _custom("showPoints", "never")]
    panel = panel.override_by_name(f"{name} low", [*edge, _custom("fillOpacity", 0)])
    panel = panel.override_by_name(
        f"{name} high", [*edge, _custom("fillOpacity", 20), _custom("fillBelowTo", f"{name} low")]
    )
    return panel.override_by_name(name, [coloured, _custom("lineWidth", 2), _custom("fillOpacity", 0)])


def _custom(name: str, value: object) -> DynamicConfigValue:
    return DynamicConfigValue(id_val=f"custom.{name}", value=value)
