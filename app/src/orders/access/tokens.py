"""Access tokens: who sent a request, by a signature of the identity provider's and the claims that it signed."""

import time
from collections import OrderedDict
from collections.abc import Mapping
from hmac import compare_digest
from typing import Literal, NamedTuple, TypeVar

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from orders import metrics
from orders.access.keys import Keys
from orders.access.schemas import Caller, granted
from orders.errors import UnauthorizedError, UnavailableError
from orders.ordering.schemas import CustomerId
from orders.settings import Settings

_CACHED, _VERIFIED, _REFUSED = (metrics.TOKENS.labels(outcome) for outcome in ("cached", "verified", "refused"))

T = TypeVar("T")

ALGORITHM = "RS256"
LEEWAY_SECONDS = 5
MOST_BYTES = 8192
MOST_KEPT = 4096
_REQUIRED = ("iss", "aud", "exp", "iat", "sub")

# What the client is told. Never the library's own words: they may quote the token.
_REASONS: Mapping[type[Exception], str] = {
    jwt.ExpiredSignatureError: "The token has expired.",
    jwt.ImmatureSignatureError: "The token is not valid yet.",
    jwt.InvalidAudienceError: "The token is for another audience.",
    jwt.InvalidIssuerError: "The token is of another issuer.",
    jwt.InvalidSignatureError: "The token's signature is wrong.",
    jwt.MissingRequiredClaimError: "The token lacks a claim.",
    jwt.InvalidTokenError: "The token is malformed.",
    msgspec.ValidationError: "The token is not an access token for this service.",
}


class _RealmAccess(msgspec.Struct):
    roles: list[str] = []


class _Claims(msgspec.Struct):
    sub: CustomerId
    exp: float
    typ: Literal["Bearer"]  # Keycloak's; an ID token has another
    realm_access: _RealmAccess = msgspec.field(default_factory=_RealmAccess)


class _LogIn(msgspec.Struct):
    """What an ID token says."""

    sub: CustomerId
    nonce: str
    typ: Literal["ID"]
    email: str = ""


class _Verified(NamedTuple):
    caller: Caller
    names: list[str]  # of its roles
    valid_until: float
    kid: str
    key: RSAPublicKey


class Tokens:
    """Verifies tokens, and knows those again that it verified: by the whole header, so that nothing is parsed twice."""

    def __init__(self, settings: Settings, keys: Keys) -> None:
        """Prepare to verify.

        Raises:
            SettingsError: the settings do not say whose tokens count.
        """
        self._provider = settings.identity_provider()
        self._keys = keys
        self._ring = keys.ring
        self._kept: OrderedDict[bytes, _Verified] = OrderedDict()

    async def verify(self, header: bytes) -> Caller:
        """Return who sends a request with this Authorization header, which is empty if there is none.

        Raises:
            UnauthorizedError: there is no token, or it does not count.
            UnavailableError: no key of the identity provider is known yet.
        """
        if self._keys.ring is not self._ring:
            self._forget()
        known = self._kept.get(header)
        if known is not None:
            if time.time() < known.valid_until:
                self._kept.move_to_end(header)
                _CACHED.inc()
                return known.caller
            del self._kept[header]
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer":
            raise UnauthorizedError
        try:
            verified = await self._verify(token)
        except UnauthorizedError:
            _REFUSED.inc()
            raise
        _VERIFIED.inc()
        while len(self._kept) >= MOST_KEPT:
            self._kept.popitem(last=False)
        self._kept[header] = verified
        return verified.caller

    async def verify_granted(self, token: str) -> tuple[Caller, list[str]]:
        """Return whose an access token is, and the names of its roles.

        Raises:
            UnauthorizedError: it does not count.
            UnavailableError: no key of the identity provider is known yet.
        """
        verified = await self._verify(token.encode())
        return verified.caller, verified.names

    async def verify_login(self, token: str, client_id: str, nonce: str, subject: str) -> str:
        """Return what people know a subject by, from the ID token of a log-in.

        Raises:
            UnauthorizedError: the token does not count, or is of another log-in, client or subject.
            UnavailableError: no key of the identity provider is known yet.
        """
        claims, _, _ = await self._decode(token.encode(), client_id, _LogIn)
        if claims.sub != subject or not compare_digest(claims.nonce.encode(), nonce.encode()):
            raise UnauthorizedError("The log-in is another one.")
        return claims.email

    def _forget(self) -> None:
        """Forget what was verified by keys that are gone."""
        ring = self._ring = self._keys.ring
        gone = [header for header, known in self._kept.items() if ring.get(known.kid) != known.key]
        for header in gone:
            del self._kept[header]

    async def _verify(self, token: bytes) -> _Verified:
        claims, kid, key = await self._decode(token, self._provider.audience, _Claims)
        names = claims.realm_access.roles
        return _Verified(Caller(claims.sub, granted(names)), names, claims.exp + LEEWAY_SECONDS, kid, key)

    async def _decode(self, token: bytes, audience: str, kind: type[T]) -> tuple[T, str, RSAPublicKey]:
        if len(token) > MOST_BYTES:
            raise UnauthorizedError("The token is too long.")
        if not self._keys.ring:
            raise UnavailableError("The identity provider's keys are not known yet.")
        try:
            head = jwt.get_unverified_header(token)
            kid = head.get("kid")
            # Also before the key is looked for: only a token that could count may have keys read.
            if head.get("alg") != ALGORITHM or not isinstance(kid, str):
                raise UnauthorizedError("The token is not signed as the identity provider signs.")
            key = await self._keys.find(kid)
            if key is None:
                raise UnauthorizedError("The token's key is not the identity provider's.")
            found = jwt.decode(
                token,
                key,
                [ALGORITHM],
                {"require": list(_REQUIRED)},
                audience=audience,
                issuer=self._provider.issuer,
                leeway=LEEWAY_SECONDS,
            )
            return msgspec.convert(found, kind), kid, key
        except (jwt.InvalidTokenError, msgspec.ValidationError) as error:
            reason = next(_REASONS[kind] for kind in type(error).__mro__ if kind in _REASONS)
            raise UnauthorizedError(reason) from error
