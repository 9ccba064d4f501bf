"""Service: any service behind the edge, by what the proxies see of it; it need not give figures itself."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, Variable, deploys, sheet
from dashboards.look import Query

SERVICE = 'service=~"$service"'
HERE = f'{SERVICE}, zone=~"$zone", instance=~"$host"'
# The host proxy's backend of a service.
PROXY = 'job="host_proxy", proxy=~"service-$service", zone=~"$zone", instance=~"$host"'
VARIABLES = (
    Variable("service", "Service", "label_values(service:replicas_up:count, service)"),
    Variable("zone", "Zone", 'label_values(service:replicas_up:count{service=~"$service"}, zone)'),
    Variable("host", "Host", 'label_values(service:replicas_up:count{service=~"$service", zone=~"$zone"}, instance)'),
)


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "service",
        "Rate, errors and duration of a service, its replicas, and how full they are. Choose the service.",
        [
            Row("Rate, errors, duration: at the edge", [requests(), errors(), wait()]),
            Row("Rate and duration: on the hosts", [by_host(), seconds(), queue_seconds()]),
            Row("Replicas and saturation", [ready(), replicas(), under_way(), queued(), failed()]),
            Row("Containers", [processors(), memory()]),
        ],
        VARIABLES,
        ["replicas", "autoscaling", "orders", "logs"],
        marks=[deploys()],
    )


def requests() -> Panel:
    return look.lines(
        "Requests by status",
        "All answers of the service's backends at the edge, by the class of the status.",
        Query(f"sum by (code) (service:responses:rate1m{{{SERVICE}}})", "{{code}}"),
        unit=look.REQUESTS,
        stacked=True,
    )


def errors() -> Panel:
    return look.lines(
        "Share of 5xx",
        "Of all answers, those with a 5xx.",
        Query(
            f'sum by (service) (service:responses:rate1m{{{SERVICE}, code="5xx"}}) '
            f"/ (sum by (service) (service:responses:rate1m{{{SERVICE}}}) > 0)",
            "{{service}}",
        ),
        unit=look.RATIO,
    )


def wait() -> Panel:
    return look.lines(
        "Time of a request",
        "Mean of the last 1024 requests, of the slowest backend of the service at the edge.",
        Query(f"max by (service) (service:request_seconds:mean{{{SERVICE}}})", "{{service}}"),
        unit=look.SECONDS,
        limits=look.REQUEST_SECONDS,
    )


def by_host() -> Panel:
    return look.lines(
        "Requests by host",
        "What each host's proxy passed on to its replicas.",
        Query(
            f"sum by (instance) (rate(haproxy_backend_http_responses_total{{{PROXY}}}[$__rate_interval]))",
            "{{instance}}",
        ),
        unit=look.REQUESTS,
        stacked=True,
    )


def seconds() -> Panel:
    return look.lines(
        "Time of an answer by host",
        "Mean of the last 1024 requests, from the request to the first byte of the answer.",
        Query(f"max by (instance) (haproxy_backend_response_time_average_seconds{{{PROXY}}})", "{{instance}}"),
        unit=look.SECONDS,
        limits=look.REQUEST_SECONDS,
        down="replicas",
    )


def queue_seconds() -> Panel:
    return look.lines(
        "Time in the queue by host",
        "Mean of the last 1024 requests, before a replica was free.",
        Query(f"max by (instance) (haproxy_backend_queue_time_average_seconds{{{PROXY}}})", "{{instance}}"),
        unit=look.SECONDS,
    )


def ready() -> Panel:
    return look.lines(
        "Replicas by host, desired and ready",
        "Those that there should be, where they give figures or a role runs them; and those that answer their health check.",
        Query(
            f"sum by (service, instance) (service:replicas_desired:count{{{HERE}}})", "{{service}} {{instance}} desired"
        ),
        Query(f"sum by (service, instance) (service:replicas_up:count{{{HERE}}})", "{{service}} {{instance}} ready"),
        unit=look.COUNT,
        down="replicas",
    )


def replicas() -> Panel:
    return look.rows(
        "Replicas by host",
        "How many there should be on each host, and how many are ready.",
        Query(f"sum by (service, instance, zone) (service:replicas_desired:count{{{HERE}}})"),
        Query(f"sum by (service, instance, zone) (service:replicas_up:count{{{HERE}}})"),
        columns={
            "service": "Service",
            "instance": "Host",
            "zone": "Zone",
            "Value #A": "Desired",
            "Value #B": "Ready",
        },
        limits=look.ONE_IS_GOOD,
        width=8,
        down="replicas",
    )


def under_way() -> Panel:
    return look.lines(
        "Requests under way by host",
        "What the replicas of each host work on now.",
        Query(f"sum by (instance) (haproxy_backend_current_sessions{{{PROXY}}})", "{{instance}}"),
        unit=look.COUNT,
        stacked=True,
    )


def queued() -> Panel:
    return look.lines(
        "Requests that wait for a replica",
        "All replicas of the host have as many requests as they may.",
        Query(f"sum by (instance) (haproxy_backend_current_queue{{{PROXY}}})", "{{instance}}"),
        unit=look.COUNT,
        width=12,
    )


def failed() -> Panel:
    return look.lines(
        "Connections that failed",
        "Connections of the host's proxy to a replica that were not made, and answers that broke off.",
        Query(f"sum(rate(haproxy_backend_connection_errors_total{{{PROXY}}}[$__rate_interval]))", "connections"),
        Query(f"sum(rate(haproxy_backend_response_errors_total{{{PROXY}}}[$__rate_interval]))", "answers"),
        unit=look.RATE,
        width=12,
    )


def processors() -> Panel:
    return look.lines(
        "Processors, by container",
        "What each replica's container uses.",
        Query(f"service:cpu:rate2m{{{HERE}}}", "{{instance}} {{unit}}"),
        unit=look.COUNT,
        width=12,
        down="hosts",
    )


def memory() -> Panel:
    return look.lines(
        "Memory, by container",
        "What the processes of each replica's container use.",
        Query(f"service:memory:bytes{{{HERE}}}", "{{instance}} {{unit}}"),
        unit=look.BYTES,
        width=12,
        down="hosts",
    )
