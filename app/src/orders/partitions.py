"""The months of events, deliveries and ledger: those to come are made, the ledger's that are over closed, old ones set apart."""

from collections.abc import Sequence
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import sql

from orders.errors import CommandError
from orders.migrations import connect_as_owner
from orders.settings import Settings

_PARENTS = ["event", "ledger_entry", "webhook_delivery"]
_NAMES = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN (SELECT to_regclass('public.' || p) FROM unnest(%s::text[]) p)
"""
# A month's end is in its bounds only.
_OLD = r"""
SELECT p.relname, c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent
WHERE i.inhparent IN ('public.event'::regclass, 'public.webhook_delivery'::regclass)
    AND substring(pg_get_expr(c.relpartbound, c.oid) FROM $$TO \('([^']+)'\)$$)::timestamptz
        <= now() - make_interval(months => %s)
ORDER BY c.relname
"""
# A transaction that began in a month may write into it after its end: a day is longer than any.
_CLOSE = "SELECT close_ledger_months(now() - interval '1 day')"
_OLD_OF_LEDGER = """
SELECT p.name FROM ledger_partition p JOIN ledger_month m USING (ends_at)
WHERE p.ends_at <= now() - make_interval(months => %s) ORDER BY p.ends_at
"""
_UNPUBLISHED = """
SELECT EXISTS (
    SELECT FROM public.{} WHERE (xid, id) > (coalesce((SELECT xid FROM public.relay WHERE name = 'events'), '0'),
        coalesce((SELECT id FROM public.relay WHERE name = 'events'), 0)))
"""


class Changed(NamedTuple):
    """What was done to partitions, by their names."""

    made: Sequence[str]
    closed: Sequence[str]
    detached: Sequence[str]
    kept: Sequence[str]  # though they are old: not all of their events are published


def keep(settings: Settings, *, months: int, ledger_months: int | None) -> Changed:
    """Make this month's partitions and the next two's, close the ledger's that are over, and detach what ended long enough ago.

    Of events what ended so many months ago, or earlier; of the ledger too where a number is given. What is detached stays as a
    table of its own, which no service reads; what a closed month brought each account is in its balance for good.

    Raises:
        CommandError: the database is away, or a lock was not to be had.
    """
    try:
        with connect_as_owner(settings) as connection, connection.transaction():
            # Traffic goes on beside this: rather fail and be run again than queue all of it behind a lock.
            connection.execute("SET LOCAL lock_timeout = '3s'")
            before = _names(connection, _NAMES, _PARENTS)
            connection.execute("SELECT make_partitions()")
            made = [name for name in _names(connection, _NAMES, _PARENTS) if name not in before]
            closed = _names(connection, _CLOSE)
            detached, kept = [], []
            for parent, name in connection.execute(_OLD, (months,)).fetchall():
                table = sql.Identifier(name)
                if parent == "event" and connection.execute(sql.SQL(_UNPUBLISHED).format(table)).fetchone() == (True,):
                    kept.append(name)  # the relay would never see them
                    continue
                _detach(connection, parent, name)
                detached.append(name)
            if ledger_months is not None:
                for name in _names(connection, _OLD_OF_LEDGER, ledger_months):
                    _detach(connection, "ledger_entry", name)
                    detached.append(name)
    except psycopg.Error as error:
        raise CommandError(f"The partitions stay as they are: {str(error).strip()}") from error
    return Changed(sorted(made), closed, detached, kept)


def _detach(connection: psycopg.Connection, parent: str, name: str) -> None:
    statement = "ALTER TABLE public.{} DETACH PARTITION public.{}"
    connection.execute(sql.SQL(statement).format(sql.Identifier(parent), sql.Identifier(name)))


def _names(connection: psycopg.Connection, query: LiteralString, *parameters: object) -> list[str]:
    return [name for (name,) in connection.execute(query, parameters or None).fetchall()]
