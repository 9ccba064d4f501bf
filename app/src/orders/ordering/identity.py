"""An order's identifier: derived from what is ordered, so that nobody has to be asked for it.

A UUID of version 8 (RFC 9562). Its first eleven bytes hold 82 bits of SHA-256 over customer, Idempotency-Key and canonical
body, beside version and variant; its last five hold 40 bits of an HMAC over those eleven. So the same order always has the
same identifier, and one that we never gave out is told from one that no store has heard of yet.
"""

import hashlib
import hmac
from collections.abc import Iterable, Sequence
from uuid import UUID

import msgspec

CONTENT_BYTES = 11
_MAC_BYTES = 5
_ENCODER = msgspec.json.Encoder()


def canonical(customer_id: str, idempotency_key: str, lines: Iterable[tuple[str, int]]) -> bytes:
    """Return the order as bytes that are the same for any order of its lines and any way to write them."""
    return b"order 1\n" + _ENCODER.encode((customer_id, idempotency_key, sorted(lines)))


def content(customer_id: str, idempotency_key: str, lines: Iterable[tuple[str, int]]) -> bytes:
    """Return the first eleven bytes of the order's identifier."""
    bits = int.from_bytes(hashlib.sha256(canonical(customer_id, idempotency_key, lines)).digest()[:CONTENT_BYTES]) >> 6
    high, middle, low = bits >> 34, bits >> 22 & 0xFFF, bits & 0x3FFFFF
    return (high << 40 | 0x8 << 36 | middle << 24 | 0b10 << 22 | low).to_bytes(CONTENT_BYTES)


class Identities:
    """Makes identifiers with the first key, and knows those made with any of them."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._keys = keys

    def identify(self, customer_id: str, idempotency_key: str, lines: Iterable[tuple[str, int]]) -> UUID:
        """Return the order's identifier."""
        first = content(customer_id, idempotency_key, lines)
        return UUID(bytes=first + _mac(self._keys[0], first))

    def parse(self, text: str) -> UUID | None:
        """Return the identifier that a text is; none where we cannot have given it out."""
        try:
            identifier = UUID(text)
        except ValueError:
            return None
        first, mac = identifier.bytes[:CONTENT_BYTES], identifier.bytes[CONTENT_BYTES:]
        ours = str(identifier) == text and any(hmac.compare_digest(mac, _mac(key, first)) for key in self._keys)
        return identifier if ours else None

    def variants(self, identifier: UUID) -> list[UUID]:
        """Return all identifiers by which an order may be asked for now: one a key."""
        first = identifier.bytes[:CONTENT_BYTES]
        return [UUID(bytes=first + _mac(key, first)) for key in self._keys]

    def renew(self, identifier: UUID) -> UUID:
        """Return the identifier of the same order as it is made today: the stored one may be of a key that is gone."""
        first = identifier.bytes[:CONTENT_BYTES]
        return UUID(bytes=first + _mac(self._keys[0], first))


def _mac(key: bytes, first: bytes) -> bytes:
    return hmac.digest(key, first, "sha256")[:_MAC_BYTES]
