"""Accounts and what was booked on them, as a replica of the database has it."""

import msgspec

from orders.database import Database
from orders.ledger.repository import LedgerRepository
from orders.ledger.schemas import Account, Statement
from orders.ordering.identity import Identities
from orders.pages import LAST, cursor, read_cursor


class Ledger:
    """Reads accounts."""

    def __init__(self, identities: Identities, database: Database) -> None:
        self._identities = identities
        self._database = database

    async def account(self, account: str) -> Account:
        """Return an account and what stands on it.

        Raises:
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        found = await self._database.read(lambda connection: LedgerRepository(connection).balances(account))
        return Account(account, found)

    async def statement(self, account: str, *, after: str, limit: int) -> Statement:
        """Return up to `limit` entries of an account, the newest first, from where a page ended.

        Raises:
            BadRequestError: `after` is not from a page of ours.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        at, number = read_cursor(after)
        before = (at, min(int.from_bytes(number), LAST))
        found = await self._database.read(
            lambda connection: LedgerRepository(connection).statement(account, before=before, limit=limit + 1)
        )
        more = None
        if len(found) > limit:
            last = found[limit - 1]
            more = cursor(last.occurred_at, last.id.to_bytes(10))
        entries = [
            msgspec.structs.replace(entry, order_id=self._identities.renew(entry.order_id)) for entry in found[:limit]
        ]
        return Statement(account, entries, more)
