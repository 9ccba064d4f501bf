"""Where a page of a list ends: a time, and what tells things of that time apart."""

from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta

from orders.errors import BadRequestError

LAST = 2**63 - 1
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEWEST = datetime.max.replace(tzinfo=UTC)


def cursor(at: datetime, identity: bytes) -> str:
    """Return a place in a list as text: 64 bits of microseconds since 1970, and an identity of 10 or 16 bytes."""
    microseconds = (at - _EPOCH) // timedelta(microseconds=1)
    return urlsafe_b64encode(microseconds.to_bytes(8) + identity).decode()


def read_cursor(text: str) -> tuple[datetime, bytes]:
    """Return the place that a text stands for; an empty text stands before the newest of all.

    Raises:
        BadRequestError: it is not from a page of ours.
    """
    if not text:
        return _NEWEST, b"\xff" * 16
    found = urlsafe_b64decode(text)
    try:
        return _EPOCH + timedelta(microseconds=int.from_bytes(found[:8])), found[8:]
    except OverflowError as error:
        raise BadRequestError("after", "is not the `next` of a page") from error
