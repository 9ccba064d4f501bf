"""The intake of orders: queue first, the database later."""

import asyncio
import hashlib
import logging
from datetime import UTC, datetime
from uuid import UUID

import msgspec
from opentelemetry.trace import SpanKind
from psycopg import AsyncConnection

from orders import metrics
from orders.database import Database
from orders.errors import BadRequestError, KeyReusedError, NotFoundError, TransitionError
from orders.hints import DECISION_SECONDS, OVERRULED, Hints, decision_hint
from orders.ordering.identity import CONTENT_BYTES, Identities
from orders.ordering.publisher import Publisher
from orders.ordering.repository import OrderRepository
from orders.ordering.schemas import (
    TRANSITIONS,
    FoundOrder,
    FoundPage,
    NewOrder,
    Order,
    OrderMessage,
    OrderPage,
    State,
)
from orders.pages import cursor, read_cursor
from orders.tracing import Attributes, span, traceparent

_LOG = logging.getLogger(__name__)

# The edge tries for 4.8 s, each time on another host: whichever comes last is to be answered by then.
DEADLINE_SECONDS = 4.7

_ENCODER = msgspec.json.Encoder()
_PUBLISH: Attributes = {
    "messaging.system": "rabbitmq",
    "messaging.operation.name": "publish",
    "messaging.operation.type": "send",
    "messaging.destination.name": "intake",
}


