"""PgBouncer: who waits for a connection, and what queries are at work."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, hosts, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="pgbouncer"}'
HERE = 'zone=~"$zone", instance=~"$host"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "pgbouncer",
        "Who waits for a connection to PostgreSQL, and what queries are at work. Writes go by the pooler beside the primary.",
        [
            Row("Is it well?", [up(), waiting_now(), longest_wait()]),
            Row("Clients", [clients(), waiting(), wait_seconds()]),
            Row("Servers", [servers(), full(), queries(), transactions(), seconds()]),
        ],
        [zones(FIGURES), hosts(FIGURES)],
        ["postgresql", "hosts"],
    )


def up() -> Panel:
    return look.states(
        "Answering",
        "Whether each pooler answers its exporter.",
        Query(f"max by (instance) (pgbouncer_up{{{HERE}}})", "{{instance}}"),
        words=look.YES_NO,
        width=16,
    )


def waiting_now() -> Panel:
    return look.number(
        "Clients that wait",
        "For a connection, now.",
        Query(f"sum(pgbouncer_pools_client_waiting_connections{{{HERE}}})"),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
    )


def longest_wait() -> Panel:
    return look.number(
        "Longest wait",
        "Of the clients that wait now.",
        Query(f"max(pgbouncer_pools_client_maxwait_seconds{{{HERE}}})"),
        unit=look.SECONDS,
        limits=look.REQUEST_SECONDS,
    )


def clients() -> Panel:
    return look.lines(
        "Clients that are served",
        "By database and user.",
        Query(
            f"sum by (database, user) (pgbouncer_pools_client_active_connections{{{HERE}}})",
            "{{database}} {{user}}",
        ),
        unit=look.COUNT,
        stacked=True,
    )


def waiting() -> Panel:
    return look.lines(
        "Clients that wait",
        "By database and host.",
        Query(
            f"sum by (database, instance) (pgbouncer_pools_client_waiting_connections{{{HERE}}})",
            "{{database}} {{instance}}",
        ),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
    )


def wait_seconds() -> Panel:
    return look.lines(
        "Time that clients waited",
        "Seconds of waiting a second, of all clients of a database.",
        Query(
            f"sum by (database) (rate(pgbouncer_stats_client_wait_seconds_total{{{HERE}}}[$__rate_interval]))",
            "{{database}}",
        ),
        unit=look.SECONDS,
    )


def servers() -> Panel:
    return look.lines(
        "Connections to PostgreSQL",
        "In use and idle.",
        Query(f"sum(pgbouncer_pools_server_active_connections{{{HERE}}})", "in use"),
        Query(f"sum(pgbouncer_pools_server_idle_connections{{{HERE}}})", "idle"),
        unit=look.COUNT,
        stacked=True,
        down="postgresql",
    )


def full() -> Panel:
    return look.bars(
        "Connections of those allowed",
        "Of each database on each host.",
        Query(
            f"max by (database, instance) (pgbouncer_databases_current_connections{{{HERE}}} "
            f"/ (pgbouncer_databases_max_connections{{{HERE}}} > 0))",
            "{{database}} {{instance}}",
        ),
        unit=look.RATIO,
    )


def queries() -> Panel:
    return look.lines(
        "Queries",
        "By database.",
        Query(
            f"sum by (database) (rate(pgbouncer_stats_queries_pooled_total{{{HERE}}}[$__rate_interval]))",
            "{{database}}",
        ),
        unit=look.RATE,
    )


def transactions() -> Panel:
    return look.lines(
        "Transactions",
        "By database.",
        Query(
            f"sum by (database) (rate(pgbouncer_stats_sql_transactions_pooled_total{{{HERE}}}[$__rate_interval]))",
            "{{database}}",
        ),
        unit=look.RATE,
        width=12,
    )


def seconds() -> Panel:
    return look.lines(
        "Queries at work",
        "How many run at once, on the mean: seconds of queries a second.",
        Query(
            f"sum by (database) (rate(pgbouncer_stats_queries_duration_seconds_total{{{HERE}}}[$__rate_interval]))",
            "{{database}}",
        ),
        unit=look.COUNT,
        width=12,
        down="postgresql",
    )
