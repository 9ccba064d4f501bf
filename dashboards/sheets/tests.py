"""Tests: what load and failure runs do to orders; each run is marked where it began and ended."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, marked_lines, sheet
from dashboards.look import Query

# Whoever makes a run writes such a line on a host: freehold-run NAME begins, freehold-run NAME ends.
RUNS = '{host=~".+"} |~ "^freehold-run " | pattern "freehold-run <run> <phase>"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "tests",
        "Load and failure runs: each is marked where it began and ended; what fell to orders, hosts and leaders meanwhile.",
        [
            Row("Orders", [accepted(), refused(), seconds(), lag()]),
            Row("The platform", [hosts(), leaders(), waiting()]),
        ],
        down=["orders", "hosts", "postgresql", "rabbitmq"],
        marks=[marked_lines("Runs", "purple", RUNS, "{{run}} {{phase}}")],
    )


def accepted() -> Panel:
    return look.lines(
        "Orders accepted and settled",
        "Orders that a broker confirmed, and those that workers settled.",
        Query('sum(rate(orders_lane_messages_total{outcome="confirmed"}[$__rate_interval]))', "accepted"),
        Query('sum(rate(orders_worker_orders_total{outcome="settled"}[$__rate_interval]))', "settled"),
        unit=look.RATE,
        width=12,
        down="orders",
    )


def refused() -> Panel:
    return look.lines(
        "Answers by status",
        "All answers of the order service's backends at the edge, by the class of the status.",
        Query('sum by (code) (service:responses:rate1m{service="orders-api"})', "{{code}}"),
        unit=look.REQUESTS,
        stacked=True,
        width=12,
        down="edge",
    )


def seconds() -> Panel:
    return look.lines(
        "Time of a request",
        "99 % of the replicas' answers came within; mean of the last 1024 requests at the edge.",
        Query(
            "histogram_quantile(0.99, sum by (le) (rate(orders_http_request_seconds_bucket[$__rate_interval])))", "99 %"
        ),
        Query('max(service:request_seconds:mean{service="orders-api"})', "mean at the edge"),
        unit=look.SECONDS,
        limits=look.REQUEST_SECONDS,
        width=12,
    )


def lag() -> Panel:
    return look.lines(
        "99 % settled within",
        "Time from acceptance to settlement.",
        Query(
            "histogram_quantile(0.99, sum by (le) (rate(orders_settlement_lag_seconds_bucket[$__rate_interval])))",
            "99 %",
        ),
        unit=look.SECONDS,
        limits=look.SETTLEMENT_SECONDS,
        width=12,
        down="slo",
    )


def hosts() -> Panel:
    return look.states(
        "Hosts",
        "Whether all that runs on a host answers.",
        Query("min by (instance) (up)", "{{instance}}"),
        words=look.YES_NO,
        width=8,
        down="hosts",
    )


def leaders() -> Panel:
    return look.states(
        "PostgreSQL's primary",
        "Which host has it.",
        Query("max by (instance) (patroni_primary)", "{{instance}}"),
        words=look.HOLDS,
        width=8,
        down="postgresql",
    )


def waiting() -> Panel:
    return look.lines(
        "Orders that wait",
        "By queue.",
        Query('queue:messages:max{queue=~"intake-[0-9]+"}', "{{queue}}"),
        unit=look.COUNT,
        limits=look.QUEUE,
        down="rabbitmq",
    )
