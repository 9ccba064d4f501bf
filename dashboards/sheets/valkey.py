"""Valkey: are all slots covered, where are the primaries, how full is it."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, Variable, hosts, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="valkey"}'
HERE = 'cluster=~"$cluster", zone=~"$zone", instance=~"$host"'
NAME = "{{cluster}} {{instance}}:{{port}}"


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "valkey",
        "Both clusters: sessions, which lose nothing, and cache, which throws away what is read least.",
        [
            Row("Is it well?", [slots(), up(), primaries()]),
            Row("Work", [commands(), latency(), hits(), processor(), clients(), network()]),
            Row("How full", [memory(), keys(), gone(), refused(), replicas()]),
        ],
        [zones(FIGURES), hosts(FIGURES), Variable("cluster", "Cluster", 'label_values(up{job="valkey"}, cluster)')],
        ["hosts", "logs"],
    )


def slots() -> Panel:
    return look.bars(
        "Slots with a primary",
        "Of the 16384 of each cluster, as the instance that knows least sees them.",
        Query('min by (cluster) (redis_cluster_slots_ok{cluster=~"$cluster"}) / 16384', "{{cluster}}"),
        unit=look.RATIO,
        limits=look.ONE_IS_GOOD,
    )


def up() -> Panel:
    return look.states(
        "Answering",
        "Whether each instance answers its exporter.",
        Query(f"max by (cluster, instance, port) (redis_up{{{HERE}}})", NAME),
        words=look.YES_NO,
        width=8,
    )


def primaries() -> Panel:
    return look.rows(
        "Roles",
        "Two primaries of a cluster on one host are one too many.",
        Query(f"max by (cluster, instance, port, role) (redis_instance_info{{{HERE}}})"),
        columns={"cluster": "Cluster", "instance": "Host", "port": "Port", "role": "Role"},
        width=8,
    )


def commands() -> Panel:
    return look.lines(
        "Commands",
        "By cluster and host.",
        Query(
            f"sum by (cluster, instance) (rate(redis_commands_processed_total{{{HERE}}}[$__rate_interval]))",
            "{{cluster}} {{instance}}",
        ),
        unit=look.RATE,
    )


def latency() -> Panel:
    return look.lines(
        "Time of a command, slowest five",
        "99th percentile, as the instances themselves count it.",
        Query(
            f'topk(5, max by (cluster, cmd) (redis_latency_percentiles_usec{{{HERE}, quantile="99"}}))',
            "{{cluster}} {{cmd}}",
        ),
        unit=look.MICROSECONDS,
    )


def hits() -> Panel:
    return look.lines(
        "Keys that were asked for",
        "Found, and not there.",
        Query(f"sum by (cluster) (rate(redis_keyspace_hits_total{{{HERE}}}[$__rate_interval]))", "{{cluster}} found"),
        Query(
            f"sum by (cluster) (rate(redis_keyspace_misses_total{{{HERE}}}[$__rate_interval]))", "{{cluster}} missed"
        ),
        unit=look.RATE,
    )


def processor() -> Panel:
    return look.lines(
        "Processors",
        "An instance uses one at most.",
        Query(
            f"rate(redis_cpu_user_seconds_total{{{HERE}}}[$__rate_interval]) "
            f"+ rate(redis_cpu_sys_seconds_total{{{HERE}}}[$__rate_interval])",
            NAME,
        ),
        unit=look.COUNT,
        limits=look.CAPACITY,
    )


def clients() -> Panel:
    return look.lines(
        "Connections",
        "By cluster and host.",
        Query(f"sum by (cluster, instance) (redis_connected_clients{{{HERE}}})", "{{cluster}} {{instance}}"),
        unit=look.COUNT,
    )


def network() -> Panel:
    return look.lines(
        "Bytes",
        "By cluster, in and out.",
        Query(f"sum by (cluster) (rate(redis_net_input_bytes_total{{{HERE}}}[$__rate_interval]))", "{{cluster}} in"),
        Query(f"sum by (cluster) (rate(redis_net_output_bytes_total{{{HERE}}}[$__rate_interval]))", "{{cluster}} out"),
        unit=look.BYTES_RATE,
    )


def memory() -> Panel:
    return look.bars(
        "Memory of that allowed",
        "Sessions must not become full; the cache is meant to.",
        Query(f"redis_memory_used_bytes{{{HERE}}} / redis_memory_max_bytes{{{HERE}}}", NAME),
        unit=look.RATIO,
    )


def keys() -> Panel:
    return look.lines(
        "Keys",
        "On primaries and replicas, by cluster and host.",
        Query(f"sum by (cluster, instance) (redis_db_keys{{{HERE}}})", "{{cluster}} {{instance}}"),
        unit=look.COUNT,
    )


def gone() -> Panel:
    return look.lines(
        "Keys that went",
        "Thrown away for room, and at the end of their time.",
        Query(f"sum by (cluster) (rate(redis_evicted_keys_total{{{HERE}}}[$__rate_interval]))", "{{cluster}} for room"),
        Query(f"sum by (cluster) (rate(redis_expired_keys_total{{{HERE}}}[$__rate_interval]))", "{{cluster}} in time"),
        unit=look.RATE,
    )


def refused() -> Panel:
    return look.lines(
        "Connections refused",
        "There were too many.",
        Query(f"sum by (cluster) (rate(redis_rejected_connections_total{{{HERE}}}[$__rate_interval]))", "{{cluster}}"),
        unit=look.RATE,
        width=12,
    )


def replicas() -> Panel:
    return look.lines(
        "Replicas that follow",
        "Of each cluster's three primaries, one each.",
        Query('sum by (cluster) (redis_connected_slaves{cluster=~"$cluster"})', "{{cluster}}"),
        unit=look.COUNT,
        width=12,
    )
