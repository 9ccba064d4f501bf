"""PostgreSQL access for requests: they read from a replica, or from the primary where none answers, and write to the primary."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import cached_property
from typing import Any, Self, TypeVar

import psycopg
from opentelemetry.trace import SpanKind
from psycopg import AsyncConnection, AsyncCursor
from psycopg.rows import Row
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from orders import metrics
from orders.settings import Settings
from orders.tracing import Attributes, sampled, span

T = TypeVar("T")
_POSTGRESQL: Attributes = {"db.system.name": "postgresql", "db.namespace": "orders"}

POOL_SECONDS = 0.4
QUERY_SECONDS = 0.8
REPLICAS_REST_SECONDS = 1.0
# A read replica that came, or a host proxy that was reloaded, has its share of the connections so soon.
CONNECTION_SECONDS = 120.0


def _sever(connection: AsyncConnection) -> None:
    # Cancelling would wait for the server's answer, and the server is what does not answer.
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


@contextmanager
def deadline(connection: AsyncConnection, seconds: float) -> Iterator[None]:
    """Sever the connection after some seconds: whoever waits on it then gets an OperationalError at once."""
    timer = asyncio.get_running_loop().call_later(seconds, _sever, connection)
    try:
        yield
    finally:
        timer.cancel()


async def _check(connection: AsyncConnection) -> None:
    with deadline(connection, POOL_SECONDS):
        await AsyncConnectionPool.check_connection(connection)


class Cursor(AsyncCursor[Row]):
    """A cursor whose statements are spans: their text, which has no values in it, and never the parameters."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> Self:  # noqa: ANN401
        """Execute a statement."""
        if not sampled():
            return await super().execute(query, params, **options)
        text = " ".join(query.split()) if isinstance(query, str) else ""
        operation = text.partition(" ")[0]
        attributes = {**_POSTGRESQL, "db.operation.name": operation, "db.query.text": text}
        with span(operation or "postgresql", SpanKind.CLIENT, attributes):
            return await super().execute(query, params, **options)


class _Pool(AsyncConnectionPool):
    """A pool for which to wait is a span."""

    async def getconn(self, timeout: float | None = None) -> AsyncConnection:  # noqa: ASYNC109  (its name there)
        """Return a connection."""
        with span("wait for a connection", attributes=self._attributes):
            return await super().getconn(timeout)

    @cached_property
    def _attributes(self) -> Attributes:
        return {"db.client.connection.pool.name": self.name}


class Database:
    """Owns the pools; readers see only a connection."""

    def __init__(self, settings: Settings) -> None:
        # prepare_threshold=None: a transaction-mode pooler keeps no prepared statements of ours.
        # reconnect_timeout: short, since the pool backs off while it lasts, and would sleep through a failover's end.
        def pool(
            name: str, url: str, *, check: Callable[[AsyncConnection], Awaitable[None]] | None
        ) -> AsyncConnectionPool:
            return _Pool(
                lambda: settings.conninfo(url),
                kwargs={"prepare_threshold": None, "autocommit": True, "cursor_factory": Cursor},
                name=name,
                min_size=1,
                max_size=settings.database_pool_size,
                timeout=POOL_SECONDS,
                max_lifetime=CONNECTION_SECONDS,
                reconnect_timeout=0.5,
                check=check,
                open=False,
            )

        self._primary = pool("primary", settings.database_url, check=_check)
        # Not checked first: what fails here is read from the primary.
        self._replicas = pool("replicas", settings.database_ro_url, check=None) if settings.database_ro_url else None
        metrics.POOLS.watch("primary", self._primary.get_stats)
        if self._replicas:
            metrics.POOLS.watch("replicas", self._replicas.get_stats)
        self._replicas_rest_until = 0.0
        self._was_reached = False

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Keep the pools open; they connect when they can, and nobody waits for it."""
        async with AsyncExitStack() as stack:
            for pool in filter(None, (self._primary, self._replicas)):
                await pool.open()
                stack.push_async_callback(pool.close)
            yield

    async def read(self, query: Callable[[AsyncConnection], Awaitable[T]], *, newest: bool = False) -> T:
        """Run one query that only reads; on the primary where the newest is wanted, and a replica may be behind.

        Raises:
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer; the client gets 503.
        """
        if newest:
            return await self._run(self._primary, query)
        now = asyncio.get_running_loop().time()
        if self._replicas and now >= self._replicas_rest_until:
            try:
                return await self._run(self._replicas, query)
            except (PoolTimeout, psycopg.OperationalError):
                self._replicas_rest_until = now + REPLICAS_REST_SECONDS
        if self._replicas:
            metrics.REPLICA_FALLBACKS.inc()
        return await self._run(self._primary, query)

    async def write(self, change: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run a change in a transaction on the primary, and commit it; an exception undoes it.

        Raises:
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the primary does not answer, and whether the change was made
                is not known; the client gets 503.
        """

        async def in_transaction(connection: AsyncConnection) -> T:
            with span("transaction"):
                async with connection.transaction():
                    return await change(connection)

        return await self._run(self._primary, in_transaction)

    async def _run(self, pool: AsyncConnectionPool, query: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async with pool.connection() as connection:
            with deadline(connection, QUERY_SECONDS):
                result = await query(connection)
        self._was_reached = True
        return result

    async def reached(self) -> bool:
        """Return whether the database answered at any time since the start; asks it as long as it did not."""
        if not self._was_reached:
            with suppress(PoolTimeout, psycopg.OperationalError):
                await self.read(lambda connection: connection.execute("SELECT FROM product LIMIT 0"))
        return self._was_reached
