"""What one worker settles a second of a backlog, beside pgbench on the same cluster: `PATH=.venv/bin:$PATH pytest -s tests/load/settlement.py`.

Takes the lab's workers away for a minute or two. Orders come as users' do, by the edge, and so in bundles.
"""

from __future__ import annotations

import json
import time

from tests.support import health, ledger, units
from tests.support.orders import Load
from tests.support.site import Site

SKUS = tuple(f"LOAD-{number}" for number in range(1, 6))
RATE = 500
ORDERS = 20_000
AT_ONCE = 40  # what one app host may have under way: a slow machine then takes longer, and refuses none
FILL_SECONDS = 180
PGBENCH_SECONDS = 10
FIRST_LOOK_SECONDS = 8  # a look takes of the processors that the worker needs
REST_SECONDS = 5
WHOLE_SECONDS = 60
SETTLE_SECONDS = 120
WORKER = "svc-orders-worker@1.service"


def pgbench(site: Site) -> float:
    """Return how many single-row inserts a second pgbench makes through the primary's PgBouncer, from its own host."""
    primary = site.primary()
    site.sql(
        "CREATE TABLE measure (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text); GRANT INSERT ON measure TO orders"
    )
    insert = "INSERT INTO measure (body) VALUES ('an order of a customer with some lines of text in it');"
    try:
        printed = site.ask(
            primary,
            f'read -r PGPASSWORD && export PGPASSWORD && script=$(mktemp) && trap "rm $script" EXIT && echo "{insert}" > $script'
            f" && /usr/lib/postgresql/17/bin/pgbench -n -c 16 -j 2 -T {PGBENCH_SECONDS} -f $script"
            f" 'host={site.addresses[primary]} port=6432 user=orders dbname=orders sslmode=require'",
            site.secret("orders_database_password") + "\n",
            seconds=PGBENCH_SECONDS + 20,
        )
    finally:
        site.sql("DROP TABLE measure")
    return float(next(line for line in printed.splitlines() if line.startswith("tps")).split()[2])


def test_settlement(site: Site) -> None:
    """Print both rates and their ratio; nothing that was accepted is lost."""
    health.wait_until_whole(site, WHOLE_SECONDS)
    ledger.stock_up(site, SKUS)
    inserts = pgbench(site)
    hosts = site.groups["app"]
    load = Load(site, SKUS, rate=RATE, most_seconds=ORDERS / RATE, name="settlement", at_once=AT_ONCE)
    for host in hosts:
        site.ask(host, f"sudo systemctl stop {WORKER}")
    try:
        load.whole(FILL_SECONDS)
        assert len(load.accepted) > ORDERS * 9 // 10, f"too few orders were taken: {load.complaint()}"
        time.sleep(REST_SECONDS)
        (began,) = site.sql("SELECT clock_timestamp()")[0]
        before = units.processor_seconds(site)
        site.ask(hosts[0], f"sudo systemctl start {WORKER}")
        time.sleep(FIRST_LOOK_SECONDS)
        settled = f"FROM orders WHERE decided_at >= '{began}'"
        until = time.monotonic() + SETTLE_SECONDS
        while int(site.sql(f"SELECT count(*) {settled}")[0][0]) < len(load.accepted):
            assert time.monotonic() < until, "the backlog is not settled"
            time.sleep(1)
        after = units.processor_seconds(site)
    finally:
        site.ask_all(hosts, f"sudo systemctl start {WORKER}")
    # The first batch is what the clock begins with.
    ((orders, seconds),) = site.sql(
        f"SELECT count(*) FILTER (WHERE decided_at > first), extract(epoch FROM max(decided_at) - first)"  # noqa: S608
        f" FROM (SELECT decided_at, min(decided_at) OVER () AS first {settled}) AS o GROUP BY first"
    )
    rate = int(orders) / float(seconds)
    verdict = ledger.check(site, load.accepted, SETTLE_SECONDS)
    assert not verdict.faults, verdict.faults
    found: dict[str, float] = {
        "orders": len(load.accepted),
        "failed": len(load.failed),
        "taken_a_second": round(len(load.accepted) / (load.attempts[-1].ended - load.attempts[0].intended)),
        "p99_ms": load.quantile_ms(0.99),
    }
    found |= {"settled_a_second": round(rate), "pgbench": round(inserts), "ratio": round(rate / inserts, 2)}
    used = {unit: 1e6 * (after[unit] - before.get(unit, 0)) / len(load.accepted) for unit in after}
    most = sorted(used, key=lambda unit: -used[unit])[:12]
    print(json.dumps({**found, "cpu_us_an_order": {unit: round(used[unit]) for unit in most}}, indent=1))
