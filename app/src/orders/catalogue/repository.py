"""All SQL of the catalogue."""

from psycopg import AsyncConnection
from psycopg.rows import class_row

from orders.catalogue.schemas import Product


class ProductRepository:
    """Reads products; a caller's connection decides the transaction."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def get(self, sku: str) -> Product | None:
        """Return one product."""
        async with self._connection.cursor(row_factory=class_row(Product)) as cursor:
            await cursor.execute("SELECT sku, name, price_cents, currency FROM product WHERE sku = %s", (sku,))
            return await cursor.fetchone()

    async def page(self, *, after: str, limit: int) -> list[Product]:
        """Return up to `limit` products whose SKU sorts after `after`, in SKU order."""
        async with self._connection.cursor(row_factory=class_row(Product)) as cursor:
            await cursor.execute(
                "SELECT sku, name, price_cents, currency FROM product WHERE sku > %s ORDER BY sku LIMIT %s",
                (after, limit),
            )
            return await cursor.fetchall()
