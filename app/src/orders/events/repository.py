"""All SQL of the outbox, which is the history of orders as well."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import msgspec
from psycopg import AsyncConnection

from orders.events.schemas import Event, Record, Waiting
from orders.ordering.identity import CONTENT_BYTES

_COLUMNS = "xid::text, id, order_id::text, customer_id, type, body::text, occurred_at"
_WAITING = """
SELECT extract(epoch FROM clock_timestamp() - e.occurred_at)::float8, e.xid < pg_snapshot_xmin(pg_current_snapshot())
FROM relay r, LATERAL (SELECT xid, occurred_at FROM event WHERE (xid, id) > (r.xid, r.id) ORDER BY xid, id LIMIT 1) e
WHERE r.name = 'events'
"""
_LOCK = "SELECT xid::text, id FROM relay WHERE name = 'events' FOR UPDATE SKIP LOCKED"
# Not those of a transaction as long as an older one is under way: it may yet write events that come first.
_DUE = f"""
SELECT {_COLUMNS} FROM event
WHERE (xid, id) > (%s::xid8, %s::bigint) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, id LIMIT %s
"""  # noqa: S608  (a constant)
_MOVE = "UPDATE relay SET xid = %s::xid8, id = %s WHERE name = 'events'"
# By the part of the identifier that the content decides, as orders are found.
_HISTORY = f"""
SELECT {_COLUMNS} FROM event
WHERE order_id = (SELECT id FROM orders WHERE substring(uuid_send(id) FROM 1 FOR 11) = %s) ORDER BY id
"""  # noqa: S608  (a constant)

_Row = tuple[str, int, str, str, str, str, datetime]


class EventRepository:
    """Reads events and moves the relay's cursor; a caller's connection decides the transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def waiting(self) -> Waiting | None:
        """Return what is known of the oldest event that is not published; none if all are. Locks and writes nothing."""
        row: tuple[float, bool] | None = await (await self._connection.execute(_WAITING)).fetchone()
        return Waiting(*row) if row else None

    async def lock(self) -> tuple[str, int] | None:
        """Return the cursor, and keep it until the transaction's end; none where somebody else has it."""
        row: tuple[str, int] | None = await (await self._connection.execute(_LOCK)).fetchone()
        return row

    async def due(self, after: tuple[str, int], limit: int) -> list[Record]:
        """Return up to `limit` events that come after a cursor, in the order in which they are to be published."""
        return [_record(row) async for row in await self._connection.execute(_DUE, (*after, limit))]

    async def move(self, published: Record) -> None:
        """Put the cursor behind an event."""
        await self._connection.execute(_MOVE, (published.xid, published.number))

    async def history(self, order_id: UUID) -> Sequence[Record]:
        """Return what happened to an order, from the beginning."""
        return [
            _record(row) async for row in await self._connection.execute(_HISTORY, (order_id.bytes[:CONTENT_BYTES],))
        ]


def _record(row: _Row) -> Record:
    xid, number, order_id, customer_id, kind, body, occurred_at = row
    event = Event(kind, msgspec.Raw(body.encode()), str(number), occurred_at)
    return Record(xid, number, order_id, customer_id, event)
