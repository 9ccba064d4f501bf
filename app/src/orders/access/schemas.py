"""What a route asks for, and what a token or a session says."""

from collections.abc import Iterable, Mapping
from enum import Flag, auto

import msgspec


class Access(Flag):
    """What a route asks for: nothing, that one has proved who one is, or a role besides."""

    PUBLIC = auto()
    CUSTOMER = auto()
    OPERATOR = auto()
    SIGNED_IN = auto()


# By their names in the identity provider's realm. What else a realm has gives nothing here.
ROLES: Mapping[str, Access] = {"customer": Access.CUSTOMER, "operator": Access.OPERATOR}


def granted(names: Iterable[str]) -> Access:
    """Return what roles of the realm open."""
    access = Access.SIGNED_IN
    for name in names:
        access |= ROLES.get(name, Access.SIGNED_IN)
    return access


class Caller(msgspec.Struct, frozen=True):
    """Whose request it is."""

    subject: str
    roles: Access
    name: str = ""  # what people know the subject by, of a session
    cookie: bytes = b""  # the session's identifier, where there is one


class Me(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who asks; `name` is known of whoever logged in with a browser."""

    subject: str
    roles: list[str]
    name: str = ""


class Session(msgspec.Struct, frozen=True):
    """A log-in of a browser, as it is kept. Times are seconds since 1970."""

    key: str  # its own, so that no mistake on the way from the store hands out another's
    subject: str
    roles: list[str]
    name: str
    refresh_token: str
    ends_at: int
    checked_at: int
