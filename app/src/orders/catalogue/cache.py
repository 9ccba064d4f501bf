"""What was read lately, in this process's memory: of all who want one thing that is no longer fresh, one reads it anew."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

from psycopg import OperationalError
from psycopg_pool import PoolTimeout

from orders import metrics
from orders.answers import Ready
from orders.tags import tag

K = TypeVar("K", bound=Hashable)

FRESH_SECONDS = 1.0
# So old an answer may be while another is on its way. The rest of the two seconds is for the replica that is read.
LATE_SECONDS = 1.5
KEPT_SECONDS = 60.0  # and so old while the database does not answer
AWAY_SECONDS = 1.0  # nobody waits for it so soon after it did not

# At the edge, another second, and one more while it asks here; as long as here where nobody answers.
CACHE_CONTROL = f"public, max-age=1, stale-while-revalidate=1, stale-if-error={KEPT_SECONDS:.0f}"


class Entry:
    """A JSON text as it was read, ready to be sent; an empty one says that there is no such thing."""

    __slots__ = ("content", "etag", "full", "loaded_at", "unchanged", "version")

    def __init__(self, content: bytes, *, loaded_at: float, version: int = 0) -> None:
        self.content = content
        self.loaded_at = loaded_at  # when the reading began, by time.monotonic()
        self.version = version  # the higher one is the newer one; 0 where only time tells
        etag = tag(version) if version else f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
        headers = {"ETag": etag, "Cache-Control": CACHE_CONTROL}
        self.etag = etag.encode()
        self.full: Ready[Any] = Ready(content, status_code=200, headers=headers)
        self.unchanged: Ready[Any] = Ready(b"", status_code=304, headers=headers)

    @property
    def age(self) -> float:
        """Seconds since the reading began."""
        return time.monotonic() - self.loaded_at


class Cache(Generic[K]):
    """Entries by key, the ones that were loaded last."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._entries: dict[K, Entry] = {}
        self._loading: dict[K, asyncio.Task[Entry]] = {}
        self._away_until = 0.0
        self._hits, self._misses, self._stale = (
            metrics.CACHE.labels("process", outcome) for outcome in ("hit", "miss", "stale")
        )

    async def get(self, key: K, load: Callable[[Entry | None], Awaitable[Entry]]) -> Entry:
        """Return the entry; if it is not fresh, have it loaded, given the one that is known.

        Raises:
            psycopg_pool.PoolTimeout, psycopg.OperationalError: there is none, and the database does not answer.
        """
        entry = self._entries.get(key)
        now = time.monotonic()
        if entry and now - entry.loaded_at < FRESH_SECONDS:
            self._hits.inc()
            return entry
        if entry and now < self._away_until and now - entry.loaded_at < KEPT_SECONDS:
            self._stale.inc()
            return entry
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.create_task(self._load(key, load))
            loading.add_done_callback(_look_at)
        if entry and now - entry.loaded_at < LATE_SECONDS:
            self._stale.inc()
            return entry
        try:
            # Shielded: a client that leaves does not take the answer away from the others.
            found = await asyncio.shield(loading)
        except (PoolTimeout, OperationalError):
            if entry is None or now - entry.loaded_at > KEPT_SECONDS:
                self._misses.inc()
                raise
            self._stale.inc()
            return entry
        self._misses.inc()
        return found

    def keep(self, key: K, entry: Entry, *, instead_of: Entry | None = None) -> Entry:
        """Keep the entry unless a newer version came in place of the one that it is to follow; return what is kept."""
        current = self._entries.pop(key, None)
        if current and current is not instead_of and current.version > entry.version:
            entry = current
        while len(self._entries) >= self._most:
            del self._entries[next(iter(self._entries))]  # the one that was loaded longest ago
        self._entries[key] = entry
        return entry

    def forget(self, key: K) -> None:
        """Have the thing read anew when it is asked for next."""
        self._entries.pop(key, None)

    async def _load(self, key: K, load: Callable[[Entry | None], Awaitable[Entry]]) -> Entry:
        known = self._entries.get(key)
        try:
            return self.keep(key, await load(known), instead_of=known)
        except (PoolTimeout, OperationalError):
            self._away_until = time.monotonic() + AWAY_SECONDS
            raise
        finally:
            del self._loading[key]


def _look_at(loading: asyncio.Task[Entry]) -> None:
    """Have an error noticed also where nobody waits for it: who asks next gets it, or waits for what follows."""
    if not loading.cancelled():
        loading.exception()
