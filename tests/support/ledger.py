"""What became of orders: asked of the database itself, and whether it all fits together, of `orders check` on an app host."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tests.support.site import HostError, Site

PIECES = 1_000_000
CHECK = "sudo podman exec --interactive orders-worker-1 orders check --accepted - --no-dead-letters"
CHECK_SECONDS = 90


@dataclass(frozen=True)
class Outcome:
    """Orders of one test as the database has them."""

    settled: frozenset[str]
    refused: Mapping[str, str]
    sold: Mapping[str, int]
    total_cents: int
    longest_gap_seconds: float


@dataclass(frozen=True)
class Verdict:
    """What `orders check` says of the whole database and of the orders that a test had accepted."""

    status: int
    lines: Sequence[str]

    @property
    def is_final(self) -> bool:
        """Whether all holds, and no accepted order waits any more."""
        return self.status == 0 and not any(line.startswith("warn queued") for line in self.lines)

    @property
    def faults(self) -> list[str]:
        """What does not hold; or that not everything could be looked at; or what still waits."""
        return [] if self.is_final else [line for line in self.lines if not line.startswith("ok   ")]

    def count(self, name: str) -> int:
        """Return how many a line names for which it does not hold."""
        found = [re.match(rf"FAIL {name}: ([\d,]+) ", line) for line in self.lines]
        return sum(int(match[1].replace(",", "")) for match in found if match)


def stock_up(site: Site, skus: Sequence[str], *, price_cents: int = 250) -> None:
    """Have the products on sale with plenty of stock, as counted."""
    values = ", ".join(f"('{sku}', 'Product {sku} of the tests', {price_cents}, 'EUR')" for sku in skus)
    site.sql(
        f"""BEGIN;
        INSERT INTO product (sku, name, price_cents, currency) VALUES {values}
            ON CONFLICT (sku) DO UPDATE SET price_cents = excluded.price_cents, currency = excluded.currency;
        INSERT INTO stock (sku, quantity) SELECT sku, 0 FROM product WHERE sku IN ({_list(skus)}) ON CONFLICT DO NOTHING;
        WITH found AS MATERIALIZED (SELECT sku, quantity FROM stock WHERE sku IN ({_list(skus)}) ORDER BY sku FOR UPDATE),
            counted AS (UPDATE stock s SET quantity = {PIECES} FROM found f WHERE f.sku = s.sku)
        INSERT INTO stock_change (sku, change, why) SELECT sku, {PIECES} - quantity, 'counted' FROM found;
        COMMIT;"""  # noqa: S608  (names of our own)
    )


def outcome(site: Site, name: str) -> Outcome:
    """Return what became of all orders whose keys begin with a name and a dash."""
    mine = f"starts_with(idempotency_key, '{name}-')"
    rows = site.sql(
        f"""SELECT 'order', id, state, coalesce(refusal, ''), coalesce(total_cents, 0) FROM orders WHERE {mine};
        SELECT 'sold', sku, sum(quantity) FROM order_line JOIN orders ON orders.id = order_id
            WHERE {mine} AND state = 'settled' GROUP BY 2;
        SELECT 'gap', coalesce(extract(epoch FROM max(gap)), 0) FROM
            (SELECT decided_at - lag(decided_at) OVER (ORDER BY decided_at) AS gap FROM orders WHERE {mine}) AS gaps;"""  # noqa: S608
    )
    orders = [row for row in rows if row[0] == "order"]
    return Outcome(
        settled=frozenset(row[1] for row in orders if row[2] == "settled"),
        refused={row[1]: row[3] for row in orders if row[2] == "refused"},
        sold={row[1]: int(row[2]) for row in rows if row[0] == "sold"},
        total_cents=sum(int(row[4]) for row in orders),
        longest_gap_seconds=next(float(row[1]) for row in rows if row[0] == "gap"),
    )


def check(site: Site, accepted: Collection[str], seconds: float = 60) -> Verdict:
    """Return what `orders check` says once all holds and all accepted orders are decided, or when the time is over."""
    until = time.monotonic() + seconds
    while True:
        verdict = _check(site, accepted)
        if verdict.is_final or time.monotonic() > until:
            return verdict
        time.sleep(1)


def _check(site: Site, accepted: Collection[str]) -> Verdict:
    command = f"{CHECK} 2>&1; echo status $?"
    try:
        *lines, last = site.ask(site.groups["app"][0], command, "\n".join(accepted), CHECK_SECONDS).splitlines()
    except HostError as error:
        return Verdict(-1, [str(error)])
    return Verdict(int(last.removeprefix("status ")), lines)


def _list(skus: Sequence[str]) -> str:
    return ", ".join(f"'{sku}'" for sku in skus)
