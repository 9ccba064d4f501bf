"""Orders out of the intake's queues, in batches."""

import asyncio
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from orders.broker import Link
from orders.ordering.publisher import LANES
from orders.settings import Settings

MOST = 200
LINGER_SECONDS = 0.1


class Delivery(NamedTuple):
    """One message, to be acknowledged on the channel that brought it."""

    channel: Any
    tag: int
    body: bytes


class Consumer(Link):
    """Consumes all intake queues by one connection to any broker that lives."""

    name = "worker"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.addresses("rabbitmq_nodes"))
        self._buffer: deque[Delivery] = deque()
        self._changed = asyncio.Event()

    def opened(self) -> None:
        """Ask for deliveries: of each queue one batch that is worked on and one that waits."""
        self._channel.basic_qos(prefetch_count=2 * MOST)
        for number in range(1, LANES + 1):
            self._channel.basic_consume(f"intake-{number}", self._on_delivery)
        self.become_ready()

    def lost(self) -> None:
        """Forget what the broker will now deliver again."""
        self._buffer.clear()

    def wake(self) -> None:
        """Have `batch` return now, with nothing."""
        self._changed.set()

    async def batch(self) -> list[Delivery]:
        """Wait for deliveries and return up to a batch of them in their order; none when woken."""
        while not self._buffer:
            self._changed.clear()
            await self._changed.wait()
            if not self._buffer:
                return []
        if len(self._buffer) < MOST:
            await asyncio.sleep(LINGER_SECONDS)
        return [self._buffer.popleft() for _ in range(min(MOST, len(self._buffer)))]

    def finish(self, batch: Sequence[Delivery], dead: Iterable[Delivery]) -> None:
        """Send the dead ones to the dead letters, and acknowledge the batch and all that came before it."""
        last = batch[-1]
        if last.channel is not self._channel:
            return  # lost meanwhile: all of it comes again, and is known then
        for delivery in dead:
            last.channel.basic_reject(delivery.tag, requeue=False)
        last.channel.basic_ack(last.tag, multiple=True)

    def _on_delivery(self, channel: Any, method: Any, _properties: Any, body: bytes) -> None:  # noqa: ANN401
        if channel is self._channel:
            self._buffer.append(Delivery(channel, method.delivery_tag, body))
            self._changed.set()
