"""The worker's life: wait for the database, settle batch after batch, give everything back when the database goes away."""

import asyncio
import logging
import signal
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
import psycopg
from opentelemetry.trace import SpanKind
from psycopg import AsyncConnection

from orders import metrics
from orders.database import Cursor, deadline
from orders.events.relay import Relay
from orders.hints import DECISION_SECONDS, Hints, decision_hint
from orders.ordering.identity import CONTENT_BYTES
from orders.ordering.schemas import Order, OrderMessage
from orders.partitions import MAKE, Upkeep
from orders.settings import Settings, SettingsError
from orders.tracecontext import Trace, at, below
from orders.tracing import Attributes, Recording, Tracer
from orders.webhooks.delivery import Deliverer
from orders.worker.consumer import MOST, Consumer, Dead, Delivery
from orders.worker.reading import DeadLetterError, named
from orders.worker.server import start_server
from orders.worker.settlement import Decision, decided_order, probe, settle

_LOG = logging.getLogger(__name__)

SETTLE_SECONDS = 15.0
HOLD_SECONDS = 2.0  # so long a batch is held while the database is away; then it goes back to the queue
FIRST_WAIT_SECONDS = 0.2
LONGEST_WAIT_SECONDS = 2.0


_ENCODER = msgspec.json.Encoder()
_SETTLE: Attributes = {
    "messaging.system": "rabbitmq",
    "messaging.operation.name": "settle",
    "messaging.operation.type": "process",
    "messaging.destination.name": "intake",
}

# An order that PostgreSQL refuses for what is in it. Any other error is the database's, and no order's fault.
_ORDERS_FAULT = (psycopg.DataError, psycopg.IntegrityError)
_TRY_AGAIN = (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure)


class Taken(NamedTuple):
    """An order, and the message and the body in which it came."""

    message: OrderMessage
    delivery: Delivery
    body: bytes


class Committed(NamedTuple):
    """A batch that the database has, as far as there were orders in it."""

    batch: Sequence[Delivery]
    dead: Sequence[Dead]
    messages: Mapping[UUID, OrderMessage]
    decisions: Sequence[Decision]
    spans: Recording | None
    traces: Mapping[UUID, Trace]  # of the orders that are sampled


class _Placed(msgspec.Struct):
    """What says to which trace a message belongs, whatever else it is."""

    traceparent: str = ""


_PLACED_DECODER = msgspec.json.Decoder(_Placed)


def _trace(body: bytes) -> Trace | None:
    try:
        return below(_PLACED_DECODER.decode(body).traceparent)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _sampled(messages: Iterable[OrderMessage]) -> dict[UUID, Trace]:
    """Return the traces of those that are sampled, by their orders."""
    # Most are in a trace that is not sampled, by flags that are nothing but that.
    placed = (message for message in messages if message.traceparent and not message.traceparent.endswith("-00"))
    found = ((message.id, below(message.traceparent)) for message in placed)
    return {identifier: trace for identifier, trace in found if trace and trace.sampled}


