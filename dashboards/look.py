"""How panels look: units, colours, thresholds and the few shapes that all of them are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    loki,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.builders import logs as logs_panel
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

COLUMNS = 24

# Each Grafana has these data sources, of its own host, by these identifiers.
METRICS = commons.DataSourceRef(type_val="prometheus", uid="prometheus")
LOG_LINES = commons.DataSourceRef(type_val="loki", uid="loki")

SECONDS = units.Seconds
MICROSECONDS = units.Microseconds
RATIO = units.PercentUnit
BYTES = units.BytesIEC
BYTES_RATE = units.BytesPerSecondIEC
REQUESTS = units.RequestsPerSecond
RATE = units.CountsPerSecond
COUNT = units.Short

GOOD, WATCH, BAD, PLAIN, NOTHING = "green", "orange", "red", "blue", "transparent"

Steps = tuple[models.Threshold, ...]


def steps(first: str, *following: tuple[float, str]) -> Steps:
    """Return thresholds: the colour of the least values, then each value from which on another colour holds."""
    return (models.Threshold(color=first), *(models.Threshold(value=value, color=color) for value, color in following))


NO_LIMIT = steps(PLAIN)
# Four fifths of what there is are in use: what alerts of capacity have as well.
CAPACITY = steps(GOOD, (0.7, WATCH), (0.8, BAD))
BUDGET_LEFT = steps(BAD, (0.0, WATCH), (0.25, GOOD))
ONE_IS_GOOD = steps(BAD, (1, GOOD))
NONE_IS_GOOD = steps(GOOD, (1, BAD))
JUST_ONE = steps(BAD, (1, GOOD), (2, BAD))
# Above half of what is asked Prometheus is not called blind.
MOST_ANSWER = steps(BAD, (0.5, WATCH), (1, GOOD))
# One tenth above its target a metric asks for more replicas.
TARGET = steps(GOOD, (1.1, WATCH))
# Hosts read it again after 15 s at the latest.
RECORD_SECONDS = steps(GOOD, (30, WATCH), (60, BAD))
FAILED_ROUNDS = steps(GOOD, (1, WATCH), (10, BAD))
LEADER_CHANGES = steps(GOOD, (2, WATCH), (6, BAD))
QUEUE = steps(GOOD, (1000, WATCH), (10000, BAD))
REQUEST_SECONDS = steps(GOOD, (0.05, WATCH), (0.1, BAD))
SETTLEMENT_SECONDS = steps(GOOD, (0.5, WATCH), (1.0, BAD))
LAG_BYTES = steps(GOOD, (1048576, WATCH), (16777216, BAD))
FSYNC_SECONDS = steps(GOOD, (0.1, WATCH), (0.5, BAD))
TRANSACTION_SECONDS = steps(GOOD, (60, WATCH), (600, BAD))
TRANSACTION_AGE = steps(GOOD, (500000000, WATCH), (1000000000, BAD))
TIME_LEFT = steps(BAD, (14 * 86400, WATCH), (21 * 86400, GOOD))
SPACE_LEFT = steps(BAD, (0, GOOD))

# What a figure of yes and no is called.
YES_NO = {1: ("yes", GOOD), 0: ("no", BAD)}
HOLDS = {1: ("yes", PLAIN), 0: ("no", NOTHING)}
ROLES = {0: ("neither", BAD), 1: ("primary", PLAIN), 2: ("standby", GOOD)}


@dataclass(frozen=True)
class Query:
    """What a data source is asked, and the name of each series of the answer."""

    expr: str
    legend: str = ""
    # Whether dots on the panel lead to traces: what a rule recorded has none, so it is to read the buckets themselves.
    traces: bool = False


class Shape(Protocol):
    """What all kinds of panels have."""

    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def datasource(self, datasource: commons.DataSourceRef) -> Self: ...
    def height(self, h: int) -> Self: ...
    def span(self, w: int) -> Self: ...
    def links(self, links: list[Builder[models.DashboardLink]]) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def thresholds(self, thresholds: Builder[models.ThresholdsConfig]) -> Self: ...
    def color_scheme(self, color: Builder[models.FieldColor]) -> Self: ...
    def build(self) -> models.Panel: ...


AnyShape = TypeVar("AnyShape", bound=Shape)


def address(name: str) -> str:
    """Return where a dashboard is, without the base address, which is Grafana's to know."""
    return f"/d/freehold-{name}"


