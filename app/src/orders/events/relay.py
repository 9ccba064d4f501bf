"""Takes events out of the outbox to the exchange: in the order of each order's, at least once, by one worker at a time.

The cursor's row is locked while a batch is under way, and moves once the broker has confirmed all of it. So what a worker had not
finished when it died, another does again; whoever takes events knows an event that comes twice by its id. For which webhooks events
are is written down in the transaction that moves the cursor: each once, and none without the other.

Orders come first: while they wait in full batches, events do too, for a few seconds.
"""

import asyncio
import itertools
import logging
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any, Protocol
from uuid import UUID

import msgspec
import pika
import psycopg
from psycopg import AsyncConnection

from orders import metrics
from orders.broker import Link
from orders.database import deadline
from orders.events.repository import EventRepository
from orders.events.schemas import CUSTOMER_HEADER, EXCHANGE, ORDER_HEADER, Record
from orders.settings import Settings, SettingsError

_LOG = logging.getLogger(__name__)

MOST = 500
LOOK_SECONDS = 1.0
CONFIRM_SECONDS = 5.0
ROUND_SECONDS = 10.0
STOP_SECONDS = 3.0
PATIENCE_SECONDS = 5.0  # with orders that come first
_AT_ONCE = 50  # published before others on the event loop get their turn

_ENCODER = msgspec.json.Encoder()


class UnconfirmedError(Exception):
    """The broker did not confirm all of a batch."""


class Exchange(Link):
    """A connection by which events are published, each to be confirmed."""

    name = "relay"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.addresses("rabbitmq_nodes"))
        self._tag = 0
        self._pending: dict[int, int] = {}  # in order, as a set is not
        self._left = 0  # of the batch, to be confirmed
        self._confirmed: asyncio.Future[None] | None = None

    def opened(self) -> None:
        """Switch confirms on, and see that the exchange is there."""
        self._tag = 0
        self._left = 0
        self._channel.confirm_delivery(self._on_confirm, callback=lambda _: self._look_for_exchange())

    def _look_for_exchange(self) -> None:
        if self._channel is not None:  # else it was lost meanwhile
            self._channel.exchange_declare(EXCHANGE, passive=True, callback=lambda _: self.become_ready())

    def lost(self) -> None:
        """Give up the batch that is under way."""
        self._pending.clear()
        self._finish("the connection was lost")

    def blocked(self) -> None:
        """Leave a broker that takes nothing to itself; pika closes the connection if it lasts."""
        self.ready = False
        self._finish("the broker is blocked")

    def unblocked(self) -> None:
        """Come back, with a channel on which nothing is under way."""
        self.drop("the broker was blocked")

    async def publish(self, records: Sequence[Record]) -> None:
        """Return once the broker has every event.

        Raises:
            UnconfirmedError: it may have some of them or none.
        """
        if not self.ready:
            raise UnconfirmedError("no broker is connected")
        confirmed = self._confirmed = asyncio.get_running_loop().create_future()
        self._left = len(records)
        try:
            for number, record in enumerate(records, 1):
                self._send(record)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
                    if confirmed.done():  # for it failed
                        break
            async with asyncio.timeout(CONFIRM_SECONDS):
                await confirmed
        except TimeoutError as error:
            raise UnconfirmedError(f"it was not confirmed within {CONFIRM_SECONDS} s") from error
        finally:
            self._confirmed = None
            if self._left:
                # What is still confirmed of it would be taken for the next batch's.
                self.drop("a batch was not confirmed")

    def _send(self, record: Record) -> None:
        self._tag += 1
        self._pending[self._tag] = 1
        event = record.event
        assert event.occurred_at is not None
        properties = pika.BasicProperties(
            content_type="application/json",
            delivery_mode=2,
            message_id=event.id,
            timestamp=int(event.occurred_at.timestamp()),
            type=event.type,
            headers={ORDER_HEADER: record.order_id, CUSTOMER_HEADER: record.customer_id},
        )
        self._channel.basic_publish(EXCHANGE, event.type, _ENCODER.encode(event), properties)

    def _on_confirm(self, frame: Any) -> None:  # noqa: ANN401
        tag = frame.method.delivery_tag
        if frame.method.NAME != "Basic.Ack":
            self.drop("the broker refused an event")
            return
        tags = [tag]
        if frame.method.multiple:
            tags = [*itertools.takewhile(lambda pending: pending <= tag, self._pending)]
        # Those of a connection that is being given up are not known any more.
        self._left -= sum(self._pending.pop(each, 0) for each in tags)
        if not self._left:
            self._finish("")

    def _finish(self, why: str) -> None:
        if self._confirmed is None or self._confirmed.done():
            return
        if why:
            self._confirmed.set_exception(UnconfirmedError(why))
        else:
            self._confirmed.set_result(None)


