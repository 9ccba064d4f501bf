"""The database's schema: plain SQL files, applied in order, forward only, all of them in one transaction."""

import hashlib
import re
import time
from pathlib import Path
from typing import NamedTuple

import psycopg

from orders.settings import Settings

FOLDER = Path(__file__).parents[2] / "migrations"
OWNER = "orders_owner"

_LOCK = 0x6F7264657273  # "orders"; held for the transaction only, since a pooler hands sessions on
_WAIT_SECONDS = 60.0
_JOURNAL = """
CREATE TABLE IF NOT EXISTS schema_migration (
    version    integer     PRIMARY KEY,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationError(Exception):
    """The files and what was applied do not fit together."""


class Migration(NamedTuple):
    """One file."""

    version: int
    path: Path

    @property
    def checksum(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def load(folder: Path = FOLDER) -> list[Migration]:
    """Return the migrations of a folder in their order.

    Raises:
        MigrationError: a file's name is not NNNN_words.sql, or two have one number.
    """
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_[a-z0-9_]+\.sql", path.name)
        if not match:
            raise MigrationError(f"{path.name}: a migration is named NNNN_words.sql.")
        found.append(Migration(int(match[1]), path))
    versions = [migration.version for migration in found]
    if not found or len(set(versions)) < len(versions):
        raise MigrationError(f"{folder} has no migrations, or two of one number: {versions}.")
    return found


def apply(connection: psycopg.Connection, migrations: list[Migration]) -> list[str]:
    """Apply what the database lacks, and return the names of the files; whoever else does the same waits meanwhile.

    Raises:
        MigrationError: a file was changed after it was applied. Write a new one instead.
    """
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        # Traffic goes on beside this: rather fail and be run again than queue all of it behind a lock.
        connection.execute("SET LOCAL lock_timeout = '3s'")
        connection.execute("SET LOCAL client_min_messages = warning")
        connection.execute(_JOURNAL)
        applied: dict[int, str] = dict(connection.execute("SELECT version, checksum FROM schema_migration").fetchall())
        names = []
        for migration in migrations:
            if migration.version in applied:
                if applied[migration.version] != migration.checksum:
                    raise MigrationError(f"{migration.path.name} was changed after it had been applied.")
                continue
            connection.execute(migration.path.read_bytes())
            connection.execute(
                "INSERT INTO schema_migration (version, checksum) VALUES (%s, %s)",
                (migration.version, migration.checksum),
            )
            names.append(migration.path.name)
    return names


def connect_as_owner(settings: Settings) -> psycopg.Connection:
    """Connect as the role that owns the schema; wait a minute for a database that is not there yet.

    Raises:
        psycopg.OperationalError: it did not come, or does not let us in.
    """
    conninfo = settings.conninfo(settings.database_url, user=OWNER, secret="orders_owner_database_password")  # noqa: S106
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        try:
            return psycopg.connect(conninfo, autocommit=True, prepare_threshold=None)
        except psycopg.OperationalError as error:
            if time.monotonic() > until or "authentication failed" in str(error):
                raise
            time.sleep(0.5)


def migrate(settings: Settings) -> list[str]:
    """Bring the database up to this version and return the names of the files that were applied.

    Raises:
        MigrationError: the files do not fit what was applied.
        psycopg.OperationalError: the database did not answer for a minute, or a lock was not to be had.
    """
    migrations = load()
    with connect_as_owner(settings) as connection:
        return apply(connection, migrations)