def link(name: str) -> dashboard.DashboardLink:
    """Return a link to another dashboard that takes time and variables along."""
    words = name.replace("-", " ")
    return (
        dashboard.DashboardLink(TITLES.get(name, words.capitalize()))
        .type(models.DashboardLinkType.LINK)
        .url(address(name))
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
    )


# Those whose names are not just a word with a capital.
TITLES = {"postgresql": "PostgreSQL", "pgbouncer": "PgBouncer", "rabbitmq": "RabbitMQ", "etcd": "etcd", "slo": "SLO"}


def lines(
    title: str,
    says: str,
    *queries: Query,
    unit: str,
    limits: Steps = NO_LIMIT,
    width: int = 8,
    stacked: bool = False,
    most: float | None = None,
    least: float | None = 0,
    down: str = "",
) -> models.Panel:
    """Return figures over time."""
    panel = _frame(timeseries.Panel(), title, says, unit=unit, limits=limits, size=(width, 8), down=down)
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.PALETTE_CLASSIC))
    panel.line_width(1).fill_opacity(25 if stacked else 5).show_points(commons.VisibilityMode.NEVER)
    panel.tooltip(common.VizTooltipOptions().mode(commons.TooltipDisplayMode.MULTI).sort(commons.SortOrder.DESCENDING))
    panel.legend(_legend())
    if stacked:
        panel.stacking(common.StackingConfig().mode(commons.StackingMode.NORMAL))
    if len(limits) > 1:
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(commons.GraphThresholdsStyleMode.DASHED))
    if least is not None:
        panel.min(least)
    if most is not None:
        panel.max(most)
    return panel.targets([_over_time(query, letter) for query, letter in _letters(queries)]).build()


def number(
    title: str, says: str, *queries: Query, unit: str, limits: Steps = NO_LIMIT, width: int = 4, down: str = ""
) -> models.Panel:
    """Return a figure as it is now, with its line behind it."""
    panel = _frame(stat.Panel(), title, says, unit=unit, limits=limits, size=(width, 4), down=down)
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel.graph_mode(commons.BigValueGraphMode.AREA).color_mode(commons.BigValueColorMode.VALUE)
    return panel.targets([_over_time(query, letter) for query, letter in _letters(queries)]).build()


def bars(
    title: str,
    says: str,
    *queries: Query,
    unit: str,
    limits: Steps = CAPACITY,
    width: int = 8,
    most: float | None = 1,
    down: str = "",
) -> models.Panel:
    """Return each series as a bar of what it is now."""
    panel = _frame(bargauge.Panel(), title, says, unit=unit, limits=limits, size=(width, 8), down=down)
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    panel.orientation(commons.VizOrientation.HORIZONTAL).display_mode(commons.BarGaugeDisplayMode.BASIC).min(0)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    if most is not None:
        panel.max(most)
    return panel.targets([_now(query, letter) for query, letter in _letters(queries)]).build()


def states(
    title: str,
    says: str,
    *queries: Query,
    words: Mapping[int, tuple[str, str]],
    width: int = 12,
    down: str = "",
) -> models.Panel:
    """Return over time which of a few states each series was in."""
    panel = _frame(statetimeline.Panel(), title, says, unit=COUNT, limits=NO_LIMIT, size=(width, 8), down=down)
    panel.mappings([_words(words)]).show_value(commons.VisibilityMode.NEVER).row_height(0.8)
    panel.legend(_legend())
    return panel.targets([_over_time(query, letter) for query, letter in _letters(queries)]).build()


