"""All SQL of customers. What it sees of name and address is sealed."""

from datetime import datetime
from typing import NamedTuple

from psycopg import AsyncConnection
from psycopg.rows import class_row

from orders.sealing import Place

CREATE = "INSERT INTO customer (id, name, address) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING"


class Sealed(NamedTuple):
    """A profile's fields as they are stored."""

    name: bytes
    address: bytes


class Stored(NamedTuple):
    """A profile as the database has it."""

    name: bytes
    address: bytes
    version: int
    changed_at: datetime


def places(customer_id: str) -> tuple[Place, Place]:
    """Return where a customer's name and address are."""
    return Place("customer", "name", customer_id), Place("customer", "address", customer_id)


class CustomerRepository:
    """Reads and writes profiles; a caller's connection decides the transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, customer_id: str) -> Stored | None:
        """Return a customer's profile."""
        return await self._one("SELECT name, address, version, changed_at FROM customer WHERE id = %s", (customer_id,))

    async def create(self, customer_id: str, sealed: Sealed) -> Stored | None:
        """Make a profile and return it; none if there is one."""
        return await self._one(f"{CREATE} RETURNING name, address, version, changed_at", (customer_id, *sealed))

    async def change(self, customer_id: str, sealed: Sealed, versions: frozenset[int] | None) -> Stored | None:
        """Change a profile that has one of these versions, none: any, and return it; none if there is no such."""
        wanted = None if versions is None else list(versions)
        return await self._one(
            "UPDATE customer SET name = %s, address = %s WHERE id = %s"
            " AND (%s::bigint[] IS NULL OR version = ANY (%s::bigint[])) RETURNING name, address, version, changed_at",
            (*sealed, customer_id, wanted, wanted),
        )

    async def erase(self, customer_id: str) -> None:
        """Have no profile of a customer."""
        await self._connection.execute("DELETE FROM customer WHERE id = %s", (customer_id,))

    async def _one(self, statement: str, parameters: tuple[object, ...]) -> Stored | None:
        async with self._connection.cursor(row_factory=class_row(Stored)) as cursor:
            await cursor.execute(statement, parameters)
            return await cursor.fetchone()
