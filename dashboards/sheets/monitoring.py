"""Monitoring: does what watches all else work, and what does it cost."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, hosts, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="prometheus"}'
HERE = 'job="prometheus", zone=~"$zone", instance=~"$host"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "monitoring",
        "Whether what watches all else works: figures, alerts, traces; and what else runs on ops hosts. Zone and host choose among the Prometheus servers.",
        [
            Row("Does Prometheus see?", [seen(), rules_failed(), told(), series(), samples(), size()]),
            Row("What it takes", [slowest(), groups(), processor(), memory()]),
            Row("Does anybody hear?", [alerts(), sent(), messages()]),
            Row("Traces", [spans(), lost(), store()]),
            Row("Keycloak and the registry", [heap(), connections(), pulls()]),
        ],
        [zones(FIGURES), hosts(FIGURES)],
        ["hosts", "logs"],
    )


def seen() -> Panel:
    return look.number(
        "Targets that answer",
        "Of all that is asked: 1 is all.",
        Query("avg(up)"),
        unit=look.RATIO,
        limits=look.MOST_ANSWER,
        down="hosts",
    )


def rules_failed() -> Panel:
    return look.number(
        "Rule errors in an hour",
        "Evaluations with an error.",
        Query(f"sum(increase(prometheus_rule_evaluation_failures_total{{{HERE}}}[1h]))"),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
    )


def told() -> Panel:
    return look.number(
        "Alertmanagers told",
        "By the server that knows fewest.",
        Query(f"min(prometheus_notifications_alertmanagers_discovered{{{HERE}}})"),
        unit=look.COUNT,
        limits=look.ONE_IS_GOOD,
    )


def series() -> Panel:
    return look.number(
        "Series",
        "Of the server that has most.",
        Query(f"max(prometheus_tsdb_head_series{{{HERE}}})"),
        unit=look.COUNT,
    )


def samples() -> Panel:
    return look.number(
        "Samples",
        "That are written.",
        Query(f"max(rate(prometheus_tsdb_head_samples_appended_total{{{HERE}}}[$__rate_interval]))"),
        unit=look.RATE,
    )


def size() -> Panel:
    return look.number(
        "Disk of that allowed",
        "Blocks and the log of writes, of the size at which the oldest go.",
        Query(
            f"max((prometheus_tsdb_storage_blocks_bytes{{{HERE}}} + prometheus_tsdb_wal_storage_size_bytes{{{HERE}}}) "
            f"/ prometheus_tsdb_retention_limit_bytes{{{HERE}}})"
        ),
        unit=look.RATIO,
    )


def slowest() -> Panel:
    return look.lines(
        "Time of a scrape, slowest five",
        "By part and host.",
        Query("topk(5, max by (job, instance) (scrape_duration_seconds))", "{{job}} {{instance}}"),
        unit=look.SECONDS,
        width=6,
    )


def groups() -> Panel:
    return look.lines(
        "Time of rules, slowest five groups",
        "Of the last evaluation.",
        Query(f"topk(5, prometheus_rule_group_last_duration_seconds{{{HERE}}})", "{{rule_group}}"),
        unit=look.SECONDS,
        width=6,
    )


def processor() -> Panel:
    return look.lines(
        "Processors",
        "Of Prometheus, Alertmanager and Jaeger.",
        Query(
            'rate(process_cpu_seconds_total{job=~"prometheus|alertmanager"}[$__rate_interval])',
            "{{job}} {{instance}}",
        ),
        Query('rate(otelcol_process_cpu_seconds_total{job="jaeger"}[$__rate_interval])', "{{job}} {{instance}}"),
        unit=look.COUNT,
        width=6,
    )


def memory() -> Panel:
    return look.lines(
        "Memory",
        "Of Prometheus, Alertmanager and Jaeger.",
        Query('process_resident_memory_bytes{job=~"prometheus|alertmanager"}', "{{job}} {{instance}}"),
        Query('otelcol_process_memory_rss_bytes{job="jaeger"}', "{{job}} {{instance}}"),
        unit=look.BYTES,
        width=6,
    )


def alerts() -> Panel:
    return look.rows(
        "Alerts that fire",
        "The dead man's switch always does.",
        Query('max by (alertname, severity, instance) (ALERTS{alertstate="firing"})'),
        columns={"alertname": "Alert", "severity": "Severity", "instance": "Host"},
        width=8,
    )


def sent() -> Panel:
    return look.lines(
        "Alerts told to Alertmanager",
        "Told, and thrown away since nobody took them.",
        Query(f"sum(rate(prometheus_notifications_sent_total{{{HERE}}}[$__rate_interval]))", "told"),
        Query(f"sum(rate(prometheus_notifications_dropped_total{{{HERE}}}[$__rate_interval]))", "thrown away"),
        unit=look.RATE,
    )


def messages() -> Panel:
    return look.lines(
        "Messages to people within an hour",
        "By way: sent, and those that were not taken.",
        Query("sum by (integration) (increase(alertmanager_notifications_total[1h]))", "{{integration}}"),
        Query("sum by (integration) (increase(alertmanager_notifications_failed_total[1h]))", "{{integration}} failed"),
        unit=look.COUNT,
    )


def spans() -> Panel:
    return look.lines(
        "Spans by what became of them",
        "At the services: exported, failed, or dropped since too many waited.",
        Query("sum by (outcome) (rate(orders_spans_total[$__rate_interval]))", "{{outcome}}"),
        unit=look.RATE,
    )


def lost() -> Panel:
    return look.lines(
        "Spans at Jaeger",
        "Accepted, refused, and those that it could not store.",
        Query('sum(rate(otelcol_receiver_accepted_spans_total{job="jaeger"}[$__rate_interval]))', "accepted"),
        Query('sum(rate(otelcol_receiver_refused_spans_total{job="jaeger"}[$__rate_interval]))', "refused"),
        Query('sum(rate(otelcol_exporter_send_failed_spans_total{job="jaeger"}[$__rate_interval]))', "not stored"),
        unit=look.RATE,
    )


def store() -> Panel:
    return look.lines(
        "Jaeger's index on disk",
        "Of the current and the previous half of what is kept.",
        Query('sum by (instance, name) (jaeger_storage_badger_size_bytes_lsm{job="jaeger"})', "{{instance}} {{name}}"),
        unit=look.BYTES,
    )


def heap() -> Panel:
    return look.lines(
        "Memory of Keycloak",
        "Heap in use, of the most that it takes.",
        Query(
            'sum by (instance) (jvm_memory_used_bytes{job="keycloak", area="heap"}) '
            '/ max by (instance) (jvm_memory_max_bytes{job="keycloak", area="heap"})',
            "{{instance}}",
        ),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
    )


def connections() -> Panel:
    return look.lines(
        "Keycloak's connections",
        "To PostgreSQL: in use, and requests that wait for one.",
        Query('sum by (instance) (agroal_active_count{job="keycloak"})', "{{instance}}"),
        Query('sum by (instance) (agroal_awaiting_count{job="keycloak"})', "{{instance}} waits"),
        unit=look.COUNT,
    )


def pulls() -> Panel:
    return look.lines(
        "Requests to the registry",
        "By method and status.",
        Query(
            'sum by (method, code) (rate(registry_http_requests_total{job="registry"}[$__rate_interval]))',
            "{{method}} {{code}}",
        ),
        unit=look.REQUESTS,
    )
