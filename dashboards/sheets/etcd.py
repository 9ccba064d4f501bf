"""etcd: who leads, how fast the disks are, how full the database is."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, hosts, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="etcd"}'
HERE = 'zone=~"$zone", instance=~"$host"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "etcd",
        "Agreement: who leads, how fast writes reach the disks, how full the database is.",
        [
            Row("Who leads", [without_leader(), changes(), leaders()]),
            Row("Disks and network", [fsync(), commit(), round_trip()]),
            Row("Work", [proposals(), pending(), slow(), size(), traffic()]),
        ],
        [zones(FIGURES), hosts(FIGURES)],
        ["postgresql", "hosts", "logs"],
    )


def without_leader() -> Panel:
    return look.number(
        "Members with a leader",
        "All of those chosen, else they agree on nothing: 1 is all of them.",
        Query(f"avg(etcd_server_has_leader{{{HERE}}})"),
        unit=look.RATIO,
        limits=look.ONE_IS_GOOD,
    )


def changes() -> Panel:
    return look.number(
        "New leaders in an hour",
        "As the member that saw most counts them.",
        Query(f"max(increase(etcd_server_leader_changes_seen_total{{{HERE}}}[1h]))"),
        unit=look.COUNT,
        limits=look.LEADER_CHANGES,
    )


def leaders() -> Panel:
    return look.states(
        "Who leads",
        "Just one at any time; not on the host of the PostgreSQL primary.",
        Query(f"max by (instance) (etcd_server_is_leader{{{HERE}}})", "{{instance}}"),
        words=look.HOLDS,
        width=16,
    )


def _quantile(figure: str) -> Query:
    return Query(f"histogram_quantile(0.99, sum by (instance, le) (rate({figure}{{{HERE}}}[5m])))", "{{instance}}")


def fsync() -> Panel:
    return look.lines(
        "Time of a write to the log",
        "99th percentile over five minutes.",
        _quantile("etcd_disk_wal_fsync_duration_seconds_bucket"),
        unit=look.SECONDS,
        limits=look.FSYNC_SECONDS,
        down="hosts",
    )


def commit() -> Panel:
    return look.lines(
        "Time of a commit to the database",
        "99th percentile over five minutes.",
        _quantile("etcd_disk_backend_commit_duration_seconds_bucket"),
        unit=look.SECONDS,
        limits=look.FSYNC_SECONDS,
    )


def round_trip() -> Panel:
    return look.lines(
        "Round trip to other members",
        "99th percentile over five minutes.",
        _quantile("etcd_network_peer_round_trip_time_seconds_bucket"),
        unit=look.SECONDS,
        limits=look.FSYNC_SECONDS,
    )


def proposals() -> Panel:
    return look.lines(
        "Changes agreed on",
        "Committed, by member.",
        Query(f"rate(etcd_server_proposals_committed_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),
        unit=look.RATE,
    )


def pending() -> Panel:
    return look.lines(
        "Changes that wait or failed",
        "Proposals that wait for a majority, and failed ones a second.",
        Query(f"sum(etcd_server_proposals_pending{{{HERE}}})", "wait"),
        Query(f"sum(rate(etcd_server_proposals_failed_total{{{HERE}}}[$__rate_interval]))", "failed a second"),
        unit=look.COUNT,
    )


def slow() -> Panel:
    return look.lines(
        "Slow applications and heartbeats",
        "Changes applied slowly, and heartbeats that the leader sent late.",
        Query(
            f"sum by (instance) (rate(etcd_server_slow_apply_total{{{HERE}}}[$__rate_interval]))",
            "{{instance}} applied",
        ),
        Query(
            f"sum by (instance) (rate(etcd_server_heartbeat_send_failures_total{{{HERE}}}[$__rate_interval]))",
            "{{instance}} heartbeats",
        ),
        unit=look.RATE,
    )


def size() -> Panel:
    return look.bars(
        "Database of that allowed",
        "When it is full etcd takes no writes.",
        Query(
            f"etcd_mvcc_db_total_size_in_bytes{{{HERE}}} / etcd_server_quota_backend_bytes{{{HERE}}}", "{{instance}}"
        ),
        unit=look.RATIO,
        width=12,
    )


def traffic() -> Panel:
    return look.lines(
        "Bytes to clients",
        "By member.",
        Query(f"rate(etcd_network_client_grpc_sent_bytes_total{{{HERE}}}[$__rate_interval])", "{{instance}}"),
        unit=look.BYTES_RATE,
        width=12,
    )
