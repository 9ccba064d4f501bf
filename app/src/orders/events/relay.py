"""Brings events from the database to the brokers' stream: each at least once, an order's in their order.

Of all workers one does at a time, that which holds the lock on the row that says how far the stream is. The row moves once the
brokers have confirmed everything before it, in the transaction that holds the lock; so whatever breaks, the next round begins
where the last one that was whole had ended.
"""

import asyncio
import itertools
import logging
from contextlib import suppress
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import pika
import psycopg
from pika.exceptions import AMQPError
from psycopg import AsyncConnection

from orders import metrics
from orders.broker import Link
from orders.database import deadline
from orders.settings import Settings, SettingsError

_LOG = logging.getLogger(__name__)

EXCHANGE = "events"
MOST = 500
LOOK_SECONDS = 1.0
ROUND_SECONDS = 10.0
CONFIRM_SECONDS = 5.0
STOP_SECONDS = 3.0

# Without a lock, since mostly there is nothing: how long the oldest event has waited.
_LOOK = """
SELECT extract(epoch FROM now() - e.occurred_at)::float8 FROM relay r CROSS JOIN LATERAL (
    SELECT occurred_at FROM event WHERE (xid, id) > (r.xid, r.id) ORDER BY xid, id LIMIT 1
) e WHERE r.name = 'events'
"""
# The lock of a process that hangs goes to another one. Only the transaction has that limit: the pooler's connections are shared.
_LOCK = """
SELECT xid::text, id, set_config('idle_in_transaction_session_timeout', '10s', true)
FROM relay WHERE name = 'events' FOR UPDATE SKIP LOCKED
"""
# Nothing that an older transaction may yet bring is passed by.
_READ = """
SELECT xid::text, id, order_id, customer_id, type, body::text, occurred_at FROM event
WHERE (xid, id) > (%s::xid8, %s) AND xid < pg_snapshot_xmin(pg_current_snapshot()) ORDER BY xid, id LIMIT %s
"""
_MOVE = "UPDATE relay SET xid = %s::xid8, id = %s WHERE name = 'events'"


class Event(NamedTuple):
    """A row of the table, in the order of `_READ`."""

    xid: str
    id: int
    order_id: UUID
    customer_id: str
    type: str
    body: str
    occurred_at: datetime


class UnconfirmedError(Exception):
    """The brokers did not take an event, or do not say so."""


class _Outlet(Link):
    """Publishes events, one round after the other, and waits for the confirms."""

    name = "relay"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.addresses("rabbitmq_nodes"))
        self._tag = 0
        self._pending: dict[int, None] = {}
        self._done: asyncio.Future[None] | None = None

    def opened(self) -> None:
        """Switch confirms on, and see that the exchange is there."""
        self._tag = 0
        self._channel.add_on_return_callback(lambda *_: self._end("no queue takes it"))
        self._channel.confirm_delivery(self._on_confirm, callback=lambda _: self._look_for_exchange())

    def _look_for_exchange(self) -> None:
        if self._channel is not None:  # else it was lost meanwhile
            self._channel.exchange_declare(EXCHANGE, passive=True, callback=lambda _: self.become_ready())

    def lost(self) -> None:
        """End the round that is under way."""
        self._pending.clear()
        self._end("the connection was lost")

    async def publish(self, events: list[Event]) -> None:
        """Return once a majority of the stream's brokers have all of these.

        Raises:
            UnconfirmedError: they may have some of them.
        """
        if not self.ready:
            raise UnconfirmedError("no broker is connected")
        self._done = asyncio.get_running_loop().create_future()
        for event in events:
            self._tag += 1
            self._pending[self._tag] = None
            self._channel.basic_publish(EXCHANGE, event.type, event.body.encode(), _properties(event), mandatory=True)
        try:
            async with asyncio.timeout(CONFIRM_SECONDS):
                await self._done
        except TimeoutError:
            self.drop("no confirm")
            raise UnconfirmedError("no confirm in time") from None
        finally:
            self._done = None
            self._pending.clear()

    def _end(self, why: str) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(UnconfirmedError(why))

    def _on_confirm(self, frame: Any) -> None:  # noqa: ANN401
        tag = frame.method.delivery_tag
        if frame.method.NAME != "Basic.Ack":
            self._end("a broker refused it")
            return
        earlier = itertools.takewhile(lambda pending: pending <= tag, self._pending) if frame.method.multiple else [tag]
        for each in list(earlier):
            self._pending.pop(each, None)
        if not self._pending and self._done is not None and not self._done.done():
            self._done.set_result(None)


def _properties(event: Event) -> pika.BasicProperties:
    return pika.BasicProperties(
        content_type="application/json",
        delivery_mode=2,
        message_id=str(event.id),
        timestamp=int(event.occurred_at.timestamp()),
        type=event.type,
        headers={"order_id": str(event.order_id), "customer_id": event.customer_id},
    )


class Relay:
    """Looks for events once a second, and at once when it is poked."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._outlet = _Outlet(settings)
        self._connection: AsyncConnection | None = None
        self._poked = asyncio.Event()
        self._stopping = False
        self._failing = False
        self._looked_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; return at once."""
        self._outlet.start()
        self._task = asyncio.create_task(self._run())

    def poke(self) -> None:
        """Say that there are events now."""
        self._poked.set()

    async def stop(self) -> None:
        """End the round that is under way, or give it up if it takes long: it is made again then."""
        self._stopping = True
        self._poked.set()
        if self._task is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await self._task
        await self._disconnect()
        await self._outlet.stop()

    async def _run(self) -> None:
        more = False
        while not self._stopping:
            if not more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._poked.wait()
            poked = self._poked.is_set()
            self._poked.clear()
            more = await self._try(poked=poked or more)

    async def _try(self, *, poked: bool) -> bool:
        """Relay what there is, and return whether there may be more; one failure is logged, not each."""
        try:
            connection = await self._connect()
            with deadline(connection, ROUND_SECONDS):
                now = asyncio.get_running_loop().time()
                if not poked or now - self._looked_at >= LOOK_SECONDS:
                    self._looked_at = now
                    if not await self._look(connection):
                        return False
                if not self._outlet.ready:  # the lock is for a process that has a broker
                    return False
                relayed = await self._round(connection)
        except (psycopg.Error, AMQPError, SettingsError, UnconfirmedError) as error:
            if not self._failing:
                _LOG.warning("Events are not relayed now: %r", error)
            self._failing = True
            await self._disconnect()
            return False
        if self._failing:
            _LOG.info("Events are relayed again")
            self._failing = False
        return relayed == MOST

    async def _look(self, connection: AsyncConnection) -> bool:
        found = await (await connection.execute(_LOOK)).fetchone()
        metrics.OUTBOX_AGE.set(max(found[0], 0.0) if found else 0.0)
        return found is not None

    async def _round(self, connection: AsyncConnection) -> int:
        """Relay up to so many events, and return how many; none while another process is at it."""
        async with connection.transaction():
            cursor = await (await connection.execute(_LOCK)).fetchone()
            if cursor is None:
                return 0
            rows = await (await connection.execute(_READ, (cursor[0], cursor[1], MOST))).fetchall()
            if not rows:
                return 0
            events = [Event(*row) for row in rows]
            await self._outlet.publish(events)
            await connection.execute(_MOVE, (events[-1].xid, events[-1].id))
        metrics.EVENTS_RELAYED.inc(len(events))
        return len(events)

    async def _connect(self) -> AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await AsyncConnection.connect(
                self._settings.conninfo(self._settings.database_url), autocommit=True, prepare_threshold=None
            )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
