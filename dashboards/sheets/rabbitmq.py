"""RabbitMQ: what waits in which queue, who consumes, and whether the brokers are well."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, hosts, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="rabbitmq"}'
HERE = 'zone=~"$zone", instance=~"$host"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "rabbitmq",
        "What waits in which queue, who consumes it, and whether the brokers are well.",
        [
            Row("Is it well?", [alarms(), away(), memory(), disk()]),
            Row("Queues", [messages(), consumers(), unacknowledged()]),
            Row("Messages", [published(), delivered(), again(), unroutable(), commit(), elections()]),
            Row("Brokers", [connections(), channels(), files()]),
        ],
        [zones(FIGURES), hosts(FIGURES)],
        ["hosts", "logs"],
    )


def alarms() -> Panel:
    return look.number(
        "Alarms",
        "Of memory, disk or files: the broker takes no messages.",
        Query(
            f"sum(rabbitmq_alarms_memory_used_watermark{{{HERE}}}) + sum(rabbitmq_alarms_free_disk_space_watermark{{{HERE}}}) "
            f"+ sum(rabbitmq_alarms_file_descriptor_limit{{{HERE}}})"
        ),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
    )


def away() -> Panel:
    return look.number(
        "Peers out of reach",
        "Brokers that another one does not reach.",
        Query(f"sum(rabbitmq_unreachable_cluster_peers_count{{{HERE}}})"),
        unit=look.COUNT,
        limits=look.NONE_IS_GOOD,
    )


def memory() -> Panel:
    return look.bars(
        "Memory of that allowed",
        "At the limit the broker takes no messages.",
        Query(
            f"rabbitmq_process_resident_memory_bytes{{{HERE}}} / rabbitmq_resident_memory_limit_bytes{{{HERE}}}",
            "{{instance}}",
        ),
        unit=look.RATIO,
    )


def disk() -> Panel:
    return look.lines(
        "Disk above the limit",
        "What may still be written before the broker takes no messages.",
        Query(
            f"rabbitmq_disk_space_available_bytes{{{HERE}}} - rabbitmq_disk_space_available_limit_bytes{{{HERE}}}",
            "{{instance}}",
        ),
        unit=look.BYTES,
        limits=look.SPACE_LEFT,
        least=None,
    )


def messages() -> Panel:
    return look.lines(
        "Messages by queue",
        "All that lie in it, delivered or not.",
        Query("queue:messages:max", "{{queue}}"),
        unit=look.COUNT,
        limits=look.QUEUE,
    )


def consumers() -> Panel:
    return look.lines(
        "Consumers by queue",
        "Intake queues have one at least; those of retries and dead letters none.",
        Query("queue:consumers:max", "{{queue}}"),
        unit=look.COUNT,
        down="orders",
    )


def unacknowledged() -> Panel:
    return look.lines(
        "Delivered and not acknowledged",
        "What consumers work on, by queue.",
        Query("max by (queue) (rabbitmq_detailed_queue_messages_unacked)", "{{queue}}"),
        unit=look.COUNT,
    )


def published() -> Panel:
    return look.lines(
        "Messages that came",
        "By broker: those published, and those that it confirmed.",
        Query(
            f"sum by (instance) (rate(rabbitmq_global_messages_received_total{{{HERE}}}[$__rate_interval]))",
            "{{instance}} received",
        ),
        Query(
            f"sum by (instance) (rate(rabbitmq_global_messages_confirmed_total{{{HERE}}}[$__rate_interval]))",
            "{{instance}} confirmed",
        ),
        unit=look.RATE,
    )


def delivered() -> Panel:
    return look.lines(
        "Messages that went",
        "By broker: those delivered, and those that consumers acknowledged.",
        Query(
            f"sum by (instance) (rate(rabbitmq_global_messages_delivered_total{{{HERE}}}[$__rate_interval]))",
            "{{instance}} delivered",
        ),
        Query(
            f"sum by (instance) (rate(rabbitmq_global_messages_acknowledged_total{{{HERE}}}[$__rate_interval]))",
            "{{instance}} acknowledged",
        ),
        unit=look.RATE,
    )


def again() -> Panel:
    return look.lines(
        "Delivered again",
        "A consumer or its broker went away before it acknowledged.",
        Query(
            f"sum by (instance) (rate(rabbitmq_global_messages_redelivered_total{{{HERE}}}[$__rate_interval]))",
            "{{instance}}",
        ),
        unit=look.RATE,
    )


def unroutable() -> Panel:
    return look.lines(
        "Messages that no queue took",
        "Given back to who published them, or dropped.",
        Query(
            f"sum(rate(rabbitmq_global_messages_unroutable_returned_total{{{HERE}}}[$__rate_interval]))", "given back"
        ),
        Query(f"sum(rate(rabbitmq_global_messages_unroutable_dropped_total{{{HERE}}}[$__rate_interval]))", "dropped"),
        unit=look.RATE,
    )


def commit() -> Panel:
    return look.lines(
        "Time until a majority has an entry",
        "Of quorum queues, mean by broker.",
        Query(f"rabbitmq_raft_entry_commit_latency_seconds{{{HERE}}}", "{{instance}}"),
        unit=look.SECONDS,
        limits=look.FSYNC_SECONDS,
    )


def elections() -> Panel:
    return look.lines(
        "Elections of queues' leaders",
        "Terms that began within five minutes: leaders moved or were lost.",
        Query(f"sum by (instance) (increase(rabbitmq_raft_term_total{{{HERE}}}[5m]))", "{{instance}}"),
        unit=look.COUNT,
    )


def connections() -> Panel:
    return look.lines(
        "Connections",
        "By broker.",
        Query(f"rabbitmq_connections{{{HERE}}}", "{{instance}}"),
        unit=look.COUNT,
    )


def channels() -> Panel:
    return look.lines(
        "Channels",
        "By broker.",
        Query(f"rabbitmq_channels{{{HERE}}}", "{{instance}}"),
        unit=look.COUNT,
    )


def files() -> Panel:
    return look.bars(
        "Open files of those allowed",
        "Connections count as well.",
        Query(f"rabbitmq_process_open_fds{{{HERE}}} / rabbitmq_process_max_fds{{{HERE}}}", "{{instance}}"),
        unit=look.RATIO,
    )