def rows(
    title: str,
    says: str,
    *queries: Query,
    columns: Mapping[str, str],
    unit: str = COUNT,
    limits: Steps = NO_LIMIT,
    width: int = 12,
    down: str = "",
) -> models.Panel:
    """Return a table: one row a set of labels, and of labels only the columns named, under those names and in that order."""
    panel = _frame(table.Panel(), title, says, unit=unit, limits=limits, size=(width, 8), down=down)
    panel.color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
    shown: dict[str, Any] = {
        "indexByName": {name: place for place, name in enumerate(columns)},
        "renameByName": dict(columns),
    }
    keep = {"include": {"names": list(columns)}}
    panel.transformations(
        [
            *([models.DataTransformerConfig(id_val="merge", options={})] if len(queries) > 1 else []),
            models.DataTransformerConfig(id_val="filterFieldsByName", options=keep),
            models.DataTransformerConfig(id_val="organize", options=shown),
        ]
    )
    targets = [_now(query, letter).format(PromQueryFormat.TABLE) for query, letter in _letters(queries)]
    return panel.targets([*targets]).build()


def log_lines(title: str, says: str, expr: str) -> models.Panel:
    """Return lines of logs, the newest first."""
    panel = logs_panel.Panel().title(title).description(says).datasource(LOG_LINES).height(18).span(COLUMNS)
    panel.show_time(show_time=True).wrap_log_message(wrap_log_message=True).enable_log_details(enable_log_details=True)
    panel.sort_order(commons.LogsSortOrder.DESCENDING).prettify_log_message(prettify_log_message=False)
    return panel.with_target(loki.Dataquery().ref_id("A").expr(expr).query_type("range").max_lines(500)).build()


def log_counts(title: str, says: str, expr: str, legend: str) -> models.Panel:
    """Return counts of lines of logs over time."""
    panel = _frame(timeseries.Panel(), title, says, unit=COUNT, limits=NO_LIMIT, size=(COLUMNS, 6))
    panel.datasource(LOG_LINES).draw_style(commons.GraphDrawStyle.BARS).fill_opacity(60).legend(_legend())
    panel.stacking(common.StackingConfig().mode(commons.StackingMode.NORMAL))
    return panel.with_target(loki.Dataquery().ref_id("A").expr(expr).legend_format(legend).query_type("range")).build()


def _frame(
    panel: AnyShape, title: str, says: str, *, unit: str, limits: Steps, size: tuple[int, int], down: str = ""
) -> AnyShape:
    width, height = size
    panel.title(title).description(says).datasource(METRICS).height(height).span(width).unit(unit)
    panel.thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(list(limits)))
    if down:
        panel.links([link(down)])
    return panel


def _legend() -> common.VizLegendOptions:
    shown = common.VizLegendOptions().show_legend(show_legend=True)
    return shown.display_mode(commons.LegendDisplayMode.LIST).placement(commons.LegendPlacement.BOTTOM)


def _letters(queries: Sequence[Query]) -> list[tuple[Query, str]]:
    return [(query, chr(ord("A") + place)) for place, query in enumerate(queries)]


def _asked(query: Query, letter: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(letter).expr(query.expr).legend_format(query.legend or "__auto")


def _over_time(query: Query, letter: str) -> prometheus.Dataquery:
    asked = _asked(query, letter).range()
    return asked.exemplar(exemplar=True) if query.traces else asked


def _now(query: Query, letter: str) -> prometheus.Dataquery:
    return _asked(query, letter).instant()


def _words(words: Mapping[int, tuple[str, str]]) -> models.ValueMap:
    results = {
        str(value): models.ValueMappingResult(text=text, color=color, index=place)
        for place, (value, (text, color)) in enumerate(words.items())
    }
    return models.ValueMap(options=results)
