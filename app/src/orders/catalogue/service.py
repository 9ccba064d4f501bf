"""The catalogue as it was a moment ago: from this process's memory, then Valkey, then a replica of the database."""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable

import msgspec
from psycopg import AsyncConnection

from orders import metrics
from orders.catalogue.cache import FRESH_SECONDS, LATE_SECONDS, Cache, Entry
from orders.catalogue.repository import ProductRepository, Stored
from orders.catalogue.schemas import (
    ALL,
    MOST_STOCK,
    SKU_PATTERN,
    Availability,
    Choice,
    NewProduct,
    Product,
    Record,
    Stock,
)
from orders.catalogue.shared import Shared
from orders.database import Database
from orders.errors import BadRequestError, NotFoundError, OutdatedError, StockError
from orders.hints import Hints
from orders.tags import Condition, tag

_LOG = logging.getLogger(__name__)

MOST_PRODUCTS = 4096
MOST_LISTS = 256  # they are larger, and clients make them up

_ENCODER = msgspec.json.Encoder()
_SKU = re.compile(SKU_PATTERN)
_HITS, _STALE, _MISSES = (metrics.CACHE.labels("valkey", outcome) for outcome in ("hit", "stale", "miss"))


class Catalogue:
    """Reads products, and changes them.

    A change of a product is in this process's memory and in Valkey before it is answered. A reading that is older than what is
    known, from a replica that is behind, is made again of the primary.
    """

    def __init__(self, database: Database, hints: Hints) -> None:
        self._database = database
        self._shared = Shared(hints)
        self._products: Cache[str] = Cache(MOST_PRODUCTS)
        self._stocks: Cache[str] = Cache(MOST_PRODUCTS)
        self._lists: Cache[tuple[Choice, str, int]] = Cache(MOST_LISTS)
        self._prices: Cache[tuple[str, int, int]] = Cache(MOST_LISTS)
        self._leaving: set[asyncio.Task[None]] = set()

    async def product(self, sku: str) -> Entry:
        """Return one product on sale.

        Raises:
            NotFoundError: there is no such product, or it is not on sale.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """

        async def read(connection: AsyncConnection) -> Entry:
            started = time.monotonic()
            return _entry(await ProductRepository(connection).get(sku), started)

        async def load(known: Entry | None) -> Entry:
            return await self._load(f"product:{sku}", known, lambda newest: self._read("product", read, newest=newest))

        entry = await self._products.get(sku, load) if _SKU.match(sku) else None
        if entry is None or not entry.content:
            raise _not_found(sku)
        return entry

    async def page(self, choice: Choice, *, after: str, limit: int) -> Entry:
        """Return up to `limit` products on sale whose SKU sorts after `after`, in SKU order."""

        async def read(connection: AsyncConnection) -> Entry:
            started = time.monotonic()
            found = await ProductRepository(connection).page(choice, after=after, limit=limit)
            return Entry(_ENCODER.encode(found), loaded_at=started)

        async def load(known: Entry | None) -> Entry:
            # Others get the first page of all products only: of the rest clients may want any number.
            key = f"list:{limit}" if choice == ALL and not after else ""
            return await self._load(key, known, lambda newest: self._read("list", read, newest=newest))

        return await self._lists.get((choice, after, limit), load)

    async def prices(self, sku: str, *, before: int, limit: int) -> Entry:
        """Return up to `limit` prices of a product on sale, lower versions than `before`, the newest first.

        Raises:
            NotFoundError: there is no such product, or it is not on sale.
        """

        async def read(connection: AsyncConnection) -> Entry:
            started = time.monotonic()
            found = await ProductRepository(connection).prices(sku, before=before, limit=limit)
            return Entry(_ENCODER.encode(found), loaded_at=started)

        await self.product(sku)
        return await self._prices.get((sku, before, limit), lambda _: self._read("prices", read))

    async def availability(self, sku: str) -> Entry:
        """Return whether there is any of a product on sale.

        Raises:
            NotFoundError: there is no such product, or it is not on sale.
        """

        async def read(connection: AsyncConnection) -> Entry:
            started = time.monotonic()
            return Entry(
                _ENCODER.encode(Availability(await ProductRepository(connection).has_stock(sku))), loaded_at=started
            )

        await self.product(sku)
        return await self._stocks.get(sku, lambda _: self._read("stock", read))

    async def record(self, sku: str) -> Record:
        """Return all that the primary knows of a product.

        Raises:
            NotFoundError: there is no such product.
        """
        stored = await self._database.read(
            lambda connection: ProductRepository(connection).get(_checked(sku)), newest=True
        )
        if stored is None:
            raise _not_found(sku)
        return _record(stored)

    async def put(self, sku: str, new: NewProduct, condition: Condition, operator: str) -> Record:
        """Create or change a product and return it.

        Raises:
            BadRequestError: no product can have this SKU.
            OutdatedError: the condition does not hold.
        """
        _checked(sku)

        async def change(connection: AsyncConnection) -> Stored:
            products = ProductRepository(connection)
            if condition.absent:
                done, otherwise = await products.create(sku, new), "There is a product of this SKU."
            else:
                done = await products.change(sku, new, condition.versions)
                otherwise = "The product has another tag, or is not there."
            stored = await products.get(sku) if done else None
            if stored is None:
                raise OutdatedError(otherwise)
            return stored

        started = time.monotonic()
        stored = await self._database.write(change)
        entry = self._products.keep(sku, _entry(stored, started))
        await self._shared.keep(f"product:{sku}", entry)
        _LOG.info("%s put product %s, now at version %d", operator, sku, stored.version)
        return _record(stored)

    async def set_stock(self, sku: str, quantity: int, operator: str) -> Stock:
        """Set how many pieces of a product there are.

        Raises:
            NotFoundError: there is no such product.
        """
        found = await self._database.write(
            lambda connection: ProductRepository(connection).set_stock(_checked(sku), quantity)
        )
        if found is None:
            raise _not_found(sku)
        return self._stocked(sku, found, operator)

    async def change_stock(self, sku: str, change: int, operator: str) -> Stock:
        """Add pieces of a product, or take them away.

        Raises:
            NotFoundError: there is no such product.
            StockError: there would be fewer pieces than none, or more than can be kept.
        """
        _checked(sku)

        async def change_it(connection: AsyncConnection) -> int:
            products = ProductRepository(connection)
            found = await products.change_stock(sku, change)
            if found is None:
                if await products.get(sku) is None:
                    raise _not_found(sku)
                raise StockError(
                    f"The stock of {sku} cannot be changed by {change}: it stays between 0 and {MOST_STOCK}."
                )
            return found

        return self._stocked(sku, await self._database.write(change_it), operator)

    def _stocked(self, sku: str, quantity: int, operator: str) -> Stock:
        self._stocks.forget(sku)
        _LOG.info("%s changed the stock of %s, now %d", operator, sku, quantity)
        return Stock(quantity)

    async def _read(
        self, what: str, read: Callable[[AsyncConnection], Awaitable[Entry]], *, newest: bool = False
    ) -> Entry:
        metrics.CATALOGUE_READS.labels(what).inc()
        return await self._database.read(read, newest=newest)

    async def _load(self, key: str, known: Entry | None, read: Callable[[bool], Awaitable[Entry]]) -> Entry:
        """Return what Valkey has under a key if it is new enough, else what the database has; without a key only that."""
        if not key:
            return await read(False)
        least = known.version if known else 0
        shared = await self._shared.find(key)
        if shared and shared.version >= least:
            least = shared.version
            if shared.age < FRESH_SECONDS:
                _HITS.inc()
                return shared
            if shared.age < LATE_SECONDS and not await self._shared.claim(key):
                _STALE.inc()
                return shared
        _MISSES.inc()
        entry = await read(False)
        if entry.version < least:
            metrics.REPLICA_BEHIND.inc()
            entry = await read(True)
        if entry.content or entry.version:  # else it is a SKU that a client made up
            leaving = asyncio.create_task(self._shared.keep(key, entry))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)
        return entry


def _entry(stored: Stored | None, started: float) -> Entry:
    if stored is None:
        return Entry(b"", loaded_at=started)
    product = Product(stored.sku, stored.name, stored.price_cents, stored.currency, stored.description)
    return Entry(_ENCODER.encode(product) if stored.active else b"", loaded_at=started, version=stored.version)


def _record(stored: Stored) -> Record:
    return Record(
        sku=stored.sku,
        name=stored.name,
        description=stored.description,
        price_cents=stored.price_cents,
        currency=stored.currency,
        active=stored.active,
        quantity=stored.quantity,
        changed_at=stored.changed_at,
        etag=tag(stored.version),
    )


def _checked(sku: str) -> str:
    if not _SKU.match(sku):
        raise BadRequestError("sku", "is not 1 to 64 of A-Z, 0-9 and -")
    return sku


def _not_found(sku: str) -> NotFoundError:
    return NotFoundError(f"No product has the SKU {sku[:64]!r}.")
