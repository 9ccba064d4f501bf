"""All SQL that reads the ledger; triggers of the database write it."""

from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from orders.ledger.schemas import Balance, Entry

# What closed months brought, and what was booked since.
_BALANCES = """
SELECT currency, sum(amount_cents)::bigint AS amount_cents FROM (
    SELECT currency, amount_cents FROM ledger_balance WHERE account = %(account)s
    UNION ALL
    SELECT currency, amount_cents FROM ledger_entry
    WHERE account = %(account)s AND occurred_at >= coalesce((SELECT max(ends_at) FROM ledger_month), '-infinity')
) booked GROUP BY currency ORDER BY currency
"""
# What stood there before the page's oldest entry, and from there on entry by entry.
STATEMENT = """
WITH page AS MATERIALIZED (
    SELECT id, occurred_at, order_id, kind, amount_cents, currency FROM ledger_entry
    WHERE account = %(account)s AND (occurred_at, id) < (%(before)s, %(before_id)s)
    ORDER BY occurred_at DESC, id DESC LIMIT %(limit)s
), oldest AS MATERIALIZED (
    SELECT p.occurred_at, p.id,
        coalesce((SELECT max(m.ends_at) FROM ledger_month m WHERE m.ends_at <= p.occurred_at), '-infinity') AS closed_until
    FROM page p ORDER BY p.occurred_at, p.id LIMIT 1
), brought AS MATERIALIZED (
    SELECT booked.currency, sum(booked.amount_cents) AS amount_cents FROM (
        SELECT b.currency, b.amount_cents FROM ledger_balance b, oldest o
        WHERE b.account = %(account)s AND b.ends_at <= o.closed_until
        UNION ALL
        SELECT e.currency, e.amount_cents FROM ledger_entry e, oldest o
        WHERE e.account = %(account)s AND e.occurred_at >= o.closed_until AND (e.occurred_at, e.id) < (o.occurred_at, o.id)
    ) booked GROUP BY booked.currency
)
SELECT p.*, (coalesce(b.amount_cents, 0)
    + sum(p.amount_cents) OVER (PARTITION BY p.currency ORDER BY p.occurred_at, p.id))::bigint AS balance_cents
FROM page p LEFT JOIN brought b USING (currency) ORDER BY p.occurred_at DESC, p.id DESC
"""


class LedgerRepository:
    """Reads the ledger."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def balances(self, account: str) -> list[Balance]:
        """Return what stands on an account, one balance a currency."""
        async with self._connection.cursor(row_factory=class_row(Balance)) as cursor:
            await cursor.execute(_BALANCES, {"account": account})
            return await cursor.fetchall()

    async def statement(self, account: str, *, before: tuple[datetime, int], limit: int) -> list[Entry]:
        """Return up to `limit` entries of an account from before a time and number, the newest first."""
        async with self._connection.cursor(row_factory=class_row(Entry)) as cursor:
            wanted = {"account": account, "before": before[0], "before_id": before[1], "limit": limit}
            await cursor.execute(STATEMENT, wanted)
            return await cursor.fetchall()
