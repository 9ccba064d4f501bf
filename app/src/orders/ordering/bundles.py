"""Several orders in one message: a JSON array of what each would be as a message of its own, marked by its type."""

from collections.abc import Sequence

import msgspec

TYPE = "orders"
# At most so many orders and bytes, so that a worker's batch stays one and a frame holds a message.
MOST_ORDERS = 50
MOST_BYTES = 65536

_SPLITTER = msgspec.json.Decoder(list[msgspec.Raw])


def bundle(bodies: Sequence[bytes]) -> bytes:
    """Return the body of the message that holds all these."""
    return b"[" + b",".join(bodies) + b"]"


def split(message_type: str | None, body: bytes) -> Sequence[bytes]:
    """Return the bodies of the orders that a message holds; itself where it is no bundle, and where it is a broken one."""
    if message_type != TYPE:
        return (body,)
    try:
        # What each of them is, is for whoever wants it: one that is no order is not the others' fault.
        bodies = [bytes(each) for each in _SPLITTER.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        bodies = []
    return bodies or (body,)