class Worker:
    """One process that settles orders. Any number of them can."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._consumer = Consumer(settings)
        self._hints = Hints(settings)
        self._tracer = Tracer(settings, "orders-worker")
        self._deliverer = Deliverer(settings)
        self._relay = Relay(settings, self._deliverer)
        self._upkeep = Upkeep(settings)
        self._stopping = asyncio.Event()
        self._connection: AsyncConnection | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._paused = True

    def stop(self) -> None:
        """Finish the batch, acknowledge it, and leave."""
        self._stopping.set()
        self._consumer.wake()
        self._deliverer.leave()

    def why_not_ready(self) -> str:
        """Return why no orders are settled now; empty if they are."""
        if self._paused:
            return "The database is away; nothing is consumed meanwhile."
        return "" if self._consumer.ready else "No broker is connected."

    async def run(self) -> None:
        """Work until told to stop."""
        self._tracer.start()
        self._hints.start()
        self._relay.start()
        self._upkeep.start()
        self._deliverer.start()
        wait = FIRST_WAIT_SECONDS
        while not self._stopping.is_set():
            try:
                await self._connect()
                self._pause(False)
                self._consumer.start()
                while not self._stopping.is_set():
                    if batch := await self._consumer.batch():
                        await self._work(batch)
                        wait = FIRST_WAIT_SECONDS
                    else:  # woken
                        await self._finished()
            except (psycopg.Error, SettingsError) as error:
                _LOG.error("The database is away, nothing is consumed until it is back: %r", error)
                self._pause(True)
            await self._finished()
            # What is not settled goes back to its queue, once, and not again and again while it cannot be settled.
            await self._consumer.stop()
            await self._sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_SECONDS)
        await self._disconnect()
        await self._upkeep.stop()
        await self._relay.stop()
        await self._deliverer.stop()
        await self._hints.stop()
        await self._tracer.stop()

    async def _work(self, batch: Sequence[Delivery]) -> None:
        """Decide a batch. What follows its commit is done while the database is at the next batch."""
        taken_at = datetime.now(UTC)
        dead: list[Dead] = []
        orders: dict[bytes, Taken] = {}
        for delivery in batch:
            for body, message in zip(delivery.bodies, delivery.messages, strict=True):
                if isinstance(message, DeadLetterError):
                    self._bury(Dead(delivery, body, named(body)), dead, message)
                else:
                    orders.setdefault(message.id.bytes[:CONTENT_BYTES], Taken(message, delivery, body))
        if orders:
            oldest = min(each.message.accepted_at for each in orders.values())
            metrics.QUEUE_AGE.observe((taken_at - oldest).total_seconds())
        count = sum(len(delivery.bodies) for delivery in batch)
        messages = {each.message.id: each.message for each in orders.values()}
        traces = _sampled(messages.values())
        attributes = {**_SETTLE, "messaging.batch.message_count": count}
        spans = self._tracer.open([*traces.values()], "settle order", SpanKind.CONSUMER, attributes)
        try:
            with spans.current() if spans else nullcontext(), metrics.BATCH_SECONDS.time():
                decisions = await self._hold([*orders.values()], dead)
        except (psycopg.Error, SettingsError) as error:
            if spans:
                spans.fail(type(error).__qualname__)
                spans.end()
            raise
        # In the order of the commits: to acknowledge a batch is to acknowledge all before it.
        await self._finished()
        committed = Committed(batch, dead, messages, decisions, spans, traces if spans else {})
        self._finishing = asyncio.create_task(self._finish(committed))
        self._finishing.add_done_callback(self._on_finished)

    async def _finish(self, committed: Committed) -> None:
        """Acknowledge a batch, and tell what it came to."""
        batch, dead, messages, decisions, spans, traces = committed
        await self._consumer.finish(batch, dead)
        self._consumer.read_ahead()
        count = sum(len(delivery.bodies) for delivery in batch)
        self._relay.poke(busy=count >= MOST and self._consumer.waiting > 0)
        decided = [decided_order(messages[decision.id], decision) for decision in decisions]
        if spans:
            self._tell(spans, traces, decided)
            spans.end()
        self._count(decided, traces, duplicates=count - len(dead) - len(decided), batch=count)
        # What is forgotten when the worker leaves is asked of the database.
        await self._hint(decided, messages)

    def _on_finished(self, task: asyncio.Task[None]) -> None:
        """Have a defect there end the worker at once, and not only when the next batch comes."""
        if not task.cancelled() and task.exception():
            self._consumer.wake()

    async def _finished(self) -> None:
        """Return once all batches that are committed are acknowledged and told of."""
        if self._finishing:
            await self._finishing

    async def _hint(self, decided: Sequence[Order], messages: Mapping[UUID, OrderMessage]) -> None:
        # Only where there is none: an order may have been changed by now, which is noted there.
        hints = {
            decision_hint(order.id): messages[order.id].customer_id.encode() + b"\n" + _ENCODER.encode(order)
            for order in decided
        }
        await self._hints.remember(hints, DECISION_SECONDS, if_absent=True)

    async def _hold(self, orders: Sequence[Taken], dead: list[Dead]) -> list[Decision]:
        """Settle, over connections that break, for as long as a batch may be held."""
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + HOLD_SECONDS
        while True:
            try:
                connection = await self._connect()
                return await self._settle(connection, orders, dead)
            except psycopg.Error:
                if loop.time() > give_up_at or self._stopping.is_set():
                    raise
                await self._disconnect()
                await self._sleep(FIRST_WAIT_SECONDS)

    async def _settle(self, connection: AsyncConnection, orders: Sequence[Taken], dead: list[Dead]) -> list[Decision]:
        if not orders:
            return []
        try:
            with deadline(connection, SETTLE_SECONDS):
                return await settle(connection, [each.message for each in orders])
        except _TRY_AGAIN:
            return await self._settle(connection, orders, dead)
        except _ORDERS_FAULT as error:
            if len(orders) == 1:
                self._bury(Dead(orders[0].delivery, orders[0].body, str(orders[0].message.id)), dead, error)
                return []
            decided: list[Decision] = []
            for order in orders:  # to find the one
                decided += await self._settle(connection, [order], dead)
            return decided

    def _bury(self, one: Dead, dead: list[Dead], error: Exception) -> None:
        trace = _trace(one.body)
        with at(trace):
            _LOG.error("A message goes to the dead letters: %s", error)
        # Errors are told of, sampled or not.
        if trace and (span := self._tracer.open([trace], "bury message", SpanKind.CONSUMER, _SETTLE)):
            span.fail(type(error).__qualname__)
            span.end()
        dead.append(one)

    @staticmethod
    def _tell(spans: Recording, traces: Mapping[UUID, Trace], decided: Sequence[Order]) -> None:
        """Have each sampled order's span and a log line say what it came to."""
        outcomes = {order.id: str(order.refusal or order.state) for order in decided}
        each = [(identifier, trace, outcomes.get(identifier, "known before")) for identifier, trace in traces.items()]
        spans.note_each([{"messaging.message.id": str(order), "orders.outcome": outcome} for order, _, outcome in each])
        for order, trace, outcome in each:
            with at(trace):
                _LOG.info("Order %s is %s", order, outcome)

    @staticmethod
    def _count(decided: Sequence[Order], traces: Mapping[UUID, Trace], *, duplicates: int, batch: int) -> None:
        now = datetime.now(UTC)
        metrics.BATCH_ORDERS.observe(batch)
        metrics.SETTLED.labels("known before").inc(duplicates)
        metrics.SETTLED.labels("dead letter").inc(batch - duplicates - len(decided))
        for order in decided:
            metrics.SETTLED.labels(order.refusal or order.state).inc()
            if order.total_cents is not None:
                metrics.SETTLED_CENTS.labels(order.currency).inc(order.total_cents)
            if order.accepted_at:
                trace = traces.get(order.id)
                exemplar = {"trace_id": trace.trace_id} if trace else None
                metrics.SETTLEMENT_LAG.observe((now - order.accepted_at).total_seconds(), exemplar)

    async def _connect(self) -> AsyncConnection:
        """Return a connection by which orders can be settled.

        Raises:
            psycopg.Error: there is none now.
        """
        if self._connection is None or self._connection.closed:
            connection = await AsyncConnection.connect(
                self._settings.conninfo(self._settings.database_url),
                autocommit=True,
                prepare_threshold=None,
                cursor_factory=Cursor,
            )
            try:
                with deadline(connection, SETTLE_SECONDS):
                    await probe(connection)
                    # Or all that is settled in a month for which there are none would be refused.
                    await connection.execute(MAKE)
            except psycopg.Error:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.close()

    async def _sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _pause(self, paused: bool) -> None:
        self._paused = paused
        metrics.WORKER_PAUSED.set(paused)


async def work(settings: Settings) -> None:
    """Settle orders until SIGTERM."""
    worker = Worker(settings)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, worker.stop)
    server = await start_server(settings.worker_port, worker.why_not_ready)
    try:
        await worker.run()
    finally:
        server.close()
