"""Gives events to all who listen, out of one consumer of the stream; who was away reads what it missed by a consumer of its own.

A place in the stream is an offset: that of the last event that was seen. Nothing is lost between what is read again and what comes
live, since both are compared by it in one step of the event loop.
"""

import asyncio
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Hashable
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

from orders import metrics
from orders.broker import Link
from orders.errors import UnavailableError
from orders.events.schemas import CUSTOMER_HEADER, ORDER_HEADER, STREAM
from orders.ordering.identity import CONTENT_BYTES
from orders.settings import Settings

_LOG = logging.getLogger(__name__)

MOST_LISTENERS = 500
MOST_OF_ONE = 20
MOST_WAITING = 256  # events that a client has not taken yet
MOST_REPLAYS = 4
REPLAY_SECONDS = 2.0  # so long a client waits for its turn to read again
READY_SECONDS = 2.0
REST_SECONDS = 30.0  # so long the consumer stays when nobody listens any more
HEARTBEAT_SECONDS = 15.0
RECENT = 2000
_PREFETCH = 500
_REPLAY_PREFETCH = 100
_EMPTY = -1

ALL: Hashable = "all"


class Message(NamedTuple):
    """An event as it is in the stream."""

    offset: int
    number: int
    type: str
    order_id: str
    customer_id: str
    body: bytes

    def topics(self) -> tuple[Hashable, ...]:
        """Return to what one may listen to hear of it."""
        return ALL, customer_topic(self.customer_id), order_topic(self.order_id)


def customer_topic(customer_id: str) -> Hashable:
    """Return what to listen to for events of a customer's orders."""
    return "customer", customer_id


def order_topic(order_id: str) -> Hashable:
    """Return what to listen to for events of an order, whatever key its identifier was made with."""
    return "order", order_id.replace("-", "")[: 2 * CONTENT_BYTES]


class Interest(NamedTuple):
    """What a client listens to: a topic; only a customer's events of it; only those after an event of a number."""

    subject: str  # whose stream it is
    topic: Hashable
    customer_id: str | None = None
    after: int = 0

    def __contains__(self, message: object) -> bool:
        """Tell whether an event is for the client."""
        return (
            isinstance(message, Message)
            and self.topic in message.topics()
            and self.customer_id in {None, message.customer_id}
            and message.number > self.after
        )


class Listener:
    """A client that listens, and what it has not taken yet."""

    def __init__(self, interest: Interest, seen: int) -> None:
        self.interest = interest
        self.seen = seen
        self.why_over = ""
        self._waiting: deque[Message] = deque()
        self._changed = asyncio.Event()

    def give(self, message: Message) -> None:
        """Have the client told of an event, if it is for it."""
        if message.offset > self.seen and message in self.interest:
            self._waiting.append(message)
            self._changed.set()
            if len(self._waiting) > MOST_WAITING:
                self.end("slow")

    def end(self, why: str) -> None:
        """Have the stream end; what waits is left, since the client comes again and asks for it."""
        self.why_over = self.why_over or why
        self._changed.set()

    async def next(self) -> Message | None:
        """Wait for the next event and return it; none after some seconds without."""
        with suppress(TimeoutError):
            async with asyncio.timeout(HEARTBEAT_SECONDS):
                while not self._waiting and not self.why_over:
                    self._changed.clear()
                    await self._changed.wait()
        return self._waiting.popleft() if self._waiting and not self.why_over else None


