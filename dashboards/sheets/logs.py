"""Logs: lines of all hosts, by where they come from and how bad they are."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, Variable, sheet

# A label that a line does not have is as one that is empty, so all of them together must not be asked to be there.
ANY = ".*"
HERE = '{host=~"$host", zone=~"$zone", tier=~"$tier", unit=~"$unit", service=~"$service", level=~"$level"} |~ `(?i)${search}`'
VARIABLES = (
    Variable("zone", "Zone", "label_values(zone)", source=look.LOG_LINES, every=ANY),
    Variable("tier", "Tier", "label_values(tier)", source=look.LOG_LINES, every=ANY),
    # Loki wants one label at least that is there: each line has a host.
    Variable("host", "Host", "label_values(host)", source=look.LOG_LINES, every=".+"),
    Variable("unit", "Unit", "label_values(unit)", source=look.LOG_LINES, every=ANY),
    Variable("service", "Service", "label_values(service)", source=look.LOG_LINES, every=ANY),
    Variable("level", "Level", "label_values(level)", source=look.LOG_LINES, every=ANY),
)


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "logs",
        "Lines of all hosts. Search for a trace id to see a request at all hops.",
        [Row("Lines", [counts(), lines()])],
        VARIABLES,
        ["hosts"],
        search="Search",
    )


def counts() -> Panel:
    return look.log_counts(
        "Lines by level",
        "How many there are of those that were chosen.",
        f"sum by (level) (count_over_time({HERE} [$__auto]))",
        "{{level}}",
    )


def lines() -> Panel:
    return look.log_lines("Lines", "The newest first, 500 at most; a line opens to its fields and labels.", HERE)
