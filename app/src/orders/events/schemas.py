"""What an event looks like, in the exchange, in the stream and to clients."""

from datetime import datetime
from typing import NamedTuple

import msgspec

EXCHANGE = "events"
STREAM = "events"

# Headers of an event's message, by which it is given to those whom it concerns without its body being looked at.
ORDER_HEADER = "order_id"
CUSTOMER_HEADER = "customer_id"


class Event(msgspec.Struct, frozen=True, omit_defaults=True):
    """What happened to an order. An event that comes again has the same id; a later one of the same order has a higher one."""

    type: str
    data: msgspec.Raw
    id: str = ""
    occurred_at: datetime | None = None


class Record(NamedTuple):
    """An event in the database: beside itself its place in the outbox, and whom it concerns."""

    xid: str
    number: int
    order_id: str
    customer_id: str
    event: Event


class Waiting(NamedTuple):
    """The oldest event that is not published: for how long it has been there, and whether it can be published now."""

    seconds: float
    is_due: bool
