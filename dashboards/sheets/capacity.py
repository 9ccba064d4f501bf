"""Capacity: what is in use of what there is, and when a disk or memory will be full."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import frame, look
from dashboards.frame import Row, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="node"}'
HERE = 'zone=~"$zone", instance=~"$host"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "capacity",
        "Use against limit: at 80 % there is an alert. Zone and host choose among hosts and disks; all else is of the whole platform.",
        [
            Row("Hosts", [processors(), memory(), memory_in_hours(), memory_in_days()]),
            Row("Disks", [disks(), in_hours(), in_days(), growth()]),
            Row("Connections and queues", [edge(), database(), pooler(), queues()]),
            Row("Memory and the rest", [valkey(), rabbitmq(), etcd(), files(), haproxy()]),
        ],
        [zones(FIGURES), frame.hosts(FIGURES)],
        ["hosts", "edge", "postgresql", "valkey", "rabbitmq"],
    )


def processors() -> Panel:
    return look.bars(
        "Processors in use",
        "Of those that each host may use.",
        Query(f"instance:cpu_used:ratio{{{HERE}}}", "{{instance}}"),
        unit=look.RATIO,
        width=12,
        down="hosts",
    )


def memory() -> Panel:
    return look.bars(
        "Memory in use",
        "Of what each host may use, without what the kernel gives back.",
        Query(f"instance:memory_used:ratio{{{HERE}}}", "{{instance}}"),
        unit=look.RATIO,
        width=12,
        down="hosts",
    )


def memory_in_hours() -> Panel:
    return look.lines(
        "Memory left in 4 hours",
        "If it goes on as in the last hour. Below nothing the memory is full by then.",
        Query(f"instance:memory_avail_in_4h:bytes{{{HERE}}}", "{{instance}}"),
        unit=look.BYTES,
        limits=look.SPACE_LEFT,
        least=None,
        width=12,
    )


def memory_in_days() -> Panel:
    return look.lines(
        "Memory left in 3 days",
        "If it goes on as in the last day.",
        Query(f"instance:memory_avail_in_3d:bytes{{{HERE}}}", "{{instance}}"),
        unit=look.BYTES,
        limits=look.SPACE_LEFT,
        least=None,
        width=12,
    )


def disks() -> Panel:
    return look.bars(
        "Disks",
        "Share in use.",
        Query(
            f"max by (instance, mountpoint) (instance:filesystem_used:ratio{{{HERE}}})",
            "{{instance}} {{mountpoint}}",
        ),
        unit=look.RATIO,
        width=6,
        down="hosts",
    )


def in_hours() -> Panel:
    return look.lines(
        "Left in 4 hours",
        "If it goes on as in the last half hour. Below nothing the disk is full by then.",
        Query(f"instance:filesystem_avail_in_4h:bytes{{{HERE}}}", "{{instance}} {{mountpoint}}"),
        unit=look.BYTES,
        limits=look.SPACE_LEFT,
        least=None,
        width=6,
    )


def in_days() -> Panel:
    return look.lines(
        "Left in 3 days",
        "If it goes on as in the last 6 hours.",
        Query(f"instance:filesystem_avail_in_3d:bytes{{{HERE}}}", "{{instance}} {{mountpoint}}"),
        unit=look.BYTES,
        limits=look.SPACE_LEFT,
        least=None,
        width=6,
    )


def growth() -> Panel:
    return look.rows(
        "Disks, the fullest first",
        "Share in use now.",
        Query(f"sort_desc(max by (instance, zone, mountpoint) (instance:filesystem_used:ratio{{{HERE}}}))"),
        columns={"instance": "Host", "zone": "Zone", "mountpoint": "Disk", "Value": "In use"},
        unit=look.RATIO,
        limits=look.CAPACITY,
        width=6,
    )


def edge() -> Panel:
    return look.lines(
        "Connections of HAProxy",
        "On edge hosts and of the hosts' own proxies, of the most that each takes.",
        Query("haproxy_process_current_connections / haproxy_process_max_connections", "{{instance}}"),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        width=6,
        down="edge",
    )


def database() -> Panel:
    return look.lines(
        "Connections of PostgreSQL",
        "Of the most that each server takes.",
        Query(
            "sum by (instance) (pg_stat_activity_count) / max by (instance) (pg_settings_max_connections)",
            "{{instance}}",
        ),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        width=6,
        down="postgresql",
    )


def pooler() -> Panel:
    return look.lines(
        "Connections of PgBouncer",
        "Of the most that each database may have.",
        Query(
            "max by (database, instance) "
            "(pgbouncer_databases_current_connections / (pgbouncer_databases_max_connections > 0))",
            "{{database}} {{instance}}",
        ),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        width=6,
        down="pgbouncer",
    )


def queues() -> Panel:
    return look.lines(
        "Orders that wait",
        "By queue; from 10,000 on there is an alert.",
        Query('queue:messages:max{queue=~"intake-[0-9]+"}', "{{queue}}"),
        unit=look.COUNT,
        limits=look.QUEUE,
        width=6,
        down="rabbitmq",
    )


def valkey() -> Panel:
    return look.lines(
        "Memory of Valkey",
        "Of what each instance may take. The cache is meant to become full.",
        Query("redis_memory_used_bytes / redis_memory_max_bytes", "{{cluster}} {{instance}}:{{port}}"),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        down="valkey",
    )


def rabbitmq() -> Panel:
    return look.lines(
        "Memory of RabbitMQ",
        "Of what each broker may take.",
        Query("rabbitmq_process_resident_memory_bytes / rabbitmq_resident_memory_limit_bytes", "{{instance}}"),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        down="rabbitmq",
    )


def etcd() -> Panel:
    return look.lines(
        "Database of etcd",
        "Of what it may take.",
        Query("etcd_mvcc_db_total_size_in_bytes / etcd_server_quota_backend_bytes", "{{instance}}"),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        down="etcd",
    )


def files() -> Panel:
    return look.lines(
        "Open files of replicas",
        "Of the most that each process may have.",
        Query(
            'process_open_fds{job="services"} / process_max_fds{job="services"}',
            "{{service}} {{instance}} {{replica}}",
        ),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        width=12,
        down="replicas",
    )


def haproxy() -> Panel:
    return look.lines(
        "HAProxy's own time in use",
        "Share of time in which its threads work, on edge hosts and of the hosts' own proxies.",
        Query("1 - haproxy_process_idle_time_percent / 100", "{{instance}}"),
        unit=look.RATIO,
        limits=look.CAPACITY,
        most=1,
        width=12,
        down="edge",
    )
