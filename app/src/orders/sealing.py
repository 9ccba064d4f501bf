"""Personal data by field, sealed before it is stored: the database, its replicas and its backups hold nothing that can be read.

A sealed field is: version 1 of this form, the key's identifier (4 bytes), a nonce (12), and AES-256-GCM's ciphertext and tag. It is
bound to its place: in another table, column or row it does not open. The first key seals and all open, so that keys change
without a row being written again.
"""

import os
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from orders.settings import Settings, SettingsError

_VERSION = 1
_KEY_BYTES, _ID_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 4, 12, 16
_HEAD_BYTES = 1 + _ID_BYTES
MOST_ADDED = _HEAD_BYTES + _NONCE_BYTES + _TAG_BYTES  # bytes that sealing adds


class SealingError(Exception):
    """A field cannot be opened: its key is not here, or it was changed or moved. The message holds nothing of it."""


class Place(NamedTuple):
    """Where a field is stored."""

    table: str
    column: str
    row: str  # the row's primary key

    def __str__(self) -> str:
        return f"{self.table}.{self.column} of {self.row}"


class Sealer(Protocol):
    """Seals fields and opens them, all of a row in one call: whoever keeps the keys may be a network away."""

    async def seal(self, fields: Mapping[Place, bytes]) -> dict[Place, bytes]:
        """Return the fields as they may be stored, each at its place only."""

    async def open(self, fields: Mapping[Place, bytes]) -> dict[Place, bytes]:
        """Return what was sealed.

        Raises:
            SealingError: one of them cannot be opened; the message names its place and its key.
        """


class LocalSealer:
    """Seals by keys that this process has."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """Take the secrets that keys are derived from; the first seals.

        Raises:
            SettingsError: two of them have one identifier.
        """
        self._keys: dict[bytes, AESGCM] = {}
        for secret in secrets:
            identifier = _derive(secret, b"orders field key identifier", _ID_BYTES)
            if identifier in self._keys:
                raise SettingsError(
                    f"Two field keys have the identifier {identifier.hex()}. Make another in place of one."
                )
            self._keys[identifier] = AESGCM(_derive(secret, b"orders field key", _KEY_BYTES))
        self._newest = next(iter(self._keys))

    async def seal(self, fields: Mapping[Place, bytes]) -> dict[Place, bytes]:
        """Return the fields as they may be stored, by the first key."""
        return {place: self._seal(content, place) for place, content in fields.items()}

    async def open(self, fields: Mapping[Place, bytes]) -> dict[Place, bytes]:
        """Return what was sealed, by any of the keys.

        Raises:
            SealingError: one of them cannot be opened; the message names its place and its key.
        """
        return {place: self._open(sealed, place) for place, sealed in fields.items()}

    def _seal(self, content: bytes, place: Place) -> bytes:
        head = bytes([_VERSION]) + self._newest
        nonce = os.urandom(_NONCE_BYTES)
        return head + nonce + self._keys[self._newest].encrypt(nonce, content, _bound(head, place))

    def _open(self, sealed: bytes, place: Place) -> bytes:
        head, nonce, rest = (
            sealed[:_HEAD_BYTES],
            sealed[_HEAD_BYTES : MOST_ADDED - _TAG_BYTES],
            sealed[MOST_ADDED - _TAG_BYTES :],
        )
        if len(sealed) < MOST_ADDED or head[0] != _VERSION:
            raise SealingError(f"{place} is not sealed in a form that is known here.")
        key = self._keys.get(head[1:])
        if key is None:
            raise SealingError(f"{place} is sealed by the key {head[1:].hex()}, which is not here.")
        try:
            return key.decrypt(nonce, rest, _bound(head, place))
        except InvalidTag:
            # Without the cause, which says nothing.
            raise SealingError(
                f"{place} does not open by its key {head[1:].hex()}: it was changed, or sealed for another place."
            ) from None


def sealer(settings: Settings) -> Sealer:
    """Return what seals for this service.

    Raises:
        SettingsError: a key is missing or malformed; the message names its secret.
    """
    return LocalSealer(settings.field_keys())


def _derive(secret: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=purpose).derive(secret)


def _bound(head: bytes, place: Place) -> bytes:
    return head + msgspec.json.encode(place)
