"""The one statement that decides orders and writes them down, exactly once in effect."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from psycopg import AsyncConnection

from orders.ordering.schemas import Line, Order, OrderMessage, Refusal, State

# One statement and so one transaction. It leaves open what only the order of orders can decide: those that could each be
# settled, while together they want more of a product than there is. Alone, an order is never left open.
#   shelf   The lock that other batches wait for. Always in SKU order, so that no two wait for each other.
#   judged  What each order comes to by itself.
#   new     Orders that were not there before. Where the content or the key was, nothing happens ...
#   reused  ... and what is left is there already by its content, or else is refused for another body under its key.
# The planner knows nothing of what is judged here, and takes a condition on it for one that leaves a single row. So sets are told
# from each other by NOT IN (of columns that are never null), which it hashes, rather than by joins, which it then nests.
SETTLE = """
WITH batch AS (
    SELECT * FROM unnest(%(ids)s::uuid[], %(customers)s::text[], %(keys)s::text[], %(accepted)s::timestamptz[])
        WITH ORDINALITY AS b (id, customer_id, idempotency_key, accepted_at, number)
), line AS (
    SELECT * FROM unnest(%(orders)s::uuid[], %(positions)s::smallint[], %(skus)s::text[], %(quantities)s::integer[])
        AS l (order_id, position, sku, quantity)
), shelf AS MATERIALIZED (
    SELECT sku, quantity FROM stock WHERE sku = ANY (%(products)s::text[]) ORDER BY sku FOR UPDATE
), offer AS MATERIALIZED (
    SELECT p.sku, p.price_cents, p.currency, coalesce(s.quantity, 0) AS available
    FROM product p LEFT JOIN shelf s USING (sku) WHERE p.sku = ANY (%(products)s::text[]) AND p.active
), priced AS MATERIALIZED (
    SELECT l.*, o.price_cents, o.currency, o.available FROM line l LEFT JOIN offer o USING (sku)
), judged AS MATERIALIZED (
    SELECT order_id, sum(quantity * price_cents)::bigint AS total_cents, min(currency) AS currency,
        array_agg(price_cents ORDER BY position) AS prices,
        CASE WHEN bool_or(price_cents IS NULL) THEN 'unknown_product'
             WHEN min(currency) <> max(currency) THEN 'mixed_currencies'
             WHEN bool_or(quantity > available) THEN 'too_little_stock' END AS refusal
    FROM priced GROUP BY order_id
), contested AS MATERIALIZED (
    SELECT sku FROM priced WHERE order_id NOT IN (SELECT order_id FROM judged WHERE refusal IS NOT NULL)
    GROUP BY sku, available HAVING sum(quantity) > available
), left_open AS MATERIALIZED (
    SELECT DISTINCT order_id FROM priced
    WHERE sku IN (SELECT sku FROM contested) AND order_id NOT IN (SELECT order_id FROM judged WHERE refusal IS NOT NULL)
), decided AS MATERIALIZED (
    SELECT b.*, j.refusal, j.total_cents, j.currency FROM batch b JOIN judged j ON j.order_id = b.id
    WHERE b.id NOT IN (SELECT order_id FROM left_open)
), new AS (
    INSERT INTO orders (id, customer_id, idempotency_key, accepted_at, state, refusal, total_cents, currency)
    SELECT id, customer_id, idempotency_key, accepted_at, CASE WHEN refusal IS NULL THEN 'settled' ELSE 'refused' END,
        refusal, CASE WHEN refusal IS NULL THEN total_cents END, CASE WHEN refusal IS NULL THEN currency END
    FROM decided ORDER BY customer_id, idempotency_key, number
    ON CONFLICT DO NOTHING RETURNING id, refusal, total_cents, currency, decided_at
), reused AS (
    INSERT INTO orders (id, customer_id, idempotency_key, accepted_at, state, refusal)
    SELECT id, customer_id, idempotency_key, accepted_at, 'refused', 'key_reused'
    FROM decided WHERE id NOT IN (SELECT id FROM new)
    ON CONFLICT DO NOTHING RETURNING id, refusal, total_cents, currency, decided_at
), written AS MATERIALIZED (
    SELECT * FROM new UNION ALL SELECT * FROM reused
), lines_written AS (
    INSERT INTO order_line (order_id, position, sku, quantity, unit_price_cents)
    SELECT order_id, position, sku, quantity, price_cents FROM priced WHERE order_id IN (SELECT id FROM written)
), taken AS (
    UPDATE stock s SET quantity = s.quantity - t.quantity
    FROM (SELECT sku, sum(quantity) AS quantity FROM priced
          WHERE order_id IN (SELECT id FROM new WHERE refusal IS NULL) GROUP BY sku) t
    WHERE s.sku = t.sku
)
SELECT w.id, w.refusal, w.total_cents, w.currency, w.decided_at, j.prices, false
FROM written w JOIN judged j ON j.order_id = w.id
UNION ALL
SELECT order_id, NULL, NULL, NULL, NULL, NULL, true FROM left_open
"""


class Decision(NamedTuple):
    """What an order was decided to be: a row of the statement's."""

    id: UUID
    refusal: str | None
    total_cents: int | None
    currency: str | None
    decided_at: datetime
    prices: list[int | None]  # of its lines; none where a product does not exist
    left_open: bool  # by this statement: nothing else is said then