class Hub(Link):
    """The one consumer of the stream, connected as long as anybody listens."""

    name = "events"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, settings.addresses("rabbitmq_nodes"))
        self._position: int | None = None  # the offset of the last event; of none: the stream is empty
        self._known = asyncio.Event()
        self._recent: deque[Message] = deque(maxlen=RECENT)
        self._listeners: defaultdict[Hashable, set[Listener]] = defaultdict(set)
        self._of: defaultdict[str, int] = defaultdict(int)
        self._count = 0
        self._replays = asyncio.Semaphore(MOST_REPLAYS)
        self._readers: set[Reader] = set()
        self._running = False
        self._draining = False
        self._rest: asyncio.TimerHandle | None = None
        self._resting: asyncio.Task[None] | None = None
        self._unacknowledged = 0

    # The consumer

    def opened(self) -> None:
        """See whether there are any events: of an empty stream nothing tells where it ends."""
        self._channel.basic_qos(prefetch_count=_PREFETCH)
        self._channel.queue_declare(STREAM, passive=True, callback=self._consume)

    def _consume(self, declared: Any) -> None:  # noqa: ANN401
        if self._channel is None:  # lost meanwhile
            return
        self._unacknowledged = 0
        if self._position is None and declared.method.message_count == 0:
            self._move(_EMPTY)
        # Those who listen miss nothing by a broker's loss: it goes on where it was.
        offset: str | int = "last" if self._position is None else self._position + 1
        self._channel.basic_consume(
            STREAM, self._on_message, arguments={"x-stream-offset": offset}, callback=lambda _: self.become_ready()
        )

    def lost(self) -> None:
        """End what is read again: who read it asks once more."""
        for reader in [*self._readers]:
            reader.lost()

    def _move(self, position: int) -> None:
        self._position = position
        self._known.set()

    def _on_message(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:  # noqa: ANN401
        if channel is not self._channel:
            return
        self._unacknowledged += 1
        if self._unacknowledged >= _PREFETCH // 4:
            self._unacknowledged = 0
            channel.basic_ack(method.delivery_tag, multiple=True)
        message = _message(properties, body)
        if self._position is not None and message.offset <= self._position:
            return
        self._move(message.offset)
        self._recent.append(message)
        for topic in message.topics():
            for listener in self._listeners.get(topic, ()):
                listener.give(message)

    # Those who listen

    async def position(self) -> int:
        """Return where the stream ends now.

        Raises:
            UnavailableError: no broker tells it now.
        """
        self._wake()
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._known.wait()
        except TimeoutError:
            if self.ready:  # a broker whose copy of the stream is not there yet says nothing
                self.drop("it tells nothing of the stream")
            raise UnavailableError("Events cannot be read now.") from None
        assert self._position is not None
        return self._position

    def admit(self, subject: str) -> None:
        """Return if somebody may listen.

        Raises:
            UnavailableError: too many do, or it stops.
        """
        if self._draining:
            raise UnavailableError("This replica stops.")
        if self._count >= MOST_LISTENERS or self._of.get(subject, 0) >= MOST_OF_ONE:
            raise UnavailableError("Too many listen to events.")

    def drain(self) -> None:
        """End all streams, and begin no more: clients go on at another replica."""
        self._draining = True
        for listener in {each for listeners in self._listeners.values() for each in listeners}:
            listener.end("drain")
        for reader in [*self._readers]:
            reader.lost()

    async def follow(self, interest: Interest, *, seen: int, wait: bool) -> AsyncGenerator[tuple[int, Message | None]]:
        """Yield what comes after an offset, each time with the offset that is seen then; now and then only that.

        Without waiting it ends where the stream ended when it began.
        """
        self._wake()
        self._add(interest.subject, 1)
        why = "client"
        listener: Listener | None = None
        try:
            listener = Listener(interest, seen)
            async with aclosing(self._missed(listener)) as missed:
                async for message in missed:
                    yield listener.seen, message
            while wait and not listener.why_over:
                heard = await listener.next()
                if heard is not None:
                    listener.seen = heard.offset
                elif not listener.why_over and self._position is not None:
                    listener.seen = max(listener.seen, self._position)  # all before it was for others
                if not listener.why_over:
                    yield listener.seen, heard
            why = listener.why_over or "done"
        except UnavailableError:  # no broker any more; the answer has begun, so it just ends
            why = "lost"
        finally:
            self._add(interest.subject, -1)
            if listener:
                self._detach(listener)
            metrics.STREAMS_ENDED.labels(why).inc()

    async def _missed(self, listener: Listener) -> AsyncGenerator[Message]:
        """Yield what a listener missed, and have it attached to what comes then."""
        position = await self.position()
        listener.seen = min(listener.seen, position)
        if listener.seen < position and self._recent and self._recent[0].offset <= listener.seen + 1:
            metrics.REPLAYS.labels("memory").inc()
            # All at once: what comes while a client takes these is for the listener.
            missed = [message for message in self._recent if message.offset > listener.seen]
            self._attach(listener)
            for message in missed:
                if listener.why_over:
                    return
                if message in listener.interest:
                    listener.seen = max(listener.seen, message.offset)
                    yield message
            return
        if listener.seen < position:
            metrics.REPLAYS.labels("stream").inc()
            async with aclosing(self._replay(listener)) as read:
                async for message in read:
                    yield message
            return
        self._attach(listener)

    async def _replay(self, listener: Listener) -> AsyncGenerator[Message]:
        try:
            async with asyncio.timeout(REPLAY_SECONDS):
                await self._replays.acquire()
        except TimeoutError:
            listener.end("busy")
            return
        reader = Reader(self, self._connection, listener.seen + 1)
        self._readers.add(reader)
        try:
            async for message in reader.messages():
                listener.seen = message.offset
                if message in listener.interest:
                    yield message
                if self._position is not None and listener.seen >= self._position:
                    self._attach(listener)
                    return
            listener.end("lost")
        finally:
            self._readers.discard(reader)
            reader.close()
            self._replays.release()

    def _attach(self, listener: Listener) -> None:
        if self._draining:
            listener.end("drain")
        self._listeners[listener.interest.topic].add(listener)

    def _detach(self, listener: Listener) -> None:
        topic = listener.interest.topic
        self._listeners[topic].discard(listener)
        if not self._listeners[topic]:
            del self._listeners[topic]

    def _add(self, subject: str, change: int) -> None:
        self._count += change
        self._of[subject] += change
        if not self._of[subject]:
            del self._of[subject]
        metrics.STREAMS.set(self._count)
        if not self._count and self._running:
            self._rest = asyncio.get_running_loop().call_later(REST_SECONDS, self._go_to_rest)

    # Its connection

    def _wake(self) -> None:
        if self._rest:
            self._rest.cancel()
            self._rest = None
        if not self._running and not self._draining:
            self._running = True
            self.start()

    def _go_to_rest(self) -> None:
        if not self._count:
            self._resting = asyncio.create_task(self.stop())

    async def stop(self, seconds: float = 1.0) -> None:
        """Close the connection, until somebody listens again."""
        self._running = False
        self._position = None
        self._known.clear()
        self._recent.clear()
        await super().stop(seconds)


class Reader:
    """A consumer for one client, from an offset on; as slow as the client."""

    def __init__(self, hub: Hub, connection: Any, offset: int) -> None:  # noqa: ANN401
        self._hub = hub
        self._offset = offset
        self._messages: deque[tuple[int, Message]] = deque()
        self._changed = asyncio.Event()
        self._over = False
        self._channel: Any = None
        if connection is None or not connection.is_open:
            self._over = True
        else:
            connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:  # noqa: ANN401
        self._channel = channel
        if self._over:
            channel.close()
            return
        channel.add_on_close_callback(lambda *_: self.lost())
        channel.add_on_cancel_callback(lambda *_: self.lost())
        channel.basic_qos(prefetch_count=_REPLAY_PREFETCH)
        channel.basic_consume(STREAM, self._on_message, arguments={"x-stream-offset": self._offset})

    def _on_message(self, _channel: Any, method: Any, properties: Any, body: bytes) -> None:  # noqa: ANN401
        self._messages.append((method.delivery_tag, _message(properties, body)))
        self._changed.set()

    async def messages(self) -> AsyncGenerator[Message]:
        """Yield events; end where the connection does."""
        for number in itertools.count(1):
            while not self._messages and not self._over:
                self._changed.clear()
                await self._changed.wait()
            if self._over:
                return
            tag, message = self._messages.popleft()
            if number % (_REPLAY_PREFETCH // 2) == 0:
                self._channel.basic_ack(tag, multiple=True)
                await asyncio.sleep(0)
            yield message

    def lost(self) -> None:
        """End."""
        self._over = True
        self._changed.set()

    def close(self) -> None:
        """End, and give the channel back."""
        self.lost()
        if self._channel is not None and self._channel.is_open:
            self._channel.close()


def _message(properties: Any, body: bytes) -> Message:  # noqa: ANN401
    headers = properties.headers
    number = properties.message_id or ""
    # What is none of our events has no number, and so is for nobody.
    return Message(
        headers["x-stream-offset"],
        int(number) if number.isdecimal() else 0,
        properties.type or "",
        str(headers.get(ORDER_HEADER, "")),
        str(headers.get(CUSTOMER_HEADER, "")),
        body,
    )
