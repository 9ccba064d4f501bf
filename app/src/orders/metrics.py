"""Every figure that this service gives out, by name and with its labels."""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

# A line more for each counter, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_LAG_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0)

REQUESTS = Histogram(
    "orders_http_request_seconds",
    "Time of a request, by route template.",
    ("route", "method", "status"),
    buckets=_SECONDS,
)

LANE_READY = Gauge("orders_lane_ready", "Whether this lane of the intake takes messages now.", ("lane",))
LANE_MESSAGES = Counter("orders_lane_messages", "Messages by lane and what became of them.", ("lane", "outcome"))
INTAKE = Histogram("orders_intake_seconds", "Time from the first attempt to the broker's confirm.", buckets=_SECONDS)
INTAKE_MESSAGE_ORDERS = Histogram(
    "orders_intake_message_orders", "Orders that went as one message.", buckets=(1, 2, 4, 8, 16, 32)
)
INTAKE_FAILED = Counter("orders_intake_failed", "Orders that no lane confirmed in time.")
KEYS_REUSED = Counter("orders_keys_reused", "Orders refused early: their key was used with another body.")

CACHE = Counter(
    "orders_cache", "Reads of the catalogue's cache: the process's own, then Valkey's.", ("level", "outcome")
)
CATALOGUE_READS = Counter("orders_catalogue_reads", "Reads of the catalogue in the database.", ("what",))
REPLICA_BEHIND = Counter("orders_replica_behind", "Reads made again of the primary: more was known than a replica had.")
HINTS = Counter("orders_hints", "Calls of Valkey, which helps and is never needed.", ("outcome",))
REPLICA_FALLBACKS = Counter("orders_replica_fallbacks", "Reads that went to the primary, no replica having answered.")


class Pools(Collector):
    """What pools of connections say of themselves, asked when the figures are read."""

    def __init__(self) -> None:
        self._stats: dict[str, Callable[[], Mapping[str, int]]] = {}

    def watch(self, pool: str, stats: Callable[[], Mapping[str, int]]) -> None:
        """Have the figures of one more pool."""
        self._stats[pool] = stats

    def collect(self) -> Iterator[Metric]:
        """Return all figures."""
        waits = CounterMetricFamily("orders_pool_waits", "Requests that waited for a connection.", labels=["pool"])
        seconds = CounterMetricFamily("orders_pool_wait_seconds", "Time that they waited.", labels=["pool"])
        failed = CounterMetricFamily("orders_pool_failed", "Requests that got no connection.", labels=["pool"])
        waiting = GaugeMetricFamily("orders_pool_waiting", "Requests that wait now.", labels=["pool"])
        for pool, stats in self._stats.items():
            found = stats()
            waits.add_metric([pool], found.get("requests_queued", 0))
            seconds.add_metric([pool], found.get("requests_wait_ms", 0) / 1000)
            failed.add_metric([pool], found.get("requests_errors", 0))
            waiting.add_metric([pool], found.get("requests_waiting", 0))
        yield from (waits, seconds, failed, waiting)


POOLS = Pools()
REGISTRY.register(POOLS)

TOKENS = Counter("orders_tokens", "Access tokens by what became of them.", ("outcome",))
KEY_READS = Counter("orders_jwks_reads", "Reads of the identity provider's keys, or of Valkey's copy.", ("outcome",))
KEYS_READ_AT = Gauge(
    "orders_jwks_read_timestamp_seconds", "When the identity provider last gave its keys; 0: not since the start."
)

SESSIONS = Counter("orders_sessions", "Requests with a browser's session by what became of it.", ("outcome",))
SESSION_WRITES = Counter(
    "orders_session_writes", "Writes to the store of sessions: replica has it, or primary alone.", ("copies",)
)
SESSION_CHECKS = Counter("orders_session_checks", "Refreshes of sessions by the identity provider.", ("outcome",))
LOGINS = Counter("orders_logins", "Log-ins of browsers that came back from the identity provider.", ("outcome",))
LOGOUTS = Counter(
    "orders_logouts", "Sessions that a log-out ended, and whether the identity provider's did.", ("outcome",)
)
CROSS_SITE = Counter("orders_cross_site", "Changes refused: a session's cookie came with another site's request.")

BATCH_ORDERS = Histogram("orders_batch_orders", "Orders in a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
BATCH_SECONDS = Histogram("orders_batch_seconds", "Time to settle a batch and commit it.", buckets=_SECONDS)
QUEUE_AGE = Histogram(
    "orders_queue_age_seconds",
    "Time that a batch's oldest order had waited since its acceptance when the worker took it.",
    buckets=_LAG_SECONDS,
)
SETTLED = Counter("orders_worker_orders", "Orders by what the worker made of them.", ("outcome",))
SETTLED_CENTS = Counter(
    "orders_settled_cents", "What settled orders come to, in hundredths of the currency.", ("currency",)
)
SETTLEMENT_LAG = Histogram(
    "orders_settlement_lag_seconds",
    "Time from an order's acceptance to its settlement.",
    buckets=_LAG_SECONDS,
)
OUTBOX_AGE = Gauge("orders_outbox_age_seconds", "Age of the oldest event that is not published; 0: all are.")
EVENTS_RELAYED = Counter("orders_events_relayed", "Events that this worker published, those that came again too.")

STREAMS = Gauge("orders_event_streams", "Clients that listen to events now.")
STREAMS_ENDED = Counter("orders_event_streams_ended", "Streams to clients by why they ended.", ("why",))
REPLAYS = Counter("orders_event_replays", "Streams that began with events read again.", ("source",))

SPANS = Counter(
    "orders_spans",
    "Spans: exported, failed (the collector did not take them), dropped (too many waited).",
    ("outcome",),
)
WEBHOOK_ATTEMPTS = Counter("orders_webhook_attempts", "Attempts to deliver an event to an endpoint.", ("outcome",))
WEBHOOK_SECONDS = Histogram(
    "orders_webhook_attempt_seconds",
    "Time of an attempt, from the name's resolution to the answer.",
    buckets=(*_SECONDS, 5.0, 10.0),
)
WEBHOOK_LAG = Histogram(
    "orders_webhook_lag_seconds",
    "Time from an event to its delivery.",
    buckets=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 3600.0, 21600.0, 86400.0),
)
WEBHOOK_AGE = Gauge(
    "orders_webhook_due_age_seconds", "For how long the delivery has been due that is due longest; 0: none is."
)
WEBHOOKS_OFF = Counter("orders_webhooks_switched_off", "Endpoints that were switched off, and why.", ("why",))

WORKER_PAUSED = Gauge("orders_worker_paused", "Whether the worker waits for the database and consumes nothing.")
