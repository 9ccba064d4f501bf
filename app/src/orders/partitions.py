"""The months of events, deliveries and ledger: those to come are made, the ledger's that are over closed, old ones set apart."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import LiteralString, NamedTuple

import psycopg
from psycopg import AsyncConnection, sql

from orders.database import deadline
from orders.errors import CommandError
from orders.migrations import connect_as_owner
from orders.settings import Settings, SettingsError

_LOG = logging.getLogger(__name__)

EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 60.0
KEEP_SECONDS = 900.0  # a month of many entries is summed

_PARENTS = ["event", "ledger_entry", "webhook_delivery"]
MAKE = "SELECT make_partitions()"  # what is there is left alone
_CLOSE = "SELECT close_months()"
_DETACH = "SELECT done, name FROM detach_month(%s)"
_NAMES = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN (SELECT to_regclass('public.' || p) FROM unnest(%s::text[]) p)
"""
_OLD_OF_LEDGER = """
SELECT p.name FROM ledger_partition p JOIN ledger_month m USING (ends_at)
WHERE p.ends_at <= now() - make_interval(months => %s) ORDER BY p.ends_at
"""


class Changed(NamedTuple):
    """What was done to partitions, by their names."""

    made: Sequence[str]
    closed: Sequence[str]
    detached: Sequence[str]
    kept: Sequence[str]  # though they are old: not all of their events are published


def keep(settings: Settings, *, months: int, ledger_months: int | None) -> Changed:
    """Make this month's partitions and the next two's, close the ledger's that are over, and detach what ended long enough ago.

    Of events and deliveries what ended so many months ago, or earlier; of the ledger too where a number is given. What is detached
    stays as a table of its own, which no service reads; what a closed month brought each account is in its balance for good.

    Raises:
        CommandError: the database is away, or a lock was not to be had.
    """
    try:
        with connect_as_owner(settings) as connection:
            before = _names(connection, _NAMES, _PARENTS)
            connection.execute(MAKE)
            made = [name for name in _names(connection, _NAMES, _PARENTS) if name not in before]
            closed = _names(connection, _CLOSE)
            detached: list[str] = []
            while (rows := connection.execute(_DETACH, (months,)).fetchall()) and rows[-1][0] == "detached":
                detached.append(rows[-1][1])
            kept = [name for _, name in rows]
            if ledger_months is not None:
                statement = sql.SQL("ALTER TABLE public.ledger_entry DETACH PARTITION public.{}")
                for name in _names(connection, _OLD_OF_LEDGER, ledger_months):
                    with connection.transaction():
                        # Traffic goes on beside this: rather fail and be run again than queue all of it behind a lock.
                        connection.execute("SET LOCAL lock_timeout = '2s'")
                        connection.execute(statement.format(sql.Identifier(name)))
                    detached.append(name)
    except psycopg.Error as error:
        raise CommandError(f"Not all was done, run it again: {str(error).strip()}") from error
    return Changed(sorted(made), closed, detached, kept)


def _names(connection: psycopg.Connection, query: LiteralString, *parameters: object) -> list[str]:
    return [name for (name,) in connection.execute(query, parameters or None).fetchall()]


class Upkeep:
    """Does the same for a worker, but for the ledger's old months: when it starts, and each hour."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; return at once."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Give up what is under way: the database does each statement whole or not at all."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            wait = EVERY_SECONDS
            try:
                await self._keep()
            except psycopg.errors.LockNotAvailable as error:  # rather later than have traffic wait for it again
                _LOG.warning("Months are kept in an hour: %s", str(error).strip())
            except (psycopg.Error, SettingsError) as error:
                _LOG.warning("Months are kept in a minute: %r", error)
                wait = AGAIN_SECONDS
            except Exception:  # noqa: BLE001  (a defect here is no reason to settle nothing)
                _LOG.exception("The months' upkeep failed")
            await asyncio.sleep(wait)

    async def _keep(self) -> None:
        conninfo = self._settings.conninfo(self._settings.database_url)
        async with await AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None) as connection:
            with deadline(connection, KEEP_SECONDS):
                await connection.execute(MAKE)
                for (name,) in await (await connection.execute(_CLOSE)).fetchall():
                    _LOG.info("Partition %s: closed", name)
                more = self._settings.keep_months > 0
                while more:
                    rows = await (await connection.execute(_DETACH, (self._settings.keep_months,))).fetchall()
                    more = bool(rows) and rows[-1][0] == "detached"
                    if more:
                        _LOG.info("Partition %s: detached", rows[-1][1])
