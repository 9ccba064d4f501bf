"""What the body of a message is: an order, or none."""

from uuid import UUID

import msgspec

from orders.ordering.identity import CONTENT_BYTES, content
from orders.ordering.schemas import OrderMessage


class DeadLetterError(Exception):
    """A message that will never be an order."""


class _Named(msgspec.Struct):
    """What says which order something would be, if it were one."""

    id: UUID


_DECODER = msgspec.json.Decoder(OrderMessage)
_NAMED_DECODER = msgspec.json.Decoder(_Named)


def parse(body: bytes) -> OrderMessage:
    """Return the order that a message holds.

    Raises:
        DeadLetterError: it is no order, or its identifier is not that of its content.
    """
    try:
        message = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DeadLetterError(str(error)) from error
    if message.id.bytes[:CONTENT_BYTES] != content(message.customer_id, message.idempotency_key, message.lines):
        raise DeadLetterError("the identifier is not that of the content")
    return message


def read(body: bytes) -> OrderMessage | DeadLetterError:
    """Return the order that a message holds, or why it is none."""
    try:
        return parse(body)
    except DeadLetterError as error:
        return error


def named(body: bytes) -> str | None:
    """Return the identifier of the order that something would be, if it were one; none where it names none."""
    try:
        return str(_NAMED_DECODER.decode(body).id)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
