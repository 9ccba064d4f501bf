"""The one statement that decides orders and writes them down, exactly once in effect."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from psycopg import AsyncConnection

from orders.ordering.schemas import Line, Order, OrderMessage, Refusal, State

# One statement and so one transaction. It leaves open what only the order of orders can decide: those that could each be
# settled, while together they want more of a product than there is. Alone, an order is never left open.
#   shelf   The lock that other batches wait for. Always in SKU order, so that no two wait for each other.
#   judged  What each order comes to by itself.
#   new     Orders that were not there before. Where the content or the key was, nothing happens ...
#   reused  ... and what is left is there already by its content, or else is refused for another body under its key.
SETTLE = """
WITH batch AS (
    SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::timestamptz[]) WITH ORDINALITY
        AS b (id, customer_id, idempotency_key, accepted_at, number)
), line AS (
    SELECT * FROM unnest(%s::uuid[], %s::smallint[], %s::text[], %s::integer[])
        AS l (order_id, position, sku, quantity)
), shelf AS MATERIALIZED (
    SELECT sku, quantity FROM stock WHERE sku IN (SELECT sku FROM line) ORDER BY sku FOR UPDATE
), priced AS MATERIALIZED (
    SELECT l.*, p.price_cents, p.currency, coalesce(s.quantity, 0) AS available
    FROM line l LEFT JOIN (SELECT * FROM product WHERE active) p USING (sku) LEFT JOIN shelf s USING (sku)
), judged AS MATERIALIZED (
    SELECT order_id, sum(quantity * price_cents)::bigint AS total_cents, min(currency) AS currency,
        CASE WHEN bool_or(price_cents IS NULL) THEN 'unknown_product'
             WHEN min(currency) <> max(currency) THEN 'mixed_currencies'
             WHEN bool_or(quantity > available) THEN 'too_little_stock' END AS refusal
    FROM priced GROUP BY order_id
), contested AS (
    SELECT p.sku FROM priced p JOIN judged j USING (order_id)
    WHERE j.refusal IS NULL GROUP BY p.sku, p.available HAVING sum(p.quantity) > p.available
), left_open AS MATERIALIZED (
    SELECT p.order_id FROM priced p JOIN judged j USING (order_id)
    WHERE j.refusal IS NULL AND p.sku IN (SELECT sku FROM contested) GROUP BY p.order_id
), decided AS MATERIALIZED (
    SELECT b.*, j.refusal, j.total_cents, j.currency FROM batch b JOIN judged j ON j.order_id = b.id
    WHERE NOT EXISTS (SELECT FROM left_open o WHERE o.order_id = b.id)
), new AS (
    INSERT INTO orders (id, customer_id, idempotency_key, accepted_at, state, refusal, total_cents, currency)
    SELECT id, customer_id, idempotency_key, accepted_at, CASE WHEN refusal IS NULL THEN 'settled' ELSE 'refused' END,
        refusal, CASE WHEN refusal IS NULL THEN total_cents END, CASE WHEN refusal IS NULL THEN currency END
    FROM decided ORDER BY customer_id, idempotency_key, number
    ON CONFLICT DO NOTHING RETURNING id, refusal, total_cents, currency, decided_at
), reused AS (
    INSERT INTO orders (id, customer_id, idempotency_key, accepted_at, state, refusal)
    SELECT id, customer_id, idempotency_key, accepted_at, 'refused', 'key_reused'
    FROM decided d WHERE NOT EXISTS (SELECT FROM new n WHERE n.id = d.id)
    ON CONFLICT DO NOTHING RETURNING id, refusal, total_cents, currency, decided_at
), written AS MATERIALIZED (
    SELECT * FROM new UNION ALL SELECT * FROM reused
), lines_written AS (
    INSERT INTO order_line (order_id, position, sku, quantity, unit_price_cents)
    SELECT p.order_id, p.position, p.sku, p.quantity, p.price_cents FROM priced p JOIN written w ON w.id = p.order_id
), taken AS (
    UPDATE stock s SET quantity = s.quantity - t.quantity
    FROM (SELECT p.sku, sum(p.quantity) AS quantity FROM priced p JOIN new n ON n.id = p.order_id
          WHERE n.refusal IS NULL GROUP BY p.sku) t
    WHERE s.sku = t.sku
)
SELECT w.id, w.refusal, w.total_cents, w.currency, w.decided_at,
    (SELECT array_agg(p.price_cents ORDER BY p.position) FROM priced p WHERE p.order_id = w.id), false
FROM written w
UNION ALL
SELECT o.order_id, NULL, NULL, NULL, NULL, NULL, true FROM left_open o
"""

_Row = tuple[UUID, str | None, int | None, str | None, datetime, list[int | None], bool]


async def probe(connection: AsyncConnection) -> None:
    """Return if orders could be settled now: the statement runs, over no orders.

    Raises:
        psycopg.Error: they could not: no database, no schema, no right to write, or one that is read-only.
    """
    await connection.execute(SETTLE, ([],) * 8)


async def settle(connection: AsyncConnection, messages: Sequence[OrderMessage]) -> list[Order]:
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


async def _run(connection: AsyncConnection, messages: Sequence[OrderMessage]) -> tuple[list[Order], set[UUID]]:
    lines = [
        (message.id, position, sku, quantity)
        for message in messages
        for position, (sku, quantity) in enumerate(message.lines)
    ]
    parameters = (
        [message.id for message in messages],
        [message.customer_id for message in messages],
        [message.idempotency_key for message in messages],
        [message.accepted_at for message in messages],
        *(list(column) for column in zip(*lines, strict=True)),
    )
    cursor = await connection.execute(SETTLE, parameters)
    rows: list[_Row] = await cursor.fetchall()
    by_id = {message.id: message for message in messages}
    decided = [_order(by_id[row[0]], row) for row in rows if not row[6]]
    return decided, {row[0] for row in rows if row[6]}


def _order(message: OrderMessage, row: _Row) -> Order:
    identifier, refusal, total_cents, currency, decided_at, prices, _ = row
    return Order(
        id=identifier,
        state=State.REFUSED if refusal else State.SETTLED,
        refusal=Refusal(refusal) if refusal else None,
        accepted_at=message.accepted_at,
        decided_at=decided_at,
        total_cents=total_cents,
        currency=currency,
        lines=[Line(sku, n, price) for (sku, n), price in zip(message.lines, prices, strict=True)],
    )
