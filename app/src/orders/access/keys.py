"""The identity provider's public keys: read in the background, kept while it is away, and shared by way of Valkey.

A request asks the identity provider for nothing, but for one thing: a token that names an unknown key has the keys read anew,
once for all who wait for it and seldom enough that nobody can make it a burden.
"""

import asyncio
import hashlib
import logging
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

import httpx
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm

from orders import metrics
from orders.hints import Hints
from orders.settings import Settings

_LOG = logging.getLogger(__name__)
_READ, _FAILED, _RECALLED = (metrics.KEY_READS.labels(outcome) for outcome in ("read", "failed", "recalled"))

READ_SECONDS = 1.0
RETRY_SECONDS = 1.0
FRESH_SECONDS = 300.0
ASK_AGAIN_SECONDS = 5.0  # so often at most tokens have the keys read
WAIT_SECONDS = 0.5
KEPT_SECONDS = 7 * 24 * 3600
LEAST_BITS = 2048

Keyring = Mapping[str, RSAPublicKey]


class KeysError(Exception):
    """An answer holds no keys."""


class _Key(msgspec.Struct):
    """A key that tokens are signed with, as RFC 7517 has it; one for another purpose does not decode."""

    kid: str
    n: str
    e: str
    kty: Literal["RSA"]
    use: Literal["sig"] = "sig"
    alg: Literal["RS256"] = "RS256"


class _KeySet(msgspec.Struct):
    keys: list[msgspec.Raw]


_KEY_SET = msgspec.json.Decoder(_KeySet)
_KEY = msgspec.json.Decoder(_Key)


def parse_keys(content: bytes) -> Keyring:
    """Return the keys that tokens may be signed with, by their identifiers; keys for other purposes are passed over.

    Raises:
        KeysError: the content is no key set, or has no such key.
    """
    found: dict[str, RSAPublicKey] = {}
    try:
        for raw in _KEY_SET.decode(content).keys:
            with suppress(msgspec.ValidationError, jwt.InvalidKeyError, ValueError):
                key = _KEY.decode(raw)
                number = RSAAlgorithm.from_jwk({"kty": key.kty, "n": key.n, "e": key.e})
                if isinstance(number, RSAPublicKey) and number.key_size >= LEAST_BITS:
                    found[key.kid] = number
    except (msgspec.DecodeError, RecursionError) as error:
        raise KeysError(f"no key set: {error}") from error
    if not found:
        raise KeysError("no RSA key for RS256 signatures in it")
    return found


class Keys:
    """The keys as they were read last. Once known they stay known, however long the identity provider is away."""

    def __init__(self, settings: Settings, hints: Hints) -> None:
        """Prepare to read.

        Raises:
            SettingsError: the settings do not say where.
        """
        self._url = settings.identity_provider().jwks_url
        # By address: what another identity provider gave out must not count, also while a deploy changes the setting.
        self._hint = f"jwks:{hashlib.sha256(self._url.encode()).hexdigest()[:32]}"
        self._hints = hints
        self._client = httpx.AsyncClient(verify=settings.tls() or True, timeout=READ_SECONDS, trust_env=False)
        self._reader: asyncio.Task[None] | None = None
        self._wanted = asyncio.Event()  # they are being read, or about to be
        self._coming = asyncio.Event()  # they were read; the next time has an event of its own
        self._ask_again_at = 0.0
        self._answered = False
        self._complained = False
        self._unkept = b""  # what Valkey is still to get
        self.ring: Keyring = {}  # replaced when a key came or went, never changed

    def start(self) -> None:
        """Begin to read; return at once."""
        self._reader = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Leave off reading."""
        if self._reader:
            self._reader.cancel()
            with suppress(asyncio.CancelledError):
                await self._reader
        await self._client.aclose()

    async def find(self, kid: str) -> RSAPublicKey | None:
        """Return the key with this identifier; one that is unknown may have come just now, so they are read again."""
        key = self.ring.get(kid)
        if key is None and (coming := self._ask()):
            with suppress(TimeoutError):
                async with asyncio.timeout(WAIT_SECONDS):
                    await coming.wait()
            key = self.ring.get(kid)
        return key

    def _ask(self) -> asyncio.Event | None:
        """Have the keys read, and return what tells when they were; none where tokens had them read a moment ago."""
        if not self._wanted.is_set():
            now = asyncio.get_running_loop().time()
            if now < self._ask_again_at:
                return None
            self._ask_again_at = now + ASK_AGAIN_SECONDS
            self._wanted.set()
        return self._coming

    async def _run(self) -> None:
        while True:
            self._wanted.set()
            await self._read()
            self._wanted.clear()
            coming, self._coming = self._coming, asyncio.Event()
            coming.set()
            if not self.ring:
                await self._recall()
            await self._rest(FRESH_SECONDS * random.uniform(0.9, 1.1) if self._answered else RETRY_SECONDS)  # noqa: S311

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(READ_SECONDS):
                response = await self._client.get(self._url)
            ring = parse_keys(response.raise_for_status().content)
        except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the keys of before count on)
            _FAILED.inc()
            if not self._complained:  # once, not once an attempt
                missing = "the last ones count on" if self.ring else "not ready until they are known"
                _LOG.warning("The identity provider's keys cannot be read from %s, %s: %r", self._url, missing, error)
            self._complained = True
            return
        _READ.inc()
        metrics.KEYS_READ_AT.set_to_current_time()
        self._answered, self._complained = True, False
        self._unkept = response.content
        self._adopt(ring, self._url)

    async def _recall(self) -> None:
        """Go by the keys that Valkey has, until the identity provider answers."""
        content = await self._hints.get(self._hint, KEPT_SECONDS)
        if content is None:
            return
        try:
            self._adopt(parse_keys(content), "Valkey, the identity provider being away")
        except KeysError as error:
            _LOG.warning("The keys in Valkey do not count: %s", error)
        else:
            _RECALLED.inc()

    def _adopt(self, ring: Keyring, source: str) -> None:
        if ring != self.ring:
            self.ring = ring
            _LOG.info("Tokens are verified by %s, from %s", ", ".join(ring), source)

    async def _rest(self, seconds: float) -> None:
        """Wait until the keys are to be read again, and see meanwhile that Valkey gets what was read."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while not self._wanted.is_set() and (left := until - loop.time()) > 0:
            if self._unkept and await self._hints.remember({self._hint: self._unkept}, KEPT_SECONDS):
                self._unkept = b""
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, RETRY_SECONDS) if self._unkept else left):
                    await self._wanted.wait()
