"""Edge: who holds the virtual address, what users are answered, and which app hosts get requests."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, hosts, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="haproxy"}'
HERE = 'job="haproxy", zone=~"$zone", instance=~"$host"'
ASKED = 'server!~".+-unasked"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "edge",
        "What users are answered, by which host, and how the way to the app hosts is.",
        [
            Row("Is it well?", [probe(), certificate(), address(), busy(), connections()]),
            Row("Requests", [answers(), failures(), seconds(), bytes_moved()]),
            Row("The way to the app hosts", [servers(), sessions(), queued(), repeated(), refused()]),
            Row("Certificates of all hosts", [certificates()]),
        ],
        [zones(FIGURES), hosts(FIGURES)],
        ["service", "slo", "hosts"],
    )


def probe() -> Panel:
    return look.number(
        "Users' way in",
        "What the ops hosts get when they ask as users do: 1 is an answer, 0 is none.",
        Query("min(probe_success)"),
        unit=look.COUNT,
        limits=look.ONE_IS_GOOD,
    )


def certificate() -> Panel:
    return look.number(
        "Certificate ends in",
        "Time that is left of the certificate which users see.",
        Query("min(probe_ssl_earliest_cert_expiry) - time()"),
        unit=look.SECONDS,
        limits=look.TIME_LEFT,
    )


def certificates() -> Panel:
    return look.rows(
        "Those that end first",
        "Of the certificates that hosts have for each other, edge hosts or not; 14 days are an alert.",
        Query("sort(bottomk(10, host_certificate_not_after_timestamp_seconds - time()))"),
        columns={"instance": "Host", "zone": "Zone", "certificate": "Certificate", "Value": "Ends in"},
        unit=look.SECONDS,
        limits=look.TIME_LEFT,
        width=24,
    )


def address() -> Panel:
    return look.states(
        "Who holds the virtual address",
        "Just one host at any time.",
        Query('max by (instance) (instance:vip_held:bool{zone=~"$zone", instance=~"$host"})', "{{instance}}"),
        words=look.HOLDS,
        width=16,
    )


def busy() -> Panel:
    return look.lines(
        "HAProxy's own time in use",
        "Share of time in which HAProxy's threads work. At 1 it is the bottleneck.",
        Query(f"1 - haproxy_process_idle_time_percent{{{HERE}}} / 100", "{{instance}}"),
        unit=look.RATIO,
        width=12,
        limits=look.CAPACITY,
        most=1,
        down="hosts",
    )


def connections() -> Panel:
    return look.bars(
        "Connections of those allowed",
        "Connections that are open, of the most that HAProxy takes.",
        Query(
            f"haproxy_process_current_connections{{{HERE}}} / haproxy_process_max_connections{{{HERE}}}", "{{instance}}"
        ),
        unit=look.RATIO,
        width=12,
    )


def answers() -> Panel:
    return look.lines(
        "Answers by status",
        "All that users were answered, by the class of the status.",
        Query(
            f'sum by (code) (rate(haproxy_frontend_http_responses_total{{{HERE}, proxy="users"}}[$__rate_interval]))',
            "{{code}}",
        ),
        unit=look.REQUESTS,
        width=12,
        stacked=True,
    )


def failures() -> Panel:
    return look.lines(
        "5xx by backend",
        "Answers with a 5xx, whether of a service or of the edge where no host could answer.",
        Query(
            f'sum by (proxy) (rate(haproxy_backend_http_responses_total{{{HERE}, code="5xx"}}[$__rate_interval]))',
            "{{proxy}}",
        ),
        unit=look.REQUESTS,
        width=12,
        down="service",
    )


def seconds() -> Panel:
    return look.lines(
        "Time of a request by backend",
        "Mean of the last 1024 requests of each backend, from the first byte that came to the last that left.",
        Query(f"max by (proxy) (haproxy_backend_total_time_average_seconds{{{HERE}}})", "{{proxy}}"),
        unit=look.SECONDS,
        width=12,
        limits=look.REQUEST_SECONDS,
        down="service",
    )


def bytes_moved() -> Panel:
    return look.lines(
        "Bytes from and to users",
        "What users sent and got.",
        Query(f'sum(rate(haproxy_frontend_bytes_in_total{{{HERE}, proxy="users"}}[$__rate_interval]))', "in"),
        Query(f'sum(rate(haproxy_frontend_bytes_out_total{{{HERE}, proxy="users"}}[$__rate_interval]))', "out"),
        unit=look.BYTES_RATE,
        width=12,
    )


def servers() -> Panel:
    return look.lines(
        "App hosts that get requests",
        "Of each backend, the fewest hosts that an edge host sees up.",
        Query(
            f'min by (proxy) (sum by (instance, proxy) (haproxy_server_status{{{HERE}, state="UP", {ASKED}}}))',
            "{{proxy}}",
        ),
        unit=look.COUNT,
    )


def sessions() -> Panel:
    return look.lines(
        "Requests under way by host",
        "What each host behind the edge works on now.",
        Query(f"sum by (server) (haproxy_server_current_sessions{{{HERE}, {ASKED}}})", "{{server}}"),
        unit=look.COUNT,
        stacked=True,
    )


def queued() -> Panel:
    return look.lines(
        "Requests that wait for a host",
        "All hosts of the backend have as many requests as they may.",
        Query(f"sum by (proxy) (haproxy_backend_current_queue{{{HERE}}})", "{{proxy}}"),
        unit=look.COUNT,
    )


def repeated() -> Panel:
    return look.lines(
        "Attempts made again",
        "Attempts that were repeated, and those of them that went to another host.",
        Query(f"sum(rate(haproxy_backend_retry_warnings_total{{{HERE}}}[$__rate_interval]))", "repeated"),
        Query(f"sum(rate(haproxy_backend_redispatch_warnings_total{{{HERE}}}[$__rate_interval]))", "to another host"),
        unit=look.RATE,
        width=12,
    )


def refused() -> Panel:
    return look.lines(
        "Connections and answers that failed",
        "Connections to app hosts that were not made, and answers that broke off.",
        Query(f"sum(rate(haproxy_backend_connection_errors_total{{{HERE}}}[$__rate_interval]))", "connections"),
        Query(f"sum(rate(haproxy_backend_response_errors_total{{{HERE}}}[$__rate_interval]))", "answers"),
        unit=look.RATE,
        width=12,
    )