async def probe(connection: AsyncConnection) -> None:
    """Return if orders could be settled now: the statement runs, over no orders.

    Raises:
        psycopg.Error: they could not: no database, no schema, no right to write, or one that is read-only.
    """
    await connection.execute(SETTLE, _parameters([]))


async def settle(connection: AsyncConnection, messages: Sequence[OrderMessage]) -> list[Decision]:
    """Decide orders, each of another content, and write them down; return those that were not decided before.

    The connection commits by itself.

    Raises:
        psycopg.Error: it cannot be told what was written; the same orders may be settled again.
    """
    decided, left_open = await _run(connection, messages)
    for message in messages:
        if message.id in left_open:
            decided += (await _run(connection, [message]))[0]
    return decided


async def _run(connection: AsyncConnection, messages: Sequence[OrderMessage]) -> tuple[list[Decision], set[UUID]]:
    cursor = await connection.execute(SETTLE, _parameters(messages))
    rows = [Decision(*row) for row in await cursor.fetchall()]
    return [row for row in rows if not row.left_open], {row.id for row in rows if row.left_open}


def _parameters(messages: Sequence[OrderMessage]) -> dict[str, str]:
    identifiers = [str(message.id) for message in messages]
    lines = [
        (identifier, position, sku, quantity)
        for identifier, message in zip(identifiers, messages, strict=True)
        for position, (sku, quantity) in enumerate(message.lines)
    ]
    columns: dict[str, Iterable[object]] = {
        "ids": identifiers,
        "customers": (message.customer_id for message in messages),
        "keys": (message.idempotency_key for message in messages),
        "accepted": (message.accepted_at for message in messages),
        "orders": (line[0] for line in lines),
        "positions": (line[1] for line in lines),
        "skus": (line[2] for line in lines),
        "quantities": (line[3] for line in lines),
        "products": sorted({line[2] for line in lines}),
    }
    return {name: _array(values) for name, values in columns.items()}


def _array(values: Iterable[object]) -> str:
    """Return an array as PostgreSQL reads it: psycopg asks of each element what it is, and takes three times as long."""
    quoted = [str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return '{"' + '","'.join(quoted) + '"}' if quoted else "{}"


def decided_order(message: OrderMessage, decision: Decision) -> Order:
    """Return an order as it was decided."""
    return Order(
        id=decision.id,
        state=State.REFUSED if decision.refusal else State.SETTLED,
        refusal=Refusal(decision.refusal) if decision.refusal else None,
        accepted_at=message.accepted_at,
        decided_at=decision.decided_at,
        total_cents=decision.total_cents,
        currency=decision.currency,
        lines=[Line(sku, n, price) for (sku, n), price in zip(message.lines, decision.prices, strict=True)],
    )
