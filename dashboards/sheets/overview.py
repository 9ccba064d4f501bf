"""Overview: is it well? What somebody opens who was woken."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, deploys, sheet
from dashboards.look import Query


def dashboard() -> Dashboard:
    """Return the dashboard."""
    below = ["slo", "edge", "service", "replicas", "autoscaling", "orders"]
    stores = ["postgresql", "pgbouncer", "valkey", "rabbitmq", "etcd"]
    return sheet(
        "overview",
        "Is it well? Service levels, alerts, traffic, time and fullness hop by hop, who leads what.",
        [
            Row("Is it well?", [firing(), budgets(), probe(), hosts(), waiting(), alerts(), leaders()]),
            Row("Traffic", [requests(), errors(), seconds(), orders()]),
            Row("Hop by hop, from the edge to the database", [times(), fullness(), queues()]),
        ],
        down=[*below, *stores, "hosts", "capacity", "monitoring", "logs", "tests"],
        marks=[deploys()],
    )


def firing() -> Panel:
    return look.number(
        "Alerts that fire",
        "Without the dead man's switch.",
        Query('count(ALERTS{alertstate="firing"}) - count(ALERTS{alertstate="firing", alertname="DeadMansSwitch"})'),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
        down="monitoring",
    )


def budgets() -> Panel:
    return look.number(
        "Left of the budgets",
        "Of the errors that each service level allows; below nothing the promise is broken.",
        Query("slo:budget_left:ratio", "{{slo}}"),
        unit=look.RATIO,
        limits=look.BUDGET_LEFT,
        width=8,
        down="slo",
    )


def probe() -> Panel:
    return look.number(
        "Users' way in",
        "What the ops hosts get when they ask as users do: 1 is an answer, 0 is none.",
        Query("min(probe_success)"),
        unit=look.COUNT,
        limits=look.ONE_IS_GOOD,
        down="edge",
    )


def hosts() -> Panel:
    return look.number(
        "Parts that are silent",
        "Of all that is asked on all hosts.",
        Query("count(up) - sum(up)"),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
        down="hosts",
    )


def waiting() -> Panel:
    return look.number(
        "Orders that wait",
        "In the intake queues.",
        Query('sum(queue:messages:max{queue=~"intake-[0-9]+"})'),
        unit=look.COUNT,
        limits=look.QUEUE,
        down="orders",
    )


def alerts() -> Panel:
    return look.rows(
        "Alerts",
        "All that fire. The dead man's switch always does: without it alerting does not work.",
        Query('max by (severity, alertname, instance) (ALERTS{alertstate="firing"})'),
        columns={"severity": "Severity", "alertname": "Alert", "instance": "Host"},
        down="monitoring",
    )


def leaders() -> Panel:
    parts = {
        "PostgreSQL": "max by (instance, zone) (patroni_primary == 1)",
        "etcd": "max by (instance, zone) (etcd_server_is_leader == 1)",
        "virtual address": "max by (instance, zone) (instance:vip_held:bool == 1)",
        "Valkey sessions": 'max by (instance, zone) (redis_instance_info{cluster="sessions", role="master"})',
        "Valkey cache": 'max by (instance, zone) (redis_instance_info{cluster="cache", role="master"})',
    }
    named = [f'label_replace({expr}, "part", "{part}", "", "")' for part, expr in parts.items()]
    # A broker gives figures of those queues that it leads.
    queues = 'max by (queue, instance, zone) (rabbitmq_detailed_queue_messages{queue=~"intake-[0-9]+"})'
    named.append(f'label_join(label_replace({queues}, "kind", "RabbitMQ", "", ""), "part", " ", "kind", "queue")')
    return look.rows(
        "Who leads what",
        "Where each part's primary is, and each intake queue's leader.",
        Query(" or ".join(named)),
        columns={"part": "Part", "instance": "Host", "zone": "Zone"},
        down="postgresql",
    )


def requests() -> Panel:
    return look.lines(
        "Requests by service",
        "At the edge.",
        Query("sum by (service) (service:responses:rate1m)", "{{service}}"),
        unit=look.REQUESTS,
        stacked=True,
        width=6,
        down="service",
    )


def errors() -> Panel:
    return look.lines(
        "Share of 5xx by service",
        "At the edge.",
        Query(
            'sum by (service) (service:responses:rate1m{code="5xx"}) / (sum by (service) (service:responses:rate1m) > 0)',
            "{{service}}",
        ),
        unit=look.RATIO,
        width=6,
        down="service",
    )


def seconds() -> Panel:
    return look.lines(
        "Time of a request by route",
        "99th percentile over five minutes, in the replicas of the order service.",
        Query(
            'histogram_quantile(0.99, route_le:orders_http_request_seconds_bucket:rate5m{route!~"/(livez|readyz|metrics)"})',
            "{{route}}",
        ),
        unit=look.SECONDS,
        limits=look.REQUEST_SECONDS,
        width=6,
        down="orders",
    )


def orders() -> Panel:
    return look.lines(
        "Orders",
        "Accepted and settled.",
        Query('sum(rate(orders_lane_messages_total{outcome="confirmed"}[$__rate_interval]))', "accepted"),
        Query('sum(rate(orders_worker_orders_total{outcome="settled"}[$__rate_interval]))', "settled"),
        unit=look.RATE,
        width=6,
        down="orders",
    )


def times() -> Panel:
    return look.lines(
        "Time at each hop",
        "Each includes those below: mean of a request at the edge and on the host's proxy, in the replica; of an order's "
        "confirmation by a broker; of a query at the pooler; 99th percentile of a GET in Valkey.",
        Query('max(service:request_seconds:mean{service="orders-api"})', "edge"),
        Query(
            'max(haproxy_backend_response_time_average_seconds{job="host_proxy", proxy="service-orders-api"})',
            "host proxy",
        ),
        Query(
            'sum(rate(orders_http_request_seconds_sum{route!~"/(livez|readyz|metrics)"}[5m])) '
            '/ (sum(rate(orders_http_request_seconds_count{route!~"/(livez|readyz|metrics)"}[5m])) > 0)',
            "replica",
        ),
        Query("sum(rate(orders_intake_seconds_sum[5m])) / (sum(rate(orders_intake_seconds_count[5m])) > 0)", "broker"),
        Query(
            "sum(rate(pgbouncer_stats_queries_duration_seconds_total[5m])) "
            "/ (sum(rate(pgbouncer_stats_queries_pooled_total[5m])) > 0)",
            "pooler and PostgreSQL",
        ),
        Query('max(redis_latency_percentiles_usec{cmd="get", quantile="99"}) / 1000000', "Valkey"),
        unit=look.SECONDS,
    )


def fullness() -> Panel:
    return look.bars(
        "How full each hop is",
        "Of each kind the fullest: connections, memory, time of threads, disks.",
        Query("max(1 - haproxy_process_idle_time_percent / 100)", "HAProxy's threads"),
        Query("max(haproxy_process_current_connections / haproxy_process_max_connections)", "HAProxy's connections"),
        Query(
            "max(rabbitmq_process_resident_memory_bytes / rabbitmq_resident_memory_limit_bytes)", "RabbitMQ's memory"
        ),
        Query('max(redis_memory_used_bytes{cluster="sessions"} / redis_memory_max_bytes)', "sessions' memory"),
        Query(
            "max(pgbouncer_databases_current_connections / (pgbouncer_databases_max_connections > 0))",
            "PgBouncer's connections",
        ),
        Query(
            "max(sum by (instance) (pg_stat_activity_count) / max by (instance) (pg_settings_max_connections))",
            "PostgreSQL's connections",
        ),
        Query("max(instance:cpu_used:ratio)", "a host's processors"),
        Query("max(instance:memory_used:ratio)", "a host's memory"),
        Query("max(instance:filesystem_used:ratio)", "disks"),
        unit=look.RATIO,
        down="capacity",
    )


def queues() -> Panel:
    return look.lines(
        "What waits at each hop",
        "Requests for an app host or a replica, for a connection to the database, clients of the pooler, orders for a worker.",
        Query('sum(haproxy_backend_current_queue{job="haproxy"})', "for an app host"),
        Query('sum(haproxy_backend_current_queue{job="host_proxy"})', "for a replica"),
        Query("sum(orders_pool_waiting)", "for the pool"),
        Query("sum(pgbouncer_pools_client_waiting_connections)", "for the pooler"),
        Query('sum(queue:messages:max{queue=~"intake-[0-9]+"})', "for a worker"),
        unit=look.COUNT,
    )
