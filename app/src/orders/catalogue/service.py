"""The catalogue as it was at most a second ago, from this process's memory."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from psycopg import OperationalError
from psycopg_pool import PoolTimeout

from orders import metrics
from orders.catalogue.repository import ProductRepository
from orders.database import Database

FRESH_SECONDS = 1.0
STALE_SECONDS = 60.0
MOST_ENTRIES = 4096

_ENCODER = msgspec.json.Encoder()


class Entry:
    """An answer as JSON, none for "there is no such thing"."""

    __slots__ = ("content", "loaded_at")

    def __init__(self, content: bytes | None, loaded_at: float) -> None:
        self.content = content
        self.loaded_at = loaded_at


class Catalogue:
    """Reads products; of all who ask for one that is not fresh, only the first asks the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: dict[tuple[str, int], Entry] = {}
        self._loading: dict[tuple[str, int], asyncio.Task[Entry]] = {}
        self._hits, self._misses, self._stale = (metrics.CACHE.labels(name) for name in ("hit", "miss", "stale"))

    async def product(self, sku: str) -> bytes | None:
        """Return one product as JSON, none if there is no such product."""

        async def load() -> bytes | None:
            product = await self._database.read(lambda connection: ProductRepository(connection).get(sku))
            return _ENCODER.encode(product) if product else None

        return await self._cached((sku, 0), load)

    async def page(self, *, after: str, limit: int) -> bytes:
        """Return up to `limit` products whose SKU sorts after `after`, in SKU order, as JSON."""

        async def load() -> bytes:
            page = self._database.read(lambda connection: ProductRepository(connection).page(after=after, limit=limit))
            return _ENCODER.encode(await page)

        return await self._cached((after, limit), load) or b"[]"

    async def _cached(self, key: tuple[str, int], load: Callable[[], Awaitable[bytes | None]]) -> bytes | None:
        now = asyncio.get_running_loop().time()
        entry = self._entries.get(key)
        if entry and now - entry.loaded_at < FRESH_SECONDS:
            self._hits.inc()
            return entry.content
        self._misses.inc()
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.create_task(self._load(key, load))
        try:
            # Shielded: a client that leaves does not take the answer away from the others.
            return (await asyncio.shield(loading)).content
        except (PoolTimeout, OperationalError):
            if entry is None or now - entry.loaded_at > STALE_SECONDS:
                raise
            self._stale.inc()
            return entry.content

    async def _load(self, key: tuple[str, int], load: Callable[[], Awaitable[bytes | None]]) -> Entry:
        try:
            entry = Entry(await load(), asyncio.get_running_loop().time())
        finally:
            del self._loading[key]
        self._entries.pop(key, None)
        while len(self._entries) >= MOST_ENTRIES:
            del self._entries[next(iter(self._entries))]  # the one that was loaded longest ago
        self._entries[key] = entry
        return entry
