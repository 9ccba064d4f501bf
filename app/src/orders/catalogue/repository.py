"""All SQL of the catalogue."""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

import msgspec
from psycopg import AsyncConnection
from psycopg.rows import class_row, scalar_row

from orders.catalogue.schemas import MOST_STOCK, Choice, Listed, NewProduct, Price


class Stored(NamedTuple):
    """A product as the database has it."""

    sku: str
    name: str
    description: str
    price_cents: int
    currency: str
    active: bool
    version: int
    changed_at: datetime
    quantity: int


_GET = """
SELECT sku, name, description, price_cents, currency, active, version, changed_at,
    coalesce((SELECT quantity FROM stock WHERE stock.sku = product.sku), 0) AS quantity
FROM product WHERE sku = %s
"""

# What the client looks for is split into words as names and descriptions are; each is to begin a word of the product's.
PAGE = r"""
SELECT sku, name, price_cents, currency FROM product
WHERE active AND sku > %(after)s
    AND (%(currency)s::text IS NULL OR currency = %(currency)s)
    AND (%(min_price_cents)s::bigint IS NULL OR price_cents >= %(min_price_cents)s)
    AND (%(max_price_cents)s::bigint IS NULL OR price_cents <= %(max_price_cents)s)
    AND (%(in_stock)s::boolean IS NULL
        OR %(in_stock)s = EXISTS (SELECT FROM stock WHERE stock.sku = product.sku AND quantity > 0))
    AND (%(q)s::text IS NULL OR search @@ (
        SELECT to_tsquery('simple',
            string_agg('''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || ''':*', ' & '))
        FROM unnest(to_tsvector('simple', %(q)s))))
ORDER BY sku LIMIT %(limit)s
"""


# Each notes what it changed: a stock is what was there, came and went, less what was sold.
_COUNTED = """
WITH before AS MATERIALIZED (
    SELECT sku, quantity FROM stock WHERE sku = %(sku)s FOR UPDATE
), noted AS (
    INSERT INTO stock_change (sku, change, why) SELECT sku, %(quantity)s - quantity, 'counted' FROM before
)
UPDATE stock s SET quantity = %(quantity)s FROM before WHERE s.sku = before.sku RETURNING s.quantity
"""
_MOVED = """
WITH moved AS (
    UPDATE stock SET quantity = quantity + %(change)s
    WHERE sku = %(sku)s AND quantity + %(change)s BETWEEN 0 AND %(most)s RETURNING sku, quantity
), noted AS (
    INSERT INTO stock_change (sku, change, why) SELECT sku, %(change)s, 'moved' FROM moved
)
SELECT quantity FROM moved
"""


class ProductRepository:
    """Reads and writes products; a caller's connection decides the transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, sku: str) -> Stored | None:
        """Return one product, on sale or not."""
        async with self._connection.cursor(row_factory=class_row(Stored)) as cursor:
            await cursor.execute(_GET, (sku,))
            return await cursor.fetchone()

    async def page(self, choice: Choice, *, after: str, limit: int) -> list[Listed]:
        """Return up to `limit` products on sale whose SKU sorts after `after`, in SKU order."""
        async with self._connection.cursor(row_factory=class_row(Listed)) as cursor:
            await cursor.execute(PAGE, {**msgspec.structs.asdict(choice), "after": after, "limit": limit})
            return await cursor.fetchall()

    async def prices(self, sku: str, *, before: int, limit: int) -> list[Price]:
        """Return up to `limit` prices that came with versions lower than `before`, the newest first."""
        async with self._connection.cursor(row_factory=class_row(Price)) as cursor:
            await cursor.execute(
                "SELECT version, price_cents, currency, valid_from FROM product_price"
                " WHERE sku = %s AND version < %s ORDER BY version DESC LIMIT %s",
                (sku, before, limit),
            )
            return await cursor.fetchall()

    async def create(self, sku: str, new: NewProduct) -> bool:
        """Make a product, and return whether there was none."""
        cursor = await self._connection.execute(
            "INSERT INTO product (sku, name, description, price_cents, currency, active) VALUES (%s, %s, %s, %s, %s, %s)"
            " ON CONFLICT DO NOTHING",
            (sku, new.name, new.description, new.price_cents, new.currency, new.active),
        )
        return cursor.rowcount > 0

    async def change(self, sku: str, new: NewProduct, versions: frozenset[int] | None) -> bool:
        """Change a product that has one of these versions, none: any, and return whether there was one."""
        wanted = None if versions is None else list(versions)
        cursor = await self._connection.execute(
            "UPDATE product SET name = %s, description = %s, price_cents = %s, currency = %s, active = %s"
            " WHERE sku = %s AND (%s::bigint[] IS NULL OR version = ANY (%s::bigint[]))",
            (new.name, new.description, new.price_cents, new.currency, new.active, sku, wanted, wanted),
        )
        return cursor.rowcount > 0

    async def has_stock(self, sku: str) -> bool:
        """Return whether there is any of a product."""
        return (
            await self._quantity("SELECT quantity FROM stock WHERE sku = %(sku)s AND quantity > 0", {"sku": sku})
            is not None
        )

    async def set_stock(self, sku: str, quantity: int) -> int | None:
        """Set how many pieces there are, and return it; none if there is no such product."""
        await self._have_stock(sku)
        return await self._quantity(_COUNTED, {"sku": sku, "quantity": quantity})

    async def change_stock(self, sku: str, change: int) -> int | None:
        """Add pieces, or take them away, and return how many there are; none if there were too few or too many."""
        await self._have_stock(sku)
        return await self._quantity(_MOVED, {"sku": sku, "change": change, "most": MOST_STOCK})

    async def _have_stock(self, sku: str) -> None:
        await self._connection.execute(
            "INSERT INTO stock (sku, quantity) SELECT sku, 0 FROM product WHERE sku = %s ON CONFLICT DO NOTHING", (sku,)
        )

    async def _quantity(self, statement: str, parameters: Mapping[str, object]) -> int | None:
        async with self._connection.cursor(row_factory=scalar_row) as cursor:
            await cursor.execute(statement, parameters)
            found: int | None = await cursor.fetchone()
            return found
