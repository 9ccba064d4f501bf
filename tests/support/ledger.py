"""What became of orders, asked of the database itself."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tests.support.site import HostError, Site

PIECES = 1_000_000


@dataclass(frozen=True)
class Outcome:
    """Orders of one test as the database has them."""

    settled: frozenset[str]
    refused: Mapping[str, str]
    doubled: int
    sold: Mapping[str, int]
    total_cents: int
    longest_gap_seconds: float
    problems: Sequence[str] = field(default_factory=tuple)


def stock_up(site: Site, skus: Sequence[str], *, price_cents: int = 250) -> dict[str, int]:
    """Have the products on sale with plenty of stock, and return how many there are of each."""
    values = ", ".join(f"('{sku}', 'Product {sku} of the tests', {price_cents}, 'EUR')" for sku in skus)
    site.sql(
        f"""BEGIN;
        INSERT INTO product (sku, name, price_cents, currency) VALUES {values}
            ON CONFLICT (sku) DO UPDATE SET price_cents = excluded.price_cents, currency = excluded.currency;
        INSERT INTO stock (sku, quantity) SELECT sku, {PIECES} FROM product WHERE sku IN ({_list(skus)})
            ON CONFLICT (sku) DO UPDATE SET quantity = {PIECES};
        COMMIT;"""  # noqa: S608  (names of our own)
    )
    return stock(site, skus)


def stock(site: Site, skus: Sequence[str]) -> dict[str, int]:
    """Return how many pieces there are of each product."""
    rows = site.sql(f"SELECT sku, quantity FROM stock WHERE sku IN ({_list(skus)})")  # noqa: S608
    return {sku: int(quantity) for sku, quantity in rows}


def outcome(site: Site, name: str) -> Outcome:
    """Return what became of all orders whose keys begin with a name and a dash."""
    mine = f"starts_with(idempotency_key, '{name}-')"
    rows = site.sql(
        f"""SELECT 'order', id, state, coalesce(refusal, ''), coalesce(total_cents, 0) FROM orders WHERE {mine};
        SELECT 'key', idempotency_key, count(*) FROM orders WHERE {mine} GROUP BY 2 HAVING count(*) > 1;
        SELECT 'sold', sku, sum(quantity) FROM order_line JOIN orders ON orders.id = order_id
            WHERE {mine} AND state = 'settled' GROUP BY 2;
        SELECT 'gap', coalesce(extract(epoch FROM max(gap)), 0) FROM
            (SELECT decided_at - lag(decided_at) OVER (ORDER BY decided_at) AS gap FROM orders WHERE {mine}) AS gaps;
        SELECT 'sum', id FROM orders WHERE {mine} AND state = 'settled' AND total_cents IS DISTINCT FROM
            (SELECT sum(quantity * unit_price_cents) FROM order_line WHERE order_id = orders.id);"""  # noqa: S608
    )
    orders = [row for row in rows if row[0] == "order"]
    return Outcome(
        settled=frozenset(row[1] for row in orders if row[2] == "settled"),
        refused={row[1]: row[3] for row in orders if row[2] == "refused"},
        doubled=sum(int(row[2]) - 1 for row in rows if row[0] == "key"),
        sold={row[1]: int(row[2]) for row in rows if row[0] == "sold"},
        total_cents=sum(int(row[4]) for row in orders),
        longest_gap_seconds=next(float(row[1]) for row in rows if row[0] == "gap"),
        problems=tuple(f"the total of order {row[1]} is not the sum of its lines" for row in rows if row[0] == "sum"),
    )


def settled(site: Site, name: str, accepted: Collection[str], seconds: float = 60) -> Outcome:
    """Return what became of a test's orders once all accepted ones are decided, or when the time is over."""
    until = time.monotonic() + seconds
    while True:
        try:
            found = outcome(site, name)
        except HostError:
            if time.monotonic() > until:
                raise
        else:
            if not set(accepted) - found.settled - found.refused.keys() or time.monotonic() > until:
                return found
        time.sleep(1)


def _list(skus: Sequence[str]) -> str:
    return ", ".join(f"'{sku}'" for sku in skus)
