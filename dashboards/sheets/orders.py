"""Orders: from intake over the queues to settlement, and what was refused."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, sheet
from dashboards.look import Query

INTAKE = 'queue=~"intake-[0-9]+"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "orders",
        "What becomes of orders: accepted, waiting, settled, refused.",
        [
            Row("Is it well?", [accepted(), settled_now(), waiting(), oldest(), dead(), paused()]),
            Row("Intake", [intake_seconds(), lanes(), outcomes(), requests(), request_seconds(), failed()]),
            Row("Settlement", [settled(), lag(), queue_age(), batches(), batch_seconds(), books(), money()]),
            Row("Who asks, and what helps", [tokens(), cache(), hints()]),
            Row("Events and webhooks", [outbox(), relayed(), webhooks(), streams()]),
        ],
        down=["service", "rabbitmq", "postgresql", "valkey", "logs"],
    )


def _quantiles(record: str) -> tuple[Query, Query]:
    return (
        Query(f"histogram_quantile(0.5, {record})", "median"),
        Query(f"histogram_quantile(0.99, {record})", "99th percentile"),
    )


def accepted() -> Panel:
    return look.number(
        "Accepted",
        "Orders that a broker confirmed.",
        Query('sum(rate(orders_lane_messages_total{outcome="confirmed"}[$__rate_interval]))'),
        unit=look.RATE,
    )


def settled_now() -> Panel:
    return look.number(
        "Settled",
        "Orders that the workers settled.",
        Query('sum(rate(orders_worker_orders_total{outcome="settled"}[$__rate_interval]))'),
        unit=look.RATE,
    )


def waiting() -> Panel:
    return look.number(
        "Waiting",
        "Orders in the intake queues.",
        Query(f"sum(queue:messages:max{{{INTAKE}}})"),
        unit=look.COUNT,
        limits=look.QUEUE,
        down="rabbitmq",
    )


def oldest() -> Panel:
    return look.number(
        "99 % settled within",
        "Time from acceptance to settlement; a second is promised.",
        Query("histogram_quantile(0.99, le:orders_settlement_lag_seconds_bucket:rate5m)"),
        unit=look.SECONDS,
        limits=look.SETTLEMENT_SECONDS,
        down="slo",
    )


def dead() -> Panel:
    return look.number(
        "Dead letters",
        "Messages that no worker could read.",
        Query('sum(queue:messages:max{queue=~".*-dead"})'),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
    )


def paused() -> Panel:
    return look.number(
        "Workers that pause",
        "Workers that wait for the database and take no orders.",
        Query("sum(orders_worker_paused)"),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
        down="postgresql",
    )


def intake_seconds() -> Panel:
    return look.lines(
        "Time of an intake",
        "From the first attempt to the broker's confirmation.",
        *_quantiles("le:orders_intake_seconds_bucket:rate5m"),
        unit=look.SECONDS,
    )


def lanes() -> Panel:
    return look.states(
        "Queues that take orders",
        "Whether every replica may publish to the queue now.",
        Query("min by (lane) (orders_lane_ready)", "{{lane}}"),
        words=look.YES_NO,
        width=8,
        down="rabbitmq",
    )


def outcomes() -> Panel:
    return look.lines(
        "Messages by what became of them",
        "Attempts to publish: confirmed, late after another was confirmed, or failed in one of several ways.",
        Query("sum by (outcome) (rate(orders_lane_messages_total[$__rate_interval]))", "{{outcome}}"),
        unit=look.RATE,
    )


def requests() -> Panel:
    return look.lines(
        "Requests by route and status",
        "What the replicas answered; health checks and figures are left out.",
        Query(
            'sum by (method, route, status) (orders:requests:rate5m{route!~"/(livez|readyz|metrics)"})',
            "{{method}} {{route}} {{status}}",
        ),
        unit=look.REQUESTS,
        stacked=True,
    )


def request_seconds() -> Panel:
    return look.lines(
        "Time of a request by route",
        "99th percentile over five minutes, in the replicas. Dots are requests that were traced.",
        Query(
            "histogram_quantile(0.99, sum by (route, le) "
            '(rate(orders_http_request_seconds_bucket{route!~"/(livez|readyz|metrics)"}[5m])))',
            "{{route}}",
            traces=True,
        ),
        unit=look.SECONDS,
        limits=look.REQUEST_SECONDS,
    )


def failed() -> Panel:
    return look.lines(
        "Refused at intake",
        "Orders that no queue confirmed in time, and those whose key came with another body.",
        Query("sum(rate(orders_intake_failed_total[$__rate_interval]))", "no queue confirmed"),
        Query("sum(rate(orders_keys_reused_total[$__rate_interval]))", "key reused"),
        unit=look.RATE,
    )


def settled() -> Panel:
    return look.lines(
        "Orders by what the worker made of them",
        "Settled, known before (a repetition), or refused for a reason.",
        Query("sum by (outcome) (rate(orders_worker_orders_total[$__rate_interval]))", "{{outcome}}"),
        unit=look.RATE,
    )


def lag() -> Panel:
    return look.lines(
        "From acceptance to settlement",
        "Over five minutes. Dots are orders that were traced.",
        Query("histogram_quantile(0.5, le:orders_settlement_lag_seconds_bucket:rate5m)", "median"),
        Query(
            "histogram_quantile(0.99, sum by (le) (rate(orders_settlement_lag_seconds_bucket[5m])))",
            "99th percentile",
            traces=True,
        ),
        unit=look.SECONDS,
        limits=look.SETTLEMENT_SECONDS,
        down="slo",
    )


def queue_age() -> Panel:
    return look.lines(
        "Age of the oldest order of a batch",
        "How long it had waited when the worker took it.",
        *_quantiles("le:orders_queue_age_seconds_bucket:rate5m"),
        unit=look.SECONDS,
        limits=look.SETTLEMENT_SECONDS,
    )


def batches() -> Panel:
    return look.lines(
        "Orders in a batch",
        "Mean over five minutes: the more wait, the more go together.",
        Query("sum(rate(orders_batch_orders_sum[5m])) / (sum(rate(orders_batch_orders_count[5m])) > 0)", "orders"),
        unit=look.COUNT,
    )


def batch_seconds() -> Panel:
    return look.lines(
        "Time of a batch",
        "From its begin to its commit.",
        *_quantiles("le:orders_batch_seconds_bucket:rate5m"),
        unit=look.SECONDS,
        down="postgresql",
    )


def books() -> Panel:
    return look.lines(
        "Entries of the ledger",
        "Rows that the database counts in the ledger, on the primary: two or more an order that moved money.",
        Query(
            'sum(pg_stat_user_tables_n_live_tup{datname="orders", relname=~"ledger_entry.*"} '
            "and on (instance) patroni_primary == 1)",
            "entries",
        ),
        unit=look.COUNT,
    )


def tokens() -> Panel:
    return look.lines(
        "Access tokens",
        "Verified, known from before, or refused.",
        Query("sum by (outcome) (rate(orders_tokens_total[$__rate_interval]))", "{{outcome}}"),
        unit=look.RATE,
    )


def cache() -> Panel:
    return look.lines(
        "Reads of the catalogue's cache",
        "By level: the process's own, then Valkey's.",
        Query("sum by (level, outcome) (rate(orders_cache_total[$__rate_interval]))", "{{level}} {{outcome}}"),
        unit=look.RATE,
    )


def hints() -> Panel:
    return look.lines(
        "Calls of Valkey at intake",
        "Answered, failed, or spared while it is away; orders are taken in any case.",
        Query("sum by (outcome) (rate(orders_hints_total[$__rate_interval]))", "{{outcome}}"),
        unit=look.RATE,
        down="valkey",
    )


def outbox() -> Panel:
    return look.lines(
        "Oldest event not yet published",
        "Of the workers' views, the worst.",
        Query("max(orders_outbox_age_seconds)", "age"),
        unit=look.SECONDS,
        width=6,
    )


def relayed() -> Panel:
    return look.lines(
        "Events published",
        "By all workers.",
        Query("sum(rate(orders_events_relayed_total[$__rate_interval]))", "events"),
        unit=look.RATE,
        width=6,
    )


def webhooks() -> Panel:
    return look.lines(
        "Delivery that is due longest",
        "Of an event to a customer's endpoint.",
        Query("max(orders_webhook_due_age_seconds)", "age"),
        unit=look.SECONDS,
        width=6,
    )


def streams() -> Panel:
    return look.lines(
        "Clients that listen to events",
        "Streams that are open.",
        Query("sum(orders_event_streams)", "streams"),
        unit=look.COUNT,
        width=6,
    )


def money() -> Panel:
    return look.lines(
        "Money settled within an hour",
        "What settled orders come to, by currency; orders that were cancelled later are in it.",
        Query("sum by (currency) (increase(orders_settled_cents_total[1h])) / 100", "{{currency}}"),
        unit=look.COUNT,
        width=24,
    )
