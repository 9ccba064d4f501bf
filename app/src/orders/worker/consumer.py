"""Orders out of the intake's queues, in batches."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import pika

from orders.broker import Link
from orders.ordering.bundles import split
from orders.ordering.publisher import LANES
from orders.ordering.schemas import OrderMessage
from orders.settings import Settings
from orders.worker.reading import DeadLetterError, read

# A commit waits for the disk and for a standby, and the statement is planned, once a batch.
MOST = 500
PREFETCH = 400  # messages of each queue: all of them are held in memory
# Fewer, larger batches: at 50 orders/s they take a fifth of a core less of RabbitMQ, PostgreSQL and workers than those of 0.1 s.
LINGER_SECONDS = 0.25
CONFIRM_SECONDS = 5.0


@dataclass(frozen=True)
class Delivery:
    """One message, to be acknowledged on the channel that brought it."""

    channel: Any
    tag: int
    queue: str
    bodies: Sequence[bytes]  # of its orders

    @cached_property
    def messages(self) -> Sequence[OrderMessage | DeadLetterError]:
        """What each body is."""
        return [read(body) for body in self.bodies]


class Dead(NamedTuple):
    """A body that is no order, the message that brought it, and the order's identifier as far as it can be told."""

    delivery: Delivery
    body: bytes
    message_id: str | None


class Consumer(Link):
    """Consumes all intake queues by one connection to any broker that lives."""

    name = "worker"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.addresses("rabbitmq_nodes"))
        self._buffer: deque[Delivery] = deque()
        self._waiting = 0  # orders in the buffer
        self._changed = asyncio.Event()
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._confirmed = asyncio.Event()

    def opened(self) -> None:
        """Ask for deliveries: a batch that is worked on and one that waits, more where messages are bundles."""
        self._published = 0
        self._channel.confirm_delivery(self._on_confirm)
        self._channel.add_on_return_callback(lambda *_: self.drop("a queue is gone"))
        self._channel.basic_qos(prefetch_count=PREFETCH)
        for number in range(1, LANES + 1):
            queue = f"intake-{number}"
            self._channel.basic_consume(queue, partial(self._on_delivery, queue))
        self.become_ready()

    def lost(self) -> None:
        """Forget what the broker will now deliver again."""
        self._buffer.clear()
        self._waiting = 0
        self._unconfirmed.clear()
        self._confirmed.set()

    @property
    def waiting(self) -> int:
        """How many orders are here for the next batches."""
        return self._waiting

    def wake(self) -> None:
        """Have `batch` return now, with nothing."""
        self._changed.set()

    async def batch(self) -> list[Delivery]:
        """Wait for deliveries and return up to a batch of orders in their order; none when woken.

        A bundle is not parted: a batch may have the rest of its last one beyond its size.
        """
        while not self._buffer:
            self._changed.clear()
            await self._changed.wait()
            if not self._buffer:
                return []
        if self._waiting < MOST:
            await asyncio.sleep(LINGER_SECONDS)
        taken: list[Delivery] = []
        left = MOST
        while self._buffer and left > 0:
            taken.append(self._buffer.popleft())
            left -= len(taken[-1].bodies)
        self._waiting -= MOST - left
        return taken

    def read_ahead(self) -> None:
        """Read what the next batch will be, as far as it is here: for while there is nothing else to do."""
        left = MOST
        for delivery in self._buffer:
            if left <= 0:
                break
            left -= len(delivery.messages)

    async def finish(self, batch: Sequence[Delivery], dead: Iterable[Dead]) -> None:
        """Send the dead ones to the dead letters, and acknowledge the batch and all that came before it.

        One that came in a bundle goes back to its queue by itself first: it dies when it comes from there.
        """
        last = batch[-1]
        alone = [each for each in dead if len(each.delivery.bodies) == 1]
        bundled = [each for each in dead if len(each.delivery.bodies) > 1]
        if bundled and last.channel is self._channel:
            await self._put_back(bundled)
        if last.channel is not self._channel:
            return  # lost meanwhile: all of it comes again, and is known then
        rejected = {each.delivery.tag for each in alone}
        for tag in rejected:
            last.channel.basic_reject(tag, requeue=False)
        # Not by the tag of one that is rejected: where nothing else is left the broker does not know it any more.
        for delivery in reversed(batch):
            if delivery.tag not in rejected:
                last.channel.basic_ack(delivery.tag, multiple=True)
                break

    async def _put_back(self, dead: Sequence[Dead]) -> None:
        """Return once the broker has each as a message of its own; without its confirm the connection is given up."""
        self._confirmed.clear()
        for each in dead:
            self._published += 1
            self._unconfirmed.add(self._published)
            properties = pika.BasicProperties(
                delivery_mode=2, message_id=each.message_id, content_type="application/json"
            )
            self._channel.basic_publish("", each.delivery.queue, each.body, properties, mandatory=True)
        with suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_SECONDS):
                await self._confirmed.wait()
                return
        self.drop("it does not confirm")

    def _on_confirm(self, frame: Any) -> None:  # noqa: ANN401
        method = frame.method
        if method.NAME != "Basic.Ack":
            self.drop("a queue takes nothing")
            return
        tag = method.delivery_tag
        self._unconfirmed = {each for each in self._unconfirmed if each > tag or (each < tag and not method.multiple)}
        if not self._unconfirmed:
            self._confirmed.set()

    def _on_delivery(self, queue: str, channel: Any, method: Any, properties: Any, body: bytes) -> None:  # noqa: ANN401
        if channel is self._channel:
            bodies = split(properties.type, body)
            self._buffer.append(Delivery(channel, method.delivery_tag, queue, bodies))
            self._waiting += len(bodies)
            self._changed.set()
