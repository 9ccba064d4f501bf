"""PostgreSQL: who is primary, how far standbys are behind, what is slow, what grows."""

from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from dashboards import look
from dashboards.frame import Row, hosts, sheet, zones
from dashboards.look import Query

FIGURES = 'up{job="postgres"}'
HERE = 'zone=~"$zone", instance=~"$host"'


def dashboard() -> Dashboard:
    """Return the dashboard."""
    return sheet(
        "postgresql",
        "Who is primary, how far the others are behind, and what the servers are busy with.",
        [
            Row("Who leads", [primaries(), synchronous(), lag(), roles()]),
            Row("Work", [transactions(), tuples(), statements(), hits(), connections(), activity()]),
            Row("What stands in the way", [longest(), locks(), deadlocks(), temporary()]),
            Row("What grows", [sizes(), tables(), dead_rows(), wraparound()]),
        ],
        [zones(FIGURES), hosts(FIGURES)],
        ["pgbouncer", "etcd", "hosts", "logs"],
    )


def primaries() -> Panel:
    return look.number(
        "Primaries",
        "Just one of all hosts.",
        Query("sum(patroni_primary)"),
        unit=look.COUNT,
        limits=look.JUST_ONE,
    )


def synchronous() -> Panel:
    return look.number(
        "Standbys that confirm",
        "Without one, writes wait.",
        Query("sum(patroni_sync_standby) + sum(patroni_quorum_standby)"),
        unit=look.COUNT,
        limits=look.ONE_IS_GOOD,
    )


def lag() -> Panel:
    return look.number(
        "Farthest behind",
        "What the slowest standby has not replayed yet. Figures of hosts are not of one moment, so it may be less than nothing.",
        Query("max(postgres:replication_lag:bytes)"),
        unit=look.BYTES,
        limits=look.LAG_BYTES,
    )


def roles() -> Panel:
    return look.states(
        "Role of each server",
        "Primary or standby, over time.",
        Query(f"patroni_primary{{{HERE}}} + 2 * patroni_replica{{{HERE}}}", "{{instance}}"),
        words=look.ROLES,
        width=12,
        down="etcd",
    )


def transactions() -> Panel:
    return look.lines(
        "Transactions",
        "Committed and rolled back, by database.",
        Query(
            f"sum by (datname) (rate(pg_stat_database_xact_commit{{{HERE}}}[$__rate_interval]))",
            "{{datname}} committed",
        ),
        Query(
            f"sum by (datname) (rate(pg_stat_database_xact_rollback{{{HERE}}}[$__rate_interval]))",
            "{{datname}} rolled back",
        ),
        unit=look.RATE,
    )


def tuples() -> Panel:
    return look.lines(
        "Rows changed",
        "Inserted, updated and deleted.",
        Query(f"sum(rate(pg_stat_database_tup_inserted{{{HERE}}}[$__rate_interval]))", "inserted"),
        Query(f"sum(rate(pg_stat_database_tup_updated{{{HERE}}}[$__rate_interval]))", "updated"),
        Query(f"sum(rate(pg_stat_database_tup_deleted{{{HERE}}}[$__rate_interval]))", "deleted"),
        unit=look.RATE,
    )


def statements() -> Panel:
    return look.rows(
        "The most expensive statements",
        "Share of a processor that each statement takes; its text: pg_stat_statements by queryid.",
        Query(
            "topk(10, sum by (datname, user, queryid, instance) "
            f"(rate(pg_stat_statements_seconds_total{{{HERE}}}[$__rate_interval])))"
        ),
        columns={"datname": "Database", "user": "User", "queryid": "Statement", "instance": "Host", "Value": "Share"},
        unit=look.RATIO,
        width=8,
    )


def hits() -> Panel:
    return look.lines(
        "Blocks found in memory",
        "Of all blocks that were wanted within five minutes, those in shared buffers.",
        Query(
            f"sum by (instance) (rate(pg_stat_database_blks_hit{{{HERE}}}[5m])) "
            f"/ (sum by (instance) (rate(pg_stat_database_blks_hit{{{HERE}}}[5m])) "
            f"+ sum by (instance) (rate(pg_stat_database_blks_read{{{HERE}}}[5m])) > 0)",
            "{{instance}}",
        ),
        unit=look.RATIO,
        most=1,
    )


def connections() -> Panel:
    return look.bars(
        "Connections of those allowed",
        "What each server has, of the most that it takes.",
        Query(
            f"sum by (instance) (pg_stat_activity_count{{{HERE}}}) / max by (instance) (pg_settings_max_connections{{{HERE}}})",
            "{{instance}}",
        ),
        unit=look.RATIO,
        down="pgbouncer",
    )


def activity() -> Panel:
    return look.lines(
        "Connections by state",
        "Of the servers that were chosen.",
        Query(f"sum by (state) (pg_stat_activity_count{{{HERE}}})", "{{state}}"),
        unit=look.COUNT,
        stacked=True,
    )


def longest() -> Panel:
    return look.lines(
        "Oldest transaction",
        "As long as one is open, no dead rows go.",
        Query(
            f"max by (instance) (pg_long_running_transactions_oldest_timestamp_seconds{{{HERE}}})",
            "{{instance}}",
        ),
        unit=look.SECONDS,
        limits=look.TRANSACTION_SECONDS,
        width=6,
    )


def locks() -> Panel:
    return look.lines(
        "Locks by mode",
        "Held or waited for.",
        Query(f"sum by (mode) (pg_locks_count{{{HERE}}})", "{{mode}}"),
        unit=look.COUNT,
        width=6,
    )


def deadlocks() -> Panel:
    return look.lines(
        "Deadlocks",
        "By database.",
        Query(f"sum by (datname) (rate(pg_stat_database_deadlocks{{{HERE}}}[$__rate_interval]))", "{{datname}}"),
        unit=look.RATE,
        width=6,
    )


def temporary() -> Panel:
    return look.lines(
        "Temporary files",
        "Written by statements for which work_mem is too little.",
        Query(f"sum by (datname) (rate(pg_stat_database_temp_bytes{{{HERE}}}[$__rate_interval]))", "{{datname}}"),
        unit=look.BYTES_RATE,
        width=6,
    )


def sizes() -> Panel:
    return look.lines(
        "Size of databases",
        "On the server that has most.",
        Query(f"max by (datname) (pg_database_size_bytes{{{HERE}}})", "{{datname}}"),
        unit=look.BYTES,
        width=6,
    )


def tables() -> Panel:
    return look.rows(
        "The largest tables",
        "With their indexes.",
        Query(f"topk(10, max by (datname, relname) (pg_stat_user_tables_size_bytes{{{HERE}}}))"),
        columns={"datname": "Database", "relname": "Table", "Value": "Size"},
        unit=look.BYTES,
        width=6,
    )


def dead_rows() -> Panel:
    return look.lines(
        "Dead rows, tables with most",
        "What vacuum has still to do.",
        Query(f"topk(5, max by (relname) (pg_stat_user_tables_n_dead_tup{{{HERE}}}))", "{{relname}}"),
        unit=look.COUNT,
        width=6,
    )


def wraparound() -> Panel:
    return look.lines(
        "Transactions since the last freeze",
        "At 2.1 milliards a database stops.",
        Query(f"max by (datname) (pg_database_wraparound_age_datfrozenxid_seconds{{{HERE}}})", "{{datname}}"),
        unit=look.COUNT,
        limits=look.TRANSACTION_AGE,
        width=6,
    )
