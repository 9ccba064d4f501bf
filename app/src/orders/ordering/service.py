"""The intake of orders: queue first, the database later."""

import asyncio
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from uuid import UUID

import msgspec

from orders import metrics
from orders.database import Database
from orders.errors import BadRequestError, KeyReusedError, NotFoundError
from orders.hints import Hints, decided_hint
from orders.ordering.identity import CONTENT_BYTES, Identities
from orders.ordering.publisher import Publisher
from orders.ordering.repository import OrderRepository
from orders.ordering.schemas import NewOrder, Order, OrderMessage, OrderPage, State

# The edge tries for 3 s, each time on another host: whichever comes last is to be answered by then.
DEADLINE_SECONDS = 2.9

_ENCODER = msgspec.json.Encoder()
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST = (datetime.max.replace(tzinfo=UTC), UUID(int=2**128 - 1))


class Orders:
    """Takes orders and finds them again."""

    def __init__(self, identities: Identities, publisher: Publisher, hints: Hints, database: Database) -> None:
        self._identities = identities
        self._publisher = publisher
        self._hints = hints
        self._database = database

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
        message = OrderMessage(identifier, customer_id, idempotency_key, lines, datetime.now(UTC))
        await self._publisher.publish(_ENCODER.encode(message), str(identifier), give_up_at=give_up_at)
        return identifier

    async def page(self, customer_id: str, *, after: str, limit: int) -> bytes:
        """Return up to `limit` decided orders of a customer as JSON, the newest first, from where a page ended.

        Raises:
            BadRequestError: `after` is not from a page of ours.
            psycopg_pool.PoolTimeout, psycopg.OperationalError: the database does not answer.
        """
        before = _read_cursor(after) if after else _NEWEST
        found = await self._database.read(
            lambda connection: OrderRepository(connection).page(customer_id, before=before, limit=limit + 1)
        )
        more = _cursor(found[limit - 1]) if len(found) > limit else None
        renewed = [msgspec.structs.replace(order, id=self._identities.renew(order.id)) for order in found[:limit]]
        return _ENCODER.encode(OrderPage(renewed, more))

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
        known = await self._hints.get(decided_hint(identifier))
        if known is not None:
            owner, _, content = known.partition(b"\n")
        else:
            found = await self._database.read(lambda connection: OrderRepository(connection).get(identifier))
            if found is None:
                return _ENCODER.encode(Order(identifier, State.ACCEPTED))
            owner, content = found.customer_id.encode(), _ENCODER.encode(found.order)
        if customer_id is not None and owner != customer_id.encode():
            raise _not_found(text)
        return content


def _not_found(text: str) -> NotFoundError:
    return NotFoundError(f"No order has the id {text[:64]!r}.")


def _cursor(order: Order) -> str:
    """Return where an order stands among a customer's: 64 bits of microseconds since 1970, and its stored identifier."""
    assert order.accepted_at is not None
    microseconds = (order.accepted_at - _EPOCH) // timedelta(microseconds=1)
    return urlsafe_b64encode(microseconds.to_bytes(8) + order.id.bytes).decode()


def _read_cursor(text: str) -> tuple[datetime, UUID]:
    found = urlsafe_b64decode(text)
    try:
        return _EPOCH + timedelta(microseconds=int.from_bytes(found[:8])), UUID(bytes=found[8:])
    except (OverflowError, ValueError) as error:
        raise BadRequestError("after", "is not the `next` of a page") from error
