"""What the interface of orders takes and gives, and what travels in the queue."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated
from uuid import UUID

import msgspec

MOST_LINES = 100
MOST_PIECES = 1000

# `$` alone would let a line's end pass.
SKU_PATTERN = r"^[A-Z0-9-]{1,64}$(?!\n)"
CUSTOMER_PATTERN = r"^[A-Za-z0-9._-]{1,64}$(?!\n)"
CURSOR_PATTERN = r"^([A-Za-z0-9_-]{32})?$(?!\n)"
KEY_PATTERN = r"^[!-~]{1,255}$(?!\n)"

Sku = Annotated[str, msgspec.Meta(pattern=SKU_PATTERN)]
CustomerId = Annotated[str, msgspec.Meta(pattern=CUSTOMER_PATTERN)]
IdempotencyKey = Annotated[str, msgspec.Meta(pattern=KEY_PATTERN)]
Quantity = Annotated[int, msgspec.Meta(ge=1, le=MOST_PIECES, description="Pieces.")]


class State(StrEnum):
    """Where an order is on its way."""

    ACCEPTED = "accepted"
    SETTLED = "settled"
    REFUSED = "refused"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    CANCELLED = "cancelled"


# From which states an order gets to one by a request. The table order_transition of the database says the same.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.SHIPPED: frozenset({State.SETTLED}),
    State.DELIVERED: frozenset({State.SHIPPED}),
    State.CANCELLED: frozenset({State.SETTLED}),
}


class Refusal(StrEnum):
    """Why an order was refused."""

    UNKNOWN_PRODUCT = "unknown_product"
    TOO_LITTLE_STOCK = "too_little_stock"
    MIXED_CURRENCIES = "mixed_currencies"
    KEY_REUSED = "key_reused"


class NewLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One product and how many of it."""

    sku: Sku
    quantity: Quantity


class NewOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a customer orders; each product once."""

    lines: Annotated[list[NewLine], msgspec.Meta(min_length=1, max_length=MOST_LINES)]


class Accepted(msgspec.Struct, frozen=True):
    """An order that is queued and will be settled or refused."""

    id: UUID
    state: State = State.ACCEPTED


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line of an order; without a price where the product does not exist."""

    sku: str
    quantity: int
    unit_price_cents: int | None


class Order(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An order as far as it is known; while it is only accepted, that is its id."""

    id: UUID
    state: Annotated[
        State, msgspec.Meta(description="accepted; then settled or refused; settled: shipped, delivered, or cancelled")
    ]
    refusal: Refusal | None = None
    accepted_at: datetime | None = None
    decided_at: datetime | None = None
    changed_at: Annotated[datetime | None, msgspec.Meta(description="When it last left a state after that.")] = None
    total_cents: int | None = None
    currency: str | None = None
    lines: list[Line] = []


class OrderPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A customer's orders, the newest first; `next` is where the next page begins, and missing on the last."""

    orders: list[Order]
    next: str | None = None


class FoundOrder(Order, frozen=True, omit_defaults=True):
    """An order, and whose it is."""

    customer_id: str = ""


class FoundPage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Orders of anybody, the newest first; `next` is where the next page begins, and missing on the last."""

    orders: list[FoundOrder]
    next: str | None = None


class OrderMessage(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """An order on its way through the queue. Fields that a newer version adds are passed over."""

    id: UUID
    customer_id: CustomerId
    idempotency_key: IdempotencyKey
    lines: Annotated[list[tuple[Sku, Quantity]], msgspec.Meta(min_length=1, max_length=MOST_LINES)]
    accepted_at: Annotated[datetime, msgspec.Meta(tz=True)]
    traceparent: str = ""  # where in which trace it was published; no part of what it is
