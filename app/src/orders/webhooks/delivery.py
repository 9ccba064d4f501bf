"""The part of a worker that delivers events to endpoints, again and again until they arrive or nobody expects it any more.

The database has the truth: what is to be sent to whom, and when. The relay writes it down as it publishes events, and says who is to get
one. A message that was put into a queue `webhook-retry-N` says when its time there is over. What nobody tells of, since a message was lost or
a worker died, a look at the database every ten seconds finds.

Each endpoint has a lane of its own, so that none waits for another; a lane takes what is due in the order of events, some at once, and of
an endpoint that fails one at a time.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import pika
import psycopg
from psycopg import AsyncConnection
from psycopg_pool import PoolTimeout

from orders import metrics
from orders.broker import Link
from orders.database import Database
from orders.events.schemas import Record
from orders.sealing import SealingError, sealer
from orders.settings import RETRY_STEPS, Settings
from orders.webhooks.repository import WebhookRepository, places
from orders.webhooks.schemas import Attempt, Due, Happened, Payload
from orders.webhooks.sending import ATTEMPT_SECONDS, Sender, is_success

_LOG = logging.getLogger(__name__)

DUE_QUEUE = "webhook-due"
RETRY_QUEUE = "webhook-retry-{}"
MOST_LANES = 64  # that send at once
MOST_AT_ONCE = 4  # to one endpoint
LEASE_SECONDS = 2 * ATTEMPT_SECONDS
LOOK_SECONDS = 10.0
STOP_SECONDS = 5.0
_REST_SECONDS = 1.0
_RECORD_ATTEMPTS = 5
_MOST_DUE = 1000
_CONNECTIONS = 4
_PREFETCH = 400
_GONE = 410
_MOST_LATE = 0.2  # of a wait, by which it is shortened at random, so that not all come again together

_DATABASE_AWAY = (psycopg.OperationalError, PoolTimeout)
_ENCODER = msgspec.json.Encoder()

T = TypeVar("T")


class Queues(Link):
    """Consumes messages whose time to wait is over, and puts such messages where they wait."""

    name = "webhooks"

    def __init__(self, settings: Settings, due: Callable[[UUID], None]) -> None:
        super().__init__(settings, settings.addresses("rabbitmq_nodes"))
        self._due = due

    def opened(self) -> None:
        """Ask for what has waited."""
        self._channel.basic_qos(prefetch_count=_PREFETCH)
        self._channel.basic_consume(DUE_QUEUE, self._on_due)
        self.become_ready()

    def wait(self, endpoint_id: UUID, step: int, seconds: float) -> None:
        """Have a message come back after some seconds. It is no loss if none does: the database is looked at too."""
        if self.ready:
            properties = pika.BasicProperties(delivery_mode=2, expiration=str(int(seconds * 1000) + 1))
            self._channel.basic_publish("", RETRY_QUEUE.format(step), endpoint_id.bytes, properties)

    def _on_due(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:  # noqa: ANN401
        if channel is self._channel:
            channel.basic_ack(method.delivery_tag)
            if len(body) == 16:
                self._due(UUID(bytes=body))


class _Lane:
    """What one endpoint is sent, while there is anything."""

    def __init__(self) -> None:
        self.again = False  # whether there may be more than was seen
        self.task: asyncio.Task[None] | None = None


class Deliverer:
    """Delivers events. Whatever it meets, it goes on later and disturbs nobody."""

    def __init__(self, settings: Settings) -> None:
        """Take the settings.

        Raises:
            SettingsError: one of them is malformed, or the key of the endpoints' secrets is not there.
        """
        self._webhooks = settings.webhooks()
        self._sealer = sealer(settings)
        self._sender = Sender(self._webhooks)
        own = msgspec.structs.replace(settings, database_ro_url="", database_pool_size=_CONNECTIONS)
        self._database = Database(own)
        self._queues = Queues(settings, self.poke)
        self._lanes: dict[UUID, _Lane] = {}
        self._slots = asyncio.Semaphore(MOST_LANES)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._complaint = ""

    def start(self) -> None:
        """Begin; return at once."""
        self._task = asyncio.create_task(self._run())

    def leave(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    async def stop(self) -> None:
        """Finish what is under way, if that is soon, and leave; what is not finished others do again."""
        self.leave()
        sending = [lane.task for lane in self._lanes.values() if lane.task]
        if sending:
            await asyncio.wait(sending, timeout=STOP_SECONDS)
        for task in [*sending, *filter(None, [self._task])]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await self._queues.stop()
        await self._sender.close()

    async def _run(self) -> None:
        async with self._database.lifespan(None):
            self._queues.start()
            await self._forever(self._look)
            # Until `stop` has seen the lanes end, they need the database.
            await asyncio.Event().wait()

    async def _forever(self, act: Callable[[], Awaitable[None]]) -> None:
        while not self._stopping.is_set():
            try:
                await act()
            except _DATABASE_AWAY as error:
                self._complain(error)
                await self._rest(_REST_SECONDS)
            except Exception:  # noqa: BLE001  (a defect here is no reason to settle nothing)
                _LOG.exception("Webhooks failed")
                await self._rest(_REST_SECONDS)

    async def add(self, connection: AsyncConnection, records: Sequence[Record]) -> set[UUID]:
        """Write down for whom events are, each once, in the caller's transaction; return the endpoints that are to get one now.

        Raises:
            psycopg.OperationalError: the database does not answer.
        """
        repository = WebhookRepository(connection)
        listening = await repository.listening({record.customer_id for record in records})
        wanted = [record for record in records if None in listening or record.customer_id in listening]
        return await self._add(repository, [_happened(record) for record in wanted]) if wanted else set()

    async def _add(self, repository: WebhookRepository, events: Sequence[Happened]) -> set[UUID]:
        try:
            async with repository.savepoint():
                return await repository.add(events, self._webhooks.failure_seconds)
        except (psycopg.DataError, psycopg.IntegrityError):
            if len(events) == 1:  # of a month that is gone, for one; the others, and the exchange, get theirs
                _LOG.exception("The event %d goes to no webhook", events[0].event_id)
                return set()
            return set[UUID]().union(*[await self._add(repository, [event]) for event in events])

    async def _look(self) -> None:
        """See what is due though no message said so."""
        due = await self._database.read(lambda c: WebhookRepository(c).due(_MOST_DUE), newest=True)
        self._complaint = ""
        metrics.WEBHOOK_AGE.set(max(due.values(), default=0.0))
        for endpoint_id in due:
            self.poke(endpoint_id)
        await self._rest(LOOK_SECONDS * random.uniform(0.8, 1.2))  # noqa: S311

    def poke(self, endpoint_id: UUID) -> None:
        """Have an endpoint be sent what is due."""
        if self._stopping.is_set():
            return
        if lane := self._lanes.get(endpoint_id):
            lane.again = True
            return
        lane = self._lanes[endpoint_id] = _Lane()
        lane.task = asyncio.create_task(self._drive(endpoint_id, lane))

    async def _drive(self, endpoint_id: UUID, lane: _Lane) -> None:
        try:
            while not self._stopping.is_set():
                lane.again = False
                async with self._slots:  # by turns, so that many who hang hold up others for a while only
                    claimed = await self._write(
                        lambda repository: repository.claim(endpoint_id, most=MOST_AT_ONCE, lease=LEASE_SECONDS)
                    )
                    await asyncio.gather(*(self._deliver(endpoint_id, due) for due in claimed))
                if not claimed and not lane.again:
                    return
        except _DATABASE_AWAY as error:
            self._complain(error)
        except Exception:  # noqa: BLE001  (as above)
            _LOG.exception("The webhook %s was not sent what is due", endpoint_id)
        finally:
            del self._lanes[endpoint_id]

    async def _deliver(self, endpoint_id: UUID, due: Due) -> None:
        places_ = dict(zip(places(endpoint_id), (due.secret, due.former_secret), strict=True))
        sealed = {place: stored for place, stored in places_.items() if stored is not None}
        try:
            opened = await self._sealer.open(sealed)
        except SealingError as error:
            # It waits as if nobody had answered: the key may come back.
            _LOG.error("The webhook %s cannot be signed: %s", endpoint_id, error)
            attempt = Attempt(datetime.now(UTC), 0.0, error="The secret cannot be read here.")
        else:
            keys = [opened[place] for place in sealed]
            attempt = await self._sender.send(due.url, str(due.event_id), due.body.encode(), keys)
        await self._record(endpoint_id, due, attempt)

    async def _record(self, endpoint_id: UUID, due: Due, attempt: Attempt) -> None:
        if is_success(attempt.status):
            await self._keep_writing(lambda repository: repository.succeed(endpoint_id, due, attempt))
            metrics.WEBHOOK_LAG.observe((datetime.now(UTC) - due.occurred_at).total_seconds())
            return
        waits = self._webhooks.retry_seconds
        seconds = waits[min(due.step, RETRY_STEPS - 1)] * (1 - random.random() * _MOST_LATE)  # noqa: S311
        # It may ask for more, and not for so much that it would seem forgotten.
        seconds = max(seconds, min(attempt.retry_after or 0, waits[-1]))
        why = await self._keep_writing(
            lambda repository: repository.fail(
                endpoint_id,
                due,
                attempt,
                wait=seconds,
                patience=self._webhooks.failure_seconds,
                gone=attempt.status == _GONE,
            )
        )
        if why:
            _LOG.warning("The webhook %s is off: %s", endpoint_id, why)
            metrics.WEBHOOKS_OFF.labels(why).inc()
        else:
            step = next((step for step, longest in enumerate(waits, 1) if seconds <= longest), RETRY_STEPS)
            self._queues.wait(endpoint_id, step, seconds)

    async def _keep_writing(self, change: Callable[[WebhookRepository], Awaitable[T]]) -> T:
        """Write, over connections that break: what is not written down is sent again."""
        for _ in range(_RECORD_ATTEMPTS - 1):
            try:
                return await self._write(change)
            except _DATABASE_AWAY:
                await asyncio.sleep(_REST_SECONDS)
        return await self._write(change)

    async def _write(self, change: Callable[[WebhookRepository], Awaitable[T]]) -> T:
        async def act(connection: AsyncConnection) -> T:
            return await change(WebhookRepository(connection))

        return await self._database.write(act)

    async def _rest(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    def _complain(self, error: Exception) -> None:
        # Once a reason, not once an attempt.
        if repr(error) != self._complaint:
            self._complaint = repr(error)
            _LOG.warning("Webhooks wait: %r", error)


def _happened(record: Record) -> Happened:
    event = record.event
    assert event.occurred_at is not None
    body = _ENCODER.encode(Payload(event.type, event.occurred_at, event.data)).decode()
    return Happened(record.number, event.occurred_at, event.type, record.customer_id, body)
