"""All SQL that reads the ledger; triggers of the database write it."""

from datetime import datetime

from psycopg import AsyncConnection
from psycopg.rows import class_row

from orders.ledger.schemas import Balance, Entry

_BALANCES = """
SELECT currency, sum(amount_cents)::bigint AS amount_cents FROM ledger_entry WHERE account = %s GROUP BY currency ORDER BY currency
"""
# What stood there before the page's oldest entry, and from there on entry by entry.
STATEMENT = """
WITH page AS MATERIALIZED (
    SELECT id, occurred_at, order_id, kind, amount_cents, currency FROM ledger_entry
    WHERE account = %(account)s AND (occurred_at, id) < (%(before)s, %(before_id)s)
    ORDER BY occurred_at DESC, id DESC LIMIT %(limit)s
), oldest AS MATERIALIZED (
    SELECT occurred_at, id FROM page ORDER BY occurred_at, id LIMIT 1
), brought AS MATERIALIZED (
    SELECT e.currency, sum(e.amount_cents) AS amount_cents FROM ledger_entry e, oldest o
    WHERE e.account = %(account)s AND (e.occurred_at, e.id) < (o.occurred_at, o.id) GROUP BY e.currency
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
            await cursor.execute(_BALANCES, (account,))
            return await cursor.fetchall()

    async def statement(self, account: str, *, before: tuple[datetime, int], limit: int) -> list[Entry]:
        """Return up to `limit` entries of an account from before a time and number, the newest first."""
        async with self._connection.cursor(row_factory=class_row(Entry)) as cursor:
            wanted = {"account": account, "before": before[0], "before_id": before[1], "limit": limit}
            await cursor.execute(STATEMENT, wanted)
            return await cursor.fetchall()
