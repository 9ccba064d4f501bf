"""All SQL that reads orders; settlement writes them."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.ordering.identity import CONTENT_BYTES
from orders.ordering.schemas import Line, Order, Refusal, State

_SELECT = """
SELECT o.customer_id, o.id, o.state, o.refusal, o.accepted_at, o.decided_at, o.changed_at, o.total_cents, o.currency, l.skus, l.quantities, l.prices
FROM orders o, LATERAL (
    SELECT array_agg(sku ORDER BY position), array_agg(quantity ORDER BY position), array_agg(unit_price_cents ORDER BY position)
    FROM order_line WHERE order_id = o.id
) l (skus, quantities, prices)
"""
# By the part that the content decides: the same order has another check after the key was rotated.
_GET = f"{_SELECT} WHERE substring(uuid_send(o.id) FROM 1 FOR 11) = %s"
PAGE = f"""{_SELECT} WHERE o.customer_id = %s AND (o.accepted_at, o.id) < (%s, %s)
ORDER BY o.accepted_at DESC, o.id DESC LIMIT %s"""

SEARCH = f"""{_SELECT} WHERE (%(customer)s::text IS NULL OR o.customer_id = %(customer)s)
    AND (%(state)s::text IS NULL OR o.state = %(state)s)
    AND (%(since)s::timestamptz IS NULL OR o.accepted_at >= %(since)s)
    AND (o.accepted_at, o.id) < (%(before)s, %(before_id)s)
ORDER BY o.accepted_at DESC, o.id DESC LIMIT %(limit)s"""
# Whoever changes an order holds this lock before its transaction gets a number: so events of one order are in their order.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('order ' || encode(%s::bytea, 'hex'), 0))"
_CHANGE = "UPDATE orders SET state = %s WHERE substring(uuid_send(id) FROM 1 FOR 11) = %s"
# In the order in which settlement locks them.
_GIVE_BACK = """
WITH line AS (
    SELECT l.sku, l.quantity FROM orders o JOIN order_line l ON l.order_id = o.id
    WHERE substring(uuid_send(o.id) FROM 1 FOR 11) = %s
), shelf AS MATERIALIZED (
    SELECT sku FROM stock WHERE sku IN (SELECT sku FROM line) ORDER BY sku FOR UPDATE
)
UPDATE stock s SET quantity = s.quantity + line.quantity FROM line JOIN shelf USING (sku) WHERE s.sku = line.sku
"""

_Row = tuple[
    *tuple[str, UUID, str, str | None, datetime, datetime, datetime | None],
    *tuple[int | None, str | None, list[str], list[int], list[int | None]],
]


class Owned(NamedTuple):
    """An order and whose it is."""

    customer_id: str
    order: Order


class OrderRepository:
    """Reads orders; a caller's connection decides the transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, identifier: UUID) -> Owned | None:
        """Return the order, if it was decided and this database knows it yet."""
        cursor = await self._connection.execute(_GET, (identifier.bytes[:CONTENT_BYTES],))
        row: _Row | None = await cursor.fetchone()
        return Owned(row[0], msgspec.structs.replace(_order(row), id=identifier)) if row else None

    async def lock(self, identifier: UUID) -> None:
        """Have this transaction be the only one that changes an order; to be called before it writes anything."""
        await self._connection.execute(_LOCK, (identifier.bytes[:CONTENT_BYTES],))

    async def change(self, identifier: UUID, state: State) -> None:
        """Bring a locked order to a state, with what follows from it: its money, its event, and its pieces.

        Raises:
            psycopg.errors.CheckViolation: it does not go there from where it is.
        """
        if state is State.CANCELLED:
            await self._connection.execute(_GIVE_BACK, (identifier.bytes[:CONTENT_BYTES],))
        await self._connection.execute(_CHANGE, (state, identifier.bytes[:CONTENT_BYTES]))

    async def search(
        self,
        *,
        customer_id: str | None,
        state: State | None,
        since: datetime | None,
        before: tuple[datetime, UUID],
        limit: int,
    ) -> list[Owned]:
        """Return up to `limit` decided orders of anybody, accepted before a time and identifier, the newest first."""
        wanted = {"customer": customer_id, "state": state, "since": since, "limit": limit}
        cursor = await self._connection.execute(SEARCH, {**wanted, "before": before[0], "before_id": before[1]})
        return [Owned(row[0], _order(row)) async for row in cursor]

    async def page(self, customer_id: str, *, before: tuple[datetime, UUID], limit: int) -> list[Order]:
        """Return up to `limit` decided orders of a customer, accepted before a time and identifier, the newest first."""
        cursor = await self._connection.execute(PAGE, (customer_id, *before, limit))
        return [_order(row) async for row in cursor]


def _order(row: _Row) -> Order:
    _, identifier, state, refusal, accepted_at, decided_at, changed_at, total_cents, currency, *lines = row
    return Order(
        id=identifier,
        state=State(state),
        refusal=Refusal(refusal) if refusal else None,
        accepted_at=accepted_at,
        decided_at=decided_at,
        changed_at=changed_at,
        total_cents=total_cents,
        currency=currency,
        lines=[Line(*line) for line in zip(*lines, strict=True)],
    )
