"""The second level of the catalogue's cache, in Valkey: what one replica of the service read, the others need not."""

import time

from orders.catalogue.cache import Entry
from orders.hints import Hints
from orders.tags import SHAPE

KEPT_SECONDS = 60
CLAIM_SECONDS = 1
_STAMP = 16  # hexadecimal digits
_SKEW_SECONDS = 0.5


class Shared:
    """Entries under their keys: of each the highest version, and of that the one that was read last, whoever comes last.

    Ages are by the clocks of the hosts, which are kept together; what comes from the future is passed over.
    """

    def __init__(self, hints: Hints) -> None:
        self._hints = hints

    async def find(self, key: str) -> Entry | None:
        """Return what Valkey has, however old; nothing where it is silent."""
        found = await self._hints.highest(_place(key))
        return _read(*found) if found else None

    async def claim(self, key: str) -> bool:
        """Return whether it is for this process to read the thing anew: for one of all that ask within a second."""
        return await self._hints.claim(f"{_place(key)}:claim", b"1", CLAIM_SECONDS) is None

    async def keep(self, key: str, entry: Entry) -> None:
        """Leave an entry to the others."""
        stamp = int((time.time() - entry.age) * 1e6)
        value = b"%0*x%b\n%b" % (_STAMP, stamp, entry.etag, entry.content)
        await self._hints.raise_to(_place(key), entry.version, value, KEPT_SECONDS)


def _place(key: str) -> str:
    return f"catalogue:{SHAPE}:{key}"


def _read(value: bytes, version: int) -> Entry | None:
    try:
        age = time.time() - int(value[:_STAMP], 16) / 1e6
        etag, content = value[_STAMP:].split(b"\n", 1)
    except ValueError:
        return None
    entry = Entry(content, loaded_at=time.monotonic() - max(age, 0.0), version=version)
    return entry if entry.etag == etag and age > -_SKEW_SECONDS else None
