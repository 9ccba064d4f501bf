"""All SQL that reads orders; settlement writes them."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.ordering.identity import CONTENT_BYTES
from orders.ordering.schemas import Line, Order, Refusal, State

_SELECT = """
SELECT o.customer_id, o.id, o.state, o.refusal, o.accepted_at, o.decided_at, o.total_cents, o.currency, l.skus, l.quantities, l.prices
FROM orders o, LATERAL (
    SELECT array_agg(sku ORDER BY position), array_agg(quantity ORDER BY position), array_agg(unit_price_cents ORDER BY position)
    FROM order_line WHERE order_id = o.id
) l (skus, quantities, prices)
"""
# By the part that the content decides: the same order has another check after the key was rotated.
_GET = f"{_SELECT} WHERE substring(uuid_send(o.id) FROM 1 FOR 11) = %s"
PAGE = f"""{_SELECT} WHERE o.customer_id = %s AND (o.accepted_at, o.id) < (%s, %s)
ORDER BY o.accepted_at DESC, o.id DESC LIMIT %s"""

_Row = tuple[
    str, UUID, str, str | None, datetime, datetime, int | None, str | None, list[str], list[int], list[int | None]
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

    async def page(self, customer_id: str, *, before: tuple[datetime, UUID], limit: int) -> list[Order]:
        """Return up to `limit` decided orders of a customer, accepted before a time and identifier, the newest first."""
        cursor = await self._connection.execute(PAGE, (customer_id, *before, limit))
        return [_order(row) async for row in cursor]


def _order(row: _Row) -> Order:
    _, identifier, state, refusal, accepted_at, decided_at, total_cents, currency, skus, quantities, prices = row
    return Order(
        id=identifier,
        state=State(state),
        refusal=Refusal(refusal) if refusal else None,
        accepted_at=accepted_at,
        decided_at=decided_at,
        total_cents=total_cents,
        currency=currency,
        lines=[Line(*line) for line in zip(skus, quantities, prices, strict=True)],
    )
