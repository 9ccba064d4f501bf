"""What all dashboards have in common: variables, links, annotations, and where panels lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard, loki, prometheus
from grafana_foundation_sdk.models import common as commons
from grafana_foundation_sdk.models import dashboard as models

from dashboards.look import COLUMNS, LOG_LINES, METRICS, TITLES, link

TOP = "overview"


@dataclass(frozen=True)
class Variable:
    """A choice among the values of a label, as the data source has them; it may depend on choices before it."""

    name: str
    label: str
    query: str
    source: commons.DataSourceRef = METRICS
    # What all values together match; left out: just those that there are.
    every: str = ""


@dataclass(frozen=True)
class Row:
    """Panels that belong together, under a title."""

    title: str
    panels: Sequence[models.Panel]


def zones(figure: str) -> Variable:
    """Return the choice among the zones of those hosts that give a figure."""
    return Variable("zone", "Zone", f"label_values({figure}, zone)")


def hosts(figure: str) -> Variable:
    """Return the choice among those hosts themselves, of the zones that were chosen."""
    name, brace, rest = figure.partition("{")
    within = f'{name}{{zone=~"$zone"{", " + rest if brace else "}"}'
    return Variable("host", "Host", f"label_values({within}, instance)")


def sheet(
    name: str,
    says: str,
    rows: Iterable[Row],
    variables: Sequence[Variable] = (),
    down: Sequence[str] = (),
    *,
    search: str = "",
    marks: Sequence[dashboard.AnnotationQuery] = (),
) -> models.Dashboard:
    """Return a dashboard with its address, choices, perhaps a field to search, marks of its own, and links up and down."""
    made = dashboard.Dashboard(TITLES.get(name, name.capitalize())).uid(f"freehold-{name}").description(says)
    made.tags(["freehold"]).editable().timezone("browser").time("now-1h", "now").refresh("30s")
    made.tooltip(models.DashboardCursorSync.CROSSHAIR)
    made.links([link(other) for other in ([] if name == TOP else [TOP]) + list(down)])
    made.variables([_choice(variable) for variable in variables])
    if search:
        made.with_variable(dashboard.TextBoxVariable("search").label(search))
    made.annotations([_starts(), _alerts(), *marks])
    panels: list[models.Panel | models.RowPanel] = []
    y = 0
    for row in rows:
        y = _place(row, y, panels)
    built = made.build()
    built.panels = panels
    return built


def marked_lines(name: str, color: str, expr: str, title: str) -> dashboard.AnnotationQuery:
    """Return marks where lines of logs were written."""
    asked = loki.Dataquery().ref_id("A").expr(expr).query_type("range")
    mark = dashboard.AnnotationQuery().name(name).datasource(LOG_LINES).enable(enable=True).icon_color(color)
    return mark.expr(expr).title_format(title).target(asked)


def deploys() -> dashboard.AnnotationQuery:
    """Return marks where deploys ended; ansible/deploy.yml writes them."""
    lines = '{host=~".+"} |~ "^freehold-deploy " | pattern "freehold-deploy <services> <image>"'
    return marked_lines("Deploys", "green", lines, "{{services}} {{image}}")


def _place(row: Row, y: int, panels: list[models.Panel | models.RowPanel]) -> int:
    """Put a row's panels below those that are there, from left to right, and return where the next row begins."""
    here = models.GridPos(h=1, w=COLUMNS, x=0, y=y)
    panels.append(models.RowPanel(id_val=len(panels) + 1, title=row.title, grid_pos=here))
    y += 1
    for line in _lines(row.panels):
        # As tall as the tallest beside them, so that no hole is left.
        tallest = max(size.h for _, size in line)
        x = 0
        for panel, size in line:
            panel.id_val = len(panels) + 1
            panel.grid_pos = models.GridPos(h=tallest, w=size.w, x=x, y=y)
            panels.append(panel)
            x += size.w
        y += tallest
    return y


def _lines(panels: Sequence[models.Panel]) -> list[list[tuple[models.Panel, models.GridPos]]]:
    """Return the panels, each with its size, in lines that are not wider than the grid."""
    lines: list[list[tuple[models.Panel, models.GridPos]]] = []
    x = COLUMNS
    for panel in panels:
        size = panel.grid_pos or models.GridPos()
        if x + size.w > COLUMNS:
            lines.append([])
            x = 0
        lines[-1].append((panel, size))
        x += size.w
    return lines


def _choice(variable: Variable) -> dashboard.QueryVariable:
    every = models.VariableOption(text="All", value="$__all", selected=True)
    choice = dashboard.QueryVariable(variable.name).label(variable.label).query(variable.query)
    choice.datasource(variable.source).multi(multi=True).include_all(include_all=True).current(every)
    choice.refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC)
    if variable.every:
        choice.all_value(variable.every)
    return choice


def _starts() -> dashboard.AnnotationQuery:
    """Return when replicas started: deploys, scalings and what died and came back."""
    started = 'max by (service, instance, replica) (process_start_time_seconds{job="services"}) * 1000'
    query = _annotation("Replicas started", "light-blue", started)
    return query.use_value_for_time(use_value_for_time=True).title_format("{{service}} started on {{instance}}")


def _alerts() -> dashboard.AnnotationQuery:
    firing = 'max by (alertname, instance) (ALERTS{alertstate="firing", severity="critical"})'
    return _annotation("Critical alerts", "red", firing).title_format("{{alertname}} {{instance}}")


def _annotation(name: str, color: str, expr: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(METRICS)
        .enable(enable=True)
        .icon_color(color)
        .expr(expr)
        .step("15s")
        .target(prometheus.Dataquery().ref_id("A").expr(expr).range())
    )