class Orders:
    """Takes orders and finds them again."""

    def __init__(self, identities: Identities, publisher: Publisher, hints: Hints, database: Database) -> None:
        self._identities = identities
        self._publisher = publisher
        self._hints = hints
        self._database = database
        self._overruling: set[asyncio.Task[None]] = set()

    async def place(self, customer_id: str, idempotency_key: str, order: NewOrder) -> UUID:
        """Queue an order and return its identifier, which is the same for the same order.

        Raises:
            KeyReusedError: the key came with another body before, as far as Valkey knows; PostgreSQL has the last word.
            UnavailableError: the order could not be queued in time.
        """
        give_up_at = asyncio.get_running_loop().time() + DEADLINE_SECONDS
        lines = [(line.sku, line.quantity) for line in order.lines]
        identifier = self._identities.identify(customer_id, idempotency_key, lines)
        key = hashlib.sha256(f"{customer_id} {idempotency_key}".encode()).hexdigest()[:32]
        content = identifier.bytes[:CONTENT_BYTES]
        before = await self._hints.claim(f"key:{key}", content)
        if before is not None and before != content:
            metrics.KEYS_REUSED.inc()
            raise KeyReusedError("This Idempotency-Key was used with another body.")
        with span("publish intake", SpanKind.PRODUCER, _PUBLISH) as recording:  # its time is that of the confirm
            now = datetime.now(UTC)
            message = OrderMessage(identifier, customer_id, idempotency_key, lines, now, traceparent())
            if recording:
                recording.note({"messaging.message.id": str(identifier)})
            await self._publisher.publish(_ENCODER.encode(message), str(identifier), give_up_at=give_up_at)
        if recording:
            _LOG.info("Order %s is queued", identifier)
        return identifier

    async def page(self, customer_id: str, *, after: str, limit: int) -> bytes:
        """Return up to `limit` decided orders of a customer as JSON, the newest first, from where a page ended.

        Raises:
            BadRequestError: `after` is not from a page of ours.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        before = _read_cursor(after)
        found = await self._database.read(
            lambda connection: OrderRepository(connection).page(customer_id, before=before, limit=limit + 1)
        )
        more = _cursor(found[limit - 1]) if len(found) > limit else None
        renewed = [msgspec.structs.replace(order, id=self._identities.renew(order.id)) for order in found[:limit]]
        return _ENCODER.encode(OrderPage(renewed, more))

    async def search(
        self, *, customer_id: str | None, state: State | None, since: datetime | None, after: str, limit: int
    ) -> bytes:
        """Return up to `limit` decided orders of anybody as JSON, the newest first, from where a page ended.

        Raises:
            BadRequestError: `after` is not from a page of ours, or nothing says which orders.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        if customer_id is None and state is None:
            raise BadRequestError("state", "is missing, as is customer; one of them is to say which orders")
        before = _read_cursor(after)
        found = await self._database.read(
            lambda connection: OrderRepository(connection).search(
                customer_id=customer_id, state=state, since=since, before=before, limit=limit + 1
            )
        )
        more = _cursor(found[limit - 1].order) if len(found) > limit else None
        orders = [
            FoundOrder(
                **{**msgspec.structs.asdict(each.order), "id": self._identities.renew(each.order.id)},
                customer_id=each.customer_id,
            )
            for each in found[:limit]
        ]
        return _ENCODER.encode(FoundPage(orders, more))

    async def change(self, text: str, state: State, *, caller: str, customer_id: str | None) -> bytes:
        """Bring a customer's order to a state, or anybody's where no customer is named, and return it as JSON.

        One that has the state already stays as it is.

        Raises:
            NotFoundError: the identifier is not one of ours, or is that of another customer's order.
            TransitionError: it does not go there from where it is.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the primary does not answer; whether it was changed is not known.
        """
        identifier = self._identities.parse(text)
        if identifier is None:
            raise _not_found(text)

        async def change_it(connection: AsyncConnection) -> Order:
            orders = OrderRepository(connection)
            await orders.lock(identifier)
            found = await orders.get(identifier)
            if found is None:
                raise TransitionError(f"The order is not settled yet, and cannot be {state} now.")
            if customer_id is not None and found.customer_id != customer_id:
                raise _not_found(text)
            if found.order.state is state:
                return found.order
            if found.order.state not in TRANSITIONS[state]:
                raise TransitionError(f"The order is {found.order.state}, and cannot be {state}.")
            await orders.change(identifier, state)
            changed = await orders.get(identifier)
            assert changed is not None
            return changed.order

        order = await self._database.write(change_it)
        await self._overrule(identifier)
        _LOG.info("%s has order %s %s", caller, order.id, state)
        return _ENCODER.encode(order)

    async def _overrule(self, identifier: UUID) -> None:
        """See that Valkey does not go on to tell how an order was decided, at once or as soon as it answers."""
        overruled = {decision_hint(each): OVERRULED for each in self._identities.variants(identifier)}

        async def try_again() -> None:
            for _ in range(DECISION_SECONDS):  # nothing from before is left then
                await asyncio.sleep(1)
                if await self._hints.remember(overruled, DECISION_SECONDS):
                    return

        if not await self._hints.remember(overruled, DECISION_SECONDS):
            task = asyncio.create_task(try_again())
            self._overruling.add(task)
            task.add_done_callback(self._overruling.discard)

    async def find(self, text: str, customer_id: str | None) -> bytes:
        """Return a customer's order with this identifier as JSON, or anybody's where no customer is named.

        One that nobody has heard of yet is accepted, for whoever has the identifier: it names no customer, and is not to be
        guessed.

        Raises:
            NotFoundError: the identifier is not one of ours, or is that of another customer's order.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        identifier = self._identities.parse(text)
        if identifier is None:
            raise _not_found(text)
        known = await self._hints.get(decision_hint(identifier))
        if known:
            owner, _, content = known.partition(b"\n")
        else:
            # Replicas may be behind a change that was answered.
            found = await self._database.read(
                lambda connection: OrderRepository(connection).get(identifier), newest=known == OVERRULED
            )
            if found is None:
                return _ENCODER.encode(Order(identifier, State.ACCEPTED))
            owner, content = found.customer_id.encode(), _ENCODER.encode(found.order)
        if customer_id is not None and owner != customer_id.encode():
            raise _not_found(text)
        return content


def _not_found(text: str) -> NotFoundError:
    return NotFoundError(f"No order has the id {text[:64]!r}.")


def _cursor(order: Order) -> str:
    """Return where an order stands among others: by when it was accepted, and by its stored identifier."""
    assert order.accepted_at is not None
    return cursor(order.accepted_at, order.id.bytes)


def _read_cursor(text: str) -> tuple[datetime, UUID]:
    at, identity = read_cursor(text)
    return at, UUID(bytes=identity)
