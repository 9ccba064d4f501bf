"""Events as a client hears them: an order's history first, then what happens."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec

from orders.access.schemas import Access, Caller
from orders.database import Database
from orders.errors import NotFoundError
from orders.events.repository import EventRepository
from orders.events.schemas import Event
from orders.events.stream import ALL, Hub, Interest, customer_topic, order_topic
from orders.ordering.schemas import Order
from orders.ordering.service import Orders

RETRY_MS = 2000

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Order)


class Beginning(NamedTuple):
    """With what a stream begins: whose it is and of what, what is told first, and the offset that is seen by then."""

    interest: Interest
    history: Sequence[Event]
    seen: int


class Events:
    """Lets clients listen."""

    def __init__(self, hub: Hub, orders: Orders, database: Database) -> None:
        self._hub = hub
        self._orders = orders
        self._database = database

    async def of_all(self, caller: Caller, last: int | None) -> Beginning:
        """Return the beginning of a stream of the caller's orders, or of all to an operator.

        Raises:
            UnavailableError: too many listen, or no broker answers.
        """
        self._hub.admit(caller.subject)
        position = await self._hub.position()
        topic = ALL if Access.OPERATOR in caller.roles else customer_topic(caller.subject)
        return Beginning(Interest(caller.subject, topic), [], position if last is None else last)

    async def of_order(self, text: str, caller: Caller, last: int | None) -> Beginning:
        """Return the beginning of a stream of one order: its history, unless the client says what it has seen.

        Raises:
            NotFoundError: the identifier is not one of ours, or is that of another customer's order.
            UnavailableError: too many listen, or no broker answers.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        customer_id = None if Access.OPERATOR in caller.roles else caller.subject
        known = await self._orders.find(text, customer_id)
        self._hub.admit(caller.subject)
        # In this sequence, and of the primary: what was published by then is in the history, and what comes later in the stream.
        position = await self._hub.position()
        interest = Interest(caller.subject, order_topic(text), customer_id)
        if last is not None:
            return Beginning(interest, [], last)
        order = _DECODER.decode(known)
        records = await self._database.read(lambda c: EventRepository(c).history(order.id), newest=True)
        if not records:  # it is only accepted yet, or was decided before there were events
            return Beginning(interest, [Event(f"order.{order.state}", msgspec.Raw(known))], position)
        if customer_id not in {None, records[0].customer_id}:
            raise NotFoundError(f"No order has the id {text[:64]!r}.")
        return Beginning(interest._replace(after=records[-1].number), [record.event for record in records], position)

    async def tell(self, beginning: Beginning, *, wait: bool) -> AsyncGenerator[bytes]:
        """Yield server-sent events. An event's `id` is its offset, to which a client that comes again refers."""
        yield b"retry: %d\n\n" % RETRY_MS
        for event in beginning.history:
            yield b"event: %s\ndata: %s\n\n" % (event.type.encode(), _ENCODER.encode(event))
        # None of these had an id of its own: only who heard all of them goes on from here.
        yield _seen(beginning.seen)
        async with aclosing(self._hub.follow(beginning.interest, seen=beginning.seen, wait=wait)) as following:
            async for seen, message in following:
                if message is None:
                    yield b":\n\n" + _seen(seen)
                else:
                    yield b"id: %d\nevent: %s\ndata: %s\n\n" % (seen, message.type.encode(), message.body)


def _seen(offset: int) -> bytes:
    return b"id: %d\n\n" % offset if offset >= 0 else b""