class Subscribers(Protocol):
    """Those who are sent events one by one."""

    async def add(self, connection: AsyncConnection, records: Sequence[Record]) -> Collection[UUID]:
        """Write down for whom events are, in the caller's transaction; return who is to get one now."""

    def poke(self, subscriber: UUID) -> None:
        """Have one be sent what is due."""


class Relay:
    """The part of a worker that publishes events. Whatever it meets, it goes on later and disturbs nobody."""

    def __init__(self, settings: Settings, subscribers: Subscribers) -> None:
        self._settings = settings
        self._subscribers = subscribers
        self._busy = False
        self._exchange = Exchange(settings)
        self._connection: AsyncConnection | None = None
        self._poked = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None
        self._complaint = ""

    def start(self) -> None:
        """Begin; return at once."""
        self._exchange.start()
        self._task = asyncio.create_task(self._run())

    def poke(self, *, busy: bool) -> None:
        """Look for events now; `busy`: a full batch was settled, and more orders wait."""
        self._busy = busy
        self._poked.set()

    async def stop(self) -> None:
        """Finish the batch that is under way, and leave."""
        self._stopping = True
        self._poked.set()
        if self._task:
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._disconnect()
        await self._exchange.stop()

    async def _run(self) -> None:
        while not self._stopping:
            self._poked.clear()
            more = False
            try:
                more = await self._round()
                self._complaint = ""
            except (psycopg.Error, SettingsError, UnconfirmedError) as error:
                self._complain(f"Events wait: {error!r}")
                await self._disconnect()
            except Exception:  # noqa: BLE001  (a defect here is no reason to settle nothing)
                _LOG.exception("The relay failed")
                await self._disconnect()
            if not more:
                # After a failure it is not hurried: orders are settled all the while, and each batch pokes.
                await self._wait(patient=bool(self._complaint))

    async def _wait(self, *, patient: bool) -> None:
        if patient and not self._stopping:
            await asyncio.sleep(LOOK_SECONDS)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._poked.wait()

    async def _round(self) -> bool:
        """Publish what is due, up to a batch; return whether there may be more."""
        connection = await self._connect()
        with deadline(connection, ROUND_SECONDS):
            waiting = await EventRepository(connection).waiting()
            metrics.OUTBOX_AGE.set(waiting.seconds if waiting else 0)
            if waiting is None or not waiting.is_due or not self._exchange.ready:
                return False
            if self._busy and waiting.seconds < PATIENCE_SECONDS:
                return False
            async with connection.transaction():
                repository = EventRepository(connection)
                cursor = await repository.lock()
                records = await repository.due(cursor, MOST) if cursor else []
                if not records:
                    return False
                # A transaction may have begun before another and changed an order after it: an order's events go by their number.
                await self._exchange.publish(sorted(records, key=lambda record: record.number))
                due = await self._subscribers.add(connection, records)
                await repository.move(records[-1])
        for subscriber in due:
            self._subscribers.poke(subscriber)
        metrics.EVENTS_RELAYED.inc(len(records))
        return len(records) == MOST

    async def _connect(self) -> AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._connection = await AsyncConnection.connect(
                self._settings.conninfo(self._settings.database_url), autocommit=True, prepare_threshold=None
            )
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.close()

    def _complain(self, complaint: str) -> None:
        # Once a reason, not once an attempt.
        if complaint != self._complaint:
            self._complaint = complaint
            _LOG.warning(complaint)
